"""LD3 for ComfyUI: learn few-step sampling schedules for your own model."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI asks for the nodes here; imported lazily, for tools that only read the package."""
    from .nodes import LD3Extension

    return LD3Extension()
