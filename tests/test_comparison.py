"""Ratios of methods, their intervals, and the best standard schedule, with known answers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from benchmarks.comparison import (
    BEST,
    Comparison,
    Mean,
    clustered_mean,
    compared,
    ratios,
    with_best_standard,
)


def row(method: str, error: float, **more: Any) -> dict[str, Any]:
    return {
        "model": "digits",
        "sampler": "euler",
        "steps": 6,
        "method": method,
        "seed": 0,
        "heldout_error": error,
        "model_calls": 100,
        "teacher_calls": 0,
        "sample_calls": 6,
    } | more


def test_two_clusters_have_both_means_as_their_interval() -> None:
    """A draw contains the first twice (1/4), both (1/2) or the second twice (1/4)."""
    found = clustered_mean({"a": [0.2, 0.8], "b": [0.9, 0.9]})
    assert found.value == pytest.approx(math.sqrt(0.4 * 0.9))
    assert (found.low, found.high) == pytest.approx((0.4, 0.9))


def test_one_cluster_has_no_interval() -> None:
    assert clustered_mean({"a": [0.5, 2.0]}) == Mean(pytest.approx(1.0), None, None)
    assert str(clustered_mean({"a": [0.5]})) == "0.500"


def test_the_interval_of_many_clusters_is_that_of_a_mean() -> None:
    """For n independent clusters it tends to 1.96 standard deviations / sqrt(n) on both sides."""
    logs = np.random.default_rng(1).normal(0.3, 0.2, 400)
    found = clustered_mean({i: [math.exp(value)] for i, value in enumerate(logs)})
    half = 1.96 * logs.std() / math.sqrt(len(logs))
    assert found.low is not None and found.high is not None
    limits = math.log(found.low), math.log(found.high)
    assert limits == pytest.approx((logs.mean() - half, logs.mean() + half), abs=0.1 * half)


def test_cells_of_a_cluster_are_drawn_together() -> None:
    """Repeating a cell in its cluster does not make the interval narrower."""
    once = clustered_mean({i: [ratio] for i, ratio in enumerate((0.5, 0.7, 0.9, 1.4))})
    often = clustered_mean({i: [ratio] * 9 for i, ratio in enumerate((0.5, 0.7, 0.9, 1.4))})
    assert often == pytest.approx(once)


def test_a_ratio_is_that_of_means_over_seeds_and_its_clusters_are_model_and_sampler() -> None:
    rows = [
        row("ours", 0.1),
        row("ours", 0.3, seed=1),
        row("theirs", 0.3),
        row("theirs", 0.5, seed=1),
        row("ours", 0.2, steps=4),
        row("theirs", 0.4, steps=4),
        row("ours", 0.4, sampler="ipndm"),
        row("theirs", 0.4, sampler="ipndm"),
        row("theirs", 0.4, sampler="heun"),
    ]
    found = ratios(rows, Comparison("ours", "theirs"))
    assert found is not None and (found.cells, found.wins, found.calls) == (3, 3, 1.0)
    assert found.error.value == pytest.approx((0.5 * 0.5 * 1.0) ** (1 / 3))
    assert (found.error.low, found.error.high) == pytest.approx((0.5, 1.0))
    (line,) = compared(rows, Comparison("ours", "theirs"), ("digits",), with_aims=False)
    assert "error 0.630 [0.500, 1.000], calls 1.000" in line


def test_schedules_with_more_calls_than_the_student_do_not_compete() -> None:
    """ddim_uniform makes 7 steps if it is asked for 6."""
    rows = [
        row("scheduler:ddim_uniform", 0.1, sample_calls=7),
        row("scheduler:beta", 0.3),
        row("scheduler:simple", 0.2),
        row("scheduler:ddim_uniform", 0.15, steps=4, sample_calls=4),
        row("standard:euler:simple", 0.01),
    ]
    best = [r for r in with_best_standard(rows) if r["method"] == BEST]
    assert [(r["steps"], r["heldout_error"]) for r in best] == [(6, 0.2), (4, 0.15)]


def test_only_seeds_that_both_methods_have_are_compared() -> None:
    """Seeds decide the training noises, on which errors depend."""
    rows = [row("ours", 0.1), row("ours", 0.9, seed=1), row("theirs", 0.2)]
    found = ratios(rows, Comparison("ours", "theirs"))
    assert found is not None and found.error.value == pytest.approx(0.5)
    assert (
        ratios([row("ours", 0.1), row("theirs", 0.2, seed=1)], Comparison("ours", "theirs")) is None
    )
    # a method that learns nothing is the same for every seed
    rows = [row("ours", 0.1), row("ours", 0.3, seed=1), row("plain", 0.2, model_calls=0)]
    found = ratios(rows, Comparison("ours", "plain"))
    assert found is not None and found.error.value == pytest.approx(1.0)


def test_no_calls_of_the_other_are_an_infinite_ratio() -> None:
    rows = [row("ours", 0.1), row("scheduler:beta", 0.2, model_calls=0)]
    found = ratios(rows, Comparison("ours", "scheduler:beta"))
    assert found is not None and found.calls == math.inf
