"""The schedules a descent begins with: standard ones and those found on the teacher's trajectory,
ranked by the real model."""

from __future__ import annotations

from torch import Tensor

from ..solver import Plan
from ..student import Student
from ..teacher import Pairs
from ..trajectories import few_elements
from .initial import TrajectorySurrogate, surrogate_starts
from .selection import Selection

TRAJECTORIES = 8  # teacher rollouts the surrogate is read off
STANDARD = 4  # standard schedules, the best on those, that the real model screens
CANDIDATES = 6  # schedules found on them that the real model screens
DIFFERENT = 0.3  # in u: starts nearer to each other share a basin
SCREENING_NOISES = 16  # of the validation noises; they rank starts and standard schedules

Start = tuple[float, str, Tensor]
"""(error on the screening noises, name, u)."""


def screened_starts(
    student: Student,
    baselines: dict[str, Plan],
    teacher: Plan,
    training: Pairs,
    selection: Selection,
    wanted: int,
    seed: int,
) -> list[Start]:
    """The best starts that differ, best first; the report learns the baselines' errors.

    Args:
        wanted: how many starts, if there are so many.
        baselines: name -> standard plan; those with the student's steps and calls can be starts.
        teacher: made the training pairs.
    """
    few, report = selection.validation[:SCREENING_NOISES], selection.report
    taught = training[:TRAJECTORIES]
    surrogate = TrajectorySurrogate(
        taught.trajectories(teacher.table, student.model.coordinate), few_elements(taught.target)
    )
    scored: list[Start] = []
    likely = sorted(baselines, key=lambda name: surrogate.error(baselines[name].table))
    for name in likely[:STANDARD]:
        selection.tell(f"screening: {name}")
        plan = baselines[name]
        error = selection.error(plan, few)
        report.baselines[name]["screening_error"] = error
        if len(plan.sigmas) == student.steps + 1 and plan.table.model_calls == student.calls:
            scored.append((error, name, student.levels.from_sigmas(plan.sigmas)))
    best = report.best_baseline("screening_error")
    if best is not None:
        report.baselines[best]["validation_error"] = selection.error(baselines[best])
    found = surrogate_starts(
        surrogate,
        student.sampler.table,
        student.levels,
        student.steps,
        seed,
        lambda: selection.tell("searching starts on the teacher's trajectory"),
    )
    for i, u in enumerate(found[:CANDIDATES]):
        selection.tell("screening: starts from the teacher's trajectory")
        error = selection.error(student.plan(student.start(u)), few)
        scored.append((error, f"trajectory {i + 1}", u))
    kept: list[Start] = []
    for candidate in sorted(scored, key=lambda c: c[0]):
        if all(float((candidate[2] - k[2]).abs().max()) > DIFFERENT for k in kept):
            kept.append(candidate)
    return kept[:wanted]
