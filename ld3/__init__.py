"""Learn few-step sampling schedules for any diffusion model. Only `ld3.comfy` imports ComfyUI.

`tracing` reads a sampler as a triangular matrix (`table`), `teacher` makes many-step samples,
`training` learns, `schedule` saves. See docs/architecture.md.
"""
