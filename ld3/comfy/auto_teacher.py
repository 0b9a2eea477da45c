"""Which schedulers are tried as teachers of a model, and their noise levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..parameters import check_sigmas
from ..training.teacher_choice import mean_sigmas
from . import core_samplers
from .requests import AUTO, TrainingRequest

KARRAS_BETA = "karras+beta"
# the first is the start, the others are tested against it; docs/benchmarks.md, "Which teacher"
FLOW_TEACHERS = (KARRAS_BETA, "karras")
OTHER_TEACHERS = ("exponential", "karras")
# below denoise 1 schedulers start at different levels and cannot be compared
SAME_START = 1e-3  # relative: schedulers round their first level differently
PARTIAL_FLOW_TEACHER, PARTIAL_TEACHER = "simple", "karras"


@dataclass(frozen=True, eq=False)
class TeacherOptions:
    """The noise levels of teachers to test.

    Attributes:
        sigmas: by scheduler, each (N+1,); the first is the one requested, or auto's start.
        reference: (2N+1,) the levels of the test's reference; None if nothing can be tested.
        automatic: the test chooses among the schedulers.
    """

    sigmas: dict[str, Tensor]
    reference: Tensor | None = None
    automatic: bool = False

    @property
    def first(self) -> str:
        """The scheduler requested, or auto's start."""
        return next(iter(self.sigmas))


def teacher_options(model: Any, request: TrainingRequest) -> TeacherOptions:
    """The teachers to test for a request.

    Raises:
        ValueError: the scheduler requested has fewer levels than teacher_steps.
    """
    first, *others = _schedulers(model, request)
    sigmas = {first: _sigmas(model, request, first, request.teacher_steps)}
    try:
        check_sigmas(sigmas[first])
    except ValueError as error:
        raise ValueError(
            f"teacher_steps is {request.teacher_steps}; the scheduler {first!r} has fewer distinct "
            "noise levels: use fewer teacher_steps, or another teacher_scheduler"
        ) from error
    for name in others:
        levels = _sigmas(model, request, name, request.teacher_steps)
        if _usable(levels) and torch.isclose(levels[0], sigmas[first][0], rtol=SAME_START):
            sigmas[name] = levels
    reference = None
    if len(sigmas) > 1:
        start = first if request.teacher_scheduler == AUTO else list(sigmas)[1]
        reference = _sigmas(model, request, start, 2 * request.teacher_steps)
    usable = reference is not None and _usable(reference)
    automatic = request.teacher_scheduler == AUTO
    return TeacherOptions(sigmas, reference if usable else None, automatic)


def _schedulers(model: Any, request: TrainingRequest) -> list[str]:
    """The scheduler requested, or auto's start, and those it is tested against."""
    flow = core_samplers.is_flow(model.get_model_object("model_sampling"))
    requested = request.teacher_scheduler
    if request.denoise < 0.9999:
        auto = PARTIAL_FLOW_TEACHER if flow else PARTIAL_TEACHER
        return [auto if requested == AUTO else requested]
    known = FLOW_TEACHERS if flow else OTHER_TEACHERS
    if requested == AUTO:
        return list(known)
    return [requested, next(name for name in known if name != requested)]


def _usable(sigmas: Tensor) -> bool:
    try:
        check_sigmas(sigmas)
    except ValueError:
        return False
    return True


def _sigmas(model: Any, request: TrainingRequest, scheduler: str, steps: int) -> Tensor:
    return teacher_sigmas(model, (request.teacher_sampler, scheduler), steps, request.denoise)


def teacher_sigmas(model: Any, names: tuple[str, str], steps: int, denoise: float) -> Tensor:
    """KSampler's sigmas for a teacher's sampler and scheduler: (steps+1,) float32."""
    sampler, scheduler = names

    def of(name: str) -> Tensor:
        return core_samplers.scheduler_sigmas(model, sampler, name, steps, denoise)

    if scheduler != KARRAS_BETA:
        return of(scheduler)
    coordinate = core_samplers.coordinate(model.get_model_object("model_sampling"))
    return mean_sigmas(of("karras"), of("beta"), coordinate)
