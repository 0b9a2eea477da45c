"""The figure of the benchmark `learning`."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure

from benchmarks.comparison import BEST, geometric_mean, with_best_standard

PANELS = 3  # in a row
FEWEST_CALLS = 100  # position of methods without calls
STYLES = {
    "scheduler:karras": ("karras", "x", "0.5"),
    BEST: ("best of nine schedulers (not known beforehand)", "+", "0.3"),
    "ays": ("AYS table", "1", "tab:brown"),
    "gits": ("GITS table", "2", "tab:pink"),
    "dmn": ("DMN", "3", "tab:olive"),
    "gits-dp": ("GITS dynamic programming", "v", "tab:cyan"),
    "gits-dp-euler60": ("GITS, 60 Euler steps", "^", "tab:cyan"),
    "ld3-official": ("LD3 as published", "s", "tab:red"),
    "ld3-official-uncounted": ("LD3 without its validation's calls", "<", "tab:red"),
    "ld3-official-x100": ("LD3, decoupled rate x100", "X", "tab:red"),
    "gradient": ("gradient", "^", "tab:orange"),
    "gradient+decoupled": ("gradient, decoupled times", "D", "tab:orange"),
    "gauss-newton": ("Gauss-Newton", "o", "tab:blue"),
    "gauss-newton+decoupled": ("Gauss-Newton, decoupled times", "*", "tab:blue"),
    "gauss-newton+solver+mix": ("Gauss-Newton, full solver", "P", "tab:blue"),
}


def plot(rows: list[dict[str, Any]]) -> Figure:
    """One panel per model: error relative to karras against all calls of learning, log-log.

    Each point is the geometric mean over samplers and steps of means over seeds.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    columns = min(max(len(models), 1), PANELS)
    lines = math.ceil(max(len(models), 1) / columns)
    size = max(4.6 * columns, 10.5), 1.2 + 3.4 * lines
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey="row")
    axes = list(grid.flat)
    for axis in axes[len(models) :]:
        axis.set_visible(False)
    for axis, model in zip(axes, models, strict=False):
        points = method_points([row for row in rows if row["model"] == model])
        for method, (calls, error) in points.items():
            label, marker, colour = STYLES[method]
            place = max(calls, FEWEST_CALLS)
            axis.plot(place, error, marker, color=colour, label=label, markersize=9)
        axis.set(xscale="log", yscale="log", title=model, xlabel="model and teacher calls")
        axis.grid(which="both", alpha=0.25)
    for axis in grid[:, 0]:
        axis.set_ylabel("test error / karras's")
    handles = {h.get_label(): h for axis in axes for h in axis.get_legend_handles_labels()[0]}
    figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=3)
    return figure


def method_points(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Method -> calls and error relative to karras, geometric means over one model's cells."""
    errors: dict[str, dict[tuple[Any, ...], list[tuple[float, float]]]] = {}
    for row in with_best_standard(rows):
        cell, calls = (row["sampler"], row["steps"]), row["model_calls"] + row["teacher_calls"]
        found = errors.setdefault(row["method"], {}).setdefault(cell, [])
        found.append((row["heldout_error"], calls))
    default = errors.get("scheduler:karras", {})
    points = {}
    for method in STYLES:
        ratios, spent = [], []
        for cell, seeds in errors.get(method, {}).items():
            if cell not in default:
                continue
            value = sum(error for error, _ in seeds) / len(seeds)
            ratios.append(value / default[cell][0][0])
            spent.append(max(sum(c for _, c in seeds) / len(seeds), 1))
        if ratios:
            points[method] = geometric_mean(spent), geometric_mean(ratios)
    return points
