"""The rows of the benchmark `ablation` as tables."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

from benchmarks.comparison import clustered_mean

from .run import ABLATIONS, YARDSTICKS, with_extra

EXTRAS = {"": "", "d": ", + decoupled", "s": ", full solver"}  # by the suffix of a setting
MEASURES = {"heldout_error": "", "heldout_lpips": ", by LPIPS"}
Row = dict[str, Any]


def summary(rows: list[Row]) -> str:
    """A Markdown table for every ablation, its settings as columns: error / best standard schedule.

    Means over seeds; then, with intervals, geometric means over the exact problems.
    """
    lines = []
    for ablation in ABLATIONS:
        part = [row for row in rows if row["ablation"] == ablation]
        settings = list(dict.fromkeys(row["setting"].partition(" +")[0] for row in part))
        if part:
            lines += ["", f"**{ablation}**", "", f"| | {' | '.join(settings)} |"]
            lines.append("|---" * (len(settings) + 1) + "|")
            lines += _table(part, settings, rows)
    return "\n".join(lines)


def _table(part: list[Row], settings: list[str], rows: list[Row]) -> Iterator[str]:
    best = {problem(row): row for row in rows if row["setting"] == YARDSTICKS[0]}
    exact = {problem(row) for row in part if row["model"] != "demo"}
    for suffix, extra in EXTRAS.items():
        names = [with_extra(setting, suffix) for setting in settings]
        clusters: list[dict[str, list[float]]] = [{} for _ in settings]
        for key in dict.fromkeys(map(problem, part)):
            mine = [row for row in part if problem(row) == key]
            for measure, by in MEASURES.items():
                means = [_mean_ratio(mine, name, measure, best[key]) for name in names]
                if any(means):
                    shown = ("-" if mean is None else f"{mean:.2f}" for mean in means)
                    yield f"| {key}{extra}{by} | {' | '.join(shown)} |"
                for found, mean in zip(clusters, means, strict=True):
                    if mean is not None and key in exact and not by:
                        found[key] = [mean]
        most = max(map(len, clusters))
        if most > 1:
            complete = (found if len(found) == most else None for found in clusters)
            shown = (clustered_mean(found).rounded(2) if found else "-" for found in complete)
            yield f"| all exact problems{extra} | {' | '.join(shown)} |"


def _mean_ratio(rows: list[Row], setting: str, measure: str, best: Row) -> float | None:
    """A setting's mean over seeds, relative to the best standard schedule; None if not measured."""
    found = [
        row[measure] / best[measure] for row in rows if row["setting"] == setting and row[measure]
    ]
    return fmean(found) if found else None


def problem(row: Row) -> str:
    """Model, sampler and steps; the demo model's guidance, too."""
    name = f"{row['model']}, {row['sampler']}, {row['steps']} steps"
    return name if row["model"] != "demo" else f"{name}, cfg {row['cfg']:g}"
