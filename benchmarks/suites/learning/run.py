"""Learned schedules against published ways to choose steps, at counted model calls.

digits and gmm16, whose denoisers are exact, and the demo model (cfg 1) are the models the methods
of this pack were developed on; `NEW`, exact too, are those they were not: three more with Karras's
noise levels, and five as flow models. A row is one method for one (model, sampler, steps) with one
seed of three, which determines its training noises (on the demo model, the most expensive methods
have one seed):

- `scheduler:<name>`: ComfyUI's nine; `scheduler:karras` is the default. `ays`, `gits`: the tables
  in core, on the demo model only, since they start at Stable Diffusion's sigma of 14.6.
- `standard:<sampler>:<scheduler>`: what ComfyUI's users often choose, whatever the row's sampler.
- `dmn`, `gits-dp`: `methods.baselines`, the latter on trajectories of the common teacher;
  `gits-dp-euler60` on those of 60 Euler steps, as published. `dmn` is not for flow models, whose
  first level is infinite in its terms.
- `ld3-official`: `methods.official`; `-uncounted` does not count its validation, which only changes
  its calls; `-x100` has a higher rate for decoupled times. Not for flow models.
- `gradient`, `gauss-newton`, each also `+decoupled`, and `gauss-newton+solver+mix`, the node's full
  solver: this pack; Gauss-Newton with quality normal, the gradient with 32 training and 32
  validation noises. On the new models only `QUALITY_NORMAL`.
- `teacher`: dpmpp_2m with 20 steps, from which all methods learn: karras, or for flow models simple
  or beta (`Problem.teacher`).

`heldout_error` is the mean RMSE over noises that no method was trained on (512; demo 64) to one
reference, Heun with many steps (`Problem.reference`). `frechet` compares `frechet_samples` samples
with the data: raw pixels and the exact moments on digits and gmm16; on the demo model, whose
samples are expensive, 64 principal components of 512 samples, and only for seed 0; not on the new
models. `model_calls` are the network evaluations that learning needed, one per call and sample in
the batch: a backward pass counts as two, a recomputed forward pass as one; screening and validation
are included. `teacher_calls` are the teacher's. `sample_calls` is then the cost of one sample.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.methods import dispatch
from benchmarks.methods.trial import Result, Trial
from benchmarks.problems import registry
from benchmarks.problems.live_model import LiveModel

TITLE = "Learning: error to a common reference and Frechet distance to the data, at counted calls"
KEYS = ("model", "sampler", "steps", "method", "seed")
COLUMNS = {
    "model": 6,
    "sampler": 9,
    "steps": 5,
    "method": 26,
    "seed": 4,
    "heldout_error": 13,
    "frechet": 9,
    "frechet_samples": 15,
    "model_calls": 11,
    "teacher_calls": 13,
    "sample_calls": 12,
    "seconds": 8,
}
SCHEDULERS = (
    "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal",
    "linear_quadratic", "kl_optimal",
)  # fmt: skip
OURS = (
    "gradient", "gradient+decoupled", "gauss-newton", "gauss-newton+decoupled",
    "gauss-newton+solver+mix",
)  # fmt: skip
QUALITY_NORMAL = ("gauss-newton", "gauss-newton+solver+mix")  # of `OURS`, on all models
OFTEN_CHOSEN = tuple(
    f"standard:{sampler}:{scheduler}"
    for sampler in ("euler", "res_multistep")
    for scheduler in ("simple", "beta")
)
GITS = ("gits-dp", "gits-dp-euler60")
EARLIER = ("digits", "gmm16", "demo")
NEW = ("patches", "gauss", "moons")
FLOW = ("digits-flow", "gmm16-flow", "patches-flow", "gauss-flow", "moons-flow")
FLOW_SHIFTED = ("patches-flow-shift3",)
SAMPLERS = {
    "digits": ("dpmpp_2m", "ipndm", "euler", "uni_pc"),
    "gmm16": ("dpmpp_2m", "ipndm", "euler", "uni_pc"),
    "demo": ("dpmpp_2m", "ipndm"),
    **dict.fromkeys((*NEW, *FLOW, *FLOW_SHIFTED), ("dpmpp_2m", "ipndm", "euler")),
}
STEPS = {
    "digits": (4, 6, 8),
    "gmm16": (4, 6, 8),
    **dict.fromkeys(("demo", *NEW, *FLOW, *FLOW_SHIFTED), (4, 6)),
}
SEEDS = (0, 1, 2)


def cells() -> Iterator[dict[str, Any]]:
    """Every row, model by model."""
    for model, samplers in SAMPLERS.items():
        for sampler in samplers:
            for steps in STEPS[model]:
                for method, seed in _methods(model):
                    yield {
                        "model": model,
                        "sampler": sampler,
                        "steps": steps,
                        "method": method,
                        "seed": seed,
                    }


def _methods(model: str) -> Iterator[tuple[str, int]]:
    yield "teacher", 0
    for name in (*(f"scheduler:{name}" for name in SCHEDULERS), *OFTEN_CHOSEN):
        yield name, 0
    yield from [("ays", 0), ("gits", 0)] if model == "demo" else []
    flow = model in (*FLOW, *FLOW_SHIFTED)
    yield from [] if flow else [("dmn", 0)]
    ours = OURS if model in EARLIER else QUALITY_NORMAL
    for method in (*GITS, *([] if flow else dispatch.OFFICIAL), *ours):
        once = model == "demo" and method not in GITS
        for seed in SEEDS[:1] if once else SEEDS:
            yield method, seed


def row(model: str, sampler: str, steps: int, method: str, seed: int) -> dict[str, Any]:
    """Find one schedule and measure it."""
    torch.set_num_threads(1)  # more make small tensors slower
    problem, started = registry.load(model), time.monotonic()

    def task(live: LiveModel) -> tuple[Result, float]:
        result = dispatch.run(method, Trial(problem, live, sampler, steps, seed))
        return result, problem.error(live, result.solver)

    def measured() -> tuple[Result, float, float | None, int]:
        result, error = problem.run(task)
        distance = problem.frechet(result.solver, seed) if model in EARLIER else (None, 0)
        return result, error, *distance

    if method == "teacher":  # the same in every cell
        result, error, distance, samples = problem.cached(method, measured)
    elif method in OFTEN_CHOSEN:  # the same for every sampler
        result, error, distance, samples = problem.cached(f"{method} {steps}", measured)
    else:
        result, error, distance, samples = measured()
    return {
        "model": model,
        "sampler": sampler,
        "steps": steps,
        "method": method,
        "seed": seed,
        "heldout_error": error,
        "frechet": distance,
        "frechet_samples": samples,
        "model_calls": result.model_calls,
        "teacher_calls": result.teacher_calls,
        "sample_calls": result.solver.table.model_calls,
        "sigmas": result.solver.sigmas.tolist(),
        "eval_sigmas": result.solver.table.eval_sigmas.tolist(),
        "seconds": time.monotonic() - started,
    }
