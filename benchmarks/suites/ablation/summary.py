"""The rows of the benchmark `ablation` as tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.comparison import clustered_mean

from .run import ABLATIONS, LEARNED, YARDSTICKS

EXTRAS = {"": "", "decoupled": ", + decoupled", "solver+mix": ", full solver"}
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
    best = {(problem(r), m): r[m] for r in rows if r["setting"] == YARDSTICKS[0] for m in MEASURES}
    problems = dict.fromkeys((problem(r), r["model"] != "demo") for r in part)
    for suffix, extra in LEARNED.items():
        ratios: dict[str, dict[str, list[float]]] = {setting: {} for setting in settings}
        for name, exact in problems:
            for measure, by in MEASURES.items():
                means = []
                for setting in settings:
                    wanted = f"{setting} +{suffix}".removesuffix(" +")
                    mine = [r for r in part if (r["setting"], problem(r)) == (wanted, name)]
                    found = [r[measure] / best[name, measure] for r in mine if r[measure]]
                    means.append(sum(found) / len(found) if found else None)
                    if exact and found and not by:
                        ratios[setting][name] = [sum(found) / len(found)]
                if any(means):
                    shown = ("-" if mean is None else f"{mean:.2f}" for mean in means)
                    yield f"| {name}{EXTRAS[extra]}{by} | {' | '.join(shown)} |"
        most = max(map(len, ratios.values()))
        if most > 1:
            complete = (found if len(found) == most else None for found in ratios.values())
            shown = (clustered_mean(found).rounded(2) if found else "-" for found in complete)
            yield f"| all exact problems{EXTRAS[extra]} | {' | '.join(shown)} |"


def problem(row: Row) -> str:
    """Model, sampler and steps; the demo model's guidance, too."""
    name = f"{row['model']} {row['sampler']} {row['steps']}"
    return name if row["model"] != "demo" else f"{name}, cfg {row['cfg']:g}"
