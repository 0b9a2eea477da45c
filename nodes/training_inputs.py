"""Inputs that both training nodes have."""

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
