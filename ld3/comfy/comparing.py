"""Sample the same noises with a reference, standard schedules and learned ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..comparison_picture import Column
from ..metrics import rmse
from ..schedule import Schedule
from ..tracing import UnsupportedSampler
from ..training.report import Report
from . import core_samplers
from .auto_teacher import KARRAS_BETA, teacher_sigmas
from .job import GraphInputs
from .requests import check_at_least, check_cfg
from .sampling import PreparedSampling, for_two_models, prepared_sampling, sample

BEST = "best standard"
ENTRY = re.compile(r"(?:(\d+) steps of )?(\S+) \+ (\S+)")
EXPECTED = f"'euler + simple', '15 steps of euler + simple' or '{BEST}', separated by commas"


class Standard(NamedTuple):
    """A sampler and scheduler to compare with; as many steps as the schedule if steps is 0."""

    steps: int
    sampler: str
    scheduler: str


@dataclass(frozen=True)
class ComparisonRequest:
    """The widgets of LD3 Compare Schedules, by their names."""

    seed: int
    noises: int
    cfg: float
    compare_with: str
    row_names: str = ""

    def check(self) -> list[Standard | str]:
        """The entries of compare_with; ValueError names the widget that is wrong."""
        check_cfg(self.cfg)
        check_at_least(1, "noises", self.noises)
        entries = [part.strip() for part in self.compare_with.split(",")]
        return [_entry(part) for part in entries if part]

    def rows(self, prompts: int) -> list[str]:
        """Names of the rows: all noises of the first prompt, then of the next."""
        names = [part.strip() for part in self.row_names.split(",") if part.strip()]
        count = prompts * self.noises
        if names and len(names) != count:
            raise ValueError(
                f"row_names has {len(names)} names, but there are {count} rows ({prompts} prompts "
                f"and {self.noises} noises): give {count}, or none"
            )
        return names or [""] * count


def _entry(text: str) -> Standard | str:
    if text == BEST:
        return text
    found = ENTRY.fullmatch(text)
    if not found:
        raise ValueError(f"compare_with contains {text!r}; expected {EXPECTED}")
    steps, sampler, scheduler = found.groups()
    for name, known in (
        (sampler, core_samplers.sampler_names()),
        (scheduler, core_samplers.scheduler_names()),
    ):
        if name not in known:
            raise ValueError(f"compare_with contains {name!r}; choose one of {', '.join(known)}")
    return Standard(int(steps or 0), sampler, scheduler)


@dataclass(frozen=True, eq=False)
class ComparisonInputs:
    """What a graph connects: one latent, several prompts, schedules (at least one), and a VAE.

    With `low_noise_model` all columns are sampled with both models.
    """

    model: Any
    positives: Sequence[Any]
    negative: Any
    latent_image: dict[str, Any]
    vae: Any
    schedules: Sequence[Schedule]
    low_noise_model: Any = None


def compare(
    inputs: ComparisonInputs, request: ComparisonRequest
) -> tuple[list[Column], list[str], list[str]]:
    """Columns, row names and warnings: reference, standard schedules, learned ones.

    The reference is the first schedule's teacher. All columns start from the same noises: row i of
    a prompt from that of KSampler for seed + i.

    Raises:
        ValueError: a widget or a schedule cannot be used; says which and what to do.
    """
    entries, rows = request.check(), request.rows(len(inputs.positives))
    first, model, warnings = inputs.schedules[0], inputs.model, list[str]()
    reference = _reference(model, first, request.cfg)
    target = _samples(inputs, request, reference.prepared)
    columns = [_column(inputs, reference, target, None)]
    ways = list[_Way | None]()
    for entry in entries:
        if isinstance(entry, Standard):
            ways.append(_standard(model, first, entry, request.cfg))
        elif core_samplers.is_installed(first.info.sampler):
            ways.append(_best(model, first, request.cfg))
        else:
            warnings.append(
                f"compare_with contains {BEST!r}, which is left out: the schedule's sampler "
                f"{first.info.sampler!r} is not installed here, or has options"
            )
    for schedule in inputs.schedules:
        prepared = prepared_sampling(schedule, model, request.cfg, low_model=inputs.low_noise_model)
        warnings += prepared.warnings
        calls = schedule.info.steps, schedule.info.model_calls
        name = schedule.name if len(inputs.schedules) > 1 and schedule.name else "learned"
        ways.append(_Way(name, *calls, prepared, learned=True))
    once = {(way.name, way.steps, way.learned): way for way in ways if way is not None}
    for way in once.values():
        columns.append(_column(inputs, way, _samples(inputs, request, way.prepared), target))
    return columns, rows, warnings


@dataclass(frozen=True, eq=False)
class _Way:
    name: str
    steps: int
    model_calls: int
    prepared: PreparedSampling
    learned: bool = False


def _best(model: Any, schedule: Schedule, cfg: float) -> _Way | None:
    """The best standard schedule that competed in training; None if the report knows none."""
    report = Report.from_json(schedule.info.report)
    name = report.best_baseline()
    if name is None:
        return None
    # of connected sigmas there is no scheduler, or it began elsewhere
    sigmas = torch.tensor(report.baselines[name].sigmas)
    return _way(model, (schedule.info.sampler, name), sigmas, cfg, schedule.info.boundary)


def _reference(model: Any, schedule: Schedule, cfg: float) -> _Way:
    """The teacher; simple or karras in place of levels that no scheduler makes."""
    info = schedule.info
    teacher, flow = info.teacher, info.prediction_type == "flow"
    names = teacher.get("sampler", info.sampler), teacher.get("scheduler", "")
    if names[1] not in (KARRAS_BETA, *core_samplers.scheduler_names()):
        names = names[0], "simple" if flow else "karras"
    if not core_samplers.is_installed(names[0]):
        names = "euler", names[1]
    sigmas = teacher_sigmas(model, names, int(teacher.get("steps", 20)), info.denoise)
    return _way(model, names, sigmas, cfg, info.boundary)


def _standard(model: Any, schedule: Schedule, chosen: Standard, cfg: float) -> _Way:
    names, steps = (chosen.sampler, chosen.scheduler), chosen.steps or schedule.info.steps
    sigmas = core_samplers.scheduler_sigmas(model, *names, steps, schedule.info.denoise)
    return _way(model, names, sigmas, cfg, schedule.info.boundary)


def _way(model: Any, names: tuple[str, str], sigmas: Tensor, cfg: float, boundary: float) -> _Way:
    """A sampler and scheduler, of two models if there is a boundary."""
    sampler, guider = core_samplers.sampler_object(names[0]), core_samplers.stand_in_guider(model)
    steps = calls = len(sigmas) - 1
    if boundary:
        prepared = for_two_models(PreparedSampling(sampler, sigmas, cfg, []), model, boundary)
        assert prepared.solver is not None
        return _Way(" + ".join(names), steps, prepared.solver.table.model_calls, prepared)
    try:
        sampling = guider.inner_model.model_sampling
        calls = core_samplers.traced_sampler(sampler, sampling, guider).table(sigmas).model_calls
    except (UnsupportedSampler, ValueError):  # stochastic: taken for one call a step
        pass
    return _Way(" + ".join(names), steps, calls, PreparedSampling(sampler, sigmas, cfg, []))


def _samples(inputs: ComparisonInputs, request: ComparisonRequest, way: PreparedSampling) -> Tensor:
    """Latents (rows, *latent) on the CPU."""
    found = []
    latent = inputs.latent_image | {"samples": inputs.latent_image["samples"][:1]}
    latent.pop("batch_index", None)
    for positive in inputs.positives:
        graph = GraphInputs(
            inputs.model,
            positive,
            inputs.negative,
            latent,
            low_noise_model=inputs.low_noise_model,
        )
        for i in range(request.noises):
            sigmas = way.sigmas.clone()  # uni_pc writes into them
            result = sample(graph, way._replace(sigmas=sigmas), request.seed + i)
            samples = result["samples"]  # of a video with sound the video
            found.append((samples.unbind()[0] if samples.is_nested else samples).cpu())
    return torch.cat(found)


def _column(inputs: ComparisonInputs, way: _Way, samples: Tensor, target: Tensor | None) -> Column:
    error = None if target is None else float(rmse((samples - target).float()).mean())
    images = [_image(inputs.vae, sample[None]) for sample in samples]
    return Column(way.name, way.steps, way.model_calls, error, np.stack(images), way.learned)


def _image(vae: Any, latent: Tensor) -> np.ndarray:
    """A decoded latent (height, width, 3); of a video its middle frame."""
    decoded = vae.decode(latent)
    if decoded.ndim == 5:
        decoded = decoded[:, decoded.shape[1] // 2]
    return decoded[0, :, :, :3].float().cpu().numpy()
