"""LD3 Training Options: the numbers that quality decides otherwise."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from .types import CATEGORY, TrainingOptionsType

HIDDEN = {"hidden": True}
"""Of widgets that this node replaces; those of older workflows keep their values."""


class LD3TrainingOptions(io.ComfyNode):
    """Numbers of a training for those who want to choose them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LD3TrainingOptions",
            display_name="LD3 Training Options",
            category=CATEGORY,
            description="Numbers of a training that quality or minutes decide otherwise. Connect "
            "it to the input options of LD3 Train Schedule. Most people do not need it.",
            search_aliases=["batch size", "iterations", "training noises", "LD3"],
            inputs=[
                io.Int.Input(
                    "iterations",
                    default=0,
                    min=0,
                    max=200,
                    tooltip="Optimization iterations of the best start. With gradient (Adam): "
                    "passes over the training noises. 0: as quality or minutes allow. Typical: 0.",
                ),
                io.Int.Input(
                    "training_noises",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Number of noises to learn from; a third as many decide which schedule "
                    "is kept. Each requires one sampling of the teacher. 0: as quality or minutes "
                    "allow. Typical: 0.",
                ),
                io.Int.Input(
                    "heldout_noises",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Number of test noises, on which the result competes with the best "
                    "standard schedule. 0: as quality or minutes allow. Typical: 0.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=4,
                    min=0,
                    max=256,
                    tooltip="Samples per model call, at most: fewer where memory does not "
                    "suffice. Larger can be faster; the result is the same up to rounding. 0: up "
                    "to 16, as many as memory is free for (4 on a CPU). Typical: 4.",
                ),
            ],
            outputs=[
                TrainingOptionsType.Output(
                    display_name="options", tooltip="For the input options of LD3 Train Schedule."
                )
            ],
        )

    @classmethod
    def execute(cls, **numbers: int) -> io.NodeOutput:
        return io.NodeOutput(numbers)


OPTIONS_INPUT = TrainingOptionsType.Input(
    "options",
    optional=True,
    tooltip="Numbers from LD3 Training Options, in place of those that quality decides. Typical: "
    "not connected.",
)


def with_options(widgets: dict[str, Any], options: dict[str, int] | None) -> dict[str, Any]:
    """Widgets with the numbers of a connected LD3 Training Options in place of their own."""
    return widgets | (options or {})
