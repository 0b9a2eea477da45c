"""A tiny text-to-emoji diffusion model, so that the pack can be tried without a download."""
