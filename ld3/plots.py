"""Pictures of schedules and of how they were learned."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .shown_text import shown
from .training.report import Report, best_baseline

LEARNED, OTHERS, BEST, OWN = "#d1495b", "#c9ced6", "#30638e", "#8a8f98"
MORE_CALLS = "#eef0f3"
# told apart without colours too
STYLES = [{"color": "#d1495b", "marker": "o"}, {"color": "#30638e", "marker": "s", "ls": "--"}]
STYLES += [{"color": "#c98a00", "marker": "^", "ls": "-."}, {"color": "#2c7a5b", "marker": "D"}]
STYLES += [{"color": "#6c4ab6", "marker": "v", "ls": ":"}, {"color": "#50545a", "marker": "x"}]
TITLE_LETTERS, DETAIL_LETTERS = 140, 180  # of wide letters, in a line of the picture
PLAIN = {"parse_math": False}  # text of users and files is not mathematics


def report_picture(report: Report, title: str, details: Sequence[str] = ()) -> np.ndarray:
    """Schedules, error by model calls or by steps, and errors compared, as (H, W, 3) uint8.

    Once the steps saved are counted, they take the place of the error during learning. The picture
    has the same size for every report with as many lines of text.

    Args:
        report: finished, or what is known so far.
        title: lines above; long ones are wrapped.
        details: lines below, smaller.
    """
    above, below = _wrapped(title.split("\n"), TITLE_LETTERS), _wrapped(details, DETAIL_LETTERS)
    text_height = 0.22 * len(above) + 0.17 * len(below)
    figure = Figure(figsize=(13, 3.95 + text_height), dpi=100, layout="constrained")
    figure.suptitle("\n".join(above), fontsize=11, **PLAIN)
    if below:
        figure.supxlabel("\n".join(below), fontsize=8.5, color="#50545a", **PLAIN)
    panels = [_draw_schedules]  # and of what is known already
    if report.compared or report.history:
        panels.append(_draw_steps_saved if report.compared else _draw_history)
    bars = _error_bars(report)
    if bars:
        panels.append(partial(_draw_errors, bars))
    for axes, draw in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axes, report)
    return _pixels(figure)


def levels_picture(schedules: Mapping[str, Sequence[float]]) -> np.ndarray:
    """Noise levels by step of several schedules by name, as (H, W, 3) uint8."""
    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    for (name, sigmas), style in zip(schedules.items(), cycle(STYLES), strict=False):
        label = shown(name, TITLE_LETTERS // 3)
        (line,) = axes.plot(sigmas, lw=2, markersize=6)
        line.set(**style)
        line.set_label(label if not label.startswith("_") else f" {label}")
    _noise_axis(axes, [sigma for sigmas in schedules.values() for sigma in sigmas])
    legend = axes.legend(frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _pixels(figure)


def _wrapped(lines: Sequence[str], width: int) -> list[str]:
    """Lines short enough for the picture; names without a space are broken too.

    Not wrapped by matplotlib: 3.11 parses mathematics wherever it wraps lines itself.
    """
    return [part for line in lines for part in textwrap.wrap(shown(line), width) or [""]]


def _draw_schedules(axes, report: Report) -> None:
    drawn = list(report.sigmas)
    for i, baseline in enumerate(report.baselines.values()):
        label = None if i else "standard schedules"
        axes.plot(baseline.sigmas, color=OTHERS, lw=1, zorder=1, label=label)
        drawn += baseline.sigmas
    best = report.best_baseline()
    if best:
        sigmas = report.baselines[best].sigmas
        axes.plot(sigmas, color=BEST, lw=1.6, marker="o", ms=3, label=f"{best} (best)")
    if report.sigmas:
        axes.plot(report.sigmas, color=LEARNED, lw=2.5, marker="o", ms=5, label="learned", zorder=3)
    _noise_axis(axes, drawn)
    axes.set_title("noise levels", fontsize=10)
    _legend(axes)


def _draw_history(axes, report: Report) -> None:
    for start in dict.fromkeys(entry.start for entry in report.history):
        entries = [e for e in report.history if e.start == start and e.error is not None]
        points = [e.calls for e in entries], [e.error for e in entries]
        axes.plot(*points, marker=".", label=f"from {start}")
    best = best_baseline(report.baselines, "ranking_error")
    if best is not None:
        error = report.baselines[best].ranking_error
        axes.axhline(error, color=BEST, ls="--", lw=1, label="best standard schedule")
    axes.set_title("error during learning (validation noises)", fontsize=10)
    axes.set_xlabel("model calls")
    axes.set_ylabel("error to the teacher")
    axes.set_ylim(bottom=0)
    _legend(axes)


def _draw_steps_saved(axes, report: Report) -> None:
    learned = report.compared[0].learned_error
    steps = len(report.sigmas) - 1
    for curve, colour in zip(report.compared, (OWN, BEST), strict=False):
        axes.plot(curve.steps, curve.errors, color=colour, marker="o", ms=4, label=curve.name)
        equal, more = curve.equal_steps()
        if equal:
            axes.plot([equal], [learned], color=colour, marker="x", ms=8)
            text = f" more than {equal}" if more else f" {equal} steps"
            axes.text(equal, learned, text, color=colour, fontsize=9, va="bottom", **PLAIN)
    axes.axhline(learned, color=LEARNED, ls="--", lw=1)
    axes.plot([steps], [learned], color=LEARNED, marker="o", ms=7, label=f"learned, {steps} steps")
    axes.set_title("steps for the same error", fontsize=10)
    axes.set_xlabel("steps")
    axes.set_ylabel("error to the teacher")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.3)
    axes.set_ylim(bottom=0)
    _legend(axes)


def _error_bars(report: Report) -> list[tuple[float, str, str]]:
    """Errors that are known, their labels and colours; the largest first, but what was learned."""
    bars = [
        (b.ranking_error, f"{name} (validation)", OTHERS if b.comparable else MORE_CALLS)
        for name, b in report.baselines.items()
        if b.test_error is None and b.ranking_error is not None
    ]
    tested = {n: b.test_error for n, b in report.baselines.items()}
    bars += [(error, name, BEST) for name, error in tested.items() if error is not None]
    bars.sort(key=lambda bar: -bar[0])
    if report.test_error is not None:
        bars.append((report.test_error, "learned", LEARNED))
    return bars


def _draw_errors(bars: list[tuple[float, str, str]], axes, report: Report) -> None:
    axes.barh(range(len(bars)), [bar[0] for bar in bars], color=[bar[2] for bar in bars])
    for i, (value, _, _) in enumerate(bars):
        axes.text(value, i, f" {value:.3g}", va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), [shown(bar[1], 60) for bar in bars], fontsize=8, **PLAIN)
    axes.set_title("error on test noises", fontsize=10)
    axes.set_xlabel("error to the teacher (RMSE)")
    axes.margins(x=0.15)


def _legend(axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        legend = axes.legend(handles, [shown(t, 60) for t in labels], fontsize=8, frameon=False)
        for text in legend.get_texts():
            text.set(**PLAIN)


def _noise_axis(axes, sigmas: list[float]) -> None:
    noisy = [sigma for sigma in sigmas if sigma > 0] or [0.01, 1.0]
    axes.set_yscale("symlog", linthresh=min(noisy), linscale=0.4)
    axes.set_ylim(bottom=0)
    # the scale's own ticks have a power of 10 below the smallest level, which overlaps that of 0
    powers = range(math.ceil(math.log10(min(noisy))), math.floor(math.log10(max(noisy))) + 1)
    axes.set_yticks([0, *(10.0**power for power in powers)])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel("noise level (sigma)")
    axes.grid(alpha=0.25)


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
