"""Choose among teachers by a short test: whose samples are closest to those of twice the steps.

A teacher that is good on most noises can be wrong on a few, which it leads into another mode. Such
noises are rare, so a few noises judged at random miss them. But on them candidates disagree: all
candidates sample some noises, and the expensive reference samples only those few on which their
samples differ most. The first candidate is the one that is seldom wrong: another must be better on
two sets of noises taken together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..json_types import built
from ..metrics import rmse
from ..model import Model
from ..parameters import Coordinate
from ..table import Discretization
from ..teacher import Targets, UndefinedSamples, sample_teacher
from .report import finite

Noises = tuple[Tensor, Tensor]
"""Start noises and the latents they are added to, each (n, *latent)."""
LEAST_NOISES, MOST_NOISES = 8, 16  # that all candidates sample in a round
JUDGED_NOISES = 3  # of them, that the reference samples
ROUNDS = 2
CLEARLY_WORSE = 2.0  # times another candidate's error
NEGLIGIBLE = 0.01  # error over the samples' standard deviation, below which none is worse


@dataclass(frozen=True, eq=False)
class Candidate:
    """A teacher to test, and where its samples are kept for the training."""

    solver: Discretization
    store: Targets | None = None


@dataclass(frozen=True)
class TeacherCheck:
    """The result of a test; a number that is infinite or undefined is None.

    Attributes:
        errors: by candidate, the mean RMSE of its samples to the reference's on the noises on which
            candidates differ most. Where all agree, this is about the mean over many noises; where
            single noises change modes, it is of the order of that mean, not an estimate of it.
        deviation: standard deviation of the reference's samples, to compare errors with.
        reference_steps: of the reference.
        calls: model calls made.
    """

    errors: dict[str, float | None]
    deviation: float | None
    reference_steps: int
    calls: int

    @property
    def best(self) -> str:
        """The candidate with the smallest error; the first if none was measured."""
        known = {name: error for name, error in self.errors.items() if error is not None}
        return min(known, key=lambda name: known[name]) if known else next(iter(self.errors))

    def better_than(self, name: str) -> str | None:
        """The best candidate if `name` is clearly worse, by a difference that matters."""
        error, least = self.errors[name], self.errors[self.best]
        if least is None or self.deviation is None:
            return None
        if error is None:
            return self.best
        clear = error > CLEARLY_WORSE * least and error > NEGLIGIBLE * self.deviation
        return self.best if clear else None

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)

    @staticmethod
    def of_teacher(teacher: dict[str, Any]) -> TeacherCheck | None:
        """The test of a file's teacher (`ScheduleInfo.teacher`), if there was one.

        ValueError if it is none.
        """
        if teacher.get("check") is None:
            return None
        found = built(TeacherCheck, teacher["check"])
        if teacher.get("scheduler") not in list(found.errors):
            raise ValueError("the teacher's check is of others")
        return found


def checked_noises(training_noises: int, batch_size: int) -> int:
    """How many of the training noises all candidates sample in a round.

    Whole batches if they are not large: the training then finds the chosen teacher's samples.
    """
    batches = -(-LEAST_NOISES // batch_size) * batch_size
    return min(batches if batches <= MOST_NOISES else LEAST_NOISES, training_noises)


def rounds_of(noise: Tensor, latent: Tensor, count: int) -> list[Noises]:
    """The rounds of a check: of training noises and latents (n, *latent), two times `count`.

    One round if there are fewer.
    """
    rounds = list(zip(noise.split(count), latent.split(count), strict=True))[:ROUNDS]
    return [part for part in rounds if len(part[0]) == count]


def planned_calls(
    candidates: Mapping[str, Candidate], reference: Discretization, rounds: Sequence[Noises]
) -> int:
    """Model calls of `check_teachers` if it needs all rounds and no sample is stored."""
    sampled = sum(candidate.solver.table.model_calls for candidate in candidates.values())
    calls = reference.table.model_calls
    return sum(len(n) * sampled + min(JUDGED_NOISES, len(n)) * calls for n, _ in rounds)


def check_teachers(
    model: Model,
    candidates: Mapping[str, Candidate],
    reference: Discretization,
    rounds: Sequence[Noises],
    on_stage: Callable[[str], None] = lambda stage: None,
) -> TeacherCheck:
    """Test candidates, see the module.

    Args:
        candidates: by name; disagreement is measured to the first.
        reference: a teacher in more steps than the candidates, best one of them in twice as many.
        rounds: at least one; the next is needed only where the first candidate is not the best.
        on_stage: called before every batch with what follows; may raise an interrupt.
    """
    before, errors, deviations = model.calls, {name: [] for name in candidates}, []
    found = TeacherCheck(dict.fromkeys(candidates), None, reference.steps, 0)
    for noises in rounds:
        measured, deviation = _round(model, candidates, reference, noises, on_stage)
        for name, error in measured.items():
            errors[name].append(error)
        deviations.append(deviation)
        means = {name: finite(fmean(values)) for name, values in errors.items()}
        found = replace(found, errors=means, deviation=finite(fmean(deviations)))
        if found.best == next(iter(candidates)):
            break
    return replace(found, calls=model.calls - before)


def _round(
    model: Model,
    candidates: Mapping[str, Candidate],
    reference: Discretization,
    noises: Noises,
    on_stage: Callable[[str], None],
) -> tuple[dict[str, float], float]:
    """Errors of all candidates, infinite where undefined, and the deviation of the reference."""

    def sampled(name: str, candidate: Candidate, noise: Tensor, latent: Tensor) -> Tensor | None:
        stage = partial(on_stage, f"checking the teacher: {name}")
        try:
            solver, store = candidate.solver, candidate.store
            return sample_teacher(model, solver, noise, latent, store, stage).target
        except UndefinedSamples:
            return None

    samples = {name: sampled(name, found, *noises) for name, found in candidates.items()}
    errors, defined = (
        dict.fromkeys(candidates, math.inf),
        [s for s in samples.values() if s is not None],
    )
    if not defined:
        return errors, math.inf
    judged = _differing(defined)
    noise, latent = (part[judged] for part in noises)
    target = sampled("reference", Candidate(reference), noise, latent)
    if target is None:
        return errors, math.inf
    for name, found in samples.items():
        if found is not None:
            errors[name] = float(rmse(found[judged] - target).mean())
    return errors, float(target.std())


def _differing(samples: list[Tensor]) -> Tensor:
    """Indices, ascending, of the noises on which some sample differs most from the first's."""
    first, *others = samples
    differences = [rmse(other - first) for other in others] or [torch.zeros(len(first))]
    largest = torch.stack(differences).max(0).values
    return largest.topk(min(JUDGED_NOISES, len(first))).indices.sort().values.cpu()


def mean_sigmas(sigmas: Tensor, others: Tensor, coordinate: Coordinate) -> Tensor:
    """The schedule halfway between two in the model's coordinate: as many levels as `sigmas`.

    Args:
        sigmas, others: (N+1,) and (K+1,) that start and end at the same levels.
    """
    u, v = (coordinate.from_sigma(levels[1:-1]) for levels in (sigmas, others))
    if len(u) != len(v):  # a scheduler leaves out levels it repeats
        places, known = np.linspace(0, 1, len(u)), np.linspace(0, 1, len(v))
        v = torch.from_numpy(np.interp(places, known, v.numpy()))
    return torch.cat([sigmas[:1], coordinate.to_sigma((u + v) / 2).float(), sigmas[-1:]])
