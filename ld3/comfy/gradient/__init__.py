"""What the gradient optimizer needs of ComfyUI: a differentiable model, and a check of it."""
