"""Which 20-step teacher is closest to the exact solution: samplers and schedulers, demo model.

The reference is Heun with 60 Karras steps. Each row is the mean RMSE to it over 16 noises at cfg 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

from benchmarks.problems.demo_model import PROMPT
from benchmarks.problems.problem import REFERENCE

TITLE = "Teachers on the demo model: mean RMSE of 20 steps to Heun with 60 Karras steps, 16 noises"
KEYS = ("sampler", "scheduler")
COLUMNS = {"sampler": 9, "scheduler": 16, "model_calls": 11, "error": 8}
NOISES, STEPS = 16, 20


def cells() -> Iterator[dict[str, Any]]:
    """Every combination measured."""
    for sampler in ("dpmpp_2m", "uni_pc"):
        for scheduler in (
            "karras",
            "exponential",
            "kl_optimal",
            "beta",
            "normal",
            "sgm_uniform",
            "simple",
        ):
            yield {"sampler": sampler, "scheduler": scheduler}


def row(sampler: str, scheduler: str) -> dict[str, Any]:
    """Sample with one teacher and compare."""
    from ld3.metrics import rmse

    result, calls = _sample(sampler, scheduler, STEPS)
    return {
        "sampler": sampler,
        "scheduler": scheduler,
        "model_calls": calls,
        "error": float(rmse(result - _reference()).mean()),
    }


@cache
def _reference() -> torch.Tensor:
    return _sample(*REFERENCE)[0]


def _sample(sampler: str, scheduler: str, steps: int) -> tuple[torch.Tensor, int]:
    """Samples by core from the noises that KSampler draws for seeds from 500, and calls."""
    import comfy.sample

    from demo import demo_model as demo
    from ld3.comfy import core_samplers
    from ld3.comfy.latents import training_noises

    model, (conditioning, _) = demo.load_demo_model(), demo.encode_prompt(PROMPT)
    noise, latent = training_noises(demo.empty_latent(1)["samples"], seed=500, count=NOISES)
    sigmas = core_samplers.scheduler_sigmas(model, sampler, scheduler, steps, denoise=1.0)
    core = core_samplers.sampler_object(sampler)
    sampling = model.get_model_object("model_sampling")
    table = core_samplers.traced_sampler(core, sampling).table(sigmas)
    samples = comfy.sample.sample_custom(
        model, noise, 1.0, core, sigmas, conditioning, conditioning, latent, disable_pbar=True
    )
    return samples, table.model_calls


def summary(rows: list[dict[str, Any]]) -> str:
    """The best teacher."""
    best = min(rows, key=lambda row: row["error"])
    return f"closest: {best['sampler']} with {best['scheduler']}, {best['error']:.4f}"
