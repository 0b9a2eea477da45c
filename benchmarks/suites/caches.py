"""Learned solvers against ComfyUI's EasyCache and LazyCache at the same number of network calls.

All sample by dpmpp_2m. The caches take 10 or 20 steps and skip network calls while the estimated
change of the output is below `reuse_threshold`. For both numbers of steps, and for skipping in the
range of steps that is the nodes' default or in all, the smallest of 16 thresholds is taken at which
4 noises in one batch (which skips as a whole) need no more calls than allowed. Of these settings
the one with the least error on these noises is measured on all 64, in batches of 4. `standard` is
the best of ComfyUI's nine schedules, chosen on the 64 noises themselves; `learned` is the full
solver that quality normal learns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any, NamedTuple

from benchmarks.comparison import geometric_mean

TITLE = "At equal network calls: mean RMSE to the ODE's solution on 64 held-out noises, demo models"
KEYS = ("model", "calls", "method")
COLUMNS = {
    "model": 9, "calls": 5, "method": 9, "error": 8, "mean_calls": 10, "sampler": 8,
    "scheduler": 12, "steps": 5, "threshold": 9, "skips": 9,
}  # fmt: skip
MODELS = {"demo-flow": "simple", "demo": "karras"}
"""Model -> scheduler that the caches are tried with."""
CALLS, METHODS = (3, 4, 6), ("easycache", "lazycache", "standard", "learned")
SAMPLER, STEPS = "dpmpp_2m", (10, 20)
RANGES = {"default": (0.15, 0.95), "all": (0.0, 1.0)}
BATCH = 4
THRESHOLDS = (1, 2, 3, 5, 7, 10, 14, 20, 28, 40, 57, 80, 113, 160, 226, 300)  # in hundredths
Row = dict[str, Any]


class Setting(NamedTuple):
    """How a cached model is sampled; skips is one of `RANGES`."""

    model: str
    method: str
    sampler: str
    scheduler: str
    steps: int
    skips: str


def cells() -> Iterator[Row]:
    """Every row."""
    for cell in product(MODELS, CALLS, METHODS):
        yield dict(zip(KEYS, cell, strict=True))


def row(model: str, calls: int, method: str) -> Row:
    """The best setting of a method."""
    cell = {"model": model, "calls": calls, "method": method}
    nothing = {"scheduler": "", "steps": calls, "threshold": 0.0, "skips": "", "mean_calls": calls}
    if method == "standard":
        return cell | nothing | _standard(model, calls)
    if method == "learned":
        return cell | nothing | _learned(model, calls)
    found: list[tuple[float, Setting, int]] = []
    for steps, skips in product(STEPS, RANGES):
        setting = Setting(model, method, SAMPLER, MODELS[model], steps, skips)
        threshold = _threshold(setting, calls)
        if threshold:
            found.append((_measured(setting, threshold, batches=1)[0], setting, threshold))
    _, setting, threshold = min(found)
    error, mean_calls = _measured(setting, threshold)
    measured = {"error": error, "mean_calls": mean_calls, "threshold": threshold / 100}
    return {name: (cell | setting._asdict() | measured)[name] for name in COLUMNS}


def _threshold(setting: Setting, calls: int) -> int:
    """The smallest threshold, in hundredths, with at most these calls; 0 if there is none."""
    low, high = -1, len(THRESHOLDS) - 1  # too many calls, few enough
    if _sampled(setting, THRESHOLDS[high])[1] > calls:
        return 0
    while high - low > 1:
        middle = (low + high) // 2
        if _sampled(setting, THRESHOLDS[middle])[1] <= calls:
            high = middle
        else:
            low = middle
    return THRESHOLDS[high]


@cache
def _sampled(setting: Setting, threshold: int, part: int = 0) -> tuple[Any, int]:
    """Samples of the held-out noises of one batch, and network calls."""
    from ld3.comfy import core_samplers

    problem, made = _problem(setting.model), [0]

    def counted() -> None:
        made[0] += 1

    sigmas = core_samplers.scheduler_sigmas(
        problem.patcher, setting.sampler, setting.scheduler, setting.steps, denoise=1.0
    )
    noise = problem.test_noise[part * BATCH : (part + 1) * BATCH]
    patched = cached_model(problem.patcher, setting.method, threshold / 100, RANGES[setting.skips])
    samples = problem.sampled_by_core(patched, setting.sampler, sigmas, noise, counted)
    return samples, made[0]


def _measured(setting: Setting, threshold: int, batches: int | None = None) -> tuple[float, float]:
    """Error and mean calls over the held-out noises, or over the first batches of them."""
    import torch

    from ld3.metrics import rmse

    problem = _problem(setting.model)
    count = batches or problem.heldout_noises // BATCH
    parts = [_sampled(setting, threshold, i) for i in range(count)]
    samples = torch.cat([part for part, _ in parts])
    reference = problem.run(problem.reference_samples)[: len(samples)]
    error = float(rmse(samples - reference).mean())
    return error, sum(calls for _, calls in parts) / len(parts)


def cached_model(model: Any, method: str, threshold: float, skips: tuple[float, float]) -> Any:
    """A MODEL with EasyCache or LazyCache, as the node makes it."""
    from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode

    node = {"easycache": EasyCacheNode, "lazycache": LazyCacheNode}[method]
    return node.execute(model, threshold, *skips, False).args[0]


def _standard(model: str, steps: int) -> Row:
    problem = _problem(model)

    scheduler, error = problem.run(lambda live: problem.best_standard(live, SAMPLER, steps))
    return {"sampler": SAMPLER, "scheduler": scheduler, "error": error}


def _learned(model: str, steps: int) -> Row:
    from benchmarks.methods import ours
    from benchmarks.methods.trial import Trial

    from .finite_difference import LEARN

    problem = _problem(model)

    def measured(live: Any) -> float:
        trial = Trial(problem, live, SAMPLER, steps, 0)
        learned = ours.learn(trial, compared=True, **LEARN["full"])
        return problem.error(live, learned.solver)

    return {"sampler": SAMPLER, "error": problem.run(measured)}


def _problem(model: str) -> Any:
    from benchmarks.problems import registry

    return registry.load(model)


def summary(rows: list[Row]) -> str:
    """Errors over that of what was learned, geometric means over models and calls."""
    errors = {tuple(r[name] for name in KEYS): r["error"] for r in rows}
    lines = []
    for method in METHODS:
        ratios = [
            error / errors[model, calls, "learned"]
            for (model, calls, name), error in errors.items()
            if name == method and math.isfinite(error) and (model, calls, "learned") in errors
        ]
        if ratios and method != "learned":
            lines.append(
                f"{method}: {geometric_mean(ratios):.2f} times the error of the learned solver, "
                f"{min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} cells"
            )
    return "\n".join(lines) or f"{len(rows)} rows"
