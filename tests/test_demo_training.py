"""How the demo models are trained: noise levels, losses, start weights and shared words."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfy.model_sampling
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from demo import demo_model, emoji, train_demo_model
from demo.objectives import MEAN, SPREAD, EpsObjective, FlowObjective
from demo.train_demo_model import Trainer


@pytest.fixture
def trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> Iterator[Callable[..., Trainer]]:
    """`trainer(**options)`: a Trainer on pictures of noise with two captions."""
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    monkeypatch.setattr(emoji, "load_emoji", lambda *_: (images, ["red apple", "xyzzy"]))
    monkeypatch.setattr(train_demo_model, "import_demo_model", lambda _: demo_model)
    options = {
        "comfyui": None, "checkpoint": tmp_path, "prediction": "eps", "start_from": None,
        "steps": 10, "batch": 2, "learning_rate": 1e-3, "seed": 0, "threads": 1, "minutes": 1.0,
        "compile": False, "bf16": False, "font": emoji.FONT,
    }  # fmt: skip
    with torch.random.fork_rng():
        yield lambda **changes: Trainer(argparse.Namespace(**options | changes))


def strata(count: int) -> torch.Tensor:
    return (torch.arange(count) + 0.5) / count


def test_noise_over_picture_is_log_normal_in_both_objectives() -> None:
    levels = torch.linspace(math.log(1e-4), math.log(1e4), 4000).exp()
    sigmas = FlowObjective().sigmas(strata(4000))
    for ratio in (EpsObjective(levels).sigmas(strata(4000)), sigmas / (1 - sigmas)):
        assert float(ratio.log().mean()) == pytest.approx(MEAN, abs=0.01)
        assert float(ratio.log().std()) == pytest.approx(SPREAD, abs=0.01)


def test_noise_levels_are_finite_and_inside_the_schedule_at_the_ends() -> None:
    ends = torch.tensor([0.0, 1 - 2**-24])
    flow = FlowObjective().sigmas(ends)
    assert 0 < flow[0] < flow[1] < 1
    levels = torch.tensor([0.03, 1.0, 14.6])
    assert EpsObjective(levels).sigmas(ends).tolist() == pytest.approx([0.03, 14.6])


def test_each_loss_is_zero_at_its_own_prediction_only() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 4, 3, 8, 8, generator=generator)
    sigmas = torch.full((4,), 0.5)
    eps, flow = EpsObjective(torch.tensor([0.1, 0.5, 2.0])), FlowObjective()
    assert eps.loss(noise, x0, noise, sigmas) == 0
    assert flow.loss(noise - x0, x0, noise, sigmas) == 0
    assert eps.loss(noise - x0, x0, noise, sigmas) > 0.5
    assert flow.loss(noise, x0, noise, sigmas) > 0.5


def test_true_velocity_is_the_one_that_denoises_exactly() -> None:
    class Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 4, 3, 8, 8, generator=generator)
    sigmas = torch.tensor([0.01, 0.3, 0.9, 1.0])
    sampling = Flow()
    x = sampling.noise_scaling(sigmas, noise, x0)
    torch.testing.assert_close(sampling.calculate_denoised(sigmas, noise - x0, x), x0)


@pytest.mark.parametrize("prediction", ["eps", "flow"])
def test_steps_change_the_network_and_its_words(trainer: Any, prediction: str) -> None:
    training = trainer(prediction=prediction, learning_rate=0.1)
    before = [parameter.detach().clone() for parameter in training.parameters]
    for _ in range(5):  # branches that start at zero pass no gradient to the words at first
        assert float(training.train_step()) > 0
    changed = [not torch.equal(a, b) for a, b in zip(before, training.parameters, strict=True)]
    assert changed[-1] and sum(changed) > 1


def test_training_from_other_weights_starts_there_and_keeps_their_words(
    trainer: Any, tmp_path: Path
) -> None:
    file = demo_model.WEIGHTS["eps"]
    training = trainer(prediction="flow", start_from=file)
    shipped, key = load_file(file), demo_model.NETWORK_PREFIX + "out.2.weight"
    assert torch.equal(training.network.out[2].weight, shipped[key].float())
    for _ in range(2):
        training.train_step()
    training.save()
    saved = load_file(tmp_path / demo_model.WEIGHTS["flow"].name)
    assert saved.keys() == shipped.keys()
    assert torch.equal(saved[demo_model.WORDS_KEY], shipped[demo_model.WORDS_KEY])
    assert not torch.equal(saved[key], shipped[key])
    with (
        safe_open(file, framework="pt") as one,
        safe_open(tmp_path / demo_model.WEIGHTS["flow"].name, framework="pt") as other,
    ):
        assert one.metadata()["vocabulary"] == other.metadata()["vocabulary"]


def test_a_resumed_training_goes_on_with_the_same_numbers(trainer: Any) -> None:
    start = {"prediction": "flow", "start_from": demo_model.WEIGHTS["eps"]}
    first = trainer(**start)
    first.train_step()
    first.save()
    second = trainer(**start)
    second.resume()
    assert second.step == 1
    assert torch.equal(first.train_step(), second.train_step())
