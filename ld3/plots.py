"""Pictures of schedules and of how they were learned."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

LEARNED, TRAINED, OTHERS, BEST = "#d1495b", "#eeb9c0", "#c9ced6", "#30638e"


def report_picture(report: dict[str, Any], title: str) -> np.ndarray:
    """Schedules, validation error by model calls, and errors compared, as (H, W, 3) uint8.

    Args:
        report: `Report.as_dict()`, finished or still growing.
        title: one line above.
    """
    figure = Figure(figsize=(13, 4.2), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=11)
    left, middle, right = figure.subplots(1, 3)
    _draw_schedules(left, report)
    _draw_history(middle, report)
    _draw_errors(right, report)
    return _pixels(figure)


def _draw_schedules(axes, report: dict[str, Any]) -> None:
    drawn = []
    for i, baseline in enumerate(report["baselines"].values()):
        axes.plot(
            baseline["sigmas"],
            color=OTHERS,
            lw=1,
            zorder=1,
            label=None if i else "standard schedulers",
        )
        drawn += baseline["sigmas"]
    best = _best_baseline(report)
    if best:
        axes.plot(
            report["baselines"][best]["sigmas"],
            color=BEST,
            lw=1.6,
            marker="o",
            ms=3,
            label=f"{best} (best)",
        )
    if report["sigmas"]:
        axes.plot(
            report["sigmas"], color=LEARNED, lw=2.5, marker="o", ms=5, label="learned", zorder=3
        )
    _noise_axis(axes, drawn + report["sigmas"])
    axes.set_title("noise levels", fontsize=10)
    _legend(axes)


def _draw_history(axes, report: dict[str, Any]) -> None:
    for start in dict.fromkeys(entry["start"] for entry in report["history"]):
        entries = [e for e in report["history"] if e["start"] == start and e["error"] is not None]
        axes.plot(
            [e["calls"] for e in entries],
            [e["error"] for e in entries],
            marker=".",
            label=f"from {start}",
        )
    best = min(
        (b["validation_error"] for b in report["baselines"].values() if b.get("validation_error")),
        default=None,
    )
    if best is not None:
        axes.axhline(best, color=BEST, ls="--", lw=1, label="best standard scheduler")
    axes.set_title("error while learning (validation noises)", fontsize=10)
    axes.set_xlabel("model calls")
    axes.set_ylim(bottom=0)
    _legend(axes)


def _draw_errors(axes, report: dict[str, Any]) -> None:
    errors = {
        n: b["heldout_error"]
        for n, b in report["baselines"].items()
        if b.get("heldout_error") is not None
    }
    names = sorted(errors, key=lambda n: errors[n], reverse=True)
    colours = [OTHERS if report["baselines"][n]["counted"] else "#eef0f3" for n in names]
    labels = [n if report["baselines"][n]["counted"] else f"{n} (more calls)" for n in names]
    values = [errors[n] for n in names]
    learned = report["heldout_error"]
    if learned is not None and np.isfinite(learned):
        name = report["chosen"]  # a standard scheduler can win
        values, colours, labels = [*values, learned], [*colours, LEARNED], [*labels, name]
        trained = report.get("training_error")
        if trained is not None and np.isfinite(trained):
            values, colours = [*values, trained], [*colours, TRAINED]
            labels = [*labels, f"{name}, training noises"]
    axes.barh(range(len(values)), values, color=colours)
    for i, value in enumerate(values):
        axes.text(value, i, f" {value:.3g}", va="center", fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_title("error on fresh noises (RMSE to the teacher)", fontsize=10)
    axes.margins(x=0.15)


def _best_baseline(report: dict[str, Any]) -> str | None:
    for key in ("heldout_error", "validation_error"):
        errors = {
            n: b[key]
            for n, b in report["baselines"].items()
            if b["counted"] and b.get(key) is not None
        }
        if errors:
            return min(errors, key=lambda n: errors[n])
    return None


def _legend(axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)


def _noise_axis(axes, sigmas: list[float]) -> None:
    smallest = min((s for s in sigmas if s > 0), default=1e-2)
    axes.set_yscale("symlog", linthresh=smallest, linscale=0.4)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("sigma")
    axes.grid(alpha=0.25)


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
