"""Folders: schedules in `models/ld3`, the user's extra paths and the pack's own `schedules/`;
networks for LPIPS in `models/lpips`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import folder_paths

from ..files import check_writable as check_folder
from ..journal import EXTENSION as PARTIAL
from ..journal import Journal
from ..schedule import Schedule, ScheduleInfo
from ..schedule_file import EXTENSION, load, read_info, save
from ..shown_text import shown
from ..teacher_store import TeacherStore
from . import unsaved

logger = logging.getLogger(__name__)

KEY = "ld3"
LPIPS_KEY = "lpips"
NO_SCHEDULE = "no schedule yet: train one with LD3 Train Schedule"


def register() -> None:
    """Register `ld3` and `lpips` as model folders, besides those of extra_model_paths.yaml."""
    own = Path(__file__).resolve().parents[2] / "schedules"
    _register(KEY, {EXTENSION, PARTIAL})
    folder_paths.add_model_folder_path(KEY, str(own))
    _register(LPIPS_KEY, {".pth", ".safetensors"})


def _register(key: str, extensions: set[str]) -> None:
    folder_paths.add_model_folder_path(
        key, str(Path(folder_paths.models_dir) / key), is_default=True
    )
    paths, known = folder_paths.folder_names_and_paths[key]
    # a new key accepts every extension
    folder_paths.folder_names_and_paths[key] = (paths, set(known) | extensions)


def save_folder() -> Path:
    """Where new schedules are saved."""
    return Path(folder_paths.get_folder_paths(KEY)[0])


def lpips_folder() -> Path:
    """Where a user puts the networks of LPIPS."""
    return Path(folder_paths.get_folder_paths(LPIPS_KEY)[0])


def target_folder() -> Path:
    """Where teacher samples are stored: in a user folder that no web page can read."""
    return Path(folder_paths.get_system_user_directory(KEY)) / "teacher"


def teacher_store(gigabytes: float) -> TeacherStore:
    """Where teachers' samples are kept, up to a size; 0 removes them."""
    store = TeacherStore(target_folder(), int(gigabytes * 1e9))
    store.trim()
    return store


def journal(name: str, key: str) -> Journal:
    """What an interrupted training that saves under a name knew already."""
    return Journal(save_folder() / f"{name}{PARTIAL}", key)


def schedule_names() -> list[str]:
    """File names of all schedules, as a combo shows them."""
    return folder_paths.get_filename_list(KEY)


def schedule_path(name: str) -> Path:
    """The file of a schedule, or ValueError listing those there are."""
    try:
        path = folder_paths.get_full_path(KEY, name)
    except (TypeError, ValueError, AttributeError):  # a connected value of any type; zero bytes
        path = None
    if path is None:
        known = schedule_names()
        if not known:
            raise ValueError(f"{NO_SCHEDULE}, or put a schedule into {save_folder()}")
        listed = shown(", ".join(known[:10]), 250)
        if name in (NO_SCHEDULE, None):
            raise ValueError(f"no schedule is chosen; choose one: {listed}")
        raise ValueError(
            f"there is no schedule {shown(str(name), 100)!r} in {save_folder()}; there are: "
            f"{listed}"
        )
    return Path(path)


class SavedSchedule(NamedTuple):
    """A schedule, its file, and what a user should know if it could not be written."""

    schedule: Schedule
    path: Path
    problems: list[str] = []


def saved_schedule(
    key: str, name: str, check: Callable[[ScheduleInfo], None]
) -> SavedSchedule | None:
    """The newest undamaged schedule of identical work, preferably with that name.

    Args:
        check: raises ValueError for one that the node could not show.
    """
    folder = save_folder()
    found = []
    for path in folder.glob(f"*{EXTENSION}") if folder.is_dir() else ():
        info = read_info(path)
        if info is not None and info.settings_hash == key and info.report:
            found.append((path.stem == name, path.stat().st_mtime, path))
    for _, _, path in sorted(found, reverse=True):
        try:
            schedule = load(path)
            check(schedule.info)
            return SavedSchedule(schedule, path)
        except ValueError as error:
            logger.warning("LD3: %s; the work is repeated", shown(str(error)))
    return None


def check_writable() -> None:
    """Raise ValueError unless a schedule can be saved now: better before the work than after it."""
    try:
        check_folder(save_folder())
    except OSError as error:
        raise ValueError(
            f"new schedules are saved in {save_folder()}, where nothing can be written "
            f"({error.strerror}); make it writable or free space on its disk"
        ) from error


def save_schedule(schedule: Schedule, name: str) -> SavedSchedule:
    """Save a schedule, and return what its file contains; one that cannot be saved is kept."""
    try:
        path = save(schedule, save_folder(), name)
        return SavedSchedule(load(path), path)
    except (OSError, ValueError, TypeError) as error:
        unsaved.keep(schedule, name)
        logger.exception("LD3: schedule %s could not be saved", name)
        problem = (
            f"the schedule could not be saved in {save_folder()} ({error}). It is complete, and "
            "kept until ComfyUI ends: free space or make the folder writable, then run the "
            "workflow again to save it"
        )
        path = save_folder() / f"{name}{EXTENSION}"
        return SavedSchedule(replace(schedule, name=name), path, [problem])


def saved_again(key: str) -> SavedSchedule | None:
    """What could not be saved before, saved now if possible; None if there is nothing to save."""
    found = unsaved.taken(key)
    return None if found is None else save_schedule(*found)
