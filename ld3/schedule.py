"""A learned schedule: noise levels, the sampler's table there, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .experts import check_boundary, high_steps, parts
from .parameters import check_sigmas
from .table import Discretization, SolverTable
from .tracing import CALLS_PER_STEP

FORMAT_VERSION = 3  # 2: extras, such as decoupled times; 3: two models
ONE_MODEL = 2  # what files of one model say, which older versions of the pack can read
INPAINT = "inpaint_options"  # of sampler_options
MOST_STEPS, MOST_CALLS = 100, 200  # tracing a sampler's table takes time by the square


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
        boundary: of two models (`ld3.experts`), the noise level from which on the second samples; 0
            for one.
        high_steps, high_calls: the steps and model calls of the first of two models; or 0.
        low_model_fingerprint, low_model_file: which model the second is.
        pack_version, comfyui_version, created: provenance, created in UTC (ISO 8601).
        note: what its owner wrote about it.
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
    note: str = ""
    boundary: float = 0.0
    high_steps: int = 0
    high_calls: int = 0
    low_model_fingerprint: str = ""
    low_model_file: str = ""
    format_version: int = ONE_MODEL


@dataclass(frozen=True)
class OtherStepsInfo:
    """What differs from `ScheduleInfo` in another number of steps; attributes as there."""

    steps: int
    model_calls: int
    method: str
    extras: list[str]
    steps_sigmas: list[float]
    report: dict[str, Any]
    high_steps: int = 0
    high_calls: int = 0


@dataclass(frozen=True, eq=False)
class Schedule:
    """A schedule with its sampler's table.

    Attributes:
        sigmas: (N+1,) float32 on the CPU, strictly decreasing, as ComfyUI's SIGMAS.
        table: the sampler at these sigmas.
        info: provenance.
        name: the file's name without extension; "" before saving.
        others: the same solver in other numbers of steps, ascending.
    """

    sigmas: Tensor
    table: SolverTable
    info: ScheduleInfo
    name: str = ""
    others: tuple[Schedule, ...] = ()

    def __post_init__(self) -> None:
        check_sigmas(self.sigmas)
        found = len(self.sigmas) - 1, self.table.model_calls
        most = min(MOST_CALLS, CALLS_PER_STEP * len(self.sigmas))
        if found[0] > MOST_STEPS or found[1] > most:
            raise ValueError(
                f"a schedule has {MOST_STEPS} steps at most, and with {found[0]} steps {most} "
                f"model calls at most; got {found[1]} calls"
            )
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

        self._check_boundary()

    def _check_boundary(self) -> None:
        info = self.info
        split = self.table.split or 0, high_steps(self.sigmas, info.boundary)
        if not info.boundary:
            split = split[0], 0
        if split != (info.high_calls, info.high_steps):
            raise ValueError(
                f"{info.high_steps} steps and {info.high_calls} calls before the boundary "
                f"{info.boundary:g} do not fit to the table and the noise levels"
            )
        if info.boundary:
            check_boundary(self.sigmas, info.boundary)
            check_boundary(self.plain_sigmas, info.boundary)
            parts(self.table)

    @property
    def plain_parts(self) -> tuple[Tensor, Tensor] | None:
        """`plain_sigmas` up to and from the split; None if the schedule is for one model."""
        return self._split(self.plain_sigmas)

    @property
    def own_parts(self) -> tuple[Discretization, Discretization] | None:
        """What the first and the second of two models sample; None for one model."""
        levels = self._split(self.sigmas)
        if levels is None:
            return None
        high, low = parts(self.table)
        return Discretization(levels[0], high), Discretization(levels[1], low)

    def _split(self, sigmas: Tensor) -> tuple[Tensor, Tensor] | None:
        if not self.info.boundary:
            return None
        high = high_steps(sigmas, self.info.boundary)
        return sigmas[: high + 1], sigmas[high:]

    def in_steps(self, steps: int) -> Schedule:
        """The schedule in another number of steps; ValueError if it has none.

        Args:
            steps: 0 for its own.
        """
        numbers = {s.info.steps: s for s in (self, *self.others)}
        if steps == 0:
            return self
        if steps not in numbers:
            found = ", ".join(map(str, sorted(numbers)))
            raise ValueError(
                f"schedule {self.name!r} has {found} steps, not {steps}; choose one of these, or "
                "train it with also_steps"
            )
        return numbers[steps]

    @property
    def plain_sigmas(self) -> Tensor:
        """The noise levels for the plain sampler, without extras: (N+1,) float32."""
        return torch.tensor(self.info.steps_sigmas or self.sigmas.tolist(), dtype=torch.float32)


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
