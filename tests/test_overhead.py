"""The benchmark `overhead`: fair alternation, and tables that do the same work."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.suites import overhead
from ld3.table import SolverTable

pytestmark = pytest.mark.usefixtures("one_thread")


def row(sampler: str, ratio: float) -> dict[str, Any]:
    return {"case": "table", "sampler": sampler, "steps": 4, "ratio": ratio}


def training(case: str, ratio: float) -> dict[str, Any]:
    peaks = {"peak_gb_sampling": 2.0, "peak_gb_training": 2.1}
    return row("dpmpp_2m", ratio) | {
        "case": case, "ms_per_call": 1.0, "ms_of_a_plain_call": 9.0, **peaks
    }  # fmt: skip


def test_runs_alternate_so_that_a_drift_favours_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    # every run takes one second longer than the one before
    monkeypatch.setattr(overhead, "_seconds", lambda work: (work(), float(len(order)))[1])
    blocks = overhead.alternated(lambda: order.append("a"), lambda: order.append("b"), 3)
    assert "".join(order) == "ab" + "abba" * 3
    assert all(a == b for a, b in blocks)


def test_extras_change_rows_but_not_their_sums() -> None:
    levels = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    weights = torch.tensor(
        [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.1, 0.65, 0], [0, 0, 0, 1]], dtype=torch.float64
    )
    table = SolverTable(levels, levels, weights, torch.arange(3))
    found = overhead.with_extras(table)
    torch.testing.assert_close(found.weights.sum(1), table.weights.sum(1))
    assert (found.weights[-1, 1:] != 0).all()
    assert (found.eval_sigmas[1:] < levels[1:]).all() and found.eval_sigmas[0] == levels[0]


def test_summary_judges_the_worst_cell() -> None:
    assert "worst 1.0200 (ipndm in 4 steps; aim: <= 1.03; reached)" in overhead.summary(
        [row("euler", 1.0), row("ipndm", 1.02)]
    )
    assert "MISSED" in overhead.summary([row("euler", 1.0), row("ipndm", 1.04)])


def test_summary_tells_of_trainings_and_judges_the_large_model() -> None:
    demo, large = overhead.summary([training("demo", 1.2), training("sd15", 1.04)]).splitlines()
    assert "training of demo: ratio 1.2000" in demo and "1.050 x that of sampling" in demo
    assert "MISSED" not in demo and "MISSED" in large


@pytest.mark.timeout(120)
def test_a_row_samples_with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(overhead.BLOCKS, 4, 1)
    found = overhead.row("table", "ipndm", 4)
    assert set(overhead.COLUMNS) <= set(found)
    assert found["model_calls"] == 4 and len(found["ratios"]) == found["blocks"] == 1
    assert 0.2 < found["ratio"] < 5
