"""Inputs that several nodes have."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..ld3.comfy.requests import ALSO_SHARE


def also_steps_input() -> io.String.Input:
    """Further numbers of steps."""
    return io.String.Input(
        "also_steps",
        default="",
        optional=True,
        advanced=True,
        tooltip="Further numbers of steps to learn, such as 3, 6, 8: each costs about "
        f"{ALSO_SHARE:.0%} of the model calls of quality. LD3 Load Schedule then offers all "
        "numbers from the smallest to the largest; those between are interpolated. Typical: empty.",
    )


FOR_SAMPLING = (
    "Second of two models (Wan 2.2 low noise), for schedules that were learned for two: it samples "
    "below the schedule's boundary, model above it. Typical: not connected."
)


def low_noise_model_input(tooltip: str) -> io.Model.Input:
    """The second of two models."""
    return io.Model.Input("low_noise_model", optional=True, tooltip=tooltip)


def boundary_input() -> io.Float.Input:
    """From which noise level on the second of two models samples."""
    return io.Float.Input(
        "boundary",
        default=0.875,
        min=0.0,
        max=1000.0,
        step=0.005,
        round=0.0001,
        optional=True,
        advanced=True,
        tooltip="For two models only: the noise level (sigma) below which the second samples. How "
        "many steps each makes follows from the learned noise levels. Wan 2.2: 0.875 for text, 0.9 "
        "for image to video.",
    )
