"""The benchmark `gs_curve`: what a number of calls allows, and its rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.methods import gs
from benchmarks.methods.trial import Trial
from benchmarks.problems import registry
from benchmarks.problems.live_model import LiveModel
from benchmarks.problems.problem import Problem
from benchmarks.suites import gs_curve

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = gs.GsSettings(training_pairs=8, batch=4, updates=7)


@pytest.fixture
def few_noises(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A problem measured on few noises, and a short training, that do not stay cached."""
    monkeypatch.setattr(Problem, "heldout_noises", 8)
    monkeypatch.setitem(gs_curve.BUDGETS, "gs-edm", SMALL)
    # an update of 4 samples in 3 steps: 36 calls, and 80 of the teacher in the first epoch
    monkeypatch.setitem(gs_curve.MARKS, "gs-edm", (120, 250, "end"))
    registry.load.cache_clear()
    yield
    registry.load.cache_clear()


def rows_of(steps: int) -> list[dict[str, Any]]:
    marks = gs_curve.MARKS["gs-edm"]
    return [gs_curve.row("moons", steps, 0, "gs-edm", at) for at in marks]


def test_every_cell_is_unique() -> None:
    keys = [tuple(cell[name] for name in gs_curve.KEYS) for cell in gs_curve.cells()]
    assert len(keys) == len(set(keys))


def test_points_count_the_training_and_the_teachers_pairs_used_so_far(few_noises: None) -> None:
    rows = rows_of(3)
    assert [row["updates"] for row in rows] == [1, 2, 7]
    assert [row["calls"] for row in rows] == [36 + 80, 2 * 36 + 160, 7 * 36 + 160]
    assert all(row["heldout_error"] > 0 for row in rows)


def test_the_last_point_is_the_published_training(few_noises: None) -> None:
    last, problem = rows_of(3)[-1], registry.load("moons")

    def error(live: LiveModel) -> float:
        trial = Trial(problem, live, gs_curve.SAMPLER, 3, 0)
        pairs, _ = gs.training_pairs(trial, SMALL)
        return problem.error(live, gs.GsTraining(live.model, 3, pairs, 0, SMALL).run())

    assert last["heldout_error"] == problem.run(error)


@pytest.mark.parametrize("at", [10_000, 27_000, 100_000, 1_000_000])
def test_a_mark_is_the_last_update_that_these_calls_allow(at: int) -> None:
    def calls(updates: int) -> int:
        return 3 * 4 * 24 * updates + 20 * min(24 * updates, 1400)

    update = gs_curve.update_at(gs.EDM, 4, 20, at)
    assert calls(update) <= at < calls(update + 1)


def test_the_summary_and_the_figure_have_every_curve(few_noises: None) -> None:
    rows = [{**row, "model": model} for row in rows_of(2) for model in ("digits", "gmm16")]
    assert "gmm16 2 steps, gs-edm: " in gs_curve.summary(rows)
    assert len(gs_curve.plot(rows).axes) == 2
