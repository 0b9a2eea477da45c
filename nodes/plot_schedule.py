"""LD3 Plot Schedule: noise levels as a picture, and as text for ManualSigmas."""

from __future__ import annotations

import torch
from comfy_api.v0_0_2 import io, ui

from ..ld3.manual_sigmas import manual_sigmas
from ..ld3.plots import levels_picture
from .types import CATEGORY, LD3Schedule, reporting

SCHEDULES = ("schedule", "schedule_2", "schedule_3")
SIGMAS = ("sigmas", "sigmas_2", "sigmas_3")


class LD3PlotSchedule(io.ComfyNode):
    """Draw the noise levels of schedules and SIGMAS in one picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LD3PlotSchedule",
            display_name="LD3 Plot Schedule",
            category=CATEGORY,
            description="Draws the noise levels of schedules and of any SIGMAS, and writes the "
            "first as text for core's ManualSigmas.",
            search_aliases=["show sigmas", "plot sigmas", "graph", "sigma curve", "LD3"],
            is_output_node=True,
            inputs=[
                *(
                    LD3Schedule.Input(name, optional=True, tooltip="Learned schedule to draw.")
                    for name in SCHEDULES
                ),
                *(
                    io.Sigmas.Input(
                        name, optional=True, tooltip="Noise levels of any scheduler node to draw."
                    )
                    for name in SIGMAS
                ),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="Noise level by step."),
                io.String.Output(
                    display_name="text",
                    tooltip="The first schedule's noise levels for the plain sampler, for the text "
                    "of ManualSigmas or another sampler's field.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        with reporting(cls):
            drawn = {}
            for name in SCHEDULES:
                schedule = inputs.get(name)
                if schedule is not None:
                    drawn[schedule.name or name] = schedule.plain_sigmas.tolist()
            for name in SIGMAS:
                if inputs.get(name) is not None:
                    drawn[name] = inputs[name].tolist()
            if not drawn:
                raise ValueError("nothing is connected: connect a schedule, or sigmas")
            text = manual_sigmas(next(iter(drawn.values())))
            picture = torch.from_numpy(levels_picture(drawn)).float()[None] / 255
        shown = ui.PreviewImage(picture, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        return io.NodeOutput(picture, text, ui=shown)
