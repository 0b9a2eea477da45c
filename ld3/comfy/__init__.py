"""The only place that imports comfy: connects the method to a running ComfyUI."""
