"""The Generalised Solver's error against the calls spent on it.

`methods.gs` is trained once for each (model, steps, seed) and published budget, and measured on the
way. A row is the state (the moving average) after the last update that `at` calls allow: those of
the training, counted as in the benchmark `solvers`, and 20 of the teacher for each pair used so
far, since a shorter training would not need all 1,400. `at` "end" is the whole training.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

from benchmarks.comparison import geometric_mean
from benchmarks.methods import gs
from benchmarks.methods.trial import Trial
from benchmarks.problems import registry
from benchmarks.problems.live_model import LiveModel

TITLE = "GS: error to the common reference against all calls of its training"
KEYS = ("model", "steps", "seed", "budget", "at")
COLUMNS = {
    "model": 8,
    "steps": 5,
    "seed": 4,
    "budget": 12,
    "at": 7,
    "updates": 7,
    "calls": 9,
    "heldout_error": 13,
    "seconds": 8,
}
MODELS, STEPS, SEEDS, SAMPLER = ("digits", "gmm16"), (4, 6), (0, 1, 2), "dpmpp_2m"
BUDGETS = {"gs-published": gs.PUBLISHED, "gs-edm": gs.EDM}
MARKS = {
    "gs-published": (10_000, 30_000, 100_000, "end"),
    "gs-edm": (10_000, 30_000, 100_000, 300_000, 1_000_000, "end"),
}
STYLES = {"gs-published": "o--", "gs-edm": "o-"}


class Point(NamedTuple):
    """The state of a training after so many updates, all calls and seconds."""

    updates: int
    calls: int
    error: float
    seconds: float


def cells() -> Iterator[dict[str, Any]]:
    """Every row; those of one training follow each other."""
    for seed in SEEDS:
        for budget, marks in MARKS.items():
            for model in MODELS:
                for steps in STEPS:
                    for at in marks:
                        yield dict(zip(KEYS, (model, steps, seed, budget, at), strict=True))


def row(model: str, steps: int, seed: int, budget: str, at: int | str) -> dict[str, Any]:
    """One point of a training, which is run once for all of them."""
    torch.set_num_threads(1)  # more make small tensors slower
    problem = registry.load(model)

    def trained() -> dict[int | str, Point]:
        return problem.run(lambda live: curve(live_trial(live), budget))

    def live_trial(live: LiveModel) -> Trial:
        return Trial(problem, live, SAMPLER, steps, seed)

    point = problem.cached(f"curve {steps} {seed} {budget}", trained)[at]
    cell = dict(zip(KEYS, (model, steps, seed, budget, at), strict=True))
    return cell | {
        "updates": point.updates,
        "calls": point.calls,
        "heldout_error": point.error,
        "seconds": point.seconds,
    }


def curve(trial: Trial, budget: str) -> dict[int | str, Point]:
    """A training's points by `at`."""
    live, settings, started = trial.live, BUDGETS[budget], time.monotonic()
    pairs, teacher_calls = gs.training_pairs(trial, settings)
    training = gs.GsTraining(live.model, trial.steps, pairs, trial.seed, settings)
    per_pair, live.model.calls = teacher_calls // len(pairs), 0
    marks, points = {update_at(settings, trial.steps, per_pair, at): at for at in MARKS[budget]}, {}
    for update in training.each_update():
        if update in marks:
            calls = live.model.calls + per_pair * min(update * settings.batch, len(pairs))
            error = trial.problem.error(live, training.discretization())
            points[marks[update]] = Point(update, calls, error, time.monotonic() - started)
    return points


def update_at(settings: gs.GsSettings, steps: int, per_pair: int, at: int | str) -> int:
    """The last update that `at` calls allow, at least one.

    Args:
        per_pair: the teacher's calls for a pair.
    """
    if not isinstance(at, int):
        return settings.updates
    training = 3 * steps * settings.batch
    first_epoch = at // (training + per_pair * settings.batch)
    later = (at - per_pair * settings.training_pairs) // training
    return min(max(1, first_epoch, later), settings.updates)


def summary(rows: list[dict[str, Any]]) -> str:
    """Geometric means over seeds at each mark."""
    lines = ["geometric means over seeds:"]
    for (model, steps, budget), points in means(rows).items():
        text = ", ".join(f"{error:.4f} at {calls:,.0f}" for calls, error in points)
        lines.append(f"  {model} {steps} steps, {budget}: {text}")
    return "\n".join(lines)


def means(rows: list[dict[str, Any]]) -> dict[tuple[str, int, str], list[tuple[float, float]]]:
    """(model, steps, budget) -> calls and error, means over seeds, in the order of calls."""
    found: dict[tuple[str, int, str], dict[Any, list[tuple[float, float]]]] = {}
    for r in rows:
        curve_of = found.setdefault((r["model"], r["steps"], r["budget"]), {})
        curve_of.setdefault(r["at"], []).append((r["calls"], r["heldout_error"]))
    return {
        key: sorted(
            (geometric_mean(c for c, _ in seeds), geometric_mean(e for _, e in seeds))
            for seeds in marks.values()
        )
        for key, marks in found.items()
    }


def plot(rows: list[dict[str, Any]]) -> Figure:
    """One panel per model, a line per number of steps and budget, log-log."""
    found = means(rows)
    models = list(dict.fromkeys(model for model, _, _ in found))
    figure = Figure(figsize=(4.6 * max(len(models), 1), 4), layout="constrained")
    axes = figure.subplots(1, max(len(models), 1), squeeze=False)[0]
    for axis, model in zip(axes, models, strict=False):
        for (name, steps, budget), points in found.items():
            if name == model:
                axis.plot(*zip(*points, strict=True), STYLES[budget], label=f"{budget}, {steps}")
        axis.set(xscale="log", yscale="log", title=model, xlabel="model and teacher calls")
        axis.grid(which="both", alpha=0.25)
        axis.legend(title="budget, steps", frameon=False)
    axes[0].set_ylabel("test error")
    return figure
