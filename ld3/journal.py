"""The answers that a training got from its model, so that it can go on after an interruption.

A training is a function of its settings and of its model's answers. Run again with the answers it
got before, it comes without a model call to where it was, in the same bits; no state of an
algorithm has to be saved. Answers are small: scores and normal equations, not samples, which
`ld3.teacher_store` keeps.

The file is a checksum and a safetensors file, with the best schedule so far as one of its tensors.
It is written anew after every answer; one that is damaged, or of other settings, is not used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .files import read_bounded, replace

logger = logging.getLogger(__name__)
EXTENSION = ".partial"
VERSION = 1
BEST = "best"
DIGEST = hashlib.sha256().digest_size
MOST_BYTES = 64_000_000
Answers = tuple[Tensor, ...]


class Counted(Protocol):
    """What counts its calls."""

    calls: int


class Journal:
    """What is known of one training; read from its file if that is of the same settings.

    Args:
        path: its file.
        key: everything that decides the training.

    Attributes:
        calls: model calls of answers that were read from the file.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, f"{VERSION} {key}"
        self._answers: dict[str, tuple[int, Answers]] = {}
        self._best = b""
        self._asked: Counter[str] = Counter()
        try:
            self._read()
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            logger.warning("LD3: %s cannot be continued: %s", path.name, error)
        self.calls = sum(calls for calls, _ in self._answers.values())

    def recall(self, model: Counted, asked: list[Any], compute: Callable[[], Answers]) -> Answers:
        """`compute`'s tensors, or those it gave before; the model's calls are counted either way.

        Args:
            asked: all that decides the answer: tensors, texts and numbers.
        """
        key = _digest(asked)
        if key not in self._answers:
            before = model.calls
            found = tuple(tensor.cpu() for tensor in compute())
            self._answers[key] = model.calls - before, found
            self._write()
            return found
        calls, found = self._answers[key]
        model.calls += calls
        return found

    def count(self, model: Counted, asked: list[Any], before: int) -> None:
        """Count the calls since `before` as those that the same work took in the first run.

        For work whose results are kept elsewhere, and perhaps needed no calls now.
        """
        key = _digest(asked)
        self._asked[key] += 1
        key = f"{key}-{self._asked[key]}"
        if key not in self._answers:
            self._answers[key] = model.calls - before, ()
            self._write()
        model.calls = before + self._answers[key][0]

    def keep_best(self, schedule: bytes) -> None:
        """Keep the best schedule so far, as a file's contents."""
        if schedule != self._best:
            self._best = schedule
            self._write()

    def remove(self) -> None:
        """The training is finished."""
        self._path.unlink(missing_ok=True)

    def _read(self) -> None:
        tensors, facts = _contents(self._path)
        if facts["key"] != self._key:
            return
        self._best = _bytes_of(tensors.get(BEST))
        for key, calls, size in json.loads(facts["answers"]):
            found = tuple(tensors[f"{key} {i}"] for i in range(size))
            self._answers[key] = int(calls), found

    def _write(self) -> None:
        tensors = {}
        if self._best:
            tensors[BEST] = torch.frombuffer(bytearray(self._best), dtype=torch.uint8)
        for key, (_, found) in self._answers.items():
            # copies: safetensors refuses tensors that share memory
            tensors |= {f"{key} {i}": tensor.clone() for i, tensor in enumerate(found)}
        listed = [(key, calls, len(found)) for key, (calls, found) in self._answers.items()]
        facts = {"key": self._key, "answers": json.dumps(listed)}
        data = safetensors.torch.save(tensors, facts)
        try:
            replace(self._path, hashlib.sha256(data).digest() + data)
        except OSError as error:  # a full disk costs only the continuation
            logger.warning("LD3: %s could not be written: %s", self._path.name, error)


def best_schedule(path: Path) -> bytes:
    """The best schedule so far of an interrupted training, as a file's contents.

    OSError if there is none.
    """
    try:
        found = _bytes_of(_contents(path)[0].get(BEST))
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise OSError(errno.EINVAL, str(error)) from error
    if not found:
        raise OSError(errno.EINVAL, "the training was interrupted before the first schedule")
    return found


def _contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors in a file, and its metadata."""
    data = read_bounded(path, MOST_BYTES)
    if hashlib.sha256(data[DIGEST:]).digest() != data[:DIGEST]:
        raise ValueError("its checksum is wrong")
    data = data[DIGEST:]
    tensors = safetensors.torch.load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return tensors, header["__metadata__"]


def _bytes_of(tensor: Tensor | None) -> bytes:
    return b"" if tensor is None else tensor.numpy().tobytes()


def _digest(asked: list[Any]) -> str:
    digest = hashlib.sha256()
    for part in asked:
        if isinstance(part, Tensor):
            digest.update(f"{tuple(part.shape)} {part.dtype}".encode())
            digest.update(part.detach().cpu().contiguous().numpy().tobytes())
        else:
            digest.update(repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:40]
