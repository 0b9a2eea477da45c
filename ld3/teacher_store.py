"""A teacher's samples on disk, so that the next training with it need not repeat them.

Files are a checksum and a safetensors file: one that is short, changed or of another shape is made
again. The oldest are removed when the folder has more than its size.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .files import read_bounded, remove_leftovers, replace
from .trajectories import subsample

logger = logging.getLogger(__name__)
VERSION = 1  # increased when older files could not be used
EXTENSION = ".samples"
DIGEST = hashlib.sha256().digest_size
HEADER = 4096  # bytes, more than that of three tensors


@dataclass(frozen=True)
class TeacherStore:
    """A folder of samples, created when needed.

    Attributes:
        most_bytes: of all files together; with 0 nothing is stored.
    """

    folder: Path
    most_bytes: int

    def samples(self, key: str) -> TargetStore:
        """Those of a teacher; `key` is everything but noises and latents that decides them."""
        return TargetStore(self, key)

    def trim(self) -> None:
        """Remove what crashes left, and the oldest files above the size."""
        if not self.folder.is_dir():
            return
        try:
            remove_leftovers(self.folder, EXTENSION)
            found = [(p.stat().st_mtime, p.stat().st_size, p) for p in self._files()]
            total = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if total <= self.most_bytes:
                    break
                path.unlink(missing_ok=True)
                total -= size
        except OSError as error:
            logger.warning("LD3: the teacher's samples could not be removed: %s", error)

    def _files(self) -> list[Path]:
        return [path for path in self.folder.glob(f"*{EXTENSION}") if path.is_file()]


@dataclass(frozen=True)
class TargetStore:
    """The samples of one teacher, one file per batch."""

    store: TeacherStore
    key: str

    def get(
        self, noise: Tensor, latent: Tensor, states: int
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Target, history and first output of a batch; None if they cannot be used.

        Args:
            noise, latent: (batch, *latent).
            states: of the history, per sample.
        """
        path = self._path(noise, latent)
        few = subsample(noise)
        shapes = {
            "target": (noise.shape, noise.dtype),
            "history": (torch.Size([len(few), states, *few.shape[1:]]), few.dtype),
            "first": (noise.shape, noise.dtype),
        }
        expected = sum(shape.numel() * dtype.itemsize for shape, dtype in shapes.values())
        try:
            data = read_bounded(path, DIGEST + HEADER + expected)
            if hashlib.sha256(data[DIGEST:]).digest() != data[:DIGEST]:
                raise ValueError("its checksum is wrong")
            tensors = safetensors.torch.load(data[DIGEST:])
            if {name: (t.shape, t.dtype) for name, t in tensors.items()} != shapes:
                raise ValueError("it has other shapes")
            if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
                raise ValueError("it is not finite")
        except FileNotFoundError:
            return None
        except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
            logger.warning("LD3: a teacher's sample is made again: %s (%s)", error, path.name)
            return None
        self._touch(path)
        return tensors["target"], tensors["history"], tensors["first"]

    def put(
        self, noise: Tensor, latent: Tensor, target: Tensor, history: Tensor, first: Tensor
    ) -> None:
        """Store what the teacher made of a batch; the file appears complete or not at all."""
        if not self.store.most_bytes:
            return
        tensors = {"target": target, "history": history, "first": first}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        data = safetensors.torch.save(tensors)
        try:
            replace(self._path(noise, latent), hashlib.sha256(data).digest() + data)
        except OSError as error:  # a full disk costs only time
            logger.warning("LD3: a teacher's sample could not be stored: %s", error)
        self.store.trim()

    def _touch(self, path: Path) -> None:
        try:
            os.utime(path)  # the oldest is the one that was not used for longest
        except OSError as error:
            logger.info("LD3: %s", error)

    def _path(self, noise: Tensor, latent: Tensor) -> Path:
        digest = hashlib.sha256(f"{VERSION} {self.key}".encode())
        for tensor in (noise, latent):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return self.store.folder / f"{digest.hexdigest()[:40]}{EXTENSION}"
