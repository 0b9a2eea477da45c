"""What LD3 Train Schedule (Advanced) learns: from a guider, a sampler and the teacher's sigmas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.samplers
from torch import Tensor

from ..parameters import check_sigmas
from ..schedule import INPAINT
from ..table import Discretization
from ..tracing import TracedSampler
from ..training.steps_saved import (
    MOST_OWN,
    MOST_STANDARD,
    OWN_MULTIPLES,
    STANDARD_MULTIPLES,
    Rival,
)
from . import core_samplers
from .auto_teacher import TeacherOptions
from .executor import TableSampler
from .guiders import TEACHER, check_same_latents, kind_of
from .levels import Span, resampled_levels
from .requests import TrainingOptions
from .rivals import most_calls
from .training_setup import TrainingSetup
from .two_models import LOW_GUIDER, boundary_of, check_both_used, together

CONNECTED, COMPARED = "connected sigmas", "compare_with"


@dataclass(frozen=True, eq=False)
class ConnectedInputs:
    """What SamplerCustomAdvanced receives besides its noise: sigmas (N+1,) are the teacher's."""

    guider: Any
    sampler: Any
    sigmas: Tensor
    latent_image: dict[str, Any]
    vae: Any = None
    teacher_guider: Any = None
    compare_with: Tensor | None = None
    low_noise_guider: Any = None
    boundary: float = 0.0
    low_noise_teacher: Any = None

    @property
    def guiders(self) -> Any:
        """The guider, or two; ValueError if they do not fit together."""
        names = "guider", LOW_GUIDER
        return together(self.guider, self.low_noise_guider, self.boundary, names)

    @property
    def teacher_guiders(self) -> Any:
        """The teacher's guider, or two, as the student's; None where it has none of its own."""
        if self.teacher_guider is None and self.low_noise_teacher is None:
            return None
        both = self.teacher_guider is not None and self.low_noise_teacher is not None
        if both != (self.low_noise_guider is not None):
            raise ValueError(
                f"a teacher has two models where the student has two: connect {TEACHER} and "
                f"low_noise_teacher together with {LOW_GUIDER}, or {TEACHER} alone without it"
            )
        names = TEACHER, "low_noise_teacher"
        return together(self.teacher_guider, self.low_noise_teacher, self.boundary, names)

    def check(self, request: TrainingOptions) -> None:
        """Raise ValueError, naming the input, for what no schedule can be learned from."""
        guiders = self.guiders
        _check_sampler(self.sampler)
        sampling = self.guider.model_patcher.get_model_object("model_sampling")
        largest = float(sampling.sigma_max)
        _check_sigmas("sigmas", self.levels, largest)
        check_both_used(guiders, self.levels)
        if len(self.levels) - 1 <= request.steps:
            raise ValueError(
                f"sigmas have {len(self.levels) - 1} steps and steps is {request.steps}; the "
                "teacher must take more steps than the student: connect sigmas of more steps (20 "
                "is typical)"
            )
        request.check_other_steps(len(self.levels) - 1, "sigmas")
        if self.compare_with is not None:
            _check_sigmas(COMPARED, _on_cpu(self.compare_with), largest)
        teacher = self.teacher_guiders
        if teacher is not None:
            check_same_latents(
                self.guider.model_patcher, teacher.model_patcher, ("guider", TEACHER)
            )

    @property
    def levels(self) -> Tensor:
        """The teacher's sigmas, float32 on the CPU."""
        return _on_cpu(self.sigmas)


def _on_cpu(sigmas: Tensor) -> Tensor:
    return sigmas.detach().cpu().float()


def _check_sampler(sampler: Any) -> None:
    if isinstance(sampler, TableSampler):
        raise ValueError(
            f"sampler is that of LD3 schedule {sampler.schedule.name!r}, which works with its own "
            "sigmas only; connect KSamplerSelect or another sampler node"
        )
    if not isinstance(sampler, comfy.samplers.KSAMPLER):
        raise ValueError(
            f"sampler is a {type(sampler).__name__}, whose steps cannot be read; connect a SAMPLER "
            "such as the output of KSamplerSelect"
        )


def _check_sigmas(name: str, sigmas: Tensor, largest: float) -> None:
    try:
        check_sigmas(sigmas)
    except ValueError as error:
        raise ValueError(f"{name}: {error}; connect a scheduler node") from error
    if float(sigmas[0]) > 1.001 * largest:
        raise ValueError(
            f"{name} start at {float(sigmas[0]):.4g}, this model's largest noise level is "
            f"{largest:.4g}; use a scheduler node with this model"
        )


def setup_of_connected(inputs: ConnectedInputs, request: TrainingOptions) -> TrainingSetup:
    """What LD3 Train Schedule (Advanced) says, of checked inputs."""
    sampler, sigmas = inputs.sampler, inputs.levels
    sampling = inputs.guider.model_patcher.get_model_object("model_sampling")
    label = core_samplers.sampler_label(sampler)
    span = Span(sampling, float(sigmas[0]), float(sigmas[-1]))
    given = {CONNECTED: sigmas}
    if inputs.compare_with is not None:
        given[COMPARED] = _on_cpu(inputs.compare_with)
    options = [label, sampler.sampler_function, sampler.extra_options, sampler.inpaint_options]

    def schedules(steps: int) -> dict[str, Tensor]:
        found = span.schedules(steps) | {CONNECTED: resampled_levels(sigmas, steps)}
        if steps == request.steps and COMPARED in given:
            found[COMPARED] = given[COMPARED]
        return found

    def levels(scheduler: str, steps: int) -> Tensor:
        if scheduler in given:
            return resampled_levels(given[scheduler], steps)
        return span.sigmas(scheduler, steps)

    def standard(traced: TracedSampler, scheduler: str, own: bool = False) -> Rival:
        def solver(steps: int) -> Discretization:
            return traced.discretization(levels(scheduler, steps))

        multiples, most = (OWN_MULTIPLES, MOST_OWN) if own else (STANDARD_MULTIPLES, MOST_STANDARD)
        calls = most_calls(solver(request.steps), most)
        return Rival(f"{label} + {scheduler}", solver, multiples, calls)

    teacher = {"sampler": label, "steps": len(sigmas) - 1, "requested": CONNECTED}
    if inputs.teacher_guider is not None:
        teacher["guider"] = kind_of(inputs.teacher_guider)
    return TrainingSetup(
        ("sampler", sampler),
        ("sampler", sampler),
        TeacherOptions({CONNECTED: sigmas}),
        schedules,
        lambda wrap, traced: standard(traced, span.name_of(sigmas) or CONNECTED, own=True),
        standard,
        teacher_facts={"batch_size": request.batch_size},
        described={
            "sampler": label,
            # of SIGMAS unknown; LD3 KSampler samples them as they are at its usual 1
            "denoise": 1.0,
            "sampler_options": {INPAINT: dict(sampler.inpaint_options)},
            "teacher": teacher,
        },
        contents=(sigmas, options),
        always=(COMPARED,) if COMPARED in given else (),
        start_sigma=span.start,
        end_sigma=span.end,
        boundary=boundary_of(inputs.guiders),
    )
