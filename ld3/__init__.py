"""Learn few-step sampling schedules for any diffusion model. Pure torch: nothing here imports
comfy.

The way through: `solver` reads a sampler as a triangular matrix, `rollout` runs it with a denoiser,
`teacher` makes many-step targets, `training` learns the noise levels, `schedule` saves them.
`ld3.comfy` alone connects all this to ComfyUI.
"""
