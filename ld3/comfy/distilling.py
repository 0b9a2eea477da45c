"""Give any schedule D-ODE's lambdas, inside ComfyUI."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ..parameters import check_sigmas
from ..schedule import INPAINT, Schedule, ScheduleInfo, check_name
from ..solver import Plan, UnsupportedSampler
from ..solver import Sampler as TracedSampler
from ..teacher import Pairs
from ..training.dode import Distilled, distill, with_lambdas
from . import samplers
from .denoiser import check_stateless, guided_model
from .executor import TableSampler
from .progress import CallProgress
from .sampling import check_schedule
from .session import Session, save_schedule, saved_schedule

logger = logging.getLogger(__name__)
EXTRA = "D-ODE"


@dataclass(frozen=True)
class DistillRequest:
    """What the node was asked for; names are its widgets'."""

    cfg: float
    seed: int
    teacher_sampler: str
    training_noises: int
    batch_size: int

    def check(self) -> None:
        """Raise ValueError, naming the widget, for what no model can make sense of."""
        if self.cfg < 0 or self.cfg != self.cfg:
            raise ValueError(
                f"cfg is {self.cfg}; guidance below 0 pushes away from the prompt: use 1 or more"
            )
        for name, least in (("training_noises", 2), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; use {least} or more")


@dataclass(frozen=True)
class DistillResult:
    """A saved schedule with lambdas, and what a user should know of the one it was made from."""

    schedule: Schedule
    path: Path
    warnings: list[str]

    def summary(self) -> str:
        """One line: what was done."""
        info, report = self.schedule.info, self.schedule.info.report
        start = f"{self.path.name}: {info.steps} steps of {info.sampler}"
        if EXTRA not in info.extras:
            return f"{start}; D-ODE does not help here: the sampler is returned as it was"
        return (
            f"{start} with {', '.join(info.extras)}; error to the teacher {report['error']:.4g}, "
            f"without D-ODE {report['plain_error']:.4g} (validation noises)"
        )


def distill_solver(
    model: Any,
    positive: Any,
    negative: Any,
    latent: dict[str, Any],
    request: DistillRequest,
    name: str,
    schedule: Schedule | None,
    sigmas: Tensor | None,
    sampler: Any,
) -> DistillResult:
    """Fit, save and return; identical work returns what was saved before.

    Args:
        schedule: LD3_SCHEDULE to extend; or else both of
        sigmas, sampler: SIGMAS (N+1,) and SAMPLER.

    Raises:
        ValueError: a request that cannot be met; the text says which input and what to do.
    """
    request.check()
    name = check_name(name)
    given = _given(schedule, sigmas, sampler)
    warnings = _checked(given, model, request.cfg)
    session = Session(model, positive, negative, latent, request.cfg)
    settings = asdict(request) | {"distill": EXTRA}
    key = session.key(settings, session.samples, session.batch_index, given.sigmas, given.source)
    saved = saved_schedule(key, name)
    if saved is not None:
        return DistillResult(*saved, warnings)
    run = _DistillingSampler(given, request)
    run.noises, run.latents = session.noises(request.seed, 2 * request.training_noises)
    session.run(run, given.sigmas, request.batch_size, request.seed)
    found, table = run.found, run.plan.table
    helped = bool(found.lambdas.any())
    before = given.schedule.info.extras if given.schedule else []
    info = ScheduleInfo(
        sampler=given.name,
        steps=len(given.sigmas) - 1,
        model_calls=table.model_calls,
        # of SIGMAS nobody knows it; LD3 KSampler takes them as they are at its usual 1
        denoise=given.schedule.info.denoise if given.schedule else 1.0,
        teacher={
            "sampler": request.teacher_sampler,
            "scheduler": "the student's levels, divided",
            "steps": 10 * (len(given.sigmas) - 1),
        },
        method="d-ode",
        extras=[*before, EXTRA] if helped else before,
        settings=settings,
        settings_hash=key,
        sampler_options=given.sampler_options,
        report={
            "lambdas": found.lambdas.tolist(),
            "plain_error": found.plain_error,
            "error": found.error,
            "training_calls": run.calls,
        },
        **session.provenance(),
    )
    extended = with_lambdas(table, found.lambdas) if helped else table
    result = DistillResult(*save_schedule(Schedule(given.sigmas, extended, info), name), warnings)
    logger.info("LD3: %s", result.summary())
    return result


@dataclass(frozen=True)
class _Given:
    """What shall be extended: a schedule, or sigmas with a sampler."""

    schedule: Schedule | None
    sigmas: Tensor
    sampler: Any

    @property
    def name(self) -> str:
        """The sampler's, as ComfyUI lists it."""
        return self.schedule.info.sampler if self.schedule else samplers.sampler_label(self.sampler)

    @property
    def source(self) -> list[Any]:
        """All of the sampler that a result depends on."""
        if self.schedule:
            return [self.schedule.table.weights, self.schedule.table.eval_sigmas]
        s = self.sampler
        return [self.name, s.sampler_function, s.extra_options, s.inpaint_options]

    @property
    def sampler_options(self) -> dict[str, Any]:
        """What the table cannot hold of the sampler."""
        if self.schedule:
            return self.schedule.info.sampler_options
        return {INPAINT: dict(self.sampler.inpaint_options)}


def _given(schedule: Schedule | None, sigmas: Tensor | None, sampler: Any) -> _Given:
    if schedule is not None:
        if EXTRA in schedule.info.extras:
            raise ValueError(
                f"schedule {schedule.name!r} has D-ODE's lambdas already; connect the one it was "
                "made from"
            )
        return _Given(schedule, schedule.sigmas.clone(), None)
    if sigmas is None or sampler is None:
        raise ValueError("connect either schedule, or both sigmas and sampler")
    sigmas = sigmas.detach().cpu().float().clone()
    try:
        check_sigmas(sigmas)
    except ValueError as error:
        raise ValueError(f"sigmas: {error}") from error
    if len(sigmas) < 3:
        raise ValueError("sigmas have 1 step; D-ODE needs an earlier output: use 2 steps or more")
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
    return _Given(None, sigmas, sampler)


def _checked(given: _Given, model: Any, cfg: float) -> list[str]:
    """Warnings about a schedule for this model; ValueError for what it cannot be sampled with."""
    if given.schedule:
        return check_schedule(given.schedule, model, cfg, given.schedule.info.denoise)
    start = float(given.sigmas[0])
    largest = float(model.get_model_object("model_sampling").sigma_max)
    if start > 1.001 * largest:
        raise ValueError(
            f"sigmas start at {start:.4g}, this model's largest noise level is {largest:.4g}; "
            "make them with a scheduler for this model"
        )
    return []


class _DistillingSampler(comfy.samplers.Sampler):
    """Fits where a guider expects a sampler; leaves `plan`, `found` and `calls`."""

    noises: Tensor
    latents: Tensor
    plan: Plan
    found: Distilled
    calls: int

    def __init__(self, given: _Given, request: DistillRequest) -> None:
        self.given, self.request = given, request

    def sample(
        self,
        model_wrap,
        sigmas,
        extra_args,
        callback,
        noise,
        latent_image=None,
        denoise_mask=None,
        disable_pbar=False,
    ) -> Tensor:
        """Fit; returns the noise it was given."""
        model = guided_model(self, model_wrap, extra_args)
        latents = self.latents
        if torch.count_nonzero(latents) > 0:  # as core: an empty latent is not shifted
            latents = model_wrap.inner_model.process_latent_in(latents)
        size, half = self.request.batch_size, self.request.training_noises
        with torch.no_grad():
            few = slice(0, size)
            check_stateless(model, self.noises[few], latents[few], extra_args["model_options"])
            given = self.given
            if given.schedule:
                self.plan = Plan(given.sigmas, given.schedule.table)
            else:
                traced = self._traced("sampler", given.sampler, model_wrap)
                self.plan = Plan(given.sigmas, traced.table(given.sigmas))
            teacher = samplers.sampler_object(self.request.teacher_sampler)
            teacher = self._traced("teacher_sampler", teacher, model_wrap)
            pairs = Pairs(self.noises, latents, self.noises)
            model.calls = 0
            planned = 12 * self.plan.table.model_calls * len(self.noises)
            self.found = distill(
                model,
                self.plan,
                teacher,
                pairs[:half],
                pairs[half:],
                size,
                CallProgress(model, planned),
            )
            self.calls = model.calls
        return noise

    def _traced(self, widget: str, sampler: Any, model_wrap: Any) -> TracedSampler:
        sampling = model_wrap.inner_model.model_sampling
        traced = samplers.traceable(sampler, sampling, model_wrap)
        try:
            traced.table(self.given.sigmas)
        except UnsupportedSampler as error:
            label = samplers.sampler_label(sampler)
            reason = samplers.refusal(label, error, sampling, self.given.sigmas)
            raise ValueError(f"{widget}: {reason}") from error
        return traced
