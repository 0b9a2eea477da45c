"""Nodes of the bundled demo model: load it, and write prompts for it."""

from __future__ import annotations

import logging

from comfy_api.v0_0_2 import io, ui

from ..demo import model as demo_model
from .types import tell

log = logging.getLogger(__name__)
CATEGORY = "LD3/demo"


class LD3DemoModel(io.ComfyNode):
    """Load the tiny text-to-emoji model that comes with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LD3DemoModel",
            display_name="LD3 Demo Model",
            category=CATEGORY,
            description="A tiny text-to-emoji diffusion model (32x32 pixels, runs on a CPU in "
            "seconds) to try the pack with, without a download.",
            search_aliases=["emoji model", "tiny model", "test model"],
            inputs=[
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Number of pictures in the empty latent. More pictures take "
                    "proportionally longer. Typical: 1 to 16.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The demo model. It predicts noise (eps) on Stable Diffusion's noise "
                    "schedule and works with every core sampling node. Typical guidance (cfg): 1 "
                    "to 4.",
                ),
                io.Vae.Output(
                    tooltip="ComfyUI's pixel-space VAE: turns the model's latents into images. "
                    "The demo model works on pixels, so it only rescales.",
                ),
                io.Latent.Output(
                    tooltip="An empty latent of the model's size, 3 channels of 32x32, to start "
                    "sampling from.",
                ),
            ],
        )

    @classmethod
    def execute(cls, batch_size: int = 1) -> io.NodeOutput:
        return io.NodeOutput(
            demo_model.load_demo_model(),
            demo_model.load_demo_vae(),
            demo_model.empty_latent(batch_size),
        )


class LD3DemoPrompt(io.ComfyNode):
    """Turn words into conditioning for the demo model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LD3DemoPrompt",
            display_name="LD3 Demo Prompt",
            category=CATEGORY,
            description="Turns words into CONDITIONING for the LD3 Demo Model. It knows the words "
            "of Unicode's emoji names; a word it does not know is left out and named.",
            search_aliases=["emoji prompt", "demo text encode"],
            inputs=[
                io.String.Input(
                    "text",
                    default="grinning face",
                    tooltip="What to draw, in the words of emoji names, such as 'red apple', "
                    "'cat face' or 'red heart'. At most 12 words count, in any order. Empty: no "
                    "condition, for the negative prompt.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    tooltip="The prompt for the LD3 Demo Model, positive or negative. It fits no "
                    "other model.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        conditioning, unknown = demo_model.encode_prompt(text)
        if not unknown:
            tell(cls, "All words known")
            return io.NodeOutput(conditioning)
        message = f"Words the demo model does not know: {', '.join(unknown)}"
        log.warning("LD3 Demo Prompt: %s (text: %r)", message, text)
        tell(cls, message)
        return io.NodeOutput(conditioning, ui=ui.PreviewText(message))
