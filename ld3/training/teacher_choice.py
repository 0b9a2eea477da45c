"""Choose among teachers by a short test: whose samples are closest to those of twice the steps.

A teacher that is good on most noises can be wrong on a few, which it leads into another mode. Such
noises are rare, so a few noises judged at random miss them. But on them candidates disagree: all
candidates sample some noises, and the expensive reference samples only those few on which their
samples differ most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..metrics import rmse
from ..model import Model
from ..parameters import Coordinate
from ..table import Discretization
from ..teacher import TargetStore, UndefinedSamples, sample_teacher
from .report import finite

LEAST_NOISES, MOST_NOISES = 8, 16  # that all candidates sample
JUDGED_NOISES = 3  # of them, that the reference samples
CLEARLY_WORSE = 2.0  # times another candidate's error
NEGLIGIBLE = 0.01  # error over the samples' standard deviation, below which none is worse


@dataclass(frozen=True, eq=False)
class Candidate:
    """A teacher to test, and where its samples are kept for the training."""

    solver: Discretization
    store: TargetStore | None = None


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
        return {
            "errors": self.errors,
            "deviation": self.deviation,
            "reference_steps": self.reference_steps,
            "calls": self.calls,
        }


def checked_noises(training_noises: int, batch_size: int) -> int:
    """How many of the training noises all candidates sample.

    Whole batches if they are not large: the training then finds the chosen teacher's samples.
    """
    batches = -(-LEAST_NOISES // batch_size) * batch_size
    return min(batches if batches <= MOST_NOISES else LEAST_NOISES, training_noises)


def planned_calls(
    candidates: Mapping[str, Candidate], reference: Discretization, noises: int
) -> int:
    """Model calls of `check_teachers` without stored samples."""
    sampled = sum(candidate.solver.table.model_calls for candidate in candidates.values())
    return noises * sampled + min(JUDGED_NOISES, noises) * reference.table.model_calls


def check_teachers(
    model: Model,
    candidates: Mapping[str, Candidate],
    reference: Discretization,
    noise: Tensor,
    latent: Tensor,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> TeacherCheck:
    """Test candidates on noises and latents (n, *latent), see the module.

    Args:
        candidates: by name; disagreement is measured to the first.
        reference: a teacher in more steps than the candidates, best one of them in twice as many.
        on_stage: called before every batch with what follows; may raise an interrupt.
    """
    before = model.calls
    samples = {}
    for name, candidate in candidates.items():
        stage = f"checking the teacher: {name}"
        try:
            found = sample_teacher(
                model, candidate.solver, noise, latent, candidate.store, lambda s=stage: on_stage(s)
            )
            samples[name] = found.target
        except UndefinedSamples:
            continue
    errors: dict[str, float | None] = dict.fromkeys(candidates)
    deviation = None
    if samples:
        judged = _differing(list(samples.values()))
        try:
            stage = "checking the teacher: reference"
            target = sample_teacher(
                model, reference, noise[judged], latent[judged], None, lambda: on_stage(stage)
            ).target
            errors |= {
                n: finite(float(rmse(x[judged] - target).mean())) for n, x in samples.items()
            }
            deviation = finite(float(target.std()))
        except UndefinedSamples:
            pass
    return TeacherCheck(errors, deviation, reference.steps, model.calls - before)


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
