"""Learn a schedule inside ComfyUI: what LD3 Train Schedule does."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from ..metrics import IMAGE_DISTANCES
from ..schedule import Schedule, ScheduleInfo, check_name
from ..training.report import Report
from . import core_samplers, fingerprint, folders
from .auto_teacher import teacher_options
from .image_distance import check_image_distance
from .job import GraphInputs, Job
from .requests import TrainingRequest
from .training_run import TrainingRun


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
    training = TrainingRun(job, request, settings, teachers, baselines, vae)
    first_sigmas = teachers.sigmas[teachers.first]
    outcome = job.run(training.run, first_sigmas, request.batch_size, request.seed)
    solver, report = outcome.learned
    info = ScheduleInfo(
        sampler=request.sampler_name,
        steps=solver.steps,
        model_calls=solver.table.model_calls,
        denoise=request.denoise,
        teacher={
            "sampler": request.teacher_sampler,
            "scheduler": outcome.scheduler,
            "steps": request.teacher_steps,
            "requested": request.teacher_scheduler,
            "check": outcome.check.as_json() if outcome.check else None,
        },
        method=request.method,
        extras=[extra.value for extra in solver.extras],
        steps_sigmas=report.steps_sigmas,
        settings=asdict(request) | asdict(outcome.settings),
        settings_hash=key,
        report=report.as_json(),
        **job.provenance(),
    )
    schedule, path = folders.save_schedule(Schedule(solver.sigmas, solver.table, info), name)
    return TrainingResult(schedule, path, trained=True, seconds=time.monotonic() - started)
