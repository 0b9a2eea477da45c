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
from ld3.training.report import Baseline, Report, ValidationEntry

ROOT = Path(__file__).resolve().parents[1]
LEARNED, TRAINED = (0xD1, 0x49, 0x5B), (0xEE, 0xB9, 0xC0)


def finished() -> Report:
    """A report as a training leaves it: one baseline costs more calls, one error is infinite."""
    baselines = {
        name: Baseline(
            sigmas=[9.0, 2.0 + i, 0.0],
            model_calls=2 + (i == 2),
            comparable=i != 2,
            validation_error=0.3 + i,
            test_error=0.2 + i,
        )
        for i, name in enumerate(("karras", "normal", "ddim_uniform"))
    }
    history = [
        ValidationEntry("ab"[i % 2], 100 * i, None if i == 5 else 0.3 / (i + 1)) for i in range(6)
    ]
    return Report(
        start="karras", test_error=0.1, initial_error=0.3, initial_sigmas=[9.0, 2.0, 0.0],
        sigmas=[9.0, 1.0, 0.0], baselines=baselines, history=history,
    )  # fmt: skip


def unfinished() -> list[Report]:
    """The report at its earlier stages, down to nothing at all."""
    measuring = replace(finished(), test_error=None)
    unmeasured = {n: replace(b, test_error=None) for n, b in measuring.baselines.items()}
    learning = replace(measuring, baselines=unmeasured)
    screened = {
        name: b if name == "karras" else replace(b, validation_error=None)
        for name, b in unmeasured.items()
    }
    screening = replace(learning, history=[], sigmas=[], initial_sigmas=[], baselines=screened)
    return [measuring, learning, screening, Report()]


def pixels_like(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(picture.astype(int) - colour).max(-1) < 8).sum())


def assert_is_picture(picture: np.ndarray) -> None:
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert min(picture.shape[:2]) >= 300
    assert picture.std() > 5  # something is drawn


def test_the_error_on_training_noises_is_shown_beside_the_one_on_test_noises() -> None:
    plain, both = (
        report_picture(replace(finished(), training_error=error), "dpmpp_2m")
        for error in (None, 0.08)
    )
    before, after = pixels_like(plain, TRAINED), pixels_like(both, TRAINED)
    assert after > before + 100


def test_a_report_picture_shows_the_learned_schedule() -> None:
    picture = report_picture(finished(), "dpmpp_2m, 2 steps")
    assert_is_picture(picture)
    without = replace(finished(), sigmas=[], test_error=None)
    assert pixels_like(picture, LEARNED) > pixels_like(report_picture(without, ""), LEARNED) + 100


@pytest.mark.parametrize("stage", range(4), ids=["measuring", "learning", "screening", "empty"])
def test_an_unfinished_report_can_be_drawn_at_the_same_size(stage: int) -> None:
    picture = report_picture(unfinished()[stage], "still learning")
    assert_is_picture(picture)
    assert picture.shape == report_picture(finished(), "done").shape


def test_drawing_does_not_change_the_report_or_matplotlibs_settings() -> None:
    report = finished()
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
