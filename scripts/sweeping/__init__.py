"""Many trainings on many ComfyUI servers; `scripts/sweep.py` is the command."""
