"""LD3 Compare Schedules: the same noises in several ways; LD3 Plot Schedule: levels as text."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ld3.comfy import core_samplers
from ld3.comparison_picture import LEAST_CELL, Column, comparison_picture, comparison_table
from ld3.manual_sigmas import manual_sigmas
from ld3.plots import levels_picture
from ld3.training.report import Baseline, Report

TRAINING = {
    "sampler_name": "dpmpp_2m", "steps": 2, "cfg": 1.0, "name": "compared", "seed": 0,
    "teacher_sampler": "dpmpp_2m", "teacher_scheduler": "karras", "teacher_steps": 4,
    "retrain": False, "denoise": 1.0, "distance": "pseudo-huber", "iterations": 1,
    "training_noises": 4, "heldout_noises": 4, "batch_size": 16, "learn": "time steps",
    "quality": "fast",
}  # fmt: skip
COMPARISON = {"seed": 3, "cfg": 1.0, "noises": 2, "compare_with": "euler + simple", "row_names": ""}


@pytest.fixture(scope="module")
def inputs(
    pack_nodes: dict[str, type], demo_inputs: dict[str, Any], ld3_folder: Path
) -> dict[str, Any]:
    """The demo model with a schedule and a VAE."""
    schedule = pack_nodes["LD3TrainSchedule"].execute(**demo_inputs | TRAINING)[2]
    vae = pack_nodes["LD3DemoModel"].execute(batch_size=1)[1]
    return demo_inputs | {"schedule": schedule, "vae": vae}


@pytest.fixture(scope="module")
def compared(pack_nodes: dict[str, type], inputs: dict[str, Any]) -> Any:
    def run(**changes: Any) -> Any:
        return pack_nodes["LD3CompareSchedules"].execute(**inputs | COMPARISON | changes)

    return run


def columns(table: str) -> dict[str, str]:
    """What a table says of each column, by its name."""
    return dict(re.split(r" {2,}", line) for line in table.splitlines())


def test_a_comparison_has_reference_standard_and_learned_columns_with_costs_and_errors(
    compared: Any,
) -> None:
    picture, table = compared(compare_with="4 steps of heun + karras, best standard")
    found = columns(table)
    assert found["dpmpp_2m + karras"] == "4 steps, the reference"
    assert found["heun + karras"].startswith("4 steps, 7 calls, error ")
    assert found["learned"].startswith("2 steps, error ")
    assert len(found) in (3, 4)  # the best standard may be the learned schedule's own start
    assert picture.shape[0] == 1 and picture.shape[-1] == 3
    assert 0 <= picture.min() and picture.max() <= 1


def test_the_best_standard_is_what_competed_even_if_no_scheduler_makes_it(
    compared: Any, inputs: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """As in LD3 Train Schedule (Advanced), whose connected sigmas may be the best."""
    schedule = inputs["schedule"]
    expected = columns(compared(compare_with="dpmpp_2m + simple")[1])["dpmpp_2m + simple"]
    sigmas = core_samplers.scheduler_sigmas(inputs["model"], "dpmpp_2m", "simple", 2, 1.0)
    best = Baseline(sigmas.tolist(), 2, comparable=True, test_error=0.0)
    report = Report.from_json(schedule.info.report)
    report = replace(report, baselines={"connected sigmas": best}, chosen="learned")
    info = replace(schedule.info, report=report.as_json())
    other = replace(schedule, info=info)
    found = columns(compared(schedule=other, compare_with="best standard")[1])
    assert found["dpmpp_2m + connected sigmas"] == expected
    unknown = replace(schedule, info=replace(info, sampler="sample_with_options"))
    found = columns(compared(schedule=unknown, compare_with="best standard")[1])
    assert len(found) == 2 and "'sample_with_options' is not installed" in caplog.text


def test_the_error_of_more_steps_of_the_reference_is_smaller(compared: Any) -> None:
    table = compared(compare_with="2 steps of dpmpp_2m + karras, 3 steps of dpmpp_2m + karras")[1]
    errors = [float(x) for x in re.findall(r"dpmpp_2m \+ karras.*error ([\d.]+)", table)]
    assert len(errors) == 2 and errors[0] > errors[1] > 0


def test_every_prompt_and_every_schedule_is_shown(compared: Any, inputs: dict[str, Any]) -> None:
    few = compared(noises=1)[0]
    more = compared(noises=1, positive_2=inputs["negative"], schedule_2=inputs["schedule"])[0]
    assert more.shape[1] > few.shape[1]  # a row more
    named = compared(noises=1, row_names="a long name of a row")[0]
    assert named.shape[2] > few.shape[2]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"compare_with": "euler simple"}, ["compare_with", "euler simple", "euler + simple"]),
        ({"compare_with": "euler + nonsense"}, ["compare_with", "nonsense", "karras"]),
        ({"compare_with": "nonsense + simple"}, ["compare_with", "nonsense", "dpmpp_2m"]),
        ({"row_names": "a, b, c"}, ["row_names has 3 names", "2 rows"]),
        ({"cfg": -1.0}, ["cfg is -1.0"]),
        ({"noises": 0}, ["noises is 0"]),
    ],
)
def test_what_cannot_be_compared_is_refused(
    changes: dict[str, Any], parts: list[str], compared: Any
) -> None:
    with pytest.raises(ValueError) as caught:
        compared(**changes)
    for part in parts:
        assert part in str(caught.value)


def test_comparing_changes_no_input_and_no_schedule(compared: Any, inputs: dict[str, Any]) -> None:
    sigmas = inputs["schedule"].sigmas.clone()
    first, again = compared()[0], compared()[0]
    assert torch.equal(first, again) and torch.equal(inputs["schedule"].sigmas, sigmas)


def test_small_pictures_are_enlarged_without_smoothing_and_captions_fit() -> None:
    image = np.zeros((1, 8, 8, 3))
    image[0, 0, 0] = 1.0
    long = Column("a name that is much longer than its column is wide", 4, 7, 0.125, image, True)
    picture = comparison_picture([long, long], [""])
    side = -(-LEAST_CELL // 8) * 8
    assert picture.shape[1] < 2 * side + 40
    assert set(np.unique(picture[-side:, 20 : side - 20])) <= {0, 255}
    assert comparison_table([long]) == f"{long.name}  4 steps, 7 calls, error 0.125"


def test_text_for_manual_sigmas_is_read_back_by_core() -> None:
    from comfy_extras.nodes_custom_sampler import ManualSigmas

    sigmas = torch.tensor([14.614643, 1.0, 0.33333334, 3.2e-5, 0.0])
    text = manual_sigmas(sigmas.tolist())
    assert "e" not in text and text.startswith("14.61464, 1, 0.3333333")
    torch.testing.assert_close(ManualSigmas.execute(text)[0], sigmas, rtol=1e-6, atol=0)


def test_plot_schedule_draws_what_is_connected_and_writes_its_text(
    pack_nodes: dict[str, type], inputs: dict[str, Any]
) -> None:
    plot, sigmas = pack_nodes["LD3PlotSchedule"], torch.tensor([1.0, 0.5, 0.0])
    picture, text = plot.execute(sigmas=sigmas)
    assert text == "1, 0.5, 0" and picture.shape[-1] == 3
    both, text = plot.execute(sigmas=sigmas, schedule=inputs["schedule"])
    assert text == manual_sigmas(inputs["schedule"].plain_sigmas.tolist())
    assert not torch.equal(both, picture)
    with pytest.raises(ValueError, match="connect a schedule, or sigmas"):
        plot.execute()


def test_names_of_plotted_schedules_are_no_mathematics() -> None:
    levels_picture({"$x^2$ _name": [1.0, 0.5, 0.0], "_hidden": [1.0, 0.2, 0.0]})
