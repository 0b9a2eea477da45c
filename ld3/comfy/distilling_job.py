"""Add D-ODE's lambdas to any schedule inside ComfyUI: what LD3 Distill Solver does."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import comfy.samplers
from torch import Tensor

from ..json_types import has_type
from ..parameters import check_sigmas
from ..schedule import INPAINT, MOST_STEPS, Schedule, ScheduleInfo
from ..schedule_file import INPAINT_TYPE, check_name
from ..table import Discretization, Extra
from ..teacher import TeacherSamples
from ..training import dode
from ..training.report import ProgressReporter, finite
from . import core_samplers, folders
from .executor import TableSampler
from .guided_run import GuidedRun
from .job import GraphInputs
from .model_state import keeps_state, refuse_state
from .progress import LiveProgress
from .requests import DistillRequest
from .sampling import prepared_sampling


@dataclass(frozen=True)
class DistillResult:
    """A saved schedule with lambdas, and what a user should know of the one it was made from."""

    schedule: Schedule
    path: Path
    warnings: list[str]


class Source:
    """What receives lambdas: LD3_SCHEDULE, or else SIGMAS (N+1,) with a SAMPLER.

    Raises:
        ValueError: neither, or inputs that D-ODE cannot be used with; names the input.
    """

    def __init__(self, schedule: Schedule | None, sigmas: Tensor | None, sampler: Any) -> None:
        self.schedule, self.sampler = schedule, sampler
        if schedule is not None:
            if Extra.D_ODE in self.extras:
                raise ValueError(
                    f"schedule {schedule.name!r} has D-ODE's lambdas already; connect the one it "
                    "was made from"
                )
            self.sigmas = schedule.sigmas.clone()
        elif sigmas is not None and sampler is not None:
            self.sigmas = sigmas.detach().cpu().float().clone()
            _check_inputs(self.sigmas, sampler)
        else:
            raise ValueError("connect either schedule, or both sigmas and sampler")

    @property
    def name(self) -> str:
        """The sampler's, as ComfyUI lists it."""
        schedule = self.schedule
        return schedule.info.sampler if schedule else core_samplers.sampler_label(self.sampler)

    @property
    def extras(self) -> list[str]:
        """What its table contains already."""
        return self.schedule.info.extras if self.schedule else []

    @property
    def contents(self) -> list[Any]:
        """All that a result depends on."""
        if self.schedule:
            return [self.sigmas, [self.schedule.table.weights, self.schedule.table.eval_sigmas]]
        s = self.sampler
        return [self.sigmas, [self.name, s.sampler_function, s.extra_options, s.inpaint_options]]

    def described(self) -> dict[str, Any]:
        """What the new schedule's `ScheduleInfo` says of it."""
        if self.schedule:
            info = self.schedule.info
            return {"denoise": info.denoise, "sampler_options": info.sampler_options}
        # the denoise of SIGMAS is unknown; LD3 KSampler samples them at its usual 1
        return {"denoise": 1.0, "sampler_options": {INPAINT: dict(self.sampler.inpaint_options)}}

    def check(self, model: Any, cfg: float) -> list[str]:
        """Warnings about its use with this model; ValueError if it cannot be sampled."""
        if self.schedule and self.schedule.info.boundary:
            raise ValueError(
                f"schedule {self.schedule.name!r} is for two models, which D-ODE is not made for: "
                "connect one for a single model"
            )
        if self.schedule:
            return prepared_sampling(self.schedule, model, cfg).warnings
        start = float(self.sigmas[0])
        largest = float(model.get_model_object("model_sampling").sigma_max)
        if start > 1.001 * largest:
            raise ValueError(
                f"sigmas start at {start:.4g}, this model's largest noise level is {largest:.4g}; "
                "use a scheduler with this model"
            )
        return []

    def discretization(self, model_wrap: Any) -> Discretization:
        """Sigmas and table, for a running guider."""
        if self.schedule:
            return Discretization(self.sigmas, self.schedule.table)
        traced = core_samplers.widget_sampler("sampler", self.sampler, self.sigmas, model_wrap)
        return traced.discretization(self.sigmas)


def _check_inputs(sigmas: Tensor, sampler: Any) -> None:
    try:
        check_sigmas(sigmas)
    except ValueError as error:
        raise ValueError(f"sigmas: {error}") from error
    if len(sigmas) < 3:
        raise ValueError("sigmas have 1 step; D-ODE needs an earlier output: use 2 steps or more")
    if len(sigmas) > MOST_STEPS + 1:
        raise ValueError(f"sigmas have {len(sigmas) - 1} steps; use {MOST_STEPS} or fewer")
    if not has_type(dict(getattr(sampler, INPAINT, {})), INPAINT_TYPE):
        raise ValueError(
            f"sampler has {INPAINT} that a schedule file cannot contain; use KSamplerSelect's"
        )
    if isinstance(sampler, TableSampler):
        raise ValueError(
            f"sampler is that of LD3 schedule {sampler.schedule.name!r}; connect this schedule to "
            "the input schedule instead"
        )
    if not isinstance(sampler, comfy.samplers.KSAMPLER):
        raise ValueError(
            f"sampler is a {type(sampler).__name__}, whose steps cannot be read; use one of "
            "KSamplerSelect's or another node's that returns a KSAMPLER"
        )


def _check_report(info: ScheduleInfo) -> None:
    """Raise ValueError unless a file says what a distillation says: others may have written it."""
    errors = {name: info.report.get(name) for name in ("plain_error", "error")}
    shown = Extra.D_ODE in info.extras
    if shown and (not has_type(errors, dict[str, float | None]) or errors["error"] is None):
        raise ValueError("the report has no errors")


def distill_solver(
    inputs: GraphInputs, request: DistillRequest, name: str, source: Source
) -> DistillResult:
    """Fit, save and return; identical work returns what was saved before.

    ValueError for a request that cannot be met: says which input and what to do.
    """
    request.check()
    name = check_name(name)
    warnings = source.check(inputs.model, request.cfg)
    job = inputs.job(request.cfg)
    settings = asdict(request) | {"distill": Extra.D_ODE.value}
    key = job.key(settings, job.samples, job.batch_index, *source.contents)
    saved = folders.saved_again(key) or folders.saved_schedule(key, name, _check_report)
    if saved is not None:
        return DistillResult(saved.schedule, saved.path, [*warnings, *saved.problems])
    folders.check_writable()

    def distilled(guided: GuidedRun) -> tuple[dode.Distilled, int]:
        noises, latents = job.noises(request.seed, 2 * request.training_noises)
        latents = guided.latents(latents)
        job.pair(guided, noises)
        if keeps_state(guided, noises, latents):
            raise refuse_state("D-ODE")
        model, student = guided.model, source.discretization(guided.model_wrap)
        teacher = core_samplers.widget_sampler(
            "teacher_sampler", request.teacher_sampler, source.sigmas, guided.model_wrap
        )
        samples, half = TeacherSamples(noises, latents, noises), request.training_noises
        planned = dode.planned_calls(model, student, teacher, half, half)
        progress = ProgressReporter(model, planned, LiveProgress())
        sets = samples[:half], samples[half:]
        return dode.distill(model, student, teacher, *sets, progress.stage), progress.calls

    found, calls = job.run(distilled, source.sigmas, request.batch_size, request.seed)
    student = found.student
    info = ScheduleInfo(
        sampler=source.name,
        steps=student.steps,
        model_calls=student.table.model_calls,
        teacher={
            "sampler": request.teacher_sampler,
            "scheduler": "the student's levels, divided",
            "steps": dode.TEACHER_STEPS * student.steps,
        },
        method="d-ode",
        extras=[*source.extras, *(extra.value for extra in student.extras)],
        settings=settings,
        settings_hash=key,
        report={
            "lambdas": found.lambdas.tolist(),
            "plain_error": finite(found.plain_error),
            "error": finite(found.error),
            "training_calls": calls,
        },
        **source.described(),
        **job.provenance(),
    )
    schedule = Schedule(student.sigmas, student.table, info)
    saved = folders.save_schedule(schedule, name)
    return DistillResult(saved.schedule, saved.path, [*warnings, *saved.problems])
