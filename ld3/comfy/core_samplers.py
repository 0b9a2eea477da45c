"""Core's samplers and schedulers as the method needs them."""

from __future__ import annotations

import logging
import warnings
from functools import cache
from types import SimpleNamespace
from typing import Any

import comfy.model_sampling
import comfy.samplers
import torch
from torch import Tensor

from ..experts import ExpertSampler
from ..parameters import LOG_SIGMA, LOGIT_SIGMA, Coordinate
from ..tracing import SamplerFailed, TracedSampler, UnsupportedSampler

logger = logging.getLogger(__name__)
LISTED_PREFIX = "LD3: "
"""Of learned schedules in ComfyUI's list of schedulers, see `scheduler_list`."""
STOCHASTIC_MARKS = ("_ancestral", "_sde_heun", "_sde", "_gpu")
PLAIN_ALTERNATIVE = {
    "dpmpp_2s": "dpmpp_2m",
    "dpmpp_3m": "dpmpp_2m",
    "dpmpp": "dpmpp_2m",
    "dpm_fast": "dpm_2",
    "dpm_adaptive": "dpm_2",
}


def sampler_names() -> list[str]:
    """All samplers of this ComfyUI, CFG++ and stochastic ones included."""
    return list(comfy.samplers.SAMPLER_NAMES)


def deterministic_samplers() -> list[str]:
    """The samplers a schedule can be learned for, those of other packs included."""
    refused = _refusals(tuple(sampler_names()))
    return [name for name in sampler_names() if name not in refused]


def check_sampler(widget: str, name: str) -> None:
    """Raise ValueError, naming the widget, if no model could have a schedule for a sampler."""
    try:
        sampler_object(name)
    except ValueError as error:
        raise ValueError(f"{widget}: {error}") from error
    reason = _refusals(tuple(sampler_names())).get(name)
    if reason is not None:
        raise ValueError(f"{widget}: {reason}")


@cache
def _refusals(names: tuple[str, ...]) -> dict[str, str]:
    """Why samplers have no table, by name; traced once for these names, in milliseconds each."""
    wrap, found = guider_of("flow"), {}
    sampling, sigmas = wrap.inner_model.model_sampling, torch.tensor([0.9, 0.6, 0.4, 0.2, 0.0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of samplers that nobody asked for
        for name in names:
            try:
                traced_sampler(sampler_object(name), sampling, wrap).table(sigmas)
            except SamplerFailed as error:  # one of another pack may need more than a stand-in
                logger.info("LD3: the sampler %s needs a model to be read: %s", name, error)
            except UnsupportedSampler as error:
                found[name] = refusal(name, error, wrap, sigmas)
    return found


def scheduler_names() -> list[str]:
    """All schedulers of this ComfyUI but learned ones, which are no standard to compare with."""
    return [n for n in comfy.samplers.SCHEDULER_NAMES if not n.startswith(LISTED_PREFIX)]


def is_installed(sampler: str) -> bool:
    """Whether this ComfyUI has a sampler of that name."""
    return sampler in comfy.samplers.SAMPLER_NAMES


def sampler_object(name: str) -> comfy.samplers.KSAMPLER:
    """Core's sampler of that name."""
    if not is_installed(name):
        raise ValueError(
            f"sampler {name!r} is not installed in this ComfyUI; install the pack that provides it"
        )
    return comfy.samplers.sampler_object(name)


def sampler_label(sampler: Any) -> str:
    """The name ComfyUI lists a SAMPLER under; its function's name if it is no core sampler."""
    function = getattr(sampler, "sampler_function", None)
    for name in sampler_names():
        core = comfy.samplers.sampler_object(name)
        if core.sampler_function is function and all(
            getattr(core, options) == getattr(sampler, options, None)
            for options in ("extra_options", "inpaint_options")  # ddim is euler but for inpainting
        ):
            return name
    return getattr(function, "__name__", type(sampler).__name__)


class _Changed:
    """An object with some attributes replaced; all others are the original's."""

    def __init__(self, original: Any, **attributes: Any) -> None:
        self._original = original
        vars(self).update(attributes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def stand_in_guider(model: Any) -> Any:
    """What samplers read of a running guider, for a MODEL that is not running."""
    sampling = model.get_model_object("model_sampling")
    inner = _Changed(model.model, model_sampling=sampling)
    return _Changed(comfy.samplers.CFGGuider(model), inner_model=inner)


def guider_of(prediction_type: str) -> Any:
    """What core's samplers read of a running guider, for models of that kind."""
    levels = comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS
    if prediction_type == "flow":
        levels = comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST
    return _guider_with(type("ModelSampling", levels, {})())


def _guider_with(sampling: Any) -> Any:
    # samplers read model_sampling as attribute of the model and through its patcher
    return SimpleNamespace(
        inner_model=SimpleNamespace(model_sampling=sampling),
        model_patcher=SimpleNamespace(get_model_object=lambda name: sampling),
    )


def traced_sampler(
    sampler: Any, model_sampling: Any, model_wrap: Any = None, name: str = "", boundary: float = 0.0
) -> TracedSampler:
    """A KSAMPLER as an `ld3.tracing.TracedSampler`; `name` is for errors.

    With a boundary it samples two models (`ld3.experts`).

    Samplers read attributes of `model_wrap`, the running guider or `stand_in_guider`; without it,
    of one that has only `model_sampling`. The model's device is the CPU for them, where tables are
    computed.
    """
    if not isinstance(sampler, comfy.samplers.KSAMPLER):
        raise UnsupportedSampler("it is not a KSAMPLER, so its steps cannot be read", name)

    def function(model: Any, x: Tensor, sigmas: Tensor, **keywords: Any) -> Tensor:
        return sampler.sampler_function(model, x, sigmas, **keywords, **sampler.extra_options)

    def end_scale(end: float) -> float:
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        level = torch.tensor(end, dtype=torch.float64)
        zero, one = model_sampling.inverse_noise_scaling(level, ends)
        return float(one - zero)  # IMG_TO_IMG_FLOW subtracts the latent from 1

    wrap = model_wrap or _guider_with(model_sampling)
    wrap = _Changed(wrap, inner_model=_Changed(wrap.inner_model, device=torch.device("cpu")))
    given = function, SimpleNamespace(inner_model=wrap), end_scale, name
    return ExpertSampler(*given, boundary=boundary) if boundary else TracedSampler(*given)


def widget_sampler(
    widget: str, sampler: Any, sigmas: Tensor, model_wrap: Any, boundary: float = 0.0
) -> TracedSampler:
    """Trace a SAMPLER or the sampler of a name; ValueError names the widget if it has no table.

    With a boundary it samples two models (`ld3.experts`).
    """
    name = sampler if isinstance(sampler, str) else sampler_label(sampler)
    sampler = sampler_object(name) if isinstance(sampler, str) else sampler
    sampling = model_wrap.inner_model.model_sampling
    try:
        found = traced_sampler(sampler, sampling, model_wrap, name, boundary)
        found.table(sigmas)
    except UnsupportedSampler as error:
        reason = refusal(name, error, model_wrap, sigmas)
        raise ValueError(f"{widget}: {reason}") from error
    return found


def refusal(name: str, error: UnsupportedSampler, model_wrap: Any, sigmas: Tensor) -> str:
    """One sentence: why no schedule can be learned for a sampler, and a similar one that works."""
    reason = f"no schedule can be learned for {name!r}: {error.reason}"
    sampling, base = model_wrap.inner_model.model_sampling, name
    for mark in STOCHASTIC_MARKS:
        base = base.replace(mark, "")
    ode = f"{base}_ode"  # of a stochastic sampler, as RES4LYF names it
    plain = base.replace("_cfg_pp", "")
    for candidate in (ode, base, PLAIN_ALTERNATIVE.get(plain, ""), "dpmpp_2m", "euler"):
        if candidate != name and is_installed(candidate):
            try:
                traced_sampler(sampler_object(candidate), sampling, model_wrap).table(sigmas)
            except UnsupportedSampler:
                continue
            return f"{reason}. Choose a deterministic sampler such as {candidate!r}"
    return reason


def scheduler_sigmas(
    model: Any, sampler: str, scheduler: str, steps: int, denoise: float
) -> Tensor:
    """KSampler's sigmas, without the penultimate one where it discards it: float32, CPU."""
    return comfy.samplers.KSampler(
        model, steps, torch.device("cpu"), sampler, scheduler, denoise, model.model_options
    ).sigmas


def standard_schedules(model: Any, sampler: str, steps: int, denoise: float) -> dict[str, Tensor]:
    """By scheduler of this ComfyUI; those that fail or repeat levels are left out."""
    schedules = {}
    for name in scheduler_names():
        try:
            sigmas = scheduler_sigmas(model, sampler, name, steps, denoise)
        except Exception as error:  # not every scheduler can make every number of steps
            logger.info("LD3: the scheduler %s cannot make %d steps: %s", name, steps, error)
            continue
        decreasing = len(sigmas) > 1 and bool((sigmas.diff() < 0).all())
        if decreasing and bool(torch.isfinite(sigmas).all()):
            schedules[name] = sigmas
    return schedules


def is_flow(model_sampling: Any) -> bool:
    """Whether noise levels lie in [0, 1] and the state is (1 - sigma) x0 + sigma noise.

    Those of ComfyUI's IMG_TO_IMG_FLOW, a CONST too, are Stable Diffusion's.
    """
    largest = float(model_sampling.sigma_max)
    return largest <= 1 and isinstance(model_sampling, comfy.model_sampling.CONST)


def coordinate(model_sampling: Any) -> Coordinate:
    """The coordinate in which a model's noise levels are learned."""
    return LOGIT_SIGMA if is_flow(model_sampling) else LOG_SIGMA


def prediction_type(model_sampling: Any) -> str:
    """ "flow", "v", "edm" or "eps" (anything else that is variance exploding counts as eps)."""
    if is_flow(model_sampling):
        return "flow"
    if isinstance(model_sampling, comfy.model_sampling.EDM):
        return "edm"
    return "v" if isinstance(model_sampling, comfy.model_sampling.V_PREDICTION) else "eps"
