"""The first questions one has about the method, each asked where the answer can be computed.

A row is one number: `value` of `quantity` in an `experiment`, with what it depends on.

- convergence: one descent on a mixture in one dimension, update by update (`heldout_error`).
- kl: KL between teacher and student distributions (`kl`) against Theorem 1's bound at the `radius`
  the student learned with (`bound`), which holds where the remaining `soft_loss` is 0; and at the
  least radius for which it is 0 (`zero_loss_radius`, `zero_loss_bound`). See
  `benchmarks.divergence`.
- loss: one descent on digits, hard and soft: `training_error` from the start noises as they were
  moved, `heldout_error` from noises as they are.
- heavy-tails: 24 modes with Student t tails, learned schedules against the best standard one.
- measures: digits in 4 steps by several measures, against fresh samples of the exact data.

`spread_to_teacher` is the mean distance of two samples over that of the teacher's: below 1 where
modes collapse. `heldout_error` is the mean RMSE of 512 samples to Heun with 60 karras steps.
`model_calls` are those of learning, up to that update.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from ld3.metrics import spread
from ld3.solver import Plan
from ld3.training.gradient import ADAM

from . import divergence, quality, runs, toys
from .plot_theory import plot  # noqa: F401
from .problems import digits_components
from .subjects import FRECHET_SEED, REFERENCE, Stage, Subject

TITLE = "Theory: first experiments on exact problems"
KEYS = (
    "experiment", "model", "sampler", "steps", "method", "seed", "radius", "update", "quantity",
)  # fmt: skip
COLUMNS = {
    "experiment": 11,
    "model": 10,
    "sampler": 8,
    "steps": 5,
    "method": 22,
    "seed": 4,
    "radius": 7,
    "update": 6,
    "quantity": 18,
    "value": 9,
    "model_calls": 11,
}
SEEDS = (0, 1, 2)
RADII = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
POINTS, SAMPLES = 2048, 2048  # of the quadrature over noises, and of each set that is compared
KL = ("kl", "bound", "soft_loss", "zero_loss_radius", "zero_loss_bound", "inverted")
STRESS = ("heldout_error", "spread_to_teacher")
MEASURES = (
    "frechet", "sliced_wasserstein", "precision", "recall", "coverage", "inception_score",
    "spread_to_teacher", "heldout_error",
)  # fmt: skip
Found = dict[tuple[int | None, str], tuple[float, int]]
"""(update, quantity) -> value and model calls."""


def cells() -> Iterator[dict[str, Any]]:
    """Every number, experiment by experiment."""
    for fixed, methods, quantities in _experiments():
        for seed in SEEDS:
            for method, radius in methods:
                watched = fixed["experiment"] in ("convergence", "loss")
                for update in runs.updates_of(method) if watched else [None]:
                    for quantity in quantities:
                        yield {
                            **fixed,
                            "method": method,
                            "seed": seed,
                            "radius": radius,
                            "update": update,
                            "quantity": quantity,
                        }


def _experiments() -> Iterator[tuple[dict[str, Any], list[tuple[str, float | None]], Any]]:
    def cell(experiment: str, model: str, sampler: str, steps: int) -> dict[str, Any]:
        return {"experiment": experiment, "model": model, "sampler": sampler, "steps": steps}

    newton = ("gauss-newton", None)
    descents_1d = [newton, ("gradient", 0.0), ("gradient", 0.03)]
    for sampler in ("dpmpp_2m", "euler"):
        yield cell("convergence", "mixture-1d", sampler, 4), descents_1d, ("heldout_error",)
    for model in ("mixture-1d", "mixture-2d"):
        learned = [("gradient", radius) for radius in RADII]
        yield cell("kl", model, "dpmpp_2m", 4), [("scheduler:karras", None), newton, *learned], KL
    published, large = 0.001 * 64 / 4**2, 0.03 * math.sqrt(64)
    descents_digits = [newton, *(("gradient", radius) for radius in (0.0, published, large))]
    errors = ("training_error", "heldout_error")
    yield cell("loss", "digits", "dpmpp_2m", 4), descents_digits, errors
    learners = [newton, ("gauss-newton+decoupled", None)]
    for sampler in ("dpmpp_2m", "ipndm"):
        for steps in (4, 6):
            methods = [
                ("teacher", None), ("scheduler:karras", None), ("scheduler:best", None), *learners,
                ("gradient+decoupled", 0.0),
            ]  # fmt: skip
            yield cell("heavy-tails", "heavy16", sampler, steps), methods, STRESS
    for sampler in ("dpmpp_2m", "ipndm"):
        standard = [("scheduler:karras", None), ("scheduler:best", None)]
        methods = [*standard, *learners, ("teacher", None), ("reference", None)]
        yield cell("measures", "digits", sampler, 4), methods, MEASURES


def row(update: int | None, quantity: str, **cell: Any) -> dict[str, Any]:
    """One number; those of one run are found together."""
    torch.set_num_threads(1)  # more make small tensors slower
    value, calls = _found(**cell)[update, quantity]
    return {**cell, "update": update, "quantity": quantity, "value": value, "model_calls": calls}


@functools.lru_cache(maxsize=4)
def _found(experiment: str, model: str, seed: int, **way: Any) -> Found:
    subject = toys.load(model)
    if experiment in ("convergence", "loss"):
        return subject.run(lambda stage: _descent(subject, stage, seed, **way))
    of_plan = {"kl": _divergence, "heavy-tails": _stress, "measures": _measures}[experiment]

    def task(stage: Stage) -> Found:
        plan, calls = _plan(subject, stage, seed, **way)
        found = of_plan(subject, stage, plan, seed, way["radius"])
        return {(None, quantity): (value, calls) for quantity, value in found.items()}

    return subject.run(task)


def _descent(subject: Subject, stage: Stage, seed: int, **way: Any) -> Found:
    found: Found = {}
    for point in runs.descend(subject, stage, seed=seed, **way):
        found[point.update, "training_error"] = point.training_error, point.model_calls
        error = subject.error(stage, point.plan)
        found[point.update, "heldout_error"] = error, point.model_calls
    return found


def _plan(
    subject: Subject,
    stage: Stage,
    seed: int,
    sampler: str,
    steps: int,
    method: str,
    radius: float | None,
) -> tuple[Plan, int]:
    """What a method comes to, and the model calls it took."""
    kind, _, name = method.partition(":")
    if kind == "scheduler":
        if name == "best":
            return runs.best_standard(subject, stage, sampler, steps)[1], 0
        return stage.standard(sampler, name, steps), 0
    if kind in ("teacher", "reference"):
        return stage.teacher if kind == "teacher" else stage.standard(*REFERENCE), 0
    optimizer, _, extra = method.partition("+")
    learned = runs.learn(
        subject,
        stage,
        sampler,
        steps,
        seed,
        decoupled=extra == "decoupled",
        gradient=replace(ADAM, radius=radius) if optimizer == "gradient" else None,
    )
    return runs.plan_of(learned), learned.report.training_calls


def _divergence(
    subject: Subject, stage: Stage, plan: Plan, seed: int, radius: float | None
) -> dict[str, float]:
    student, teacher = (divergence.sampling_map(stage.model, p) for p in (plan, stage.teacher))
    z = divergence.normal_points(POINTS, subject.shape[0], seed)
    found = divergence.compare(student, teacher, z)
    learned_with = radius or 0.0
    return {
        "kl": found.kl,
        "bound": found.bound(learned_with),
        "soft_loss": divergence.soft_loss(student, teacher, found, learned_with),
        "zero_loss_radius": found.radius,
        "zero_loss_bound": found.bound(found.radius),
        "inverted": found.inverted,
    }


def _stress(
    subject: Subject, stage: Stage, plan: Plan, seed: int, radius: float | None
) -> dict[str, float]:
    noise = subject.noises(SAMPLES, FRECHET_SEED + seed)
    made, taught = (runs.samples(stage.model, p, noise) for p in (plan, stage.teacher))
    ratio = spread(made) / spread(taught)
    return {"heldout_error": subject.error(stage, plan), "spread_to_teacher": ratio}


def _measures(
    subject: Subject, stage: Stage, plan: Plan, seed: int, radius: float | None
) -> dict[str, float]:
    means, stds, _ = digits_components()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(means), (SAMPLES,), generator=generator)
    real = means[chosen] + stds[0] * torch.randn(SAMPLES, 64, generator=generator)
    made = runs.samples(stage.model, plan, subject.noises(SAMPLES, FRECHET_SEED + seed))
    found = quality.measures(real, made, seed=seed)
    found["inception_score"] = quality.inception_score(_classifier()(made))
    return found | _stress(subject, stage, plan, seed, radius)


@functools.cache
def _classifier() -> Any:
    return quality.digits_classifier()


def summary(rows: list[dict[str, Any]]) -> str:
    """Means over seeds, and whether the bound held."""
    lines = []
    last = max((r["update"] for r in rows if r["method"] == "gradient" and r["update"]), default=0)
    ends = {"gauss-newton": runs.ITERATIONS, "gradient": last}
    means: dict[tuple[Any, ...], list[float]] = {}
    for r in rows:
        if r["update"] is None or r["update"] == ends[r["method"]]:
            group = (r["experiment"], r["model"], r["sampler"], r["steps"], r["quantity"])
            way = r["method"] if r["radius"] is None else f"{r['method']} r={r['radius']:g}"
            means.setdefault((*group, way), []).append(r["value"])
    for group in dict.fromkeys(key[:-1] for key in means):
        values = [f"{k[-1]} {sum(v) / len(v):.4f}" for k, v in means.items() if k[:-1] == group]
        lines.append(f"{' '.join(map(str, group))}: {', '.join(values)}")
    return "\n".join([*lines, *_bound_check(rows)])


def _bound_check(rows: list[dict[str, Any]]) -> list[str]:
    by_run: dict[tuple[Any, ...], dict[str, float]] = {}
    for r in rows:
        if r["experiment"] == "kl":
            key = (r["model"], r["method"], r["radius"], r["seed"])
            by_run.setdefault(key, {})[r["quantity"]] = r["value"]
    whole = [run for run in by_run.values() if len(run) == len(KL)]
    if not whole:
        return []
    always = sum(run["kl"] <= run["zero_loss_bound"] for run in whole)
    at_radius = sum(run["kl"] <= run["bound"] for run in whole)
    return [
        f"Theorem 1: KL below the bound in {always} of {len(whole)} runs at the radius of no soft "
        f"loss, in {at_radius} at the radius learned with"
    ]
