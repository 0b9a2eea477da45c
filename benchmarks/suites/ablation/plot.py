"""The figure of the benchmark `ablation`."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .summary import problem

PANELS = {
    "soft radius": "soft teacher forcing, gradient: r in % of sqrt(d)",
    "noises": "training noises (+d: decoupled, +s: full solver)",
    "states": "states matched to the teacher trajectory, or not",
    "teacher steps": "steps of the teacher, for a student of n",
    "distance": "distance, Gauss-Newton (hollow: LPIPS, not RMSE)",
    "extras": "optimizer and extras",
}
WIDE = "teacher steps"  # with guidance a teacher of few steps can fail
UNORDERED = ("distance", "extras", "states")
MEASURES: dict[str, dict[str, Any]] = {
    "heldout_error": {},
    "heldout_lpips": {"markerfacecolor": "none"},
}


def plot(rows: list[dict[str, Any]]) -> Figure:
    """One panel per ablation: error over that of the best of nine schedulers, by setting.

    Points are means over seeds, bars extend from minimum to maximum. Hollow points are the LPIPS of
    rows that have it, over the smallest of the nine schedulers.
    """
    yardstick = {problem(row): row for row in rows if row["setting"] == "scheduler:best"}
    colours = {name: f"C{i}" for i, name in enumerate(yardstick)}
    figure = Figure(figsize=(19, 9.5), dpi=90, layout="constrained")
    axes = figure.subplots(2, 3).flatten()
    for axis, (ablation, title) in zip(axes, PANELS.items(), strict=False):
        part = [row for row in rows if row["ablation"] == ablation]
        settings = list(dict.fromkeys(row["setting"] for row in part))
        names = [name for name in yardstick if any(problem(row) == name for row in part)]
        for i, name in enumerate(names):
            own = [row for row in part if problem(row) == name]
            shift = 0.08 * (i - (len(names) - 1) / 2)
            style = {"color": colours[name], "ls": "none" if ablation in UNORDERED else "-"}
            for measure, filling in MEASURES.items():
                points = _relative(own, settings, measure, yardstick[name])
                _points(axis, points, settings, shift, style | filling)
        labels = [re.sub(r"(?=\+[a-z])| (?=\()|(?<=-)(?=caption)", "\n", s) for s in settings]
        labels = [re.sub("^held", "matched", re.sub("^free", "not", label)) for label in labels]
        axis.set_xticks(range(len(settings)), labels, fontsize=9 if len(labels) < 10 else 7)
        axis.axhline(1, color="0.3", lw=1)
        axis.set(title=title, ylabel="test error / best of nine")
        if ablation == WIDE:
            axis.set_yscale("log")
        else:
            axis.set_ylim(0, None)
        axis.grid(alpha=0.25)
    handles = [
        Line2D([], [], marker="o", color=colour, label=name) for name, colour in colours.items()
    ]
    figure.legend(handles=handles, frameon=False, loc="outside lower center", ncols=len(handles))
    return figure


def _relative(
    rows: list[dict[str, Any]], settings: list[str], measure: str, best: dict[str, Any]
) -> dict[int, list[float]]:
    """Position on the axis -> a measure of every seed over the yardstick's; empty if missing."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row[measure] is not None:
            place = settings.index(row["setting"])
            found.setdefault(place, []).append(row[measure] / best[measure])
    return found


def _points(
    axis: Any,
    found: dict[int, list[float]],
    settings: list[str],
    shift: float,
    style: dict[str, Any],
) -> None:
    # a line connects only settings of the same kind
    for _, group in groupby(sorted(found), lambda place: _kind(settings[place])):
        places = list(group)
        mean = [sum(found[place]) / len(found[place]) for place in places]
        below = [m - min(found[place]) for m, place in zip(mean, places, strict=True)]
        above = [max(found[place]) - m for m, place in zip(mean, places, strict=True)]
        shifted = [place + shift for place in places]
        axis.errorbar(shifted, mean, [below, above], marker="o", ms=4, capsize=2, **style)


def _kind(setting: str) -> str:
    return setting if setting == "paper" else setting.partition(" +")[2]
