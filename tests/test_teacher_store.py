"""The teacher's samples on disk: the same bits again, or made again."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from ld3.files import LEFTOVER_SECONDS
from ld3.teacher_store import DIGEST, TargetStore, TeacherStore
from ld3.trajectories import subsample

STATES, SHAPE = 6, (2, 3, 8, 8)
Samples = tuple[Tensor, Tensor, Tensor]


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise and latent."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)), torch.zeros(SHAPE)


def made(noise: Tensor) -> Samples:
    """What a teacher could have made of it: target, history, first output."""
    history = torch.stack([subsample(noise + m) for m in range(STATES)], 1)
    return noise.cos(), history, noise.sin()


def stored(folder: Path, seed: int = 0, most_bytes: int = 10**9) -> TargetStore:
    store, (noise, latent) = TeacherStore(folder, most_bytes).samples("teacher"), batch(seed)
    store.put(noise, latent, *made(noise))
    return store


def test_samples_are_the_same_bits_again(tmp_path: Path) -> None:
    store, (noise, latent) = stored(tmp_path), batch()
    found = store.get(noise, latent, STATES)
    assert found is not None
    assert all(torch.equal(a, b) for a, b in zip(found, made(noise), strict=True))
    assert store.get(noise + 1, latent, STATES) is None
    assert TeacherStore(tmp_path, 1).samples("another").get(noise, latent, STATES) is None


def with_checksum(data: bytes) -> bytes:
    return hashlib.sha256(data).digest() + data


def changed(**tensors: Callable[[Tensor], Tensor]) -> Callable[[bytes], bytes]:
    """The file with some tensors changed, and the right checksum."""

    def change(data: bytes) -> bytes:
        found = safetensors.torch.load(data[DIGEST:])
        for name, function in tensors.items():
            found[name] = function(found[name]).contiguous()
        return with_checksum(safetensors.torch.save(found))

    return change


def undefined(tensor: Tensor) -> Tensor:
    tensor.view(-1)[3] = float("nan")
    return tensor


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "short": lambda data: data[:-1],
    "header only": lambda data: data[: DIGEST + 100],
    "longer": lambda data: data + b"\0",
    "no checksum": lambda data: data[DIGEST:],
    "of an earlier version": lambda data: safetensors.torch.save({"target": torch.ones(SHAPE)}),
    "not safetensors": lambda data: with_checksum(b"text"),
    "NaN target": changed(target=undefined),
    "NaN history": changed(history=undefined),
    "infinite first output": changed(first=lambda t: t / 0),
    "1-D history": changed(history=lambda t: t.flatten()),
    "history of another teacher": changed(history=lambda t: t[:, 1:]),
    "half precision": changed(target=lambda t: t.half()),
    "double precision": changed(target=lambda t: t.double()),
    "other shape": changed(first=lambda t: t.flip(0)[:1]),
    "one tensor more": lambda data: with_checksum(
        safetensors.torch.save(safetensors.torch.load(data[DIGEST:]) | {"more": torch.ones(1)})
    ),
    **{
        f"bit {place}": lambda data, p=place: data[:p] + bytes([data[p] ^ 1]) + data[p + 1 :]
        for place in (0, DIGEST, DIGEST + 3, DIGEST + 60, 1000)
    },
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_made_again(damage: str, tmp_path: Path) -> None:
    store, (noise, latent) = stored(tmp_path), batch()
    (file,) = tmp_path.iterdir()
    good = file.read_bytes()
    file.write_bytes(DAMAGE[damage](good))
    assert store.get(noise, latent, STATES) is None
    store.put(noise, latent, *made(noise))
    assert file.read_bytes() == good and store.get(noise, latent, STATES) is not None


def test_files_are_read_at_once_so_that_truncating_one_changes_no_samples(tmp_path: Path) -> None:
    store, (noise, latent) = stored(tmp_path), batch()
    found = store.get(noise, latent, STATES)
    (file,) = tmp_path.iterdir()
    os.truncate(file, 0)
    assert found is not None and torch.equal(found[0], made(noise)[0])


def test_the_files_not_used_for_longest_are_removed_first(tmp_path: Path) -> None:
    for seed in range(4):
        stored(tmp_path, seed)
        for file in tmp_path.iterdir():
            os.utime(file, (file.stat().st_atime, file.stat().st_mtime - 100))
    size = next(tmp_path.iterdir()).stat().st_size
    store = TeacherStore(tmp_path, 3 * size).samples("teacher")
    assert store.get(*batch(0), STATES) is not None  # used just now
    store.put(*batch(9), *made(batch(9)[0]))
    kept = [seed for seed in (0, 1, 2, 3, 9) if store.get(*batch(seed), STATES) is not None]
    assert kept == [0, 3, 9]


def test_with_no_space_nothing_is_stored_and_what_was_is_removed(tmp_path: Path) -> None:
    stored(tmp_path)
    (tmp_path / "notes.txt").write_text("not ours")
    store = TeacherStore(tmp_path, 0)
    store.trim()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    store.samples("teacher").put(*batch(), *made(batch()[0]))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_crashes_left_is_removed(tmp_path: Path) -> None:
    for name in (".ld3-1.tmp", f"empty{'.samples'}"):
        (tmp_path / name).write_bytes(b"")
        when = time.time() - 2 * LEFTOVER_SECONDS
        os.utime(tmp_path / name, (when, when))
    TeacherStore(tmp_path, 10**9).trim()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
def test_a_disk_that_fails_costs_only_the_storing(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def failing(*arguments: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", failing)
    store = stored(tmp_path)
    assert "could not be stored" in caplog.text and not list(tmp_path.iterdir())
    assert store.get(*batch(), STATES) is None
