"""One training where ComfyUI's guider lets the model be called: its size, teacher and learning."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..journal import Journal
from ..streams import Streams
from ..teacher import KnownTargets, Targets, TeacherSamples, sample_teacher
from ..teacher_store import TeacherStore
from ..tracing import TracedSampler
from ..training import teacher_choice
from ..training.planning import planned_calls, within_budget
from ..training.problem import TrainingProblem
from ..training.report import Learned, Progress, ProgressReporter, Report
from ..training.settings import TrainingSettings
from ..training.teacher_choice import Candidate, TeacherCheck, check_teachers
from ..training.train import train
from .auto_teacher import TeacherOptions
from .gradient.differentiable_model import differentiable_run, normal_tensors
from .gradient.gradient_check import check_gradient
from .guided_run import GuidedRun, seconds_per_call
from .image_distance import feature_map, load_together
from .job import Job
from .model_state import keeps_state, refuse_state
from .progress import LiveProgress, show_cost
from .prompts import PromptedTargets
from .requests import TrainingOptions
from .thumbnails import thumbnails_of
from .training_setup import TrainingSetup


class Outcome(NamedTuple):
    """What was learned, from which teacher, how that was tested, and from how much data."""

    learned: Learned
    scheduler: str
    check: TeacherCheck | None
    settings: TrainingSettings

    @property
    def teacher(self) -> dict[str, Any]:
        """What a file says of the choice of the teacher."""
        return {
            "scheduler": self.scheduler,
            "check": self.check.as_json() if self.check else None,
        }


class Taught(NamedTuple):
    """What a teacher that is another model has sampled, for how large a training."""

    settings: TrainingSettings
    samples: TeacherSamples
    calls: int
    streams: Streams | None


class _Test(NamedTuple):
    """A test of teachers, see `ld3.training.teacher_choice`."""

    candidates: dict[str, Candidate]
    reference: Any
    rounds: list[teacher_choice.Noises]

    @property
    def calls(self) -> int:
        """Model calls, at most."""
        return teacher_choice.planned_calls(*self)

    @property
    def wasted(self) -> int:
        """Those of them that the training cannot use, if it finds the others in its store."""
        first = next(iter(self.candidates.values())).solver.table.model_calls
        return self.calls - first * sum(len(noise) for noise, _ in self.rounds)


@dataclass(frozen=True)
class TrainingRun:
    """A training; `run` is the task of a guided run, after `teach` where the teacher has its own.

    Attributes:
        request: the widgets.
        settings: what the request says of them; the model's speed and sampler decide the rest.
        vae: for distances between images, else None.
        teacher_store: where teachers' samples are kept.
        teacher_job: of a teacher that is another model or guider, else None.
        journal: what an interrupted training knew already; None keeps nothing.
        keep: receives the best so far whenever there is a better one.
    """

    job: Job
    request: TrainingOptions
    settings: TrainingSettings
    setup: TrainingSetup
    vae: Any
    teacher_store: TeacherStore
    teacher_job: Job | None = None
    journal: Journal | None = None
    keep: Callable[[Outcome], None] = lambda outcome: None

    @property
    def teachers(self) -> TeacherOptions:
        """The teacher's noise levels."""
        return self.setup.teachers

    def teach(self, guided: GuidedRun) -> Taught:
        """Choose the size of the training, and sample a teacher that is another model."""
        assert self.teacher_job is not None
        guided.model.journal = self.journal
        noises = self._noises(guided, guided.model.batch_size)
        guided.model.stateless = not keeps_state(guided, *noises)
        teacher = self.setup.traced_teacher(guided.model_wrap)
        self._balance(guided, teacher)
        problem = self._problem(guided, teacher)
        settings = self._settings(guided, problem)
        noises, planned = self._all_noises(guided, settings), planned_calls(problem, settings)
        progress = ProgressReporter(guided.model, planned, LiveProgress())
        before_batch = partial(progress.stage, "teacher")
        store = self._store(guided, self.teachers.first)
        samples = sample_teacher(guided.model, problem.teacher, *noises, store, before_batch)
        return Taught(settings, samples, progress.calls, guided.streams)

    def run(self, guided: GuidedRun, taught: Taught | None = None) -> Outcome:
        """Choose size and teacher, then learn."""
        request = self.request
        with ExitStack() as stack:
            if request.gradient:
                guided = stack.enter_context(differentiable_run(guided))
            guided.model.journal = self.journal
            noises = self._noises(guided, guided.model.batch_size)
            self._probe_state(guided, noises)
            if request.gradient:
                check_gradient(guided, noises[0][:1], noises[1][:1])
            teacher = self.setup.traced_teacher(guided.model_wrap)
            if taught is None:
                self._balance(guided, teacher)
            elif taught.streams:
                guided.balance(taught.streams)
            problem = self._problem(guided, teacher)
            settings = taught.settings if taught else self._settings(guided, problem)
            noises = self._all_noises(guided, settings)
            progress = LiveProgress(thumbnails_of(guided))
            test = self._test(guided, teacher, noises, settings.training_noises)
            calls, check = taught.calls if taught else 0, None
            if test:
                planned = test.calls + planned_calls(problem, settings)
                on_stage = ProgressReporter(guided.model, planned, progress).stage
                check = check_teachers(guided.model, *test, on_stage)
                calls = check.calls
            automatic = check is not None and self.teachers.automatic
            scheduler = check.best if check and automatic else self.teachers.first
            problem = replace(
                problem,
                teacher=teacher.discretization(self.teachers.sigmas[scheduler]),
                image_features=self._image_features(guided, noises[1][:1], stack),
            )
            store = KnownTargets(taught.samples) if taught else self._store(guided, scheduler)
            # those of another teacher are planned already
            show = _after(calls, 0 if taught else calls, progress)
            best = Outcome(Learned(problem.teacher, Report()), scheduler, check, settings)
            on_progress = _keeping(self.keep, best, show)
            learned = train(problem, settings, *noises, store, on_progress)
        report = replace(learned.report, teacher_calls=learned.report.teacher_calls + calls)
        return Outcome(learned._replace(report=report), scheduler, check, settings)

    def _probe_state(self, guided: GuidedRun, noises: tuple[Tensor, Tensor]) -> None:
        guided.model.stateless = not keeps_state(guided, *noises)
        if guided.model.stateless:
            return
        if self.request.gradient:
            raise refuse_state(f"optimizer {self.request.optimizer!r}")
        if self.settings.dode:
            raise refuse_state(f"learn {self.request.learn!r}")

    def _all_noises(self, guided: GuidedRun, settings: TrainingSettings) -> tuple[Tensor, Tensor]:
        return self._noises(guided, settings.noises, settings.noises - settings.test_noises)

    def _noises(
        self, guided: GuidedRun, count: int, tests_from: int | None = None
    ) -> tuple[Tensor, Tensor]:
        noises, latents = self.job.noises(self.request.seed, count)
        self.job.pair(guided, noises, tests_from)
        if self.request.gradient:
            # copies: tensors made under inference mode have no gradient
            noises, latents = noises.clone(), latents.clone()
        latents = guided.latents(latents)
        if guided.streams is None:
            return noises, latents
        return guided.streams.scaled(noises), guided.streams.scaled(latents)

    def _balance(self, guided: GuidedRun, teacher: TracedSampler) -> None:
        """Let each of nested latents count equally, as the teacher samples them."""
        if not self.job.shapes:
            return
        sizes = tuple(math.prod(shape) for shape in self.job.shapes)
        solver = teacher.discretization(self.teachers.sigmas[self.teachers.first])
        noises = self._noises(guided, guided.model.batch_size)
        samples = sample_teacher(
            guided.model, solver, *noises, self._store(guided, self.teachers.first)
        )
        guided.balance(Streams.of(sizes, samples.target))

    def _settings(self, guided: GuidedRun, problem: TrainingProblem) -> TrainingSettings:
        """How much the training costs: what quality or minutes allow, and the user's numbers."""
        request = self.request
        if request.gradient or request.all_numbers:
            return self.settings
        seconds = seconds_per_call(guided, *self._noises(guided, guided.model.batch_size))
        budget = request.calls(seconds) - guided.model.calls
        settings = within_budget(problem, self.settings, budget)
        noises = self._noises(guided, settings.training_noises)
        sampler = problem.teacher_sampler
        assert sampler is not None
        test = self._test(guided, sampler, noises, settings.training_noises)
        wasted = 0
        if test:
            # the samples of other batches than the training's, or that are not kept, are of no use
            other = guided.model.batch_size > teacher_choice.MOST_NOISES
            wasted = test.calls if other or not self.teacher_store.most_bytes else test.wasted
            settings = within_budget(problem, self.settings, budget - wasted)
        settings = request.with_numbers(settings)
        calls = planned_calls(problem, settings) + wasted
        show_cost(request.steps, calls, calls * seconds)
        return settings

    def _test(
        self,
        guided: GuidedRun,
        teacher: TracedSampler,
        noises: tuple[Tensor, Tensor],
        training_noises: int,
    ) -> _Test | None:
        """The test of the teacher, on training noises; None if there is none."""
        if self.teachers.reference is None or self.request.quality == "fast":
            return None
        reference = teacher.discretization(self.teachers.reference)
        if reference.table.outputs == 2:
            return None  # a CFG++ sampler guides more strongly in the reference's many steps
        candidates = {
            name: Candidate(teacher.discretization(sigmas), self._store(guided, name))
            for name, sigmas in self.teachers.sigmas.items()
        }
        count = teacher_choice.checked_noises(training_noises, guided.model.batch_size)
        training = noises[0][:training_noises], noises[1][:training_noises]
        rounds = teacher_choice.rounds_of(*training, count)
        return _Test(candidates, reference, rounds)

    def _store(self, guided: GuidedRun, scheduler: str) -> Targets:
        """Where a teacher's samples are kept."""
        facts = self.setup.teacher_facts | {"teacher_scheduler": scheduler}
        key = (self.teacher_job or self.job).key(facts, *self.setup.contents)
        if self.job.prompts == 1:
            return self.teacher_store.samples(key)
        return PromptedTargets(self.teacher_store, key, guided.prompts)

    def _image_features(self, guided: GuidedRun, latent: Tensor, stack: ExitStack) -> Any:
        """What the distance compares, with VAE and model loaded side by side."""
        if self.vae is None:
            return None
        shape = guided.model.batch_size, *latent.shape[1:]
        load_together(guided.model_wrap, self.vae, shape)
        if guided.turns:
            guided.turns.stay_with(self.vae.patcher)
        if self.request.gradient:
            stack.enter_context(normal_tensors(self.vae.first_stage_model))
        return feature_map(self.request.distance, self.vae, guided.model_wrap, latent)

    def _problem(self, guided: GuidedRun, teacher: TracedSampler) -> TrainingProblem:
        setup = self.setup
        sampler = setup.traced(guided.model_wrap, self._any_schedule())
        start = setup.start_sigma
        problem = TrainingProblem(
            guided.model,
            sampler,
            teacher.discretization(self.teachers.sigmas[self.teachers.first]),
            float(guided.sampling.sigma_max) if start is None else start,
            setup.schedules(self.request.steps),
            setup.end_sigma,
            teacher,
            other_teacher=self.teacher_job is not None,
            always=setup.always,
            streams=guided.streams,
            schedules=setup.schedules,
        )
        if self.request.quality == "fast" or self.request.gradient:
            return problem
        own = setup.own(guided.model_wrap, sampler)
        return replace(problem, own=own, standard=partial(setup.standard, sampler))

    def _any_schedule(self) -> Tensor:
        """Some schedule with the student's steps: levels of the teacher."""
        sigmas = self.teachers.sigmas[self.teachers.first]
        last = len(sigmas) - 1
        chosen = torch.linspace(0, last, min(self.request.steps, last) + 1).round().long()
        if self.setup.boundary:
            chosen[-2] = last - 1  # the one level that is surely below it
        return sigmas[chosen]


def _after(calls: int, more: int, progress: LiveProgress) -> Callable[[Progress], None]:
    """Shows events of a training after that many model calls, some of them more than it planned."""

    def show(event: Progress) -> None:
        planned = event.planned_calls + more
        progress(replace(event, calls=event.calls + calls, planned_calls=planned))

    return show


def _keeping(
    keep: Callable[[Outcome], None], outcome: Outcome, show: Callable[[Progress], None]
) -> Callable[[Progress], None]:
    """Keeps the best student of events, in such an outcome, before it shows them."""
    kept = None

    def receive(event: Progress) -> None:
        nonlocal kept
        if event.best is not None and event.best is not kept:
            kept = event.best
            keep(outcome._replace(learned=Learned(event.best, event.report)))
        show(event)

    return receive
