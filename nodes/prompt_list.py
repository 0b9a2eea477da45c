"""LD3 Prompt List: several prompts for one training."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..ld3.comfy.prompts import prompt_list
from .types import CATEGORY, reporting


class LD3PromptList(io.ComfyNode):
    """Encode several prompts, one per line, to learn a schedule from all of them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LD3PromptList",
            display_name="LD3 Prompt List",
            category=CATEGORY,
            description="Encodes several prompts, one per line, for the node that trains: the "
            "schedule is learned from all of them and fits other prompts better.",
            search_aliases=["prompts", "several prompts", "LD3"],
            inputs=[
                io.Clip.Input("clip", tooltip="Text encoder of the model."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    tooltip="Prompts, one per line; empty lines are left out. From 4 prompts on, "
                    "one in four is not learned from: the result is tested with these. Typical: 8 "
                    "prompts of the kind you use.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    tooltip="For positive of LD3 Train Schedule, or the guider of LD3 Train "
                    "Schedule (Advanced). Do not sample with it: samplers add the prompts up.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip, text: str) -> io.NodeOutput:
        with reporting(cls):
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            if not lines:
                raise ValueError("text has no prompt; write one prompt per line")
            encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(line)) for line in lines]
        return io.NodeOutput(prompt_list(encoded))
