"""What a learned schedule is compared with in more steps, to count the steps it saves."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from ..table import Discretization
from ..tracing import TracedSampler
from ..training.steps_saved import (
    MOST_OWN,
    MOST_STANDARD,
    OWN_MULTIPLES,
    STANDARD_MULTIPLES,
    Rival,
)
from . import core_samplers
from .requests import AUTO, TrainingRequest

FLOW = ("euler", "simple")
"""What most people sample flow models with."""


def own(
    model: Any,
    model_wrap: Any,
    request: TrainingRequest,
    boundary: float = 0.0,
    outputs: int = 1,
) -> Rival | None:
    """The sampler and scheduler of compare_sampler and compare_scheduler.

    "auto" is euler and simple for flow models; for others the student's sampler and karras. A CFG++
    sampler is compared with itself. None if both are auto and cannot run.

    Args:
        outputs: per call of the student's sampler, see `ld3.table`.

    Raises:
        ValueError: they cannot run; names the widget.
    """
    flow = core_samplers.is_flow(model.get_model_object("model_sampling"))
    usual = FLOW if flow else (request.sampler_name, "karras")
    if outputs == 2:
        usual = request.sampler_name, usual[1]
    chosen = (request.compare_sampler, request.compare_scheduler)
    sampler, scheduler = (u if c == AUTO else c for c, u in zip(chosen, usual, strict=True))
    schedule = core_samplers.scheduler_sigmas(
        model, sampler, scheduler, request.steps, request.denoise
    )
    try:
        traced = core_samplers.widget_sampler(
            "compare_sampler", sampler, schedule, model_wrap, boundary
        )
        solver = partial(_solver, model, traced, (sampler, scheduler), request.denoise)
        if solver(request.steps).table.outputs != outputs:
            raise ValueError(
                f"compare_sampler is {sampler!r} and sampler_name {request.sampler_name!r}, one of "
                "which is a CFG++ sampler: a cfg means another strength for it. Choose "
                f"{request.sampler_name!r} to compare with, or auto"
            )
        return _rival(solver, (sampler, scheduler), request.steps, OWN_MULTIPLES, MOST_OWN)
    except ValueError as error:
        if chosen == (AUTO, AUTO):
            return None
        if "compare_sampler" in str(error):
            raise
        raise ValueError(
            f"compare_scheduler is {scheduler!r}, which cannot make {request.steps} steps of "
            f"{sampler!r} ({error}): choose another one, or auto"
        ) from error


def standard(model: Any, request: TrainingRequest, traced: TracedSampler, scheduler: str) -> Rival:
    """The student's sampler with a standard scheduler."""
    names = request.sampler_name, scheduler
    solver = partial(_solver, model, traced, names, request.denoise)
    return _rival(solver, names, request.steps, STANDARD_MULTIPLES, MOST_STANDARD)


def _rival(
    solver: Callable[[int], Discretization],
    names: tuple[str, str],
    steps: int,
    multiples: tuple[int, ...],
    most: int,
) -> Rival:
    """Sampler and scheduler of these names, for a student of `steps`."""
    calls = most_calls(solver(steps), most)
    return Rival(" + ".join(names), solver, multiples, calls)


def most_calls(solver: Discretization, most: int) -> int:
    """Model calls per noise, at most, in `most` times the solver's steps, several runs together.

    Counted by calls per step, rounded up: some samplers, as heun, make one call less in their last
    step, so a longer run has more calls per step.
    """
    return most * solver.steps * math.ceil(solver.table.model_calls / solver.steps)


def _solver(
    model: Any, traced: TracedSampler, names: tuple[str, str], denoise: float, steps: int
) -> Discretization:
    return traced.discretization(core_samplers.scheduler_sigmas(model, *names, steps, denoise))
