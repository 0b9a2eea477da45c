"""Pictures of schedules and reports."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from ld3.plots import report_picture
from ld3.training.report import Report

ROOT = Path(__file__).resolve().parents[1]
LEARNED, TRAINED = (0xD1, 0x49, 0x5B), (0xEE, 0xB9, 0xC0)


def finished() -> dict[str, Any]:
    """A report as training leaves it: one baseline costs more calls, one error is infinite."""
    report = Report(
        start="karras", heldout_error=0.1, initial_error=0.3, initial_sigmas=[9.0, 2.0, 0.0],
        sigmas=[9.0, 1.0, 0.0],
    )  # fmt: skip
    for i, name in enumerate(("karras", "normal", "ddim_uniform")):
        report.baselines[name] = {
            "sigmas": [9.0, 2.0 + i, 0.0],
            "model_calls": 2 + (i == 2),
            "counted": i != 2,
            "validation_error": 0.3 + i,
            "heldout_error": 0.2 + i,
        }
    for i in range(6):
        error = None if i == 5 else 0.3 / (i + 1)
        report.history.append({"start": "ab"[i % 2], "calls": 100 * i, "error": error})
    return report.as_dict()


def unfinished() -> list[dict[str, Any]]:
    """The report at its earlier stages, down to nothing at all."""
    measuring, learning, screening, empty = (copy.deepcopy(finished()) for _ in range(4))
    measuring["heldout_error"] = float("nan")
    learning["heldout_error"] = float("nan")
    for baseline in learning["baselines"].values():
        del baseline["heldout_error"]
    screening |= {"history": [], "sigmas": [], "heldout_error": None, "initial_sigmas": []}
    for name in ("normal", "ddim_uniform"):
        del screening["baselines"][name]["validation_error"]
    for baseline in screening["baselines"].values():
        del baseline["heldout_error"]
    empty = Report().as_dict()
    return [measuring, learning, screening, empty]


def pixels_like(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(picture.astype(int) - colour).max(-1) < 8).sum())


def assert_is_picture(picture: np.ndarray) -> None:
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert min(picture.shape[:2]) >= 300
    assert picture.std() > 5  # something is drawn


def test_the_error_on_training_noises_stands_beside_the_one_on_fresh_noises() -> None:
    plain, both = (
        report_picture(finished() | {"training_error": error}, "dpmpp_2m")
        for error in (float("nan"), 0.08)
    )
    before, after = pixels_like(plain, TRAINED), pixels_like(both, TRAINED)
    assert after > before + 100


def test_a_report_picture_shows_the_learned_schedule() -> None:
    picture = report_picture(finished(), "dpmpp_2m, 2 steps")
    assert_is_picture(picture)
    without = finished() | {"sigmas": [], "heldout_error": None}
    assert pixels_like(picture, LEARNED) > pixels_like(report_picture(without, ""), LEARNED) + 100


@pytest.mark.parametrize("stage", range(4), ids=["measuring", "learning", "screening", "empty"])
def test_an_unfinished_report_can_be_drawn_at_the_same_size(stage: int) -> None:
    picture = report_picture(unfinished()[stage], "still learning")
    assert_is_picture(picture)
    assert picture.shape == report_picture(finished(), "done").shape


def test_drawing_leaves_the_report_and_matplotlibs_settings_alone() -> None:
    report = finished()
    settings, before = dict(matplotlib.rcParams), copy.deepcopy(report)
    report_picture(report, "title")
    assert dict(matplotlib.rcParams) == settings
    assert report == before


def test_equal_reports_give_equal_pictures() -> None:
    assert np.array_equal(report_picture(finished(), "title"), report_picture(finished(), "title"))


def test_pictures_need_no_pyplot_whose_state_is_global() -> None:
    program = (
        "import sys; from ld3.plots import report_picture; "
        "from ld3.training.report import Report; report_picture(Report().as_dict(), ''); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
