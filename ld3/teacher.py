"""Start noises and the many-step results a student is to reproduce."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .model import Model
from .parameters import Coordinate
from .rollout import rollout
from .solver import Plan, SolverTable
from .trajectories import Trajectories, few_elements

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pairs:
    """Noises with the teacher's samples, all (n, *latent) float32.

    Attributes:
        noise: standard normal start noises.
        latent: the latents they are added to (zeros for text to image).
        target: what the teacher makes of them.
        history: (n, 1+M, few) on the CPU, a few elements of the teacher's rollouts: x_init, D_0, ..
            (see `ld3.trajectories`); None where nobody follows them.
    """

    noise: Tensor
    latent: Tensor
    target: Tensor
    history: Tensor | None = None

    def __len__(self) -> int:
        return len(self.noise)

    def __getitem__(self, index: slice | Tensor) -> Pairs:
        history = None if self.history is None else self.history[index]
        return Pairs(self.noise[index], self.latent[index], self.target[index], history)

    def batches(self, size: int, device: torch.device | str) -> Iterator[Pairs]:
        """Consecutive batches of at most `size` pairs, on `device`."""
        for i in range(0, len(self), size):
            part = self[i : i + size]
            moved = (t.to(device) for t in (part.noise, part.latent, part.target))
            yield Pairs(*moved, part.history)

    def trajectories(self, table: SolverTable, coordinate: Coordinate) -> Trajectories:
        """The teacher's rollouts of these noises, by its table.

        Raises:
            ValueError: the pairs were made without them.
        """
        if self.history is None:
            raise ValueError("these pairs hold no rollouts of the teacher; make them with `teach`")
        return Trajectories(table, self.history, coordinate)

    @staticmethod
    def joined(parts: list[Pairs]) -> Pairs:
        """All parts of `teach` one after another."""
        return Pairs(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Pairs)))


def student_samples(model: Model, plan: Plan, pairs: Pairs) -> tuple[Tensor, list[Tensor]]:
    """Sample one batch of pairs' noises; returns the result and the rollout's history."""
    sigmas, table = plan
    model.begin_rollout(sigmas)
    return rollout(table, model, [model.scale_noise(pairs.noise, pairs.latent, float(sigmas[0]))])


class TargetStore:
    """A teacher's samples on disk: the next training with it need not make them again.

    Args:
        folder: where the files lie, one a batch; made when needed.
        key: everything but noises and latents that decides a target (model, prompt, teacher, ..).
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key = folder, key

    def get(self, noise: Tensor, latent: Tensor) -> Pairs | None:
        """The pairs of a batch, or None if they are not there or cannot be read."""
        path = self._path(noise, latent)
        try:
            kept = safetensors.torch.load_file(path) if path.is_file() else {}
            pairs = Pairs(noise, latent, kept["target"], kept["history"])
        except (safetensors.SafetensorError, OSError, KeyError):
            return None
        starts = few_elements(noise).shape
        whole = pairs.target.shape == noise.shape and kept["history"][:, 0].shape == starts
        return pairs if whole else None

    def put(self, pairs: Pairs) -> None:
        """Keep the pairs of a batch; the file appears whole or not at all."""
        path = self._path(pairs.noise, pairs.latent)
        assert pairs.history is not None  # `teach` made it
        kept = {"target": pairs.target.cpu().contiguous(), "history": pairs.history}
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            safetensors.torch.save_file(kept, temporary)
            os.replace(temporary, path)
        except (OSError, safetensors.SafetensorError) as error:  # a full disk costs only time
            logger.warning("LD3: a teacher's target could not be kept: %s", error)

    def _path(self, noise: Tensor, latent: Tensor) -> Path:
        digest = hashlib.sha256(self._key.encode())
        for tensor in (noise, latent):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return self._folder / f"{digest.hexdigest()[:40]}.safetensors"


def teach(
    model: Model,
    plan: Plan,
    noise: Tensor,
    latent: Tensor,
    store: TargetStore | None = None,
) -> Pairs:
    """Sample one batch of noises (n, *latent) with the teacher's plan, or take it from `store`.

    Raises:
        ValueError: the model returned infinite or undefined values.
    """
    kept = store.get(noise, latent) if store else None
    if kept is not None:
        return kept
    batch = Pairs(noise.to(model.device), latent.to(model.device), noise)
    result, history = student_samples(model, plan, batch)
    target = result.to(noise.device)
    bad = int((~torch.isfinite(target.flatten(1)).all(1)).sum())
    if bad:
        raise ValueError(
            f"the teacher's result is infinite or undefined (NaN) for {bad} of {len(target)} "
            "noises; check that the model works in a plain KSampler with the teacher's sampler "
            "and scheduler"
        )
    pairs = Pairs(noise, latent, target, torch.stack([few_elements(h) for h in history], 1))
    if store:
        store.put(pairs)
    return pairs
