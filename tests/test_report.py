"""Reports as files contain them, and the events of a running training."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from ld3.model import Model
from ld3.parameters import LOG_SIGMA
from ld3.training.report import (
    Baseline,
    Progress,
    ProgressReporter,
    Report,
    StepsCurve,
    ValidationEntry,
    best_baseline,
    finite,
)

# as format 1's last version wrote it: numbers that are not finite are null, baselines contain what
# is known of them, and some keys are not written any more
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
    extras=["decoupled times", "D-ODE"],
    initial_sigmas=[9.0, 2.0, 0.0],
    sigmas=[9.0, 1.5, 0.0],
    eval_sigmas=[9.0, 1.25],
    lambdas=[0.0, 0.125],
    baselines={
        "karras": Baseline([9.0, 2.0, 0.0], 2, True, 0.33, 0.29),
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


# what reports have got since
NEW = replace(
    READ,
    gain=[0.4, 0.75],
    steps_sigmas=[9.0, 1.75, 0.0],
    steps_error=0.2,
    compared=[
        StepsCurve("euler, simple", [2, 4, 10], [0.9, 0.3, 0.05], 0.12),
        StepsCurve("dpmpp_2m, karras", [2], [0.3], 0.12),
    ],
)
SINCE = {
    "unrelated_error": None,
    "stream_errors": {},
    "gain": [],
    "steps_sigmas": [],
    "steps_error": None,
    "compared": [],
}
NOT_WRITTEN = {"initial_error", "training_error"}


@pytest.mark.parametrize("report", [READ, NEW, Report()], ids=["old", "finished", "empty"])
def test_a_report_is_the_same_after_it_was_written_and_read(report: Report) -> None:
    assert Report.from_json(report.as_json()) == report
    text = json.dumps(report.as_json(), allow_nan=False)
    assert Report.from_json(json.loads(text)) == report


def test_reports_of_the_version_before_are_read() -> None:
    assert Report.from_json(json.loads(json.dumps(OLD))) == READ


def test_reports_have_the_names_in_files_that_every_version_reads() -> None:
    written = READ.as_json()
    old = {key: value for key, value in OLD.items() if key not in NOT_WRITTEN}
    # errors of baselines that are not known are left out, and they have only two
    simple = {"sigmas": [9.0, 4.0, 0.0], "model_calls": 2, "counted": True}
    karras = {k: v for k, v in OLD["baselines"]["karras"].items() if k != "validation_error"}
    baselines = OLD["baselines"] | {"simple": simple, "karras": karras}
    assert written == old | SINCE | {"baselines": baselines}
    curve = {"name": "dpmpp_2m, karras", "steps": [2], "errors": [0.3], "learned_error": 0.12}
    assert NEW.as_json()["compared"][1] == curve


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
    ranked = {"a": Baseline([], 2, True, 0.4), "b": Baseline([], 2, True, 0.3)}
    assert Report(baselines=ranked).best_baseline() == "b"
    longer = ranked | {"longer": Baseline([], 3, False, 0.1, 0.1), "unknown": Baseline([], 2, True)}
    assert Report(baselines=longer).best_baseline() == "b"
    tested = longer | {"c": Baseline([], 2, True, test_error=0.9)}
    assert Report(baselines=tested).best_baseline() == "c"
    assert best_baseline(tested, "ranking_error") == "b"


@pytest.mark.parametrize(
    ("learned", "steps", "only_more"),
    [
        (0.4, 4, False),
        (0.1, 8, False),
        (0.2, 6, False),  # errors fall as 1 / steps^2: sqrt(1.6 / 0.2) * 2 = 5.66
        (0.05, 8, True),
        (1.6, 2, False),
        (2.0, 0, False),
    ],
)
def test_steps_for_the_same_error_are_interpolated_as_a_power(
    learned: float, steps: int, only_more: bool
) -> None:
    curve = StepsCurve("euler, simple", [2, 4, 8], [1.6, 0.4, 0.1], learned)
    assert curve.equal_steps() == (steps, only_more)


def test_without_a_measured_number_of_steps_any_number_may_be_needed() -> None:
    assert StepsCurve("euler, simple", [], [], 0.1).equal_steps() == (0, True)
    assert StepsCurve("euler, simple", [3, 6], [0.5, 0.0], 0.0).equal_steps() == (6, False)


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
