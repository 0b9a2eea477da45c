"""Pictures of schedules and reports."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from ld3.plots import report_picture
from ld3.training.report import Baseline, Report, StepsCurve, ValidationEntry

ROOT = Path(__file__).resolve().parents[1]
LEARNED, BEST, OTHERS = (0xD1, 0x49, 0x5B), (0x30, 0x63, 0x8E), (0xC9, 0xCE, 0xD6)
MORE_CALLS = (0xEE, 0xF0, 0xF3)


def finished() -> Report:
    """A report as a training leaves it: one baseline costs more calls, one error is infinite."""
    baselines = {
        name: Baseline(
            sigmas=[9.0, 2.0 + i, 0.0],
            model_calls=2 + (i == 2),
            comparable=i != 2,
            ranking_error=0.3 + i,
            test_error=None if i else 0.25,
        )
        for i, name in enumerate(("karras", "normal", "ddim_uniform"))
    }
    baselines["simple"] = Baseline([9.0, 8.0, 0.0], 2, True)
    history = [
        ValidationEntry("ab"[i % 2], 100 * i, None if i == 5 else 0.3 / (i + 1)) for i in range(6)
    ]
    return Report(
        start="karras", test_error=0.1, initial_sigmas=[9.0, 2.0, 0.0], sigmas=[9.0, 1.0, 0.0],
        gain=[0.3, 0.5], baselines=baselines, history=history,
    )  # fmt: skip


def compared() -> Report:
    """The same with the steps saved: against one sampler they are counted, against one not."""
    curves = [
        StepsCurve("euler, simple", [2, 4, 6], [0.8, 0.3, 0.05], 0.1),
        StepsCurve("dpmpp_2m, karras", [2, 4], [0.3, 0.2], 0.1),
    ]
    return replace(finished(), compared=curves)


def unfinished() -> list[Report]:
    """The report at its earlier stages, down to nothing at all."""
    measuring = replace(finished(), gain=[])
    unmeasured = {n: replace(b, test_error=None) for n, b in measuring.baselines.items()}
    learning = replace(measuring, test_error=None, baselines=unmeasured)
    unranked = {n: replace(b, ranking_error=None) for n, b in unmeasured.items()}
    ranking = replace(learning, history=[], sigmas=[], initial_sigmas=[], baselines=unranked)
    return [measuring, learning, ranking, Report()]


def pixels_like(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(picture.astype(int) - colour).max(-1) < 8).sum())


def assert_is_picture(picture: np.ndarray) -> None:
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert min(picture.shape[:2]) >= 300
    assert picture.std() > 5  # something is drawn


def test_a_report_picture_shows_the_learned_schedule() -> None:
    picture = report_picture(finished(), "dpmpp_2m, 2 steps")
    assert_is_picture(picture)
    without = replace(finished(), sigmas=[], test_error=None)
    assert pixels_like(picture, LEARNED) > pixels_like(report_picture(without, ""), LEARNED) + 100


def test_every_known_error_has_a_bar_and_those_of_the_ranking_are_lighter() -> None:
    """The baseline measured on the test noises is not repeated with its ranking error."""
    report = finished()
    for name, colour in (("karras", BEST), ("normal", OTHERS), ("ddim_uniform", MORE_CALLS)):
        without = dict(report.baselines)
        without[name] = replace(without[name], ranking_error=None, test_error=None)
        fewer = replace(report, baselines=without)
        lost = pixels_like(report_picture(report, ""), colour)
        lost -= pixels_like(report_picture(fewer, ""), colour)
        assert lost > 1000, name
    without = report.baselines | {"karras": replace(report.baselines["karras"], test_error=None)}
    untested = replace(report, baselines=without)
    light = [pixels_like(report_picture(r, ""), OTHERS) for r in (report, untested)]
    assert light[1] > light[0] + 1000


def test_a_baseline_without_any_error_on_the_test_noises_has_a_bar_of_no_length() -> None:
    """A schedule can be the teacher's own."""
    exact = replace(finished().baselines["karras"], test_error=0.0)
    report = replace(finished(), baselines=finished().baselines | {"karras": exact})
    missing = replace(exact, test_error=None, ranking_error=None)
    without = replace(report, baselines=report.baselines | {"karras": missing})
    pictures = [report_picture(r, "") for r in (report, without)]
    errors = [picture[:, 2 * picture.shape[1] // 3 :] for picture in pictures]
    assert not np.array_equal(*errors)


def test_the_steps_saved_take_the_place_of_the_history_in_a_picture_of_the_same_size() -> None:
    picture, before = (report_picture(r, "done") for r in (compared(), finished()))
    assert_is_picture(picture)
    assert picture.shape == before.shape and not np.array_equal(picture, before)
    other = replace(compared(), history=[])
    assert np.array_equal(report_picture(other, "done"), picture)
    third = picture.shape[1] // 3
    assert pixels_like(picture[:, third : 2 * third], LEARNED) > 100


@pytest.mark.parametrize("stage", range(4), ids=["measuring", "learning", "ranking", "empty"])
def test_an_unfinished_report_can_be_drawn_at_the_same_size(stage: int) -> None:
    picture = report_picture(unfinished()[stage], "still learning")
    assert_is_picture(picture)
    assert picture.shape == report_picture(finished(), "done").shape


def test_drawing_does_not_change_the_report_or_matplotlibs_settings() -> None:
    report = compared()
    settings, before = dict(matplotlib.rcParams), copy.deepcopy(report)
    report_picture(report, "title")
    assert dict(matplotlib.rcParams) == settings
    assert report == before


def test_equal_reports_give_equal_pictures() -> None:
    assert np.array_equal(report_picture(finished(), "title"), report_picture(finished(), "title"))


@pytest.mark.slow
def test_pictures_need_no_pyplot_whose_state_is_global() -> None:
    program = (
        "import sys; from ld3.plots import report_picture; "
        "from ld3.training.report import Report; report_picture(Report(), ''); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_long_titles_and_names_stay_inside_the_picture() -> None:
    title = "a_name_without_any_space_" * 8 + "\nand a verdict of many words" * 6
    picture = report_picture(finished(), title, ["details " * 60])
    assert picture.shape[1] == report_picture(finished(), "short").shape[1]
    ink = (picture.min(-1) < 128).any(0)  # columns of pixels with letters or axes
    assert not ink[:2].any() and not ink[-2:].any()
    assert picture.shape[0] > report_picture(finished(), "short").shape[0]
