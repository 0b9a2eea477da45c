"""Nodes of the bundled demo models: load one, and encode prompts for it."""

from __future__ import annotations

import logging

from comfy_api.v0_0_2 import io, ui

from ..demo import demo_model
from .types import CLEARED, show

logger = logging.getLogger(__name__)
CATEGORY = "LD3/demo"


class LD3DemoModel(io.ComfyNode):
    """Load a bundled text-to-emoji model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LD3DemoModel",
            display_name="LD3 Demo Model",
            category=CATEGORY,
            description="Loads a tiny text-to-emoji diffusion model (32x32 pixels, seconds on a "
            "CPU). Use it to try the pack without a download.",
            search_aliases=["emoji model", "tiny model", "test model", "flow model"],
            inputs=[
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Number of images in the empty latent. Time is proportional to it. "
                    "Typical: 1 to 16.",
                ),
                # Optional, and eps by default: prompts and workflows saved without it stay valid.
                io.Combo.Input(
                    "model",
                    options=demo_model.MODELS,
                    default=demo_model.DEFAULT,
                    optional=True,
                    tooltip="eps predicts noise, as Stable Diffusion 1.5 does; a good teacher uses "
                    "karras. flow is a rectified flow with shift 1, like Stable Diffusion 3 and "
                    "Flux; a good teacher uses beta. flow turbo is flow with a LoRA for 4 steps of "
                    "euler with the scheduler simple at cfg 1. The same prompts work for all.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="Demo model. It works with every core sampler node. Typical cfg: 1 to "
                    "4; flow turbo: 1.",
                ),
                io.Vae.Output(
                    tooltip="ComfyUI's pixel-space VAE, for VAE Decode. The demo model works on "
                    "pixels, so this VAE only rescales them.",
                ),
                io.Latent.Output(
                    tooltip="Empty latent of the demo model's size: 3 channels of 32x32.",
                ),
                io.Clip.Output(
                    tooltip="Words of emoji names, for LD3 Prompt List and CLIP Text Encode.",
                ),
            ],
        )

    @classmethod
    def execute(cls, batch_size: int = 1, model: str = demo_model.DEFAULT) -> io.NodeOutput:
        return io.NodeOutput(
            demo_model.load_demo_model(model),
            demo_model.load_demo_vae(),
            demo_model.empty_latent(batch_size),
            demo_model.DemoClip(),
        )


class LD3DemoPrompt(io.ComfyNode):
    """Encode a prompt for the demo model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LD3DemoPrompt",
            display_name="LD3 Demo Prompt",
            category=CATEGORY,
            description="Encodes a prompt for the LD3 Demo Model, which knows the words of "
            "Unicode's emoji names. Unknown words are ignored and listed on the node.",
            search_aliases=["emoji prompt", "demo text encode"],
            inputs=[
                io.String.Input(
                    "text",
                    default="grinning face",
                    tooltip="Prompt in words of emoji names, such as 'red apple', 'cat face' or "
                    "'red heart'. At most 12 words are used, in any order. Leave empty for the "
                    "negative prompt.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    tooltip="Positive or negative prompt for the LD3 Demo Model. Not usable with "
                    "other models.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        conditioning, unknown = demo_model.encode_prompt(text)
        if not unknown:
            show(cls, CLEARED)
            return io.NodeOutput(conditioning)
        message = f"Words the demo model does not know: {', '.join(unknown)}"
        logger.warning("LD3 Demo Prompt: %s (text: %r)", message, text)
        show(cls, message)
        return io.NodeOutput(conditioning, ui=ui.PreviewText(message))
