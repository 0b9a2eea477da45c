"""The sentence that says what a schedule is worth, and the live line of a training."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ld3.comfy.progress import duration, live_line
from ld3.training.report import Baseline, Progress, Report, StepsCurve
from ld3.training.verdict import verdict

BASELINES = {
    "karras": Baseline([9.0, 2.0, 0.0], 2, True, 0.3, 0.2),
    "simple": Baseline([9.0, 5.0, 0.0], 2, True, 0.4),
}
OWN = StepsCurve("euler + simple", [2, 4, 8], [1.6, 0.4, 0.1], 0.1)
STANDARD = StepsCurve("dpmpp_2m + karras", [2, 4], [0.2, 0.15], 0.1)
REPORT = Report(test_error=0.1, baselines=BASELINES, compared=[OWN, STANDARD])


def sentence(report: Report) -> str:
    return verdict(2, "dpmpp_2m", 20, report)


def test_the_verdict_counts_steps_and_compares_with_the_best_standard_schedule() -> None:
    assert sentence(REPORT) == (
        "2 steps are as near to the 20-step reference as 8 steps of euler + simple, or more than 4 "
        "of the best standard (dpmpp_2m + karras); 50 % less error than it at 2 steps"
    )


def test_a_quick_training_compares_only_at_its_own_steps() -> None:
    assert sentence(replace(REPORT, compared=[])) == (
        "50 % less error than the best standard schedule (dpmpp_2m + karras) at 2 steps"
    )


def test_the_verdict_claims_no_gain_where_there_is_none() -> None:
    even = replace(REPORT, compared=[], test_error=0.2)
    assert sentence(even).startswith("no less error than the best standard schedule")
    lost = sentence(replace(REPORT, chosen="karras"))
    assert lost.startswith("dpmpp_2m + karras is nearer to the 20-step reference")
    assert "returned" in lost and "%" not in lost


def test_without_measurements_there_is_no_verdict() -> None:
    assert sentence(Report()) == ""


def test_the_live_line_has_stage_calls_and_time_left() -> None:
    event = Progress("learning 4 steps: iteration 5 of 12", 310, 900, Report())
    begun = "learning 4 steps: iteration 5 of 12, 310 of 900 calls"
    assert live_line(event, 124.0, 310) == f"{begun}, about 4 min left"
    # the first calls load the model: they say nothing of the others
    assert live_line(event, 1.0, 1) == begun
    assert live_line(event, 60.0, 0) == begun


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (40, "40 s"), (89, "89 s"), (150, "2 min"), (5300, "88 min"), (9000, "2.5 h")],
)
def test_times_are_in_the_unit_that_tells_enough(seconds: float, text: str) -> None:
    assert duration(seconds) == text
