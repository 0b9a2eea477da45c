"""The cells of the benchmark `ablation` on the demo model, run through the whole pack.

Two measures over the noises that KSampler draws for seeds from 900,000, which no method was trained
on, both relative to Heun with 60 karras steps at the same cfg: the mean RMSE of latents, and the
mean LPIPS of their images. The second uses the network that also defines the learned LPIPS
distance, so it is not independent.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.measures import caption_network
from benchmarks.problems import demo_use
from benchmarks.problems.demo_model import PROMPT
from benchmarks.problems.live_model import TEACHER
from benchmarks.problems.problem import REFERENCE

SAMPLER, STEPS, NOISES, FIRST_SEED = "dpmpp_2m", 4, 32, 900_000
LPIPS = "lpips (emoji-caption network)"


class Measured(NamedTuple):
    """Held-out errors, and the calls needed; no LPIPS where it is not measured."""

    heldout_error: float
    model_calls: int = 0
    teacher_calls: int = 0
    heldout_lpips: float | None = None


def yardstick(setting: str, cfg: float, lpips: bool) -> Measured:
    """The teacher, or the best of ComfyUI's schedulers by each measure.

    Args:
        lpips: whether to measure it too.
    """
    if setting == "teacher":
        measured = [(standard(*TEACHER), TEACHER[0])]
    else:
        from ld3.comfy import core_samplers

        schedules = core_samplers.standard_schedules(demo_model(), SAMPLER, STEPS, 1.0)
        measured = [(sigmas, SAMPLER) for sigmas in schedules.values() if len(sigmas) <= STEPS + 1]
    sets = [samples(sigmas, cfg, sampler_named(name)) for sigmas, name in measured]
    return Measured(
        min(error(part, cfg) for part in sets),
        heldout_lpips=min(lpips_of(part, cfg) for part in sets) if lpips else None,
    )


def learn(cfg: float, teacher_steps: int, distance: str, lpips: bool) -> Measured:
    """What LD3 Train Schedule learns at its defaults, the full solver with quality normal.

    Args:
        distance: a latent distance, or `LPIPS`.
        lpips: whether to measure it too.
    """
    from demo import demo_model as demo
    from ld3.comfy import folders, sampling
    from ld3.comfy.job import GraphInputs

    vae = None
    if distance == LPIPS:
        folders.register()
        caption_network.install(folders.lpips_folder())
        distance, vae = f"lpips-{caption_network.NET}", demo.load_demo_vae()
    inputs = GraphInputs(demo_model(), *prompts(), demo.empty_latent(), vae)
    result = demo_use.trained(
        inputs, SAMPLER, STEPS, cfg,
        teacher_scheduler=TEACHER[1], teacher_steps=teacher_steps, distance=distance,
    )  # fmt: skip
    learned = sampling.schedule_sampler(result.schedule)
    latents = samples(result.schedule.sigmas.float(), cfg, learned)
    report = result.report
    return Measured(
        error(latents, cfg),
        report.training_calls + report.report_calls,
        report.teacher_calls,
        lpips_of(latents, cfg) if lpips else None,
    )


@functools.cache
def demo_model() -> Any:
    """The demo MODEL."""
    from demo import demo_model as demo

    return demo.load_demo_model()


@functools.cache
def prompts() -> tuple[Any, Any]:
    """Positive and negative CONDITIONING."""
    from demo import demo_model as demo

    positive, negative = (demo.encode_prompt(text)[0] for text in (PROMPT, ""))
    return positive, negative


def standard(sampler: str, scheduler: str, steps: int) -> Tensor:
    """A standard schedule."""
    from ld3.comfy import core_samplers

    return core_samplers.scheduler_sigmas(demo_model(), sampler, scheduler, steps, 1.0)


@functools.cache
def reference(cfg: float) -> Tensor:
    """The samples that every row is compared with."""
    return samples(standard(*REFERENCE), cfg, sampler_named(REFERENCE[0]))


def sampler_named(name: str) -> Any:
    """Core's SAMPLER."""
    from ld3.comfy import core_samplers

    return core_samplers.sampler_object(name)


def samples(sigmas: Tensor, cfg: float, sampler: Any) -> Tensor:
    """Core's own sampling of the held-out noises by a SAMPLER."""
    import comfy.sample

    from demo import demo_model as demo
    from ld3.comfy.latents import training_noises

    noise, latent = training_noises(demo.empty_latent(1)["samples"], FIRST_SEED, NOISES)
    return comfy.sample.sample_custom(
        demo_model(), noise, cfg, sampler, sigmas, *prompts(), latent, disable_pbar=True
    )


def error(latents: Tensor, cfg: float) -> float:
    """Mean RMSE to the reference."""
    from ld3.metrics import rmse

    return float(rmse(latents - reference(cfg)).mean())


def lpips_of(latents: Tensor, cfg: float) -> float:
    """Mean LPIPS to the reference, of the images from VAE Decode."""
    from demo import demo_model as demo

    vae, features = demo.load_demo_vae(), caption_network.features()
    with torch.no_grad():
        learned, target = (
            features(vae.decode(part).movedim(-1, 1)) for part in (latents, reference(cfg))
        )
    return float((learned - target).pow(2).sum(1).mean())
