"""Learn a schedule inside ComfyUI: what LD3 Train Schedule does."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..metrics import IMAGE_DISTANCES
from ..schedule import Schedule, ScheduleInfo, check_name
from ..teacher import TargetStore
from ..tracing import TracedSampler
from ..training.report import Progress, ProgressReporter, Report
from ..training.settings import TrainingSettings
from ..training.teacher_choice import (
    Candidate,
    TeacherCheck,
    check_teachers,
    checked_noises,
    planned_calls,
    rounds_of,
)
from ..training.train import Learned, TrainingProblem, train
from . import core_samplers, fingerprint, folders
from .auto_teacher import TeacherOptions, teacher_options
from .gradient.differentiable_model import differentiable_run, normal_tensors
from .gradient.gradient_check import check_gradient
from .guided_run import GuidedRun, check_stateless
from .image_distance import check_image_distance, feature_map, load_together
from .job import GraphInputs, Job
from .progress import LiveProgress
from .requests import AUTO, TrainingRequest


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
    teachers = teacher_options(inputs.model, request)
    baselines = core_samplers.standard_schedules(
        inputs.model, request.sampler_name, request.steps, request.denoise
    )
    training = _Training(job, request, settings, teachers, baselines, vae)
    first_sigmas = teachers.sigmas[teachers.first]
    learned, teacher = job.run(training.run, first_sigmas, request.batch_size, request.seed)
    solver = learned.solver
    info = ScheduleInfo(
        sampler=request.sampler_name,
        steps=solver.steps,
        model_calls=solver.table.model_calls,
        denoise=request.denoise,
        teacher={
            "sampler": request.teacher_sampler,
            "scheduler": teacher.scheduler,
            "steps": request.teacher_steps,
            "requested": request.teacher_scheduler,
            "check": teacher.check.as_json() if teacher.check else None,
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


class _Teacher(NamedTuple):
    """The teacher's scheduler, and how it compared with others if it was tested."""

    scheduler: str
    check: TeacherCheck | None


@dataclass(frozen=True)
class _Training:
    """One training; `run` is the task of a guided run."""

    job: Job
    request: TrainingRequest
    settings: TrainingSettings
    teachers: TeacherOptions
    baselines: dict[str, Tensor]
    vae: Any  # for distances between images, else None

    def run(self, guided: GuidedRun) -> tuple[Learned, _Teacher]:
        """Choose the teacher, then learn from it."""
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
            traced = self._traced_teacher(guided)
            progress = LiveProgress()
            teacher = self._teacher(guided, traced, noises, latents, progress)
            features = self._image_features(guided, latents[:1], stack) if self.vae else None
            problem = self._problem(guided, traced, teacher.scheduler, features)
            calls = teacher.check.calls if teacher.check else 0

            def later(event: Progress) -> None:
                planned = event.planned_calls + calls
                progress(replace(event, calls=event.calls + calls, planned_calls=planned))

            store = self._store(teacher.scheduler)
            learned = train(problem, self.settings, noises, latents, store, later)
        report = replace(learned.report, teacher_calls=learned.report.teacher_calls + calls)
        return Learned(learned.solver, report), teacher

    def _traced_teacher(self, guided: GuidedRun) -> TracedSampler:
        teachers, sampler = self.teachers, self.request.teacher_sampler
        sigmas = teachers.sigmas[teachers.first]
        wrap = guided.model_wrap
        return core_samplers.widget_sampler("teacher_sampler", sampler, sigmas, wrap)

    def _teacher(
        self,
        guided: GuidedRun,
        traced: TracedSampler,
        noises: Tensor,
        latents: Tensor,
        progress: LiveProgress,
    ) -> _Teacher:
        """Test the teacher; "auto" takes the best one."""
        teachers, request = self.teachers, self.request
        if teachers.reference is None:
            return _Teacher(teachers.first, None)
        candidates = {
            name: Candidate(traced.discretization(sigmas), self._store(name))
            for name, sigmas in teachers.sigmas.items()
        }
        reference = traced.discretization(teachers.reference)
        training_noises = self.settings.training_noises
        count = checked_noises(training_noises, guided.model.batch_size)
        rounds = rounds_of(noises[:training_noises], latents[:training_noises], count)
        planned = planned_calls(candidates, reference, rounds)
        # all that is certain to follow; the training knows the rest
        planned += self.settings.noises * candidates[teachers.first].solver.table.model_calls
        on_stage = ProgressReporter(guided.model, planned, progress).stage
        check = check_teachers(guided.model, candidates, reference, rounds, on_stage)
        return _Teacher(check.best if request.teacher_scheduler == AUTO else teachers.first, check)

    def _store(self, scheduler: str) -> TargetStore:
        """Where a teacher's samples are kept."""
        facts = self.request.teacher_facts() | {"teacher_scheduler": scheduler}
        return TargetStore(folders.target_folder(), self.job.key(facts))

    def _image_features(self, guided: GuidedRun, latent: Tensor, stack: ExitStack) -> Any:
        """What the distance compares, with VAE and model loaded side by side."""
        load_together(guided.model_wrap.model_patcher, self.vae, latent.shape)
        if self.request.gradient:
            stack.enter_context(normal_tensors(self.vae.first_stage_model))
        return feature_map(self.request.distance, self.vae, guided.model_wrap, latent)

    def _problem(
        self, guided: GuidedRun, teacher: TracedSampler, scheduler: str, features: Any
    ) -> TrainingProblem:
        request = self.request
        sampler = core_samplers.widget_sampler(
            "sampler_name", request.sampler_name, self._any_schedule(), guided.model_wrap
        )
        return TrainingProblem(
            guided.model,
            sampler,
            teacher.discretization(self.teachers.sigmas[scheduler]),
            self._start_sigma(guided.sampling),
            self.baselines,
            teacher_sampler=teacher,
            image_features=features,
        )

    def _any_schedule(self) -> Tensor:
        """Some schedule with the student's steps: levels of the teacher."""
        sigmas = self.teachers.sigmas[self.teachers.first]
        last = len(sigmas) - 1
        chosen = torch.linspace(0, last, min(self.request.steps, last) + 1).round().long()
        return sigmas[chosen]

    def _start_sigma(self, sampling: Any) -> float:
        """The model's largest noise level, or with denoise below 1 the teacher's first."""
        if self.request.denoise > 0.9999:
            return float(sampling.sigma_max)
        return float(self.teachers.sigmas[self.teachers.first][0])
