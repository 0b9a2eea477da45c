"""The figure of the benchmark `solvers`."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from benchmarks.comparison import geometric_mean

from .summary import SUMMARY_STEPS, cell_of, error_ratios

COLOURS = {"digits": "tab:blue", "gmm16": "tab:orange", "demo": "tab:green"}
EXTRAS = ("none", "d-ode", "decoupled", "solver", "solver+mix", "gs-published", "gs-edm", "gs-long")


def plot(rows: list[dict[str, Any]]) -> Figure:
    """D-ODE on standard schedules by sampler, its states by call, and learned solvers by calls.

    Bars of the first panel extend from the best to the worst cell; the third has one point per
    extra, a geometric mean over samplers in 4 and 6 steps.
    """
    standard = [row for row in rows if row["schedule"] != "learned"]
    learned = [row for row in rows if row["schedule"] == "learned"]
    figure = Figure(figsize=(15, 4.8), dpi=100, layout="constrained")
    axes = figure.subplots(1, 3)
    _by_sampler(axes[0], standard)
    _by_call(axes[1], standard)
    _by_calls_of_learning(axes[2], learned)
    for axis in axes:
        axis.grid(which="both", alpha=0.25)
        axis.axhline(1, color="0.3", lw=1)
    return figure


def _by_sampler(axis: Any, rows: list[dict[str, Any]]) -> None:
    ratios = error_ratios(rows, "d-ode", cell_of)
    samplers = list(dict.fromkeys(cell[1] for cell in ratios))
    models = list(dict.fromkeys(cell[0] for cell in ratios))
    for i, model in enumerate(models):
        for place, sampler in enumerate(samplers):
            found = [ratio for cell, ratio in ratios.items() if cell[:2] == (model, sampler)]
            if found:
                mean = geometric_mean(found)
                reach = [[mean - min(found)], [max(found) - mean]]
                x = place + 0.2 * (i - (len(models) - 1) / 2)
                axis.errorbar(x, mean, reach, marker="o", ms=4, capsize=2, color=COLOURS[model])
        axis.plot([], [], marker="o", color=COLOURS[model], label=model)
    axis.set_xticks(range(len(samplers)), samplers)
    axis.set(title="D-ODE on standard schedules", ylabel="test error / without", ylim=(0, None))
    if models:
        axis.legend(frameon=False)


def _by_call(axis: Any, rows: list[dict[str, Any]]) -> None:
    """Distance to the teacher with D-ODE over that without, along the trajectory."""
    plain = {cell_of(row): row["trajectory_distance"] for row in rows if row["extras"] == "none"}
    found: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        before, after = plain.get(cell_of(row)), row["trajectory_distance"]
        if row["extras"] != "d-ode" or not before or not after:
            continue
        for m in range(1, len(after)):  # the first state is the same
            place = round(4 * m / (len(after) - 1)) / 4
            found.setdefault(row["model"], {}).setdefault(place, []).append(after[m] / before[m])
    for model, places in found.items():
        points = sorted((place, geometric_mean(ratios)) for place, ratios in places.items())
        axis.plot(*zip(*points, strict=True), marker="o", ms=4, color=COLOURS[model], label=model)
    axis.set(title="D-ODE: states", xlabel="from the second state (0) to the result (1)")
    axis.set(ylabel="distance to its teacher / without", ylim=(0, None))
    if found:
        axis.legend(frameon=False)


def _by_calls_of_learning(axis: Any, rows: list[dict[str, Any]]) -> None:
    markers = dict(zip(EXTRAS, "oPsD*X^v", strict=True))
    rows = [row for row in rows if row["steps"] in SUMMARY_STEPS["learned"]]
    for model in dict.fromkeys(row["model"] for row in rows):
        of_model = [row for row in rows if row["model"] == model]
        for extras in EXTRAS:
            ratios = error_ratios(of_model, extras, cell_of)
            found = [r for r in of_model if r["extras"] == extras and cell_of(r) in ratios]
            if ratios:
                calls = [r["model_calls"] + r["teacher_calls"] for r in found]
                point = geometric_mean(calls), geometric_mean(list(ratios.values()))
                axis.plot(*point, markers[extras], color=COLOURS[model], ms=8)
    for extras, marker in markers.items():
        axis.plot([], [], marker, color="0.3", label=extras)
    axis.set(title="learned", xlabel="model and teacher calls", xscale="log", ylim=(0, None))
    axis.set_ylabel("test error / time steps only")
    axis.legend(frameon=False)
