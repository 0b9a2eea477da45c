"""What the browser asks of saved schedules: contents, names, notes, deleting, sharing as text."""

from __future__ import annotations

import os
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from .. import files
from ..manual_sigmas import manual_sigmas
from ..plots import levels_picture
from ..schedule import Schedule
from ..schedule_file import EXTENSION, MOST_TEXT, check_name, decoded, encoded, load, save
from ..schedule_text import as_line, from_line
from ..training.report import Report
from . import folders, scheduler_list


def contents(name: str) -> dict[str, Any]:
    """A schedule as text: one line to share, its levels for ManualSigmas, note, and if listed."""
    schedule = load(folders.schedule_path(name))
    return {
        "name": name,
        "line": as_line(schedule),
        "sigmas": manual_sigmas(schedule.plain_sigmas.tolist()),
        "note": schedule.info.note,
        "listed": name in scheduler_list.listed(),
    }


def picture(name: str) -> bytes:
    """Its noise levels beside those of the best standard schedule, as a PNG."""
    schedule = load(folders.schedule_path(name))
    file = BytesIO()
    Image.fromarray(levels_picture(_levels(schedule))).save(file, "PNG")
    return file.getvalue()


def _levels(schedule: Schedule) -> dict[str, list[float]]:
    report = Report.from_json(schedule.info.report)
    best, levels = report.best_baseline(), {"learned": schedule.plain_sigmas.tolist()}
    return levels | ({f"{best} (best standard)": report.baselines[best].sigmas} if best else {})


def rename(name: str, new: str) -> str:
    """Rename a schedule's file inside its folder and return the new name; nothing is replaced."""
    path = _own(name)
    _check_complete(path)
    target = path.with_name(check_name(new) + EXTENSION)
    try:
        files.rename(path, target)
    except FileExistsError as error:
        raise ValueError(f"{target.name!r} exists already; choose another name") from error
    renamed = str(Path(name).with_name(target.name))
    scheduler_list.rename(name, renamed)
    return renamed


def delete(name: str) -> None:
    """Delete a schedule's file."""
    _own(name).unlink()
    scheduler_list.remove(name)


def write_note(name: str, note: str) -> None:
    """Write a note into a schedule's file, where it is shared with it; "" removes it.

    ValueError for one that is too long.
    """
    path = _own(name)
    _check_complete(path)
    note = note.strip()
    if len(note) > MOST_TEXT:
        raise ValueError(f"the note has {len(note)} characters; {MOST_TEXT} are the most")
    schedule = load(path)
    data = encoded(replace(schedule, info=replace(schedule.info, note=note)))
    decoded(data, schedule.name)  # halves of characters are refused
    times = path.stat()
    files.replace(path, data)
    # the newest of identical schedules is used again: a note makes none newer
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def take_line(line: str, name: str) -> str:
    """Save the schedule of a line of text in models/ld3 and return its file's name.

    OSError if the folder cannot be written.
    """
    name = check_name(name)
    return save(from_line(line, name), folders.save_folder(), name).name


def _check_complete(path: Path) -> None:
    if path.suffix != EXTENSION:
        raise ValueError(f"{path.name!r} is an interrupted training; run its workflow again")


def _own(name: str) -> Path:
    """The file of a name, which must be a schedule: other models are left alone."""
    path = folders.schedule_path(name)
    load(path)
    return path
