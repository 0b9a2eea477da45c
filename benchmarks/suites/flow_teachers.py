"""Which scheduler makes a good 20-step teacher for flow models, at the shifts people use.

Exact denoisers as flow models: x = (1 - sigma) x0 + sigma noise. Each row is the mean
RMSE of dpmpp_2m in 20 steps over 128 noises to the solution (Heun, 300 beta steps).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

from benchmarks.comparison import clustered_mean
from benchmarks.problems import registry
from benchmarks.problems.problem import Problem
from ld3.metrics import rmse

TITLE = "Teachers for flow models: mean RMSE of 20 steps of dpmpp_2m to the solution, 128 noises"
KEYS = ("problem", "shift", "scheduler")
COLUMNS = {"problem": 10, "shift": 5, "scheduler": 11, "error": 8}
PROBLEMS = ("digits", "gmm16", "mixture-2d", "heavy16", "patches", "gauss", "moons")
SHIFTS = (1.0, 3.0, 7.0)
SCHEDULERS = ("beta", "simple", "sgm_uniform", "kl_optimal", "normal", "karras", "exponential")
NOISES, SEED, STEPS, REFERENCE = 128, 700, 20, ("heun", "beta", 300)


def cells() -> Iterator[dict[str, Any]]:
    """Every combination measured."""
    for problem in PROBLEMS:
        for shift in SHIFTS:
            for scheduler in SCHEDULERS:
                yield {"problem": problem, "shift": shift, "scheduler": scheduler}


def row(problem: str, shift: float, scheduler: str) -> dict[str, Any]:
    """The error of one teacher."""
    loaded, noise, reference = _exact(problem, shift)
    samples = loaded.run(
        lambda live: live.samples(live.standard("dpmpp_2m", scheduler, STEPS), noise)
    )
    error = float(rmse(samples - reference).mean())
    return {"problem": problem, "shift": shift, "scheduler": scheduler, "error": error}


@cache
def _exact(name: str, shift: float) -> tuple[Problem, torch.Tensor, torch.Tensor]:
    """The problem, its start noises and their exact samples."""
    problem = registry.load(f"{name}-flow-shift{shift:g}")
    noise = problem.noises(NOISES, SEED)
    reference = problem.run(lambda live: live.samples(live.standard(*REFERENCE), noise))
    return problem, noise, reference


def summary(rows: list[dict[str, Any]]) -> str:
    """By scheduler: error over that of the best scheduler of each problem and shift."""
    best: dict[tuple[str, float], float] = {}
    for found in rows:
        key = found["problem"], found["shift"]
        best[key] = min(found["error"], best.get(key, found["error"]))
    lines = ["error over that of the best scheduler: geometric mean, worst"]
    for scheduler in SCHEDULERS:
        clusters: dict[str, list[float]] = {}
        for found in rows:
            if found["scheduler"] == scheduler:
                ratio = found["error"] / best[found["problem"], found["shift"]]
                clusters.setdefault(found["problem"], []).append(ratio)
        if clusters:
            worst = max(max(ratios) for ratios in clusters.values())
            lines.append(f"{scheduler:>11} {clustered_mean(clusters)} {worst:6.2f}")
    return "\n".join(lines)
