"""Rows of several methods compared: means over seeds, ratios over cells, and aims.

A ratio is a geometric mean over cells. Its interval is that of a bootstrap over clusters of cells,
here (model, sampler): the numbers of steps of one sampler on one model are not independent, so
whole clusters are drawn, with replacement. It says how much the ratio depends on the models and
samplers that were chosen, which is more than how much it depends on the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

DRAWS, SHARE = 10_000, 0.95  # of a bootstrap: its size, and what an interval contains
STANDARD, BEST = "scheduler:", "scheduler:best"  # methods of the benchmark `learning`


class Comparison(NamedTuple):
    """A method against another, with the aims for the ratios of errors and of all calls, if any."""

    method: str
    against: str
    error: float = math.inf
    calls: float = math.inf


class Mean(NamedTuple):
    """A geometric mean with its interval, which one cluster does not have (low and high None)."""

    value: float
    low: float | None = None
    high: float | None = None

    def rounded(self, digits: int) -> str:
        """The mean and, in brackets, its interval."""
        if self.low is None or self.high is None:
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def __str__(self) -> str:
        return self.rounded(3)


class Ratios(NamedTuple):
    """A method's error and calls over another's: geometric means over the cells that have both.

    The ratio of calls is infinite if the other needs none.
    """

    cells: int
    wins: int
    error: Mean
    calls: float


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive numbers, at least one."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def clustered_mean(values: Mapping[Any, Iterable[float]]) -> Mean:
    """Geometric mean of all values, with its bootstrap interval.

    Args:
        values: cluster -> its values, positive, at least one.

    Source: the cluster bootstrap of Cameron, Gelbach and Miller 2008 (their "pairs cluster
    bootstrap"), with percentiles as the limits.
    """
    logarithms = [np.log(list(found)) for found in values.values()]
    sums = np.array([found.sum() for found in logarithms])
    sizes = np.array([len(found) for found in logarithms])
    value = math.exp(sums.sum() / sizes.sum())
    if len(sums) < 2:
        return Mean(value)
    drawn = np.random.default_rng(0).integers(len(sums), size=(DRAWS, len(sums)))
    means = np.exp(sums[drawn].sum(1) / sizes[drawn].sum(1))
    low, high = np.quantile(means, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return Mean(value, float(low), float(high))


def with_best_standard(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows and, per (model, sampler, steps), that of the best standard schedule as another.

    It is the best on the test noises themselves, which nobody knows beforehand. Only schedules with
    at most as many calls as a student's steps count: ddim_uniform makes 7 steps if asked for 6.
    """
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        cell = row["model"], row["sampler"], row["steps"]
        if not row["method"].startswith(STANDARD) or row["sample_calls"] > row["steps"]:
            continue
        if cell not in best or row["heldout_error"] < best[cell]["heldout_error"]:
            best[cell] = row
    return [*rows, *({**row, "method": BEST} for row in best.values())]


def ratios(rows: list[dict[str, Any]], comparison: Comparison) -> Ratios | None:
    """Of means over the seeds that both methods have; None if no cell has both methods.

    A method without any calls is the same for every seed.
    """
    ours, theirs = (by_seed(rows, name) for name in (comparison.method, comparison.against))
    errors: dict[tuple[str, str], list[float]] = {}
    calls, wins = [], 0
    for cell in ours:
        means = _common_means(ours[cell], theirs.get(cell, {}))
        if means is None:
            continue
        (error, spent), (their_error, their_spent) = means
        errors.setdefault(cell[:2], []).append(error / their_error)
        calls.append(spent / their_spent if their_spent else math.inf)
        wins += error <= their_error
    if not errors:
        return None
    mean_calls = geometric_mean(calls) if all(calls) else 0.0
    return Ratios(len(calls), wins, clustered_mean(errors), mean_calls)


Seeds = dict[int, tuple[float, int]]


def by_seed(rows: list[dict[str, Any]], method: str) -> dict[tuple[str, str, int], Seeds]:
    """(model, sampler, steps) -> seed -> error, and model and teacher calls."""
    found: dict[tuple[str, str, int], Seeds] = {}
    for r in rows:
        if r["method"] == method:
            seeds = found.setdefault((r["model"], r["sampler"], r["steps"]), {})
            seeds[r["seed"]] = r["heldout_error"], r["model_calls"] + r["teacher_calls"]
    return found


def _common_means(*methods: Seeds) -> list[tuple[float, float]] | None:
    """Mean error and calls of each method over the seeds of those that depend on a seed."""
    seeded = [seeds for seeds in methods if any(calls for _, calls in seeds.values())]
    common = set.intersection(*(set(seeds) for seeds in seeded or methods))
    means = []
    for seeds in methods:
        used = [seeds[s] for s in common] if seeds in seeded else list(seeds.values())
        if not used:
            return None
        means.append((sum(e for e, _ in used) / len(used), sum(c for _, c in used) / len(used)))
    return means


def compared(
    rows: list[dict[str, Any]], comparison: Comparison, models: tuple[str, ...], with_aims: bool
) -> list[str]:
    """One line for these models together, or none if no cell has both methods."""
    found = ratios([row for row in rows if row["model"] in models], comparison)
    if found is None:
        return []
    calls = f"{found.calls:.3f}" + (f" = 1/{1 / found.calls:.1f}" if found.calls < 1 else "")
    calls = calls if math.isfinite(found.calls) else "-"
    line = (
        f"  {comparison.method} / {comparison.against}, {'+'.join(models)} ({found.cells} cells): "
        f"error {found.error}, calls {calls}, better in {found.wins}"
    )
    judged = with_aims and math.isfinite(comparison.error)
    return [f"{line} ({_verdict(found, comparison)})" if judged else line]


def _verdict(found: Ratios, comparison: Comparison) -> str:
    aim = f"error <= {comparison.error:g}"
    if math.isfinite(comparison.calls):
        aim += f", calls <= 1/{1 / comparison.calls:g}"
    both = found.error.value <= comparison.error and found.calls <= comparison.calls
    return f"aim: {aim}; {reached(both)}"


def reached(is_reached: bool) -> str:
    """How summaries say whether an aim is reached."""
    return "reached" if is_reached else "MISSED"
