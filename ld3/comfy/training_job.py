"""Learn a schedule inside ComfyUI: what LD3 Train Schedule does."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..metrics import IMAGE_DISTANCES
from ..parameters import check_sigmas
from ..schedule import Schedule, ScheduleInfo, check_name
from ..teacher import TargetStore
from ..training.report import Report
from ..training.settings import TrainingSettings
from ..training.train import Learned, TrainingProblem, train
from . import core_samplers, fingerprint, folders
from .gradient.differentiable_model import differentiable_run, normal_tensors
from .gradient.gradient_check import check_gradient
from .guided_run import GuidedRun, check_stateless
from .image_distance import check_image_distance, feature_map, load_together
from .job import GraphInputs, Job
from .progress import LiveProgress
from .requests import TrainingRequest


@dataclass(frozen=True)
class TrainingResult:
    """A saved schedule, and whether it was trained just now."""

    schedule: Schedule
    path: Path
    trained: bool
    seconds: float

    @cached_property
    def report(self) -> Report:
        """What the training reported."""
        return Report.from_json(self.schedule.info.report)


def train_schedule(
    inputs: GraphInputs, request: TrainingRequest, name: str, retrain: bool = False
) -> TrainingResult:
    """Learn, save and return a schedule; identical settings return the saved one unless `retrain`.

    Args:
        name: file name to save under; a name already in use gets a number.

    Raises:
        ValueError: a request that cannot be met; the text says which widget and what to do.
    """
    settings = request.settings()
    name = check_name(name)
    vae = inputs.vae if request.distance in IMAGE_DISTANCES else None
    if request.distance in IMAGE_DISTANCES:
        check_image_distance(request.distance, vae)
    job = Job(inputs, request.cfg)
    decoder = fingerprint.weights_hash(vae.first_stage_model) if vae else None
    key = job.key(asdict(request), job.samples, job.batch_index, decoder)
    saved = None if retrain else folders.saved_schedule(key, name)
    if saved is not None:
        return TrainingResult(*saved, trained=False, seconds=0.0)

    started = time.monotonic()
    teacher_sigmas = _teacher_sigmas(inputs.model, request)
    store = TargetStore(folders.target_folder(), job.key(request.teacher_facts()))
    baselines = core_samplers.standard_schedules(
        inputs.model, request.sampler_name, request.steps, request.denoise
    )
    training = _Training(job, request, settings, teacher_sigmas, baselines, vae, store)
    learned = job.run(training.run, teacher_sigmas, request.batch_size, request.seed)
    solver = learned.solver
    info = ScheduleInfo(
        sampler=request.sampler_name,
        steps=solver.steps,
        model_calls=solver.table.model_calls,
        denoise=request.denoise,
        teacher={
            "sampler": request.teacher_sampler,
            "scheduler": request.teacher_scheduler,
            "steps": request.teacher_steps,
        },
        method=request.method,
        extras=learned.report.extras,
        settings=asdict(request) | asdict(settings),
        settings_hash=key,
        report=learned.report.as_json(),
        **job.provenance(),
    )
    schedule, path = folders.save_schedule(Schedule(solver.sigmas, solver.table, info), name)
    return TrainingResult(schedule, path, trained=True, seconds=time.monotonic() - started)


def _teacher_sigmas(model: Any, request: TrainingRequest) -> Tensor:
    sigmas = core_samplers.scheduler_sigmas(
        model,
        request.teacher_sampler,
        request.teacher_scheduler,
        request.teacher_steps,
        request.denoise,
    )
    try:
        check_sigmas(sigmas)
    except ValueError as error:
        raise ValueError(
            f"teacher_steps is {request.teacher_steps}; the scheduler "
            f"{request.teacher_scheduler!r} has fewer distinct noise levels: use fewer "
            "teacher_steps, or another teacher_scheduler"
        ) from error
    return sigmas


@dataclass(frozen=True)
class _Training:
    """One training; `run` is the task of a guided run."""

    job: Job
    request: TrainingRequest
    settings: TrainingSettings
    teacher_sigmas: Tensor
    baselines: dict[str, Tensor]
    vae: Any  # for distances between images, else None
    store: TargetStore

    def run(self, guided: GuidedRun) -> Learned:
        """Learn."""
        request, job = self.request, self.job
        noises, latents = job.noises(request.seed, self.settings.noises)
        with ExitStack() as stack:
            if request.gradient:
                guided = stack.enter_context(differentiable_run(guided))
                # copies: tensors made under inference mode have no gradient
                noises, latents = noises.clone(), latents.clone()
            latents = guided.latents(latents)
            check_stateless(guided, noises, latents)
            if request.gradient:
                check_gradient(guided, noises[:1], latents[:1])
            features = self._image_features(guided, latents[:1], stack) if self.vae else None
            problem = self._problem(guided, features)
            return train(problem, self.settings, noises, latents, self.store, LiveProgress())

    def _image_features(self, guided: GuidedRun, latent: Tensor, stack: ExitStack) -> Any:
        """What the distance compares, with VAE and model loaded side by side."""
        load_together(guided.model_wrap.model_patcher, self.vae, latent.shape)
        if self.request.gradient:
            stack.enter_context(normal_tensors(self.vae.first_stage_model))
        return feature_map(self.request.distance, self.vae, guided.model_wrap, latent)

    def _problem(self, guided: GuidedRun, features: Any) -> TrainingProblem:
        request = self.request
        teacher = core_samplers.widget_sampler(
            "teacher_sampler", request.teacher_sampler, self.teacher_sigmas, guided.model_wrap
        )
        sampler = core_samplers.widget_sampler(
            "sampler_name", request.sampler_name, self._any_schedule(), guided.model_wrap
        )
        return TrainingProblem(
            guided.model,
            sampler,
            teacher.discretization(self.teacher_sigmas),
            self._start_sigma(guided.sampling),
            self.baselines,
            teacher_sampler=teacher,
            image_features=features,
        )

    def _any_schedule(self) -> Tensor:
        """Some schedule with the student's steps: levels of the teacher."""
        last = len(self.teacher_sigmas) - 1
        chosen = torch.linspace(0, last, min(self.request.steps, last) + 1).round().long()
        return self.teacher_sigmas[chosen]

    def _start_sigma(self, sampling: Any) -> float:
        """The model's largest noise level, or with denoise below 1 the teacher's first."""
        if self.request.denoise > 0.9999:
            return float(sampling.sigma_max)
        return float(self.teacher_sigmas[0])
