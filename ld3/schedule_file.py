"""How a schedule is saved and shared, and what is checked before it is used.

One safetensors file per schedule. Tensors (float64, `callback_calls` int64): the sigmas and the
solver table; the same in N other steps as `N/sigmas`, .. Metadata key `ld3`: one JSON object, see
`ScheduleInfo`, and `others`, a list of `OtherStepsInfo`. A file is data: nothing in it
is evaluated. It is read at once and copied, so that nothing that happens to it later can change a
schedule or end the process, as with files mapped into memory.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .files import read_bounded, write_new
from .journal import EXTENSION as PARTIAL
from .journal import best_schedule
from .json_types import built, has_type
from .schedule import (
    FORMAT_VERSION,
    INPAINT,
    MOST_STEPS,
    OtherStepsInfo,
    Schedule,
    ScheduleInfo,
)
from .shown_text import shown
from .table import SolverTable

EXTENSION = ".safetensors"
TENSORS = ("sigmas", "state_sigmas", "eval_sigmas", "weights", "callback_calls")
MOST_BYTES = 1_000_000  # of a file; a real one has about 30,000
MOST_WEIGHT = 1e6  # a sampler's are of the order of 1; float32 overflows at 3e38
MOST_TEXT, MOST_EXTRAS = 300, 20  # characters of a text in a file; texts of a list
INPAINT_TYPE = dict[str, str | float | bool | None]
NOT_IN_NAMES = {"Cc", "Cs", "Zl", "Zp"}  # controls, halves of characters, line separators
RESERVED_NAMES = {"con", "prn", "aux", "nul"}  # on Windows, as are com1, lpt1, ..
TRY_AGAIN = "train or download it again"


class ScheduleFileError(ValueError):
    """The file is not a schedule this version can use; the text says why and what to do."""


def check_name(name: str) -> str:
    """A file name without extension that every file system accepts inside a folder, or ValueError.

    Windows keeps some names for devices, and drops spaces and dots at the end.
    """
    name = name.strip().removesuffix(EXTENSION).strip()
    device = name.split(".")[0].rstrip().lower()
    numbered = device[:3] in ("com", "lpt") and device[3:].isdigit() and len(device) == 4
    if (
        not name
        or name.startswith(".")
        or name.endswith(".")
        or device in RESERVED_NAMES
        or numbered
        or any(c in '/\\:*?"<>|' or unicodedata.category(c) in NOT_IN_NAMES for c in name)
        or len(name) > 120
        or len(name.encode()) > 230  # file systems count bytes, up to 255
    ):
        raise ValueError(
            f"'{shown(name, 130)}' cannot be a schedule's name: use up to 120 letters, digits, "
            "spaces, '-', '_' and '.', no folders, neither starting nor ending with '.', and none "
            "of Windows' names for devices (CON, NUL, ..)"
        )
    return name


def save(schedule: Schedule, folder: Path, name: str) -> Path:
    """Write a schedule; a name in use gets a number (name_2, name_3, ..), nothing is overwritten.

    The file appears complete or not at all, and `load` can read it.

    Returns:
        The path written.

    Raises:
        ValueError: a name or a schedule that cannot be saved. OSError: the folder's.
    """
    name = check_name(name)
    data = encoded(schedule)
    decoded(data, name)
    return write_new(folder, name, EXTENSION, data)


def encoded(schedule: Schedule) -> bytes:
    """The contents of a schedule's file."""
    tensors = _tensors(schedule, "")
    for other in schedule.others:
        tensors |= _tensors(other, f"{other.info.steps}/")
    differing = [f.name for f in fields(OtherStepsInfo)]
    others = [{name: getattr(s.info, name) for name in differing} for s in schedule.others]
    info = json.dumps(asdict(schedule.info) | {"others": others}, allow_nan=False)
    return safetensors.torch.save(tensors, metadata={"ld3": info})


def _tensors(schedule: Schedule, prefix: str) -> dict[str, Tensor]:
    table = schedule.table
    tensors = (
        schedule.sigmas.double(),
        table.state_sigmas,
        table.eval_sigmas.clone(),
        table.weights.contiguous(),
        table.callback_calls,
    )
    return {prefix + name: tensor for name, tensor in zip(TENSORS, tensors, strict=True)}


def load(path: Path) -> Schedule:
    """Read and check a schedule; ScheduleFileError says what is wrong and what to do.

    Of an interrupted training it is the best so far, see `ld3.journal`.
    """
    return decoded(_contents(path), path.name.removesuffix(EXTENSION))


def decoded(data: bytes, name: str) -> Schedule:
    """The schedule of a file's contents; ScheduleFileError as `load`."""
    where = _where(name + EXTENSION)
    if len(data) > MOST_BYTES:
        raise ScheduleFileError(f"{where} is too large for a schedule; {TRY_AGAIN}")
    info, others = _info(data, where)
    try:
        tensors = safetensors.torch.load(data)
        in_others = tuple(
            _schedule(tensors, f"{other.steps}/", replace(info, **vars(other)), name)
            for other in sorted(others, key=lambda other: other.steps)
        )
        return replace(_schedule(tensors, "", info, name), others=in_others)
    except (safetensors.SafetensorError, KeyError) as error:
        raise _unreadable(where, error) from error
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        reason = shown(str(error), 200)
        raise ScheduleFileError(f"{where} is inconsistent ({reason}); {TRY_AGAIN}") from error


def _schedule(tensors: dict[str, Tensor], prefix: str, info: ScheduleInfo, name: str) -> Schedule:
    """The schedule whose tensors have names with this prefix."""
    missing = [prefix + k for k in TENSORS if prefix + k not in tensors]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    for k in TENSORS:
        found, dtype = tensors[prefix + k], torch.float64
        if found.dtype != (torch.int64 if k == "callback_calls" else dtype):
            raise ValueError(f"{prefix + k} is {found.dtype}")
    # copies: these tensors lie in the file's bytes
    copies = (tensors[prefix + k].clone() for k in TENSORS[1:])
    table = SolverTable(*copies, split=info.high_calls or None)
    if float(table.weights.abs().max()) > MOST_WEIGHT:
        raise ValueError(f"a weight is above {MOST_WEIGHT:g}")
    return Schedule(tensors[f"{prefix}sigmas"].float(), table, info, name)


def content_hash(path: Path) -> str:
    """Hash of a file's contents; ScheduleFileError if it cannot be read."""
    return hashlib.sha256(_contents(path)).hexdigest()


def read_info(path: Path) -> ScheduleInfo | None:
    """The provenance in a file, or None if it is not a usable schedule; makes no tensor."""
    try:
        return _info(_contents(path), _where(path.name))[0]
    except ScheduleFileError:
        return None


def _where(file_name: str) -> str:
    return f"schedule file {shown(file_name, 130)!r}"


def _unreadable(where: str, error: Exception) -> ScheduleFileError:
    return ScheduleFileError(f"{where} cannot be read ({shown(str(error), 150)}); {TRY_AGAIN}")


def _contents(path: Path) -> bytes:
    where = _where(path.name)
    try:
        if path.suffix == PARTIAL:
            return best_schedule(path)
        return read_bounded(path, MOST_BYTES)
    except FileNotFoundError as error:
        raise ScheduleFileError(f"{where} does not exist; choose another one") from error
    except OSError as error:
        raise _unreadable(where, OSError(error.strerror)) from error


def _info(data: bytes, where: str) -> tuple[ScheduleInfo, list[OtherStepsInfo]]:
    """The provenance in a file's contents, and what differs in other numbers of steps."""
    try:
        safetensors.deserialize(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise _unreadable(where, error) from error
    text = (header.get("__metadata__") or {}).get("ld3")
    if text is None:
        raise ScheduleFileError(
            f"{where} is a safetensors file but contains no LD3 schedule; choose another"
        )
    try:
        raw = json.loads(text)
        json.dumps(raw, ensure_ascii=False).encode()  # no halves of characters
        version = raw["format_version"]
        if not has_type(version, int):
            raise TypeError("format_version is not a number")
        if version > FORMAT_VERSION:
            raise ScheduleFileError(
                f"{where} was written by a newer version of LD3 (format {version}, this one reads "
                f"up to {FORMAT_VERSION}); update the pack"
            )
        info = built(ScheduleInfo, raw)
        _check_info(info)
        return info, _others(raw.get("others", []), info)
    except ScheduleFileError:
        raise
    except (ValueError, RecursionError, KeyError, TypeError, OverflowError) as error:
        reason = shown(str(error), 200)
        raise ScheduleFileError(f"{where} has damaged metadata ({reason}); {TRY_AGAIN}") from error


def _others(raw: Any, info: ScheduleInfo) -> list[OtherStepsInfo]:
    if not has_type(raw, list[dict[str, Any]]) or len(raw) > MOST_STEPS:
        raise TypeError("others has the wrong type")
    others = [built(OtherStepsInfo, other) for other in raw]
    for other in others:
        _check_info(replace(info, **vars(other)))
    if len({info.steps, *(other.steps for other in others)}) <= len(others):
        raise ValueError("others repeat a number of steps")
    return others


def _check_info(info: ScheduleInfo) -> None:
    """Raise ValueError for values that would fail later, when a schedule is shown or sampled."""
    texts = [value for value in vars(info).values() if isinstance(value, str)]
    if any(len(text) > MOST_TEXT for text in [*texts, *info.extras]):
        raise ValueError("a text is too long")
    if len(info.extras) > MOST_EXTRAS or len(info.steps_sigmas) > MOST_STEPS + 1:
        raise ValueError("a list is too long")
    if not (0 < info.denoise <= 1 and 0 < info.sigma_max and 0 <= min(info.cfg, info.boundary)):
        raise ValueError("a value is out of range")
    options = info.sampler_options.get(INPAINT, {})
    if not has_type(options, INPAINT_TYPE):
        raise ValueError(f"{INPAINT} has the wrong type")
