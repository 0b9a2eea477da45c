"""Schedules as text, and what the browser may do with saved ones."""

from __future__ import annotations

import base64
import os
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ld3 import schedule_file
from ld3.comfy import library
from ld3.journal import Journal
from ld3.schedule_text import MOST_BYTES, PREFIX, as_line, from_line

from .test_schedule import SCHEDULE


@pytest.fixture
def saved(ld3_folder: Path) -> str:
    for path in ld3_folder.iterdir():
        path.unlink()
    return schedule_file.save(SCHEDULE, ld3_folder, "mine").name


def test_a_line_contains_the_whole_schedule_and_survives_line_breaks() -> None:
    line = as_line(SCHEDULE)
    assert line.startswith(PREFIX) and "\n" not in line and line.isascii()
    broken = "\n".join(line[i : i + 70] for i in range(0, len(line), 70))
    again = from_line(f"  {broken}\n", "copy")
    assert again.info == SCHEDULE.info and again.name == "copy"
    assert torch.equal(again.sigmas, SCHEDULE.sigmas)
    assert torch.equal(again.table.weights, SCHEDULE.table.weights)


def packed(data: bytes) -> str:
    return PREFIX + base64.urlsafe_b64encode(zlib.compress(data)).decode().rstrip("=")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("", "begins with 'ld3:1:'"),
        ("hello", "begins with 'ld3:1:'"),
        (as_line(SCHEDULE)[:-40], "copy all of it"),
        (PREFIX + "!!!!", "damaged"),
        (packed(b"not a schedule"), "train or download it again"),
        (packed(bytes(MOST_BYTES + 1)), "copy all of it"),
    ],
    ids=["empty", "text", "cut", "letters", "foreign", "bomb"],
)
def test_other_lines_are_refused(line: str, part: str) -> None:
    with pytest.raises(schedule_file.ScheduleFileError, match=part):
        from_line(line, "x")


def test_renaming_replaces_nothing_and_stays_in_the_folder(saved: str, ld3_folder: Path) -> None:
    schedule_file.save(SCHEDULE, ld3_folder, "other")
    for name in ("other", "../outside", "", "a/b"):
        with pytest.raises(ValueError):
            library.rename(saved, name)
    assert library.rename(saved, "better") == "better.safetensors"
    assert {path.name for path in ld3_folder.iterdir()} == {"better.safetensors",
                                                            "other.safetensors"}  # fmt: skip


def test_only_schedules_can_be_deleted(saved: str, ld3_folder: Path) -> None:
    (ld3_folder / "model.safetensors").write_bytes(b"somebody's model")
    for name in ("model.safetensors", "../../model.safetensors", "missing.safetensors"):
        with pytest.raises(ValueError):
            library.delete(name)
    library.delete(saved)
    assert {path.name for path in ld3_folder.iterdir()} == {"model.safetensors"}


def test_contents_have_what_is_copied_and_a_picture(saved: str) -> None:
    found: dict[str, Any] = library.contents(saved)
    assert from_line(found["line"], "x").info == SCHEDULE.info
    assert found["sigmas"].endswith(", 0") and found["sigmas"].count(",") == SCHEDULE.info.steps
    assert library.picture(saved).startswith(b"\x89PNG")


def test_an_interrupted_training_can_be_deleted_but_not_renamed(ld3_folder: Path) -> None:
    journal = Journal(ld3_folder / "begun.partial", "settings")
    journal.keep_best(schedule_file.encoded(SCHEDULE))
    before = (ld3_folder / "begun.partial").read_bytes()
    with pytest.raises(ValueError, match="interrupted training"):
        library.rename("begun.partial", "other")
    assert (ld3_folder / "begun.partial").read_bytes() == before
    library.delete("begun.partial")
    assert not (ld3_folder / "begun.partial").exists()


def test_a_line_that_cannot_be_saved_is_no_success(
    ld3_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        library.take_line(as_line(SCHEDULE), "pasted")
    assert not list(ld3_folder.glob("pasted*"))


def test_a_note_is_written_into_the_file_and_shared_with_it(saved: str, ld3_folder: Path) -> None:
    path = ld3_folder / saved
    os.utime(path, (1e9, 1e9))
    library.write_note(saved, "  for portraits, not above 1 MP \n")
    found = library.contents(saved)
    assert found["note"] == "for portraits, not above 1 MP"
    assert from_line(found["line"], "x").info == replace(SCHEDULE.info, note=found["note"])
    assert torch.equal(schedule_file.load(path).table.weights, SCHEDULE.table.weights)
    assert path.stat().st_mtime == 1e9  # the newest of identical schedules is used again
    with pytest.raises(ValueError, match="300 are the most"):
        library.write_note(saved, "x" * 301)
    library.write_note(saved, "")
    assert library.contents(saved)["note"] == ""
