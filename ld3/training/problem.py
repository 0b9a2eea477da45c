"""What a training is given: the student to learn, the teacher, and what competes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..few_parameters import FewParameters
from ..model import Model
from ..parameters import StepParameters
from ..solver_parameters import SolverParameters
from ..streams import Streams
from ..table import Discretization, SolverTable
from ..tracing import TracedSampler
from .candidates import Competitors
from .dode import NO_DODE
from .settings import TrainingSettings
from .steps_saved import Rival

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingProblem:
    """The student to learn and the teacher it is learned from.

    Attributes:
        sampler: the sampler to learn for.
        start_sigma, end_sigma: first and last level of the learned schedule; the last is 0 unless
            it is the first part of a split sampling.
        baselines: name -> sigmas of standard schedules, which compete.
        teacher_sampler: for D-ODE, whose teacher passes through the student's own states; None is
            the student's.
        own: sampler and scheduler the user would use otherwise, to count the steps saved; None if
            they are not counted.
        schedules: the baselines at any number of steps, for `TrainingSettings.also_steps`.
        standard: name of a baseline -> it at any number of steps, for the same count.
        image_features: for distances between images, see `ld3.metrics.Distance`.
        other_teacher: the teacher is another model, whose samples are in the store that a training
            receives: its outputs and states are not the student's.
        streams: of packed latents, whose errors the report tells one by one.
        always: baselines that are measured whatever the teacher's trajectories say of them.
    """

    model: Model
    sampler: TracedSampler
    teacher: Discretization
    start_sigma: float
    baselines: dict[str, Tensor] = field(default_factory=dict)
    end_sigma: float = 0.0
    teacher_sampler: TracedSampler | None = None
    schedules: Callable[[int], dict[str, Tensor]] | None = None
    own: Rival | None = None
    standard: Callable[[str], Rival] | None = None
    image_features: Callable[[Tensor], Tensor] | None = None
    other_teacher: bool = False
    always: tuple[str, ...] = ()
    streams: Streams | None = None

    def shares_first_call(self, table: SolverTable) -> bool:
        """Whether a student's first call is the teacher's, which is not repeated."""
        known = self.model.stateless and not self.other_teacher
        return known and self.teacher.table.starts_as(table)


def competitors_of(problem: TrainingProblem, settings: TrainingSettings) -> Competitors:
    """The student's parameters, and the standard schedules that its sampler can run."""
    model = problem.model
    start, end = problem.start_sigma, problem.end_sigma
    levels = StepParameters(model.coordinate, start, model.sigma_min, end, model.boundary)
    if not levels.room_for(settings.steps):
        raise ValueError(
            f"steps is {settings.steps}; between sigma {start:.4g} and "
            f"{levels.floor:.4g} there are not enough distinct noise levels: use fewer steps"
        )
    settings.check(problem.teacher.steps)
    parameters = SolverParameters.of_steps(problem.sampler, levels, model.sigma_max, settings.steps)
    _check_cfg_pp(problem, settings, levels)
    if model.boundary:
        _check_calls(problem.sampler, levels, settings.steps)
    if not settings.gradient:  # which learns the extras after the steps
        parameters = replace(parameters, decoupled=settings.decoupled, order=settings.order)
    baselines = {}
    for name, sigmas in problem.baselines.items():
        try:
            baselines[name] = problem.sampler.discretization(sigmas)
        except Exception as error:  # some samplers fail on some schedules
            logger.info("LD3: the standard schedule %s cannot be run: %s", name, error)
    always = tuple(name for name in problem.always if name in baselines)
    return Competitors(FewParameters(parameters), baselines, always)


def _check_calls(sampler: TracedSampler, levels: StepParameters, steps: int) -> None:
    """Raise ValueError if the calls of two models depend on how many steps each makes."""
    most, least = (
        sampler.table(levels.sigmas(levels.separated(torch.full((steps - 1,), u)))).model_calls
        for u in levels.bounds()
    )
    if most != least:
        raise ValueError(
            f"sampler {sampler.name!r} makes {least} or {most} model calls in {steps} steps, "
            "depending on how many of them each of the two models makes: choose another sampler"
        )


def _check_cfg_pp(
    problem: TrainingProblem, settings: TrainingSettings, levels: StepParameters
) -> None:
    """Raise ValueError for a CFG++ sampler together with what fits only others."""
    student = problem.sampler.table(levels.sigmas(levels.even(settings.steps)))
    if student.outputs != problem.teacher.table.outputs:
        named, is_one = f"sampler_name {problem.sampler.name!r}", student.outputs == 2
        one, other = (named, "teacher_sampler") if is_one else ("teacher_sampler", named)
        raise ValueError(
            f"{one} is a CFG++ sampler and {other} is not: a cfg means another strength for them, "
            "so their results never agree. Choose the same sampler for both"
        )
    if student.outputs == 2 and settings.gradient:
        raise ValueError(
            "optimizer is gradient, which does not know the second output of CFG++ samplers: "
            "choose gauss-newton, or a sampler_name without _cfg_pp"
        )
    if student.outputs == 2 and settings.dode:
        raise ValueError(f"learn is time steps + D-ODE: {NO_DODE}")
