"""What the browser asks of saved schedules: contents, renaming, deleting, sharing as text."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from .. import files
from ..manual_sigmas import manual_sigmas
from ..plots import levels_picture
from ..schedule import Schedule
from ..schedule_file import EXTENSION, check_name, load, save
from ..schedule_text import as_line, from_line
from ..training.report import Report
from . import folders


def contents(name: str) -> dict[str, Any]:
    """A schedule as text: one line to share, and its levels for ManualSigmas."""
    schedule = load(folders.schedule_path(name))
    levels = manual_sigmas(schedule.plain_sigmas.tolist())
    return {"name": name, "line": as_line(schedule), "sigmas": levels}


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
    if path.suffix != EXTENSION:
        raise ValueError(f"{name!r} is an interrupted training; run its workflow again")
    target = path.with_name(check_name(new) + EXTENSION)
    try:
        files.rename(path, target)
    except FileExistsError as error:
        raise ValueError(f"{target.name!r} exists already; choose another name") from error
    return str(Path(name).with_name(target.name))


def delete(name: str) -> None:
    """Delete a schedule's file."""
    _own(name).unlink()


def take_line(line: str, name: str) -> str:
    """Save the schedule of a line of text in models/ld3 and return its file's name.

    OSError if the folder cannot be written.
    """
    name = check_name(name)
    return save(from_line(line, name), folders.save_folder(), name).name


def _own(name: str) -> Path:
    """The file of a name, which must be a schedule: other models are left alone."""
    path = folders.schedule_path(name)
    load(path)
    return path
