"""Learned schedules in the list of schedulers that KSampler and BasicScheduler offer.

The one thing this pack changes outside itself, for schedules that a user marked "show in scheduler
list" and no others: an entry "LD3: NAME" in `comfy.samplers.SCHEDULER_HANDLERS` and in
`SCHEDULER_NAMES`, which all nodes with a scheduler read whenever they are listed or checked
(ComfyUI 0.30.0, comfy/samplers.py). Unmarking removes both. The marks are a small JSON file in the
user's folder; without the pack nobody reads it, and ComfyUI says that such a scheduler is not in
its list.
"""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import comfy.samplers
import folder_paths
from torch import Tensor

from .. import files
from ..json_types import has_type
from ..schedule import Schedule
from ..schedule_file import EXTENSION, load
from ..step_transfer import stretched_sigmas
from . import folders
from .core_samplers import LISTED_PREFIX, coordinate
from .sampling import check_levels

logger = logging.getLogger(__name__)
MOST_BYTES = 100_000
FILE = "scheduler_list.json"


def listed() -> list[str]:
    """File names of the marked schedules."""
    try:
        found = json.loads(files.read_bounded(_file(), MOST_BYTES))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("LD3: %s cannot be read (%s): no schedule is listed", _file(), error)
        return []
    return found if has_type(found, list[str]) else []


def register() -> None:
    """Add the marked schedules that still exist."""
    known = set(folders.schedule_names())
    for name in listed():
        if name in known:
            _enter(name)


def add(name: str) -> None:
    """Mark a schedule; ValueError if a list of schedulers cannot offer what was learned."""
    schedule = load(folders.schedule_path(name))
    _check(schedule)
    _write([*(other for other in listed() if other != name), name])
    _enter(name)


def remove(name: str) -> None:
    """Unmark a schedule, whether it is marked or not."""
    marked = listed()
    if name in marked:
        _write([other for other in marked if other != name])
    _leave(name)


def rename(name: str, new: str) -> None:
    """Move a mark to a file's new name."""
    if name in listed():
        remove(name)
        add(new)


def entry(name: str) -> str:
    """A schedule's name in ComfyUI's list."""
    return LISTED_PREFIX + name.removesuffix(EXTENSION)


def scheduler_sigmas(name: str, model_sampling: Any, steps: int) -> Tensor:
    """What ComfyUI asks of a scheduler: (steps+1,) float32 on the CPU.

    The file's own noise levels for the plain sampler in the numbers of steps it has, else those of
    the nearest number, stretched.

    Raises:
        ValueError: the file is gone, or the model's noise levels are of another kind.
    """
    schedule = load(folders.schedule_path(name))
    check_levels(schedule, model_sampling)
    numbers = {s.info.steps: s for s in (schedule, *schedule.others)}
    nearest = min(numbers, key=lambda n: (abs(n - steps), n))
    sigmas = numbers[nearest].plain_sigmas
    try:
        lowest = float(model_sampling.sigma_min)
        return stretched_sigmas(sigmas, steps, coordinate(model_sampling), lowest)
    except ValueError as error:
        raise ValueError(f"{entry(name)!r}: {error}; use fewer steps, or more denoise") from error


def _check(schedule: Schedule) -> None:
    info, why = schedule.info, ""
    if info.sampler in comfy.samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS:
        why = f"KSampler leaves out a noise level of every scheduler with {info.sampler}"
    elif info.denoise < 1 or float(schedule.sigmas[-1]):
        why = "it is for a part of a sampling"
    if why:
        raise ValueError(
            f"schedule {schedule.name!r} cannot be in the scheduler list: {why}; use LD3 KSampler"
        )


def _enter(name: str) -> None:
    shown, handlers = entry(name), comfy.samplers.SCHEDULER_HANDLERS
    handlers[shown] = comfy.samplers.SchedulerHandler(partial(scheduler_sigmas, name))
    for names in _lists():
        if shown not in names:
            names.append(shown)  # in place: nodes hold this very list


def _leave(name: str) -> None:
    shown = entry(name)
    comfy.samplers.SCHEDULER_HANDLERS.pop(shown, None)
    for names in _lists():
        if shown in names:
            names.remove(shown)


def _lists() -> list[list[str]]:
    """What nodes offer: one list in ComfyUI, two where another pack has replaced one of them."""
    return [comfy.samplers.SCHEDULER_NAMES, comfy.samplers.KSampler.SCHEDULERS]


def _file() -> Path:
    return Path(folder_paths.get_system_user_directory(folders.KEY)) / FILE


def _write(names: list[str]) -> None:
    files.replace(_file(), json.dumps(names).encode())
