"""Noise levels as text that core's ManualSigmas reads."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

DIGITS = 7  # significant: float32 has no more


def manual_sigmas(sigmas: Sequence[float]) -> str:
    """Sigmas separated by commas, in fixed-point notation: its parser reads no exponents.

    Source: ComfyUI 0.30.0, comfy_extras/nodes_custom_sampler.py, ManualSigmas.
    """
    return ", ".join(_fixed(sigma) for sigma in sigmas)


def _fixed(value: float) -> str:
    text = format(Decimal(f"{value:.{DIGITS}g}"), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
