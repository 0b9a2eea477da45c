"""The parts of a training in which the training nodes differ: its samplers, teachers and rivals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ..schedule import MOST_CALLS
from ..tracing import TracedSampler
from ..training.steps_saved import Rival
from . import core_samplers, rivals
from .auto_teacher import TeacherOptions, teacher_options
from .requests import TrainingRequest
from .two_models import boundary_of, check_both_used


@dataclass(frozen=True, eq=False)
class TrainingSetup:
    """What is learned, from which teacher, and what it competes with.

    Attributes:
        sampler, teacher_sampler: SAMPLER or its name, after the input that errors name.
        teachers: the teacher's noise levels.
        schedules: number of steps -> standard schedules by name.
        boundary: of two models, see `ld3.experts`; 0 for one.
        start_sigma, end_sigma: first and last level of the learned schedule; the model's largest if
            the first is None.
        always: baselines that are measured in any case.
        own: running guider, sampler -> what the user would use otherwise.
        standard: sampler, name of a baseline -> it at any number of steps.
        teacher_facts, contents: what decides the teacher's samples besides model, guidance and
            noises; contents may be tensors and objects.
        described: what `ScheduleInfo` says of it.
    """

    sampler: tuple[str, Any]
    teacher_sampler: tuple[str, Any]
    teachers: TeacherOptions
    schedules: Callable[[int], dict[str, Tensor]]
    own: Callable[[Any, TracedSampler], Rival | None]
    standard: Callable[[TracedSampler, str], Rival]
    teacher_facts: dict[str, Any]
    described: dict[str, Any]
    contents: tuple[Any, ...] = ()
    always: tuple[str, ...] = ()
    start_sigma: float | None = None
    end_sigma: float = 0.0
    boundary: float = 0.0

    def check_masked(self) -> None:
        """Raise ValueError, naming the input, for a sampler that draws noise under a mask."""
        for name, sampler in (self.sampler, self.teacher_sampler):
            if isinstance(sampler, str):
                sampler = core_samplers.sampler_object(sampler)
            if sampler.inpaint_options.get("random"):
                raise ValueError(
                    f"{name} is {core_samplers.sampler_label(sampler)!r}, which draws noise of its "
                    "own where latent_image is masked; choose 'euler', which is the same sampler "
                    "with the noise of the rest"
                )

    def traced(self, wrap: Any, sigmas: Tensor) -> TracedSampler:
        """The student's sampler in a running guider, checked at some sigmas (N+1,)."""
        found = core_samplers.widget_sampler(*self.sampler, sigmas, wrap, self.boundary)
        calls = found.table(sigmas).model_calls
        if calls > MOST_CALLS:
            raise ValueError(
                f"{self.sampler[0]}: it makes {calls} model calls in {len(sigmas) - 1} steps; a "
                f"schedule can have {MOST_CALLS} at most: use fewer steps, or another sampler"
            )
        return found

    def traced_teacher(self, wrap: Any) -> TracedSampler:
        """The teacher's."""
        sigmas = self.teachers.sigmas[self.teachers.first]
        return core_samplers.widget_sampler(*self.teacher_sampler, sigmas, wrap, self.boundary)


def setup_of_widgets(guider: Any, request: TrainingRequest) -> TrainingSetup:
    """What LD3 Train Schedule says.

    Raises:
        ValueError: teacher_scheduler has fewer levels than teacher_steps, or two models have a
            boundary that leaves one of them no step.
    """
    model, boundary = guider.model_patcher, boundary_of(guider)
    teachers = teacher_options(model, request)
    for sigmas in teachers.sigmas.values():
        check_both_used(guider, sigmas)
    whole = request.denoise > 0.9999
    return TrainingSetup(
        ("sampler_name", request.sampler_name),
        ("teacher_sampler", request.teacher_sampler),
        teachers,
        lambda steps: core_samplers.standard_schedules(
            model, request.sampler_name, steps, request.denoise
        ),
        lambda wrap, sampler: rivals.own(
            model, wrap, request, boundary, sampler.table(teachers.sigmas[teachers.first]).outputs
        ),
        partial(rivals.standard, model, request),
        teacher_facts=request.teacher_facts(),
        described={
            "sampler": request.sampler_name,
            "denoise": request.denoise,
            "teacher": {
                "sampler": request.teacher_sampler,
                "steps": request.teacher_steps,
                "requested": request.teacher_scheduler,
            },
        },
        start_sigma=None if whole else float(teachers.sigmas[teachers.first][0]),
        boundary=boundary,
    )
