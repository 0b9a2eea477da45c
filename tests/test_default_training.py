"""LD3 Train Schedule with its defaults, on the flow demo model: one training of 2,500 calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from torch import Tensor

from ld3.training.budget import QUALITIES
from ld3.training.report import Report

DEFAULTS = {
    "sampler_name": "dpmpp_2m", "steps": 4, "cfg": 1.0, "name": "defaults", "seed": 0,
    "teacher_sampler": "dpmpp_2m", "teacher_scheduler": "auto", "teacher_steps": 20,
    "retrain": False, "denoise": 1.0, "distance": "pseudo-huber", "iterations": 0,
    "training_noises": 0, "heldout_noises": 0, "batch_size": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(pack_nodes: dict[str, type], demo_inputs: dict[str, Any]) -> dict[str, Any]:
    """The flow demo model with a small latent."""
    return demo_inputs | {
        "model": pack_nodes["LD3DemoModel"].execute(batch_size=1, model="flow")[0]
    }


@pytest.fixture(scope="module")
def learned(pack_nodes: dict[str, type], inputs: dict[str, Any], ld3_folder: Path) -> Any:
    """What the node returns."""
    return pack_nodes["LD3TrainSchedule"].execute(**inputs | DEFAULTS)


def custom(inputs: dict[str, Any], sampler: Any, sigmas: Tensor) -> Tensor:
    """Core's SamplerCustom."""
    given = {"add_noise": True, "noise_seed": 5, "cfg": 1.0, "sampler": sampler, "sigmas": sigmas}
    return SamplerCustom.execute(**inputs | given)[0]["samples"]


@pytest.mark.slow
def test_defaults_gain_much_within_the_calls_of_normal_quality(learned: Any) -> None:
    report = Report.from_json(learned[2].info.report)
    calls = report.teacher_calls + report.training_calls + report.report_calls
    assert calls <= QUALITIES["normal"] and report.report_calls <= 0.25 * QUALITIES["normal"]
    assert report.chosen == "learned" and report.gain[1] < 0.8
    own = report.compared[0]
    assert own.name == "euler + simple" and own.equal_steps()[0] >= 8


@pytest.mark.slow
def test_one_training_gives_a_solver_and_sigmas_for_the_plain_sampler(
    learned: Any, inputs: dict[str, Any], pack_nodes: dict[str, type]
) -> None:
    sigmas, sampler, schedule, *_ = learned
    assert not torch.equal(sigmas, schedule.sigmas)
    sampling = {"schedule": schedule, "seed": 5, "cfg": 1.0, "denoise": 1.0}
    ours = pack_nodes["LD3KSampler"].execute(**inputs | sampling)[0]["samples"]
    assert torch.equal(custom(inputs, sampler, sigmas), ours)
    assert torch.equal(custom(inputs, sampler, schedule.sigmas), ours)
    report = Report.from_json(schedule.info.report)
    best = report.baselines[report.best_baseline() or ""]
    assert report.steps_error is not None and best.test_error is not None
    assert report.test_error < report.steps_error <= best.test_error
    plain = custom(inputs, comfy.samplers.sampler_object("dpmpp_2m"), sigmas)
    assert torch.isfinite(plain).all() and not torch.allclose(plain, ours, atol=1e-3)
    loaded = pack_nodes["LD3LoadSchedule"].execute(name=f"{schedule.name}.safetensors")
    assert torch.equal(loaded[0], sigmas)
    assert torch.equal(custom(inputs, loaded[1], loaded[0]), ours)


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"minutes": 1e-4}, ["budget", "too small", "more minutes"]),
        ({"teacher_steps": 900}, ["budget", "900 calls each", "fewer teacher_steps"]),
        ({"compare_sampler": "euler_ancestral"}, ["compare_sampler", "stochastic"]),
        ({"quality": "perfect"}, ["quality is 'perfect'", "fast, normal, best"]),
        ({"minutes": -1.0}, ["minutes is -1.0", "0 (as quality says)"]),
    ],
)
def test_what_cannot_be_afforded_or_compared_is_refused_in_the_words_of_the_widgets(
    changed: dict[str, Any],
    parts: list[str],
    inputs: dict[str, Any],
    pack_nodes: dict[str, type],
    ld3_folder: Path,
) -> None:
    files = set(ld3_folder.iterdir())
    with pytest.raises(ValueError) as caught:
        pack_nodes["LD3TrainSchedule"].execute(**inputs | DEFAULTS | {"name": "no"} | changed)
    for part in parts:
        assert part in str(caught.value)
    assert set(ld3_folder.iterdir()) == files
