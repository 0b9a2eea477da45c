"""Start noises and the many-step samples a student must reproduce."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from .model import Model
from .parameters import Coordinate
from .table import Discretization, SolverTable, rollout
from .trajectories import TeacherTrajectories, subsample

T = TypeVar("T")


class UndefinedSamples(ValueError):
    """Samples that contain infinite or undefined values."""


@dataclass(frozen=True, eq=False)
class TeacherSamples:
    """Noises, the latents they are added to, and the teacher's samples, all (n, *latent) float32.

    Attributes:
        history: (n, 1+M, few) on the CPU, a few elements of the teacher's rollouts: x_init, D_0, ..
            (see `ld3.trajectories`); None where they are not used.
        table: the teacher's, which made the history.
        first_output: its D_0 (n, *latent), which is also that of a student that starts at the same
            level; None where it is not kept.
    """

    noise: Tensor
    latent: Tensor
    target: Tensor
    history: Tensor | None = None
    table: SolverTable | None = None
    first_output: Tensor | None = None

    def __len__(self) -> int:
        return len(self.noise)

    def __getitem__(self, index: slice | Tensor) -> TeacherSamples:
        history = None if self.history is None else self.history[index]
        first = None if self.first_output is None else self.first_output[index]
        return TeacherSamples(
            self.noise[index], self.latent[index], self.target[index], history, self.table, first
        )

    @property
    def identity(self) -> list[Any]:
        """What tells these samples from others of a training, for `Model.answer`."""
        return [subsample(self.noise), self.first_output is None]

    def batches(self, model: Model) -> Iterator[TeacherSamples]:
        """Consecutive batches of at most the model's batch size, on its device."""
        for i in range(0, len(self), model.batch_size):
            yield self[i : i + model.batch_size].on_device(model)

    def by_batch(self, model: Model, work: Callable[[TeacherSamples], T]) -> Iterator[T]:
        """`work` of consecutive batches; one that memory does not suffice for is made smaller.

        Args:
            work: changes nothing but what it returns, since it may fail and be repeated.
        """
        done = 0

        def next_batch() -> tuple[T, int]:
            batch = self[done : done + model.batch_size].on_device(model)
            return work(batch), len(batch)

        while done < len(self):
            found, size = model.within_memory(next_batch)
            done += size
            yield found

    def on_device(self, model: Model) -> TeacherSamples:
        """The same samples on the model's device, without moving the history."""
        noise, latent, target = (t.to(model.device) for t in (self.noise, self.latent, self.target))
        first = None if self.first_output is None else self.first_output.to(model.device)
        return TeacherSamples(noise, latent, target, self.history, self.table, first)

    def student(self, model: Model, solver: Discretization) -> tuple[Tensor, list[Tensor]]:
        """Sample this batch: the result and the history, see `Model.sample`.

        A student that starts at the teacher's first level makes its first call there.
        """
        history = [model.start(solver.sigmas, self.noise, self.latent)]
        table, first = self.table, self.first_output
        if table is not None and first is not None and model.stateless:
            if table.starts_as(solver.table):
                history.append(first)
        return rollout(solver.table, model, history)

    def trajectories(self, coordinate: Coordinate) -> TeacherTrajectories:
        """The teacher's rollouts of these noises; ValueError if the samples do not contain them."""
        if self.history is None or self.table is None:
            raise ValueError("these samples lack the teacher's rollouts: use `sample_teacher`")
        few = subsample(self.latent)
        return TeacherTrajectories(self.table, self.history, coordinate, few)


class Targets(Protocol):
    """Where a teacher's samples are kept; see `ld3.teacher_store.TargetStore`."""

    def get(
        self, noise: Tensor, latent: Tensor, states: int
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Target, history and first output of a batch; None if they must be sampled."""

    def put(
        self, noise: Tensor, latent: Tensor, target: Tensor, history: Tensor, first: Tensor
    ) -> None:
        """Store what the teacher made of a batch."""


class KnownTargets:
    """Samples of a teacher that cannot be called any more, by noise and latent.

    Args:
        samples: with history and first output.
    """

    def __init__(self, samples: TeacherSamples) -> None:
        if samples.history is None or samples.first_output is None:
            raise ValueError("these samples lack the teacher's rollouts: use `sample_teacher`")
        self._known = samples.target, samples.history, samples.first_output
        pairs = zip(samples.noise, samples.latent, strict=True)
        self._rows = {_digest(*pair): row for row, pair in enumerate(pairs)}

    def get(self, noise: Tensor, latent: Tensor, states: int) -> tuple[Tensor, Tensor, Tensor]:
        """Target, history and first output of a batch; KeyError for another noise."""
        rows = [self._rows[_digest(*pair)] for pair in zip(noise, latent, strict=True)]
        target, history, first = (known[rows] for known in self._known)
        return target, history, first

    def put(
        self, noise: Tensor, latent: Tensor, target: Tensor, history: Tensor, first: Tensor
    ) -> None:
        """Nothing: all samples are known."""


def _digest(*tensors: Tensor) -> bytes:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.digest()


def sample_teacher(
    model: Model,
    teacher: Discretization,
    noise: Tensor,
    latent: Tensor,
    store: Targets | None = None,
    before_batch: Callable[[], None] = lambda: None,
) -> TeacherSamples:
    """Sample noises and latents (n, *latent) with the teacher, or take batches from `store`.

    Args:
        before_batch: called before every batch, where a caller may interrupt.

    Raises:
        UndefinedSamples: the model returned infinite or undefined values.
    """

    def sampled(batch: TeacherSamples) -> tuple[Tensor, Tensor, Tensor]:
        before_batch()
        stored, before = None, model.calls
        if store:
            stored = store.get(batch.noise, batch.latent, teacher.table.weights.shape[1])
        if stored is None:
            result, states = model.sample(teacher, batch.noise, batch.latent)
            history = torch.stack([subsample(s) for s in states], 1)
            stored = result.to(noise.device), history, states[1].to(noise.device)
            _check_finite(stored[0])
            _count(model, teacher, batch, before)
            if store:
                store.put(batch.noise, batch.latent, *stored)
        else:
            _count(model, teacher, batch, before)
        return stored

    parts = TeacherSamples(noise, latent, noise).by_batch(model, sampled)
    target, history, first = (torch.cat(found) for found in zip(*parts, strict=True))
    return TeacherSamples(noise, latent, target, history, teacher.table, first)


def _count(model: Model, teacher: Discretization, batch: TeacherSamples, before: int) -> None:
    """Count a batch's calls as the first run of an interrupted training did."""
    if model.journal is not None:
        model.journal.count(model, ["teacher", *teacher.identity, *batch.identity], before)


def _check_finite(target: Tensor) -> None:
    bad = int((~torch.isfinite(target.flatten(1)).all(1)).sum())
    if bad:
        raise UndefinedSamples(
            f"the teacher's result is infinite or undefined (NaN) for {bad} of {len(target)} "
            "noises; check that the model works in a plain KSampler with the teacher's sampler "
            "and scheduler"
        )
