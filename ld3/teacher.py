"""Start noises and the many-step samples a student must reproduce."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .model import Model
from .parameters import Coordinate
from .table import Discretization, SolverTable
from .trajectories import TeacherTrajectories, subsample

logger = logging.getLogger(__name__)


class UndefinedSamples(ValueError):
    """Samples that contain infinite or undefined values."""


@dataclass(frozen=True, eq=False)
class TeacherSamples:
    """Noises, the latents they are added to, and the teacher's samples, all (n, *latent) float32.

    Attributes:
        history: (n, 1+M, few) on the CPU, a few elements of the teacher's rollouts: x_init, D_0, ..
            (see `ld3.trajectories`); None where they are not used.
        table: the teacher's, which made the history.
    """

    noise: Tensor
    latent: Tensor
    target: Tensor
    history: Tensor | None = None
    table: SolverTable | None = None

    def __len__(self) -> int:
        return len(self.noise)

    def __getitem__(self, index: slice | Tensor) -> TeacherSamples:
        history = None if self.history is None else self.history[index]
        return TeacherSamples(
            self.noise[index], self.latent[index], self.target[index], history, self.table
        )

    def batches(self, model: Model) -> Iterator[TeacherSamples]:
        """Consecutive batches of at most the model's batch size, on its device."""
        for i in range(0, len(self), model.batch_size):
            part = self[i : i + model.batch_size]
            noise, latent, target = (
                t.to(model.device) for t in (part.noise, part.latent, part.target)
            )
            yield TeacherSamples(noise, latent, target, part.history, part.table)

    def trajectories(self, coordinate: Coordinate) -> TeacherTrajectories:
        """The teacher's rollouts of these noises; ValueError if the samples do not contain them."""
        if self.history is None or self.table is None:
            raise ValueError("these samples lack the teacher's rollouts: use `sample_teacher`")
        return TeacherTrajectories(self.table, self.history, coordinate)


class TargetStore:
    """A teacher's samples on disk, so that the next training with it need not repeat them.

    Args:
        folder: where the files are, one per batch; created when needed.
        key: everything but noises and latents that decides a target (model, prompt, teacher, ..).
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key = folder, key

    def get(self, noise: Tensor, latent: Tensor) -> tuple[Tensor, Tensor] | None:
        """Target and history of a batch, or None if they are missing or cannot be read."""
        path = self._path(noise, latent)
        try:
            stored = safetensors.torch.load_file(path) if path.is_file() else {}
            target, history = stored["target"], stored["history"]
        except (safetensors.SafetensorError, OSError, KeyError):
            return None
        complete = target.shape == noise.shape and history[:, 0].shape == subsample(noise).shape
        return (target, history) if complete else None

    def put(self, samples: TeacherSamples) -> None:
        """Store a batch of `sample_teacher`; the file appears complete or not at all."""
        path = self._path(samples.noise, samples.latent)
        assert samples.history is not None
        tensors = {"target": samples.target.cpu().contiguous(), "history": samples.history}
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            safetensors.torch.save_file(tensors, temporary)
            os.replace(temporary, path)
        except (OSError, safetensors.SafetensorError) as error:  # a full disk costs only time
            logger.warning("LD3: a teacher's sample could not be stored: %s", error)

    def _path(self, noise: Tensor, latent: Tensor) -> Path:
        digest = hashlib.sha256(self._key.encode())
        for tensor in (noise, latent):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return self._folder / f"{digest.hexdigest()[:40]}.safetensors"


def sample_teacher(
    model: Model,
    teacher: Discretization,
    noise: Tensor,
    latent: Tensor,
    store: TargetStore | None = None,
    before_batch: Callable[[], None] = lambda: None,
) -> TeacherSamples:
    """Sample noises and latents (n, *latent) with the teacher, or take batches from `store`.

    Args:
        before_batch: called before every batch, where a caller may interrupt.

    Raises:
        UndefinedSamples: the model returned infinite or undefined values.
    """
    targets, histories = [], []
    for batch in TeacherSamples(noise, latent, noise).batches(model):
        before_batch()
        stored = store.get(batch.noise, batch.latent) if store else None
        if stored is None:
            result, states = model.sample(teacher, batch.noise, batch.latent)
            stored = result.to(noise.device), torch.stack([subsample(s) for s in states], 1)
            _check_finite(stored[0])
            if store:
                store.put(TeacherSamples(batch.noise, batch.latent, *stored))
        targets.append(stored[0])
        histories.append(stored[1])
    return TeacherSamples(noise, latent, torch.cat(targets), torch.cat(histories), teacher.table)


def _check_finite(target: Tensor) -> None:
    bad = int((~torch.isfinite(target.flatten(1)).all(1)).sum())
    if bad:
        raise UndefinedSamples(
            f"the teacher's result is infinite or undefined (NaN) for {bad} of {len(target)} "
            "noises; check that the model works in a plain KSampler with the teacher's sampler "
            "and scheduler"
        )
