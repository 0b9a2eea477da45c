"""What every method receives and what it returns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from benchmarks.problems.live_model import LiveModel
from benchmarks.problems.problem import TRAINING_SEED, Problem
from ld3.table import Discretization
from ld3.teacher import TeacherSamples


@dataclass(frozen=True)
class Trial:
    """A sampler with a number of steps, to be improved on a problem.

    Attributes:
        problem, live: the problem, and its model where it can be called.
        sampler: of the student.
        steps: N.
        seed: of the training noises and of all other random choices.
    """

    problem: Problem
    live: LiveModel
    sampler: str
    steps: int
    seed: int

    def noises(self, count: int) -> Tensor:
        """Training noises of this seed, (count, *shape)."""
        return self.problem.noises(count, TRAINING_SEED + self.seed)

    def teacher_samples(self, count: int) -> TeacherSamples:
        """These noises with the teacher's samples, counted in `live.model.calls`."""
        return self.problem.teacher_samples(self.live, count, TRAINING_SEED + self.seed)

    @contextmanager
    def training_batches(self) -> Iterator[None]:
        """While the context lasts, the model is called with the problem's `training_batch`."""
        model = self.live.model
        usual, model.batch_size = model.batch_size, self.problem.training_batch
        try:
            yield
        finally:
            model.batch_size = usual


class Result(NamedTuple):
    """A solver with its schedule, and the calls needed to find it."""

    solver: Discretization
    model_calls: int = 0
    teacher_calls: int = 0
