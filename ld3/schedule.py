"""A learned schedule: what it is, how it is saved, and what is checked before it is used.

One safetensors file per schedule. Tensors (float64, `callback_calls` int64): the sigmas and the
solver table. Metadata key `ld3`: one JSON object, see `ScheduleInfo`. A file is data: nothing in it
is evaluated.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .parameters import check_sigmas
from .table import SolverTable

FORMAT_VERSION = 2  # 2: extras, such as decoupled times
EXTENSION = ".safetensors"
INPAINT = "inpaint_options"  # of sampler_options
TENSORS = ("sigmas", "state_sigmas", "eval_sigmas", "weights", "callback_calls")
JSON_TYPES: dict[str, Any] = {
    "str": str, "int": int, "float": (int, float), "list[int]": list, "list[str]": list,
    "list[float]": list,
    "dict[str, Any]": dict,
}  # fmt: skip
MOST_FILE_ELEMENTS = 4_000_000  # far above any real table; keeps a foreign file from filling memory
TRY_AGAIN = "train or download it again"


class ScheduleFileError(ValueError):
    """The file is not a schedule this version can use; the text says why and what to do."""


@dataclass(frozen=True)
class ScheduleInfo:
    """Where a schedule comes from.

    Attributes:
        sampler: ComfyUI's name for it, or its function's where it is not listed.
        sampler_options: {"inpaint_options": {..}} of a SAMPLER that was connected, else {}.
        steps, model_calls: N, and the network evaluations per sample.
        cfg, denoise: guidance scale and denoise it was learned at.
        extras: what the table contains beyond the sampler's own coefficients, values of
            `ld3.table.Extra`; with any, the table itself must be executed.
        steps_sigmas: the schedule for the plain sampler, if extras were learned with others; or [].
        latent_shape: one sample's latent, without the batch.
        prediction_type: "eps", "v", "edm" or "flow".
        sigma_max: the model's largest noise level.
        model_fingerprint, model_file, model_name: which model.
        teacher: {sampler, scheduler, steps}.
        method, settings: how it was learned, with which constants.
        settings_hash: identical trainings have identical hashes.
        report: `ld3.training.report.Report.as_json()`, or what `ld3.comfy.distilling_job` writes.
        pack_version, comfyui_version, created: provenance, created in UTC (ISO 8601).
    """

    sampler: str
    steps: int
    model_calls: int
    cfg: float
    denoise: float
    latent_shape: list[int]
    prediction_type: str
    sigma_max: float
    model_fingerprint: str
    teacher: dict[str, Any]
    method: str
    settings: dict[str, Any]
    settings_hash: str
    report: dict[str, Any]
    sampler_options: dict[str, Any] = field(default_factory=dict)
    extras: list[str] = field(default_factory=list)
    steps_sigmas: list[float] = field(default_factory=list)
    model_file: str = ""
    model_name: str = ""
    pack_version: str = ""
    comfyui_version: str = ""
    created: str = ""
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True, eq=False)
class Schedule:
    """A schedule with its sampler's table.

    Attributes:
        sigmas: (N+1,) float32 on the CPU, strictly decreasing, as ComfyUI's SIGMAS.
        table: the sampler at these sigmas.
        info: provenance.
        name: the file's name without extension; "" before saving.
    """

    sigmas: Tensor
    table: SolverTable
    info: ScheduleInfo
    name: str = ""

    def __post_init__(self) -> None:
        check_sigmas(self.sigmas)
        found = len(self.sigmas) - 1, self.table.model_calls
        if found != (self.info.steps, self.info.model_calls):
            raise ValueError(
                f"a schedule of {self.info.steps} steps and {self.info.model_calls} model calls "
                f"cannot have {found[0] + 1} sigmas and a table of {found[1]} calls"
            )
        if self.info.steps_sigmas:
            check_sigmas(self.plain_sigmas)
            ends = [(s[0], s[-1]) for s in (self.plain_sigmas, self.sigmas)]
            if len(self.plain_sigmas) != len(self.sigmas) or ends[0] != ends[1]:
                raise ValueError(
                    f"steps_sigmas must have {len(self.sigmas)} levels with the ends of sigmas; "
                    f"got {len(self.plain_sigmas)}"
                )

    @property
    def plain_sigmas(self) -> Tensor:
        """The noise levels for the plain sampler, without extras: (N+1,) float32."""
        return torch.tensor(self.info.steps_sigmas or self.sigmas.tolist(), dtype=torch.float32)


def check_name(name: str) -> str:
    """A file name without extension that stays inside its folder, or ValueError."""
    name = name.strip().removesuffix(EXTENSION).strip()
    if (
        not name
        or name.startswith(".")
        or any(c in '/\\:*?"<>|' or ord(c) < 32 for c in name)
        or len(name) > 120
        or len(name.encode("utf-8", "replace")) > 230  # file systems count bytes, up to 255
    ):
        raise ValueError(
            f"{name!r} cannot be a schedule's name: use up to 120 letters, digits, spaces, '-', "
            "'_' and '.', no folders, not starting with '.'"
        )
    return name


def save(schedule: Schedule, folder: Path, name: str) -> Path:
    """Write a schedule; a name in use gets a number (name_2, name_3, ..), nothing is overwritten.

    The file appears complete or not at all: written under another name, synced, then renamed.

    Returns:
        The path written.
    """
    name = check_name(name)
    table = schedule.table
    tensors = {
        "sigmas": schedule.sigmas.double(),
        "state_sigmas": table.state_sigmas,
        "eval_sigmas": table.eval_sigmas.clone(),
        "weights": table.weights.contiguous(),
        "callback_calls": table.callback_calls,
    }
    info = json.dumps(asdict(schedule.info), allow_nan=False)
    data = safetensors.torch.save(tensors, metadata={"ld3": info})
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".ld3-", suffix=".tmp")
    path = None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        path = _reserved(folder, name)
        shutil.copymode(path, temporary)  # mkstemp's files are for their owner only
        os.replace(temporary, path)
    except BaseException:
        for partial in (Path(temporary), path):
            if partial is not None:
                partial.unlink(missing_ok=True)
        raise
    return path


def load(path: Path) -> Schedule:
    """Read and check a schedule; ScheduleFileError says what is wrong and what to do."""
    where = f"schedule file {path.name!r}"
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("ld3")
            if text is None:
                raise ScheduleFileError(
                    f"{where} is a safetensors file but contains no LD3 schedule; choose another"
                )
            info = _parse_info(text, where)
            missing = [k for k in TENSORS if k not in file.keys()]
            if missing:
                raise ScheduleFileError(f"{where} lacks {', '.join(missing)}; {TRY_AGAIN}")
            if sum(math.prod(file.get_slice(k).get_shape()) for k in TENSORS) > MOST_FILE_ELEMENTS:
                raise ScheduleFileError(f"{where} is too large for a schedule; {TRY_AGAIN}")
            tensors = {k: file.get_tensor(k) for k in TENSORS}
    except FileNotFoundError as error:
        raise ScheduleFileError(f"{where} does not exist; choose another one") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise ScheduleFileError(f"{where} cannot be read ({error}); {TRY_AGAIN}") from error
    try:
        for k in TENSORS:
            dtype = torch.int64 if k == "callback_calls" else torch.float64
            if tensors[k].dtype != dtype:
                raise ValueError(f"{k} is {tensors[k].dtype}, not {dtype}")
        table = SolverTable(*(tensors[k] for k in TENSORS[1:]))
        return Schedule(tensors["sigmas"].float(), table, info, path.name.removesuffix(EXTENSION))
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        raise ScheduleFileError(f"{where} is inconsistent ({error}); {TRY_AGAIN}") from error


def read_info(path: Path) -> ScheduleInfo | None:
    """The provenance in a file, or None if it is not a usable schedule; reads no tensor."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("ld3")
        return None if text is None else _parse_info(text, path.name)
    except (ScheduleFileError, safetensors.SafetensorError, OSError):
        return None


def _parse_info(text: str, where: str) -> ScheduleInfo:
    try:
        raw = json.loads(text)
        version = raw["format_version"]
        if not isinstance(version, int):
            raise TypeError("format_version is not a number")
        if version > FORMAT_VERSION:
            raise ScheduleFileError(
                f"{where} was written by a newer version of LD3 (format {version}, this one reads "
                f"up to {FORMAT_VERSION}); update the pack"
            )
        info = ScheduleInfo(**{f.name: raw[f.name] for f in fields(ScheduleInfo) if f.name in raw})
        for f in fields(ScheduleInfo):
            value = getattr(info, f.name)
            if isinstance(value, bool) or not isinstance(value, JSON_TYPES[str(f.type)]):
                raise TypeError(f"{f.name} has the wrong type")
        if any(not isinstance(extra, str) for extra in info.extras):
            raise TypeError("extras has the wrong type")
        numbers = [s for s in info.steps_sigmas if isinstance(s, (int, float))]
        if len(numbers) != len(info.steps_sigmas) or len(numbers) > MOST_FILE_ELEMENTS:
            raise TypeError("steps_sigmas has the wrong type")
        if not (
            math.isfinite(info.cfg) and 0 < info.denoise <= 1 and 0 < info.sigma_max < math.inf
        ):
            raise ValueError("a value is out of range")
        return info
    except ScheduleFileError:
        raise
    except (ValueError, RecursionError, KeyError, TypeError, OverflowError) as error:
        raise ScheduleFileError(f"{where} has damaged metadata ({error}); {TRY_AGAIN}") from error


def _reserved(folder: Path, name: str) -> Path:
    """The first free path of name, name_2, ..; created empty, to reserve it."""
    number = 1
    while True:
        path = folder / f"{name}{'' if number == 1 else f'_{number}'}{EXTENSION}"
        try:
            path.open("xb").close()
            return path
        except FileExistsError:
            number += 1


def resampled(sigmas: Tensor, steps: int) -> Tensor:
    """The schedule stretched to another number of steps: log-linear, as core's AYS node.

    Args:
        sigmas: (N+1,), last 0 or above.
        steps: any >= 1.

    Returns:
        (steps+1,) float32 with the same first and last level.
    """
    if steps == len(sigmas) - 1:
        return sigmas
    inner = sigmas[:-1].double().log()
    position = torch.linspace(0, len(inner) - 1, steps, dtype=torch.float64)
    low = position.floor().long().clamp(max=max(len(inner) - 2, 0))
    high = (low + 1).clamp(max=len(inner) - 1)
    levels = torch.lerp(inner[low], inner[high], position - low)
    return torch.cat([levels.exp(), sigmas[-1:].double()]).float()
