"""Rows of several methods compared: means over seeds, ratios over cells, and aims."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple


class Comparison(NamedTuple):
    """A method against another, with the aims for the ratios of errors and of all calls, if any."""

    method: str
    against: str
    error: float = math.inf
    calls: float = math.inf


class Ratios(NamedTuple):
    """A method's error and calls over another's: geometric means over the cells that have both."""

    cells: int
    wins: int
    error: float
    calls: float


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive numbers, at least one."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def ratios(rows: list[dict[str, Any]], comparison: Comparison) -> Ratios | None:
    """None if no cell has both methods."""
    ours, theirs = (cell_means(rows, name) for name in (comparison.method, comparison.against))
    both = [cell for cell in ours if cell in theirs]
    if not both:
        return None
    error, calls = (geometric_mean(ours[c][i] / theirs[c][i] for c in both) for i in (0, 1))
    wins = sum(ours[cell][0] <= theirs[cell][0] for cell in both)
    return Ratios(len(both), wins, error, calls)


def cell_means(
    rows: list[dict[str, Any]], method: str
) -> dict[tuple[str, str, int], tuple[float, float]]:
    """(model, sampler, steps) -> mean error and mean model and teacher calls over seeds."""
    found: dict[tuple[str, str, int], list[tuple[float, int]]] = {}
    for r in rows:
        if r["method"] == method:
            calls = r["model_calls"] + r["teacher_calls"]
            cell = (r["model"], r["sampler"], r["steps"])
            found.setdefault(cell, []).append((r["heldout_error"], calls))
    return {
        cell: (sum(e for e, _ in seeds) / len(seeds), sum(c for _, c in seeds) / len(seeds))
        for cell, seeds in found.items()
    }


def compared(
    rows: list[dict[str, Any]], comparison: Comparison, models: tuple[str, ...], with_aims: bool
) -> list[str]:
    """One line for these models together, or none if no cell has both methods."""
    found = ratios([row for row in rows if row["model"] in models], comparison)
    if found is None:
        return []
    calls = f"{found.calls:.3f}" + (f" = 1/{1 / found.calls:.1f}" if found.calls < 1 else "")
    line = (
        f"  {comparison.method} / {comparison.against}, {'+'.join(models)} ({found.cells} cells): "
        f"error {found.error:.3f}, calls {calls}, better in {found.wins}"
    )
    judged = with_aims and math.isfinite(comparison.error)
    return [f"{line} ({_verdict(found, comparison)})" if judged else line]


def _verdict(found: Ratios, comparison: Comparison) -> str:
    aim = f"error <= {comparison.error:g}"
    if math.isfinite(comparison.calls):
        aim += f", calls <= 1/{1 / comparison.calls:g}"
    both = found.error <= comparison.error and found.calls <= comparison.calls
    return f"aim: {aim}; {reached(both)}"


def reached(is_reached: bool) -> str:
    """How summaries say whether an aim is reached."""
    return "reached" if is_reached else "MISSED"
