"""docs/support.md: complete, explained, and what its script writes today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts import support

pytestmark = pytest.mark.usefixtures("one_thread")
ANSWERS = ("gauss_newton", "gradient", "sigmas", "sampler")


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return json.loads(support.RESULTS.read_text(encoding="utf-8"))


def test_the_page_is_made_of_the_results(results: dict[str, Any]) -> None:
    assert support.PAGE.read_text(encoding="utf-8") == support.page(results)


def test_every_family_has_a_row_and_every_no_a_reason(results: dict[str, Any]) -> None:
    rows = {row["family"]: row for row in results["rows"]}
    assert set(rows) == set(support.names()) and len(rows) >= 24
    for row in rows.values():
        assert set(row) == set(support.COLUMNS)
        assert all(row[answer] for answer in ANSWERS) or row["reason"], row


def test_what_is_learned_is_no_worse_than_the_standard(results: dict[str, Any]) -> None:
    for row in results["rows"]:
        if row["gauss_newton"]:
            # a learned schedule that is within the noise of the test is returned
            assert row["sigmas"] and row["sampler"] and row["ratio"] <= 1.01, row


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Flux schnell", "SD 1.5 with v prediction, continuous EDM"])
def test_a_row_is_measured_again(name: str, results: dict[str, Any], ld3_folder: Path) -> None:
    cases = {case[0]: case for case in support.cases(name)}
    with torch.inference_mode():
        found = support.row(*cases[name])
    known = next(row for row in results["rows"] if row["family"] == name)
    assert all(found[answer] == known[answer] for answer in ANSWERS)
    assert found["ratio"] == pytest.approx(known["ratio"], abs=0.05)


def test_a_refused_model_has_the_nodes_reason(ld3_folder: Path) -> None:
    (case,) = support.cases("EasyCache")
    with torch.inference_mode():
        found = support.row(*case)
    assert not found["gauss_newton"] and "EasyCache" in found["reason"]
