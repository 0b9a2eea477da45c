"""Conclusions from the rows of the benchmark `learning`."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.comparison import BEST, Comparison, compared, with_best_standard

from .run import EARLIER, FLOW, FLOW_SHIFTED, NEW, OFTEN_CHOSEN, OURS

COMPARISONS = (
    Comparison("gauss-newton", "ld3-official", 0.96, 1 / 10),
    Comparison("gauss-newton+decoupled", "ld3-official", 0.60, 1 / 6),
    Comparison("gauss-newton+solver+mix", "ld3-official"),
    Comparison("gradient", "ld3-official"),
    Comparison("gradient+decoupled", "ld3-official", 1.0),
    *(
        Comparison(method, against)
        for method in ("gauss-newton", "gauss-newton+decoupled", "gauss-newton+solver+mix")
        for against in (
            "ld3-official-uncounted", "ld3-official-x100", BEST, *OFTEN_CHOSEN, "gits-dp-euler60",
        )
    ),
    Comparison("ld3-official-x100", "ld3-official"),
    Comparison("gits-dp-euler60", "gits-dp"),
)  # fmt: skip
"""Those without aims are only reported."""
GROUPS = (EARLIER, NEW, (*FLOW, *FLOW_SHIFTED))
"""Models taken together; aims are for the first, with which they were set."""
FIDELITY_CELL, FIDELITY = ("digits", "ipndm", 4), 3.5


def summary(rows: list[dict[str, Any]]) -> str:
    """Geometric means over cells of ratios of means over seeds, and the fidelity to the paper."""
    lines = ["geometric means over cells (mean of seeds in each) [95 % interval]:"]
    standard = with_best_standard(rows)
    for comparison in COMPARISONS:
        for group in GROUPS:
            lines += compared(standard, comparison, group, with_aims=group == EARLIER)
            for model in group:
                lines += compared(standard, comparison, (model,), with_aims=False)
    return "\n".join(lines + fidelity(rows))


def fidelity(rows: list[dict[str, Any]]) -> list[str]:
    """(F(karras) - F(teacher)) / (F(learned) - F(teacher)) on digits with ipndm in 4 steps.

    F is the Frechet distance to the data, for learned schedules the mean over seeds. Infinite if
    the learned schedule's distance is not larger than the teacher's.
    """
    cell = [row for row in rows if (row["model"], row["sampler"], row["steps"]) == FIDELITY_CELL]
    means = {}
    for method in dict.fromkeys(row["method"] for row in cell):
        found = [row["frechet"] for row in cell if row["method"] == method]
        means[method] = sum(found) / len(found)
    if not {"teacher", "scheduler:karras"} <= set(means):
        return []
    default, teacher = means["scheduler:karras"], means["teacher"]
    lines = [
        f"Frechet distance on {' '.join(map(str, FIDELITY_CELL))} steps, minus the teacher's "
        f"{teacher:.4f}: scheduler:karras {default - teacher:.4f}; improvement factors (aim: "
        f"{FIDELITY:g}):"
    ]
    for method in (*OURS, "ld3-official"):
        if method in means:
            net = means[method] - teacher
            factor = (default - teacher) / net if net > 0 else math.inf
            lines.append(f"  {method}: {net:.4f}, factor {factor:.2f}")
    return lines
