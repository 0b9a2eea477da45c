"""Learn a schedule inside ComfyUI: the training runs as a Sampler of a guider.

So model loading, conditioning, hooks, memory and cleanup are ComfyUI's own, and any GUIDER can be
trained.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ..metrics import IMAGE_DISTANCES
from ..model import Model
from ..parameters import check_sigmas
from ..recompute import GradientError, recomputed
from ..schedule import Schedule, ScheduleInfo, check_name
from ..solver import Plan, UnsupportedSampler
from ..solver import Sampler as TracedSampler
from ..teacher import TargetStore
from ..training.loop import Learned, ScheduleTraining
from . import fingerprint, folders, samplers
from .denoiser import check_stateless, guided_model
from .differentiable import differentiable, normal_tensors, time_neighbours
from .gradient_check import OTHER_OPTIMIZER, check_gradient
from .perceptual import check_image_distance, feature_map, load_together
from .progress import LiveProgress
from .request import TrainingRequest
from .session import Session, save_schedule, saved_schedule

logger = logging.getLogger(__name__)
LEAST_SPREAD = 0.9  # of the teacher's; below it samples visibly grow alike
BY_HEART = 0.5  # of the error on fresh noises; an error below it is not what was learned for all


@dataclass(frozen=True)
class TrainingResult:
    """A saved schedule, and whether it was trained just now."""

    schedule: Schedule
    path: Path
    trained: bool
    seconds: float

    @property
    def report(self) -> dict[str, Any]:
        """`Report.as_dict()`."""
        return self.schedule.info.report

    def summary(self) -> str:
        """One line: what was done."""
        info, report = self.schedule.info, self.report
        how = f"learned in {self.seconds:.0f} s" if self.trained else "found saved, same settings"
        parts = [f"{self.path.name}: {info.steps} steps of {info.sampler}, {how}"]
        if report["heldout_error"] is not None:
            parts.append(f"error to the teacher {report['heldout_error']:.4g}")
        if report.get("training_error") is not None:
            parts.append(f"on the training noises {report['training_error']:.4g}")
        standard = self._best_standard()
        if standard:
            parts.append(f"best standard scheduler ({standard[0]}) {standard[1]:.4g}")
        if report["chosen"] != "learned":
            parts.append(f"the standard scheduler {report['chosen']} won and is returned")
        return "; ".join(parts)

    def warnings(self) -> list[str]:
        """What a user should know before relying on the result."""
        report, found = self.report, []
        standard, learned = self._best_standard(), report["heldout_error"]
        if standard and learned is not None and standard[1] < learned:
            found.append(
                f"on fresh noises the standard scheduler {standard[0]} came nearer to the teacher "
                f"({standard[1]:.4g} against {learned:.4g}): use it, or learn from more "
                "training_noises"
            )
        trained = report.get("training_error")
        known = None not in (trained, learned) and report["chosen"] == "learned"
        if known and trained < BY_HEART * learned:
            found.append(
                f"the error on the training noises is {trained:.4g}, on fresh ones {learned:.4g}: "
                "the few training noises were learned by heart; raise training_noises"
            )
        spread = report.get("spread")
        if spread is not None and spread < LEAST_SPREAD:
            found.append(
                f"images differ from one another only {spread:.0%} as much as the teacher's do: so "
                "few steps make them alike. Use more steps, or a nearer teacher (fewer "
                "teacher_steps)"
            )
        return found

    def _best_standard(self) -> tuple[str, float] | None:
        """The standard scheduler with the least error on fresh noises, at no more model calls."""
        fair = {
            name: baseline["heldout_error"]
            for name, baseline in self.report["baselines"].items()
            if baseline["counted"] and baseline.get("heldout_error") is not None
        }
        return min(fair.items(), key=lambda entry: entry[1]) if fair else None


def train_schedule(
    model: Any,
    positive: Any,
    negative: Any,
    latent: dict[str, Any],
    request: TrainingRequest,
    name: str,
    retrain: bool = False,
    vae: Any = None,
) -> TrainingResult:
    """Learn, save and return a schedule; identical settings return the saved one unless `retrain`.

    Args:
        model: MODEL. positive, negative: CONDITIONING. latent: LATENT. vae: VAE, for distances
            between images.
        name: file name to save under; a taken one is numbered.

    Raises:
        ValueError: a request that cannot be met; the text says which widget and what to do.
    """
    request.check()
    name = check_name(name)
    compares_images = request.distance in IMAGE_DISTANCES
    if compares_images:
        check_image_distance(request.distance, vae)
    session = Session(model, positive, negative, latent, request.cfg)
    decoder = fingerprint.weights_hash(vae.first_stage_model) if compares_images else None
    key = session.key(asdict(request), session.samples, session.batch_index, decoder)
    saved = None if retrain else saved_schedule(key, name)
    if saved is not None:
        return TrainingResult(*saved, trained=False, seconds=0.0)

    started = time.monotonic()
    run = _TrainingSampler(model, request, vae if compares_images else None)
    run.store = TargetStore(folders.target_folder(), session.key(request.teacher_facts()))
    run.noises, run.latents = session.noises(request.seed, request.settings().noises)
    session.run(run, run.teacher_sigmas, request.batch_size, request.seed)
    learned = run.learned
    info = ScheduleInfo(
        sampler=request.sampler_name,
        steps=len(learned.sigmas) - 1,
        model_calls=learned.table.model_calls,
        denoise=request.denoise,
        teacher={
            "sampler": request.teacher_sampler,
            "scheduler": request.teacher_scheduler,
            "steps": request.teacher_steps,
        },
        method=request.method,
        extras=learned.report.extras,
        settings=asdict(request) | asdict(request.settings()),
        settings_hash=key,
        report=learned.report.as_dict(),
        **session.provenance(),
    )
    schedule, path = save_schedule(Schedule(learned.sigmas, learned.table, info), name)
    result = TrainingResult(schedule, path, trained=True, seconds=time.monotonic() - started)
    logger.info("LD3: %s", result.summary())
    return result


class _TrainingSampler(comfy.samplers.Sampler):
    """Trains where a guider expects a sampler; leaves what was `learned`."""

    noises: Tensor
    latents: Tensor
    store: TargetStore
    learned: Learned

    def __init__(self, model: Any, request: TrainingRequest, vae: Any) -> None:
        self.request, self.vae = request, vae
        self.teacher_sigmas = samplers.scheduler_sigmas(
            model,
            request.teacher_sampler,
            request.teacher_scheduler,
            request.teacher_steps,
            request.denoise,
        )
        try:
            check_sigmas(self.teacher_sigmas)
        except ValueError as error:
            raise ValueError(
                f"teacher_steps is {request.teacher_steps}; the scheduler "
                f"{request.teacher_scheduler!r} cannot tell so many steps apart: use fewer, or "
                "another teacher_scheduler"
            ) from error
        self.baselines = samplers.standard_schedules(
            model, request.sampler_name, request.steps, request.denoise
        )

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
        """Learn; returns the noise it was given."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self.request.gradient:
                extra_args = stack.enter_context(differentiable(model_wrap, extra_args))
            model = guided_model(self, model_wrap, extra_args)
            # copies: those made under inference mode have no gradient
            noises, latents = self.noises.clone(), self.latents.clone()
            if torch.count_nonzero(latents) > 0:  # as core: an empty latent is not shifted
                latents = model_wrap.inner_model.process_latent_in(latents)
            few = slice(0, self.request.batch_size)
            check_stateless(model, noises[few], latents[few], extra_args["model_options"])
            if self.request.gradient:
                model.time_neighbours = time_neighbours(model_wrap.inner_model.model_sampling)
                options = extra_args["model_options"]
                one = noises[:1], latents[:1]
                check_gradient(model, recomputed(model), *one, model_wrap, options)
            features = self._image_features(model_wrap, latents, stack) if self.vae else None
            training = self._training(model, model_wrap, features)
            model.calls = 0
            try:
                self.learned = training.run(noises, latents)
            except GradientError as error:
                raise ValueError(f"{error}. {OTHER_OPTIMIZER}") from error
        return noise

    def _training(self, model: Model, model_wrap: Any, features: Any) -> ScheduleTraining:
        student = self._traceable("sampler_name", model_wrap, self._any_schedule())
        teacher = self._traceable("teacher_sampler", model_wrap, self.teacher_sigmas)
        return ScheduleTraining(
            model,
            student,
            Plan(self.teacher_sigmas, teacher.table(self.teacher_sigmas)),
            self.baselines,
            self.request.settings(),
            start_sigma=self._start_sigma(model_wrap.inner_model.model_sampling),
            teacher_sampler=teacher,
            watch=LiveProgress(),
            store=self.store,
            image_features=features,
        )

    def _image_features(self, model_wrap: Any, latents: Tensor, stack: ExitStack) -> Any:
        """What the request's distance compares, with VAE and model loaded side by side."""
        load_together(model_wrap.model_patcher, self.vae, latents[:1].shape)
        if self.request.gradient:
            stack.enter_context(normal_tensors(self.vae.first_stage_model))
        return feature_map(self.request.distance, self.vae, model_wrap, latents[:1])

    def _traceable(self, widget: str, model_wrap: Any, sigmas: Tensor) -> TracedSampler:
        """The sampler a widget names, or ValueError saying why it cannot be read."""
        name, sampling = getattr(self.request, widget), model_wrap.inner_model.model_sampling
        sampler = samplers.traceable(samplers.sampler_object(name), sampling, model_wrap)
        try:
            sampler.table(sigmas)
        except UnsupportedSampler as error:
            reason = samplers.refusal(name, error, sampling, sigmas)
            raise ValueError(f"{widget}: {reason}") from error
        return sampler

    def _any_schedule(self) -> Tensor:
        """Some schedule of the student's steps: every so many-th level of the teacher's."""
        last = len(self.teacher_sigmas) - 1
        chosen = torch.linspace(0, last, min(self.request.steps, last) + 1).round().long()
        return self.teacher_sigmas[chosen]

    def _start_sigma(self, sampling: Any) -> float:
        """The model's largest noise level, or below denoise 1 where the teacher starts."""
        return (
            float(sampling.sigma_max)
            if self.request.denoise > 0.9999
            else float(self.teacher_sigmas[0])
        )
