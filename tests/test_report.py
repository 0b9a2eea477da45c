"""Reports as files contain them, and the events of a running training."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from ld3.model import Model
from ld3.parameters import LOG_SIGMA
from ld3.training.report import (
    Baseline,
    Progress,
    ProgressReporter,
    Report,
    ValidationEntry,
    finite,
)

# as the version before wrote it: numbers that are not finite are null, baselines contain what is
# known of them
OLD: dict[str, Any] = {
    "start": "trajectory 2",
    "chosen": "learned",
    "heldout_error": 0.11,
    "initial_error": 0.3,
    "training_error": 0.1,
    "spread": None,
    "extras": ["decoupled times", "D-ODE"],
    "initial_sigmas": [9.0, 2.0, 0.0],
    "sigmas": [9.0, 1.5, 0.0],
    "eval_sigmas": [9.0, 1.25],
    "lambdas": [0.0, 0.125],
    "baselines": {
        "karras": {
            "sigmas": [9.0, 2.0, 0.0],
            "model_calls": 2,
            "counted": True,
            "screening_error": 0.33,
            "validation_error": 0.31,
            "heldout_error": 0.29,
        },
        "normal": {"sigmas": [9.0, 5.0, 0.0], "model_calls": 2, "counted": True},
        "simple": {
            "sigmas": [9.0, 4.0, 0.0],
            "model_calls": 2,
            "counted": True,
            "screening_error": None,
            "heldout_error": None,
        },
        "longer": {
            "sigmas": [9.0, 5.0, 2.0, 0.0],
            "model_calls": 3,
            "counted": False,
            "heldout_error": 0.05,
        },
    },
    "history": [
        {"start": "trajectory 2", "calls": 480, "error": None},
        {"start": "trajectory 2", "calls": 960, "error": 0.12},
    ],
    "teacher_calls": 320,
    "training_calls": 900,
    "report_calls": 96,
}
READ = Report(
    start="trajectory 2",
    test_error=0.11,
    initial_error=0.3,
    training_error=0.1,
    extras=["decoupled times", "D-ODE"],
    initial_sigmas=[9.0, 2.0, 0.0],
    sigmas=[9.0, 1.5, 0.0],
    eval_sigmas=[9.0, 1.25],
    lambdas=[0.0, 0.125],
    baselines={
        "karras": Baseline([9.0, 2.0, 0.0], 2, True, 0.33, 0.31, 0.29),
        "normal": Baseline([9.0, 5.0, 0.0], 2, True),
        "simple": Baseline([9.0, 4.0, 0.0], 2, True),
        "longer": Baseline([9.0, 5.0, 2.0, 0.0], 3, False, test_error=0.05),
    },
    history=[
        ValidationEntry("trajectory 2", 480, None),
        ValidationEntry("trajectory 2", 960, 0.12),
    ],
    teacher_calls=320,
    training_calls=900,
    report_calls=96,
)


@pytest.mark.parametrize("report", [READ, Report()], ids=["finished", "empty"])
def test_a_report_is_the_same_after_it_was_written_and_read(report: Report) -> None:
    assert Report.from_json(report.as_json()) == report
    text = json.dumps(report.as_json(), allow_nan=False)
    assert Report.from_json(json.loads(text)) == report


def test_reports_of_the_version_before_are_read() -> None:
    assert Report.from_json(json.loads(json.dumps(OLD))) == READ


def test_reports_have_the_names_in_files_that_every_version_reads() -> None:
    written = READ.as_json()
    assert set(written) == set(OLD)
    # the only difference: errors of baselines that are not known are left out
    simple = {"sigmas": [9.0, 4.0, 0.0], "model_calls": 2, "counted": True}
    assert written == OLD | {"baselines": OLD["baselines"] | {"simple": simple}}


def test_missing_keys_have_their_defaults_and_unknown_keys_are_ignored() -> None:
    early = {"heldout_error": 0.2, "sigmas": [9.0, 1.0, 0.0], "of another version": [1, 2]}
    assert Report.from_json(early) == Report(test_error=0.2, sigmas=[9.0, 1.0, 0.0])
    assert Report.from_json({}) == Report()


def test_reading_does_not_change_what_was_read() -> None:
    before = json.dumps(OLD)
    report = Report.from_json(OLD)
    report.as_json()["baselines"]["karras"]["sigmas"].append(1.0)
    assert json.dumps(OLD) == before and report == READ


def test_the_best_baseline_is_a_comparable_one_with_the_smallest_known_error() -> None:
    assert READ.best_baseline() == "karras"
    assert Report().best_baseline() is None
    validated = {"a": Baseline([], 2, True, 0.1, 0.4), "b": Baseline([], 2, True, 0.2, 0.3)}
    assert Report(baselines=validated).best_baseline() == "b"
    tested = validated | {"c": Baseline([], 2, True, test_error=0.9)}
    assert Report(baselines=tested).best_baseline() == "c"


def test_numbers_that_are_not_finite_are_unknown() -> None:
    assert [finite(value) for value in (0.5, math.inf, -math.inf, math.nan)] == [
        0.5, None, None, None
    ]  # fmt: skip


def test_events_carry_what_is_known_when_they_are_sent() -> None:
    """The planned calls are never fewer than those made."""
    events: list[Progress] = []
    model = Model(lambda x, sigma: x, LOG_SIGMA, 0.1, 10.0)
    model.calls = 1000
    progress = ProgressReporter(model, 5, events.append)
    progress.stage("first")
    progress.know(sigmas=[9.0, 0.0])
    model.calls += 7
    progress.stage("second")
    assert events == [
        Progress("first", 0, 5, Report()),
        Progress("second", 7, 7, Report(sigmas=[9.0, 0.0])),
    ]
