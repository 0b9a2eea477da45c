"""A GUIDER for high noise and another for low noise, in one sampling; see `ld3.experts`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
from torch import Tensor

from ..experts import check_boundary
from .guiders import cfg_guider, check_guider, check_same_latents
from .memory import activations, models_of

LOW_MODEL, LOW_GUIDER = "low_noise_model", "low_noise_guider"


@dataclass(frozen=True, eq=False)
class TwoGuiders:
    """Where one GUIDER is expected: `high` samples at and above the boundary, `low` below it."""

    high: Any
    low: Any
    boundary: float

    @property
    def model_patcher(self) -> Any:
        """The high-noise MODEL, whose noise levels and latents are those of both."""
        return self.high.model_patcher


def guiders_in(guider: Any) -> tuple[Any, ...]:
    """The GUIDER itself, or both of two."""
    return (guider.high, guider.low) if isinstance(guider, TwoGuiders) else (guider,)


def boundary_of(guider: Any) -> float:
    """The noise level from which on the second of two samples; 0 for one."""
    return guider.boundary if isinstance(guider, TwoGuiders) else 0.0


def guider_of_models(
    models: tuple[Any, Any], conds: tuple[Any, Any], cfg: float, boundary: float
) -> Any:
    """Core's guider for a MODEL with two prompts, or two of them if the second is not None."""
    high, low = models
    guider = cfg_guider(high, *conds, cfg)
    if low is None:
        return guider
    check_same_latents(high, low, ("model", LOW_MODEL))
    return TwoGuiders(guider, cfg_guider(low, *conds, cfg), boundary)


def together(guider: Any, low: Any, boundary: float, names: tuple[str, str]) -> Any:
    """A connected GUIDER, or both; ValueError, naming the inputs, unless they fit together."""
    check_guider(names[0], guider)
    if low is None:
        return guider
    check_guider(names[1], low)
    check_same_latents(guider.model_patcher, low.model_patcher, names)
    return TwoGuiders(guider, low, boundary)


def check_both_used(guider: Any, sigmas: Tensor) -> None:
    """Raise ValueError unless a teacher with these sigmas (N+1,) uses both of two models."""
    boundary = boundary_of(guider)
    if not isinstance(guider, TwoGuiders):
        return
    if not math.isfinite(boundary):
        raise ValueError(f"boundary is {boundary}; use a noise level, such as Wan's 0.875")
    check_boundary(sigmas, boundary, "the teacher")


@dataclass
class Turns:
    """Which of two running guiders' models is on the device, where not both may fit.

    Attributes:
        wraps: the running guiders.
        shape: of the batch that memory is reserved for.
        kept: other models that must stay there.
        last: which was loaded last.
    """

    wraps: tuple[Any, Any]
    shape: tuple[int, ...]
    kept: list[Any] = field(default_factory=list)
    last: int = 1

    def stay_with(self, model: Any) -> None:
        """The first guider's model has been loaded together with another one, which must stay."""
        self.kept.append(model)
        self.last = 0

    def take(self, number: int) -> None:
        """Load one of them, unless it was the last one to be loaded."""
        if number == self.last:
            return
        wrap = self.wraps[number]
        comfy.model_management.load_models_gpu(
            [*models_of(wrap), *self.kept],
            memory_required=activations(wrap.model_patcher, [self.shape[1:]], self.shape[0]),
        )
        self.last = number
