"""Learn a schedule inside ComfyUI: what both nodes that train do."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, get_type_hints

import comfy.model_management
from torch import Tensor

from ..experts import high_steps
from ..json_types import has_type
from ..metrics import IMAGE_DISTANCES
from ..schedule import FORMAT_VERSION, ONE_MODEL, Schedule, ScheduleInfo
from ..schedule_file import check_name, encoded
from ..shown_text import shown
from ..training.other_steps import INTERPOLATED
from ..training.report import Learned, Report
from ..training.teacher_choice import TeacherCheck
from ..training.verdict import verdict
from . import fingerprint, folders
from .connected_setup import ConnectedInputs, setup_of_connected
from .image_distance import check_image_distance
from .job import GraphInputs, Job
from .requests import AUTO, GAUSS_NEWTON, TrainingOptions, TrainingRequest
from .training_run import Outcome, TrainingRun
from .training_setup import setup_of_widgets
from .two_models import guiders_in

logger = logging.getLogger(__name__)
CACHE_GB = 4.0


@dataclass(frozen=True)
class TrainingResult:
    """A schedule, its file and problems with it, and whether it was trained just now.

    `continued` model calls of it were made before an interruption.
    """

    schedule: Schedule
    path: Path
    problems: list[str]
    trained: bool
    seconds: float
    continued: int = 0

    @cached_property
    def report(self) -> Report:
        """What the training reported."""
        return Report.from_json(self.schedule.info.report)


LINKED = {
    "sampler_name": "euler", "steps": 2, "cfg": 1.0, "denoise": 1.0, "seed": 0,
    "teacher_sampler": "euler", "teacher_scheduler": AUTO, "teacher_steps": 1000,
    "distance": "l2", "iterations": 0, "training_noises": 0, "heldout_noises": 0, "batch_size": 1,
}  # fmt: skip
"""Values that pass all checks, for widgets that get theirs when the graph runs."""
KINDS = {int: (int, "a whole number"), float: ((int, float), "a number"), str: (str, "text")}
"""What the types of `TrainingRequest` accept, in words."""


def check_training(inputs: dict[str, Any]) -> None:
    """Check everything about a training that is known before the graph runs.

    Args:
        inputs: the node's, by name; None where a link is connected.

    Raises:
        ValueError: the text names the widget, and says what to do.
    """
    known = {name: value for name, value in inputs.items() if value is not None}
    kinds = get_type_hints(TrainingRequest)
    for name, kind in (kinds | {"name": str}).items():  # a script may send anything
        accepted, words = KINDS[kind]
        if name in known and not isinstance(known[name], accepted):
            raise ValueError(f"{name} is {shown(str(known[name]), 80)!r}; use {words}")
    request = TrainingRequest(**LINKED | {name: known[name] for name in kinds if name in known})
    request.check()
    check_name(known.get("name", "linked"))
    if request.distance in IMAGE_DISTANCES and "vae" not in inputs:
        check_image_distance(request.distance, None)


def train_schedule(
    inputs: GraphInputs,
    request: TrainingRequest,
    name: str,
    retrain: bool = False,
    cache_gb: float = CACHE_GB,
) -> TrainingResult:
    """Learn, save and return a schedule; identical settings return the saved one unless `retrain`.

    Args:
        name: file name to save under; a name already in use gets a number.
        cache_gb: gigabytes for the teacher's samples of all trainings; 0 removes them.

    Raises:
        ValueError: a request that cannot be met; the text says which widget and what to do.
    """
    settings, name = request.settings(), check_name(name)
    vae = _vae(inputs.vae, request)
    job = inputs.job(request.cfg)
    setup = setup_of_widgets(job.guider, request)
    store = folders.teacher_store(cache_gb)
    return _trained(TrainingRun(job, request, settings, setup, vae, store), name, retrain)


def train_connected(
    inputs: ConnectedInputs,
    request: TrainingOptions,
    name: str,
    retrain: bool = False,
    cache_gb: float = CACHE_GB,
) -> TrainingResult:
    """The same for a guider, a sampler and the teacher's sigmas; arguments and errors as there."""
    settings, name = request.settings(), check_name(name)
    inputs.check(request)
    vae = _vae(inputs.vae, request)
    job, setup = Job(inputs.guiders, inputs.latent_image), setup_of_connected(inputs, request)
    store, other = folders.teacher_store(cache_gb), inputs.teacher_guiders
    teacher_job = None if other is None else Job(other, inputs.latent_image)
    if teacher_job is not None and teacher_job.prompts not in (1, job.prompts):
        raise ValueError(
            f"guider has {job.prompts} prompts and teacher_guider {teacher_job.prompts}; use the "
            "same for both, or one for the teacher"
        )
    training = TrainingRun(job, request, settings, setup, vae, store, teacher_job)
    return _trained(training, name, retrain)


def _check_report(info: ScheduleInfo) -> None:
    """Raise ValueError unless a file says what a training says: others may have written it."""
    report = Report.from_json(info.report)
    TeacherCheck.of_teacher(info.teacher)
    teacher = {"sampler": "", "scheduler": "", "steps": 0} | info.teacher
    if not (isinstance(teacher["sampler"], str) and isinstance(teacher["scheduler"], str)):
        raise ValueError("the teacher has no name")
    if not has_type(info.teacher.get("steps"), int):
        raise ValueError("the teacher has no steps")
    verdict(info.steps, info.sampler, info.teacher["steps"], report)


def _vae(vae: Any, request: TrainingOptions) -> Any:
    """The VAE, checked, where the distance needs one; else None."""
    if request.distance not in IMAGE_DISTANCES:
        return None
    check_image_distance(request.distance, vae)
    return vae


def _outcome(training: TrainingRun, sigmas: Tensor) -> Outcome:
    """Learn; a teacher that is another model samples first and is unloaded."""
    request, teacher_job, task = training.request, training.teacher_job, training.run
    if teacher_job is not None:
        taught = teacher_job.run(training.teach, sigmas, request.batch_size, request.seed)
        for one in guiders_in(teacher_job.guider):
            comfy.model_management.unload_model_and_clones(one.model_patcher)
        task = partial(training.run, taught=taught)
    return training.job.run(task, sigmas, request.batch_size, request.seed)


def _trained(training: TrainingRun, name: str, retrain: bool) -> TrainingResult:
    job, request, setup, vae = training.job, training.request, training.setup, training.vae
    if vae is not None and job.shapes:
        raise ValueError(
            f"distance is {request.distance!r}, which compares images, and latent_image has "
            f"{len(job.shapes)} streams: choose pseudo-huber, l2 or l1"
        )
    if job.boundary:
        _check_for_two_models(training)
    decoder = fingerprint.weights_hash(vae.first_stage_model) if vae else None
    contents = [job.samples, job.batch_index, decoder, *setup.contents]
    baselines = setup.schedules(request.steps) if setup.always else {}
    contents += [baselines[name] for name in setup.always]
    contents += [training.teacher_job.key({})] if training.teacher_job else []
    key = job.key(asdict(request), *contents)
    saved = folders.saved_again(key)
    if saved is None and not retrain:
        saved = folders.saved_schedule(key, name, _check_report)
    if saved is not None:
        journal = folders.journal(name, key)
        if journal.calls and not saved.problems:
            journal.remove()
        return TrainingResult(*saved, trained=False, seconds=0.0)

    if job.mask is not None:
        setup.check_masked()
    folders.check_writable()
    journal, started = folders.journal(name, key), time.monotonic()
    if journal.calls:
        logger.info("LD3: %s goes on after %d model calls", name, journal.calls)

    def keep(outcome: Outcome) -> None:
        try:
            journal.keep_best(encoded(_schedule(training, outcome, key)))
        except ValueError as error:
            logger.info("LD3: the best schedule so far cannot be kept: %s", error)

    training = replace(training, journal=journal, keep=keep)
    first_sigmas = setup.teachers.sigmas[setup.teachers.first]
    try:
        outcome = _outcome(training, first_sigmas)
    except ValueError:
        journal.remove()  # the same settings would fail again
        raise
    schedule = _schedule(training, outcome, key)
    saved = folders.save_schedule(schedule, name)
    if not saved.problems:
        journal.remove()
    seconds = time.monotonic() - started
    return TrainingResult(*saved, trained=True, seconds=seconds, continued=journal.calls)


def _check_for_two_models(training: TrainingRun) -> None:
    """Raise ValueError, naming the widget, for what is not made for two models."""
    request = training.request
    for unfit, widget in ((request.gradient, "optimizer"), (training.settings.dode, "learn")):
        if unfit:
            raise ValueError(
                f"{widget} is {getattr(request, widget)!r}, which is not made for two models: "
                f"choose {GAUSS_NEWTON!r} as optimizer, and anything but D-ODE to learn"
            )


def _schedule(training: TrainingRun, outcome: Outcome, key: str) -> Schedule:
    """What was learned, with all that is known of it."""
    learned, job, request = outcome.learned, training.job, training.request
    described = training.setup.described
    info = ScheduleInfo(
        **described | {"teacher": described["teacher"] | outcome.teacher},
        **_described(learned, request.method, job.boundary),
        boundary=job.boundary,
        format_version=FORMAT_VERSION if job.boundary else ONE_MODEL,
        settings=asdict(request) | asdict(outcome.settings) | job.described(),
        settings_hash=key,
        **job.provenance(),
    )
    schedule = Schedule(learned.solver.sigmas, learned.solver.table, info)
    return replace(schedule, others=_others(learned, info))


def _described(learned: Learned, method: str, boundary: float) -> dict[str, Any]:
    """What depends on the number of steps in a `ScheduleInfo`."""
    solver, report = learned.solver, learned.report
    return {
        "steps": solver.steps,
        "model_calls": solver.table.model_calls,
        "method": method,
        "extras": [extra.value for extra in solver.extras],
        "steps_sigmas": report.steps_sigmas,
        "high_steps": high_steps(solver.sigmas, boundary) if boundary else 0,
        "high_calls": solver.table.split or 0,
        "report": report.as_json(),
    }


def _others(learned: Learned, info: ScheduleInfo) -> tuple[Schedule, ...]:
    """The schedules in other numbers of steps."""
    found = []
    for other in learned.others.values():
        method = INTERPOLATED if other.report.chosen == INTERPOLATED else info.method
        described = replace(info, **_described(other, method, info.boundary))
        found.append(Schedule(other.solver.sigmas, other.solver.table, described))
    return tuple(found)
