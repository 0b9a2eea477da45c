"""LD3 Train Schedule (Advanced) on the demo model, beside core's SamplerCustomAdvanced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import (
    BasicGuider,
    BasicScheduler,
    CFGGuider,
    DualCFGGuider,
    KSamplerSelect,
    RandomNoise,
    SamplerCustomAdvanced,
    SplitSigmas,
)
from comfy_extras.nodes_perpneg import PerpNegGuider
from torch import Tensor

from ld3.comfy.levels import Span, resampled_levels

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {
    "steps": 3, "name": "advanced", "seed": 0, "learn": "time steps", "quality": "fast",
    "minutes": 0.0, "retrain": False, "distance": "pseudo-huber", "iterations": 1,
    "training_noises": 4, "heldout_noises": 4, "batch_size": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def flow(pack_nodes: dict[str, type]) -> Any:
    return pack_nodes["LD3DemoModel"].execute(batch_size=1, model="flow")[0]


@pytest.fixture(scope="module")
def inputs(flow: Any, demo_inputs: dict[str, Any]) -> dict[str, Any]:
    """What a usual graph connects to SamplerCustomAdvanced."""
    return {
        "guider": BasicGuider.execute(flow, demo_inputs["positive"])[0],
        "sampler": KSamplerSelect.execute("euler")[0],
        "sigmas": BasicScheduler.execute(flow, "simple", 6, 1.0)[0],
        "latent_image": demo_inputs["latent_image"],
    }


@pytest.fixture(scope="module")
def train(pack_nodes: dict[str, type], inputs: dict[str, Any], ld3_folder: Path) -> Any:
    """The node with small settings; keywords replace some."""

    def run(**changes: Any) -> Any:
        return pack_nodes["LD3TrainScheduleAdvanced"].execute(**(inputs | TINY | changes))

    return run


def sampled(inputs: dict[str, Any], sampler: Any, sigmas: Tensor) -> Tensor:
    """Core's SamplerCustomAdvanced."""
    noise = RandomNoise.execute(5)[0]
    guider, latent = inputs["guider"], inputs["latent_image"]
    return SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent)[0]["samples"]


def guider_of(kind: str, model: Any, conds: dict[str, Any]) -> Any:
    positive, negative = conds["positive"], conds["negative"]
    if kind == "basic":
        return BasicGuider.execute(model, positive)[0]
    if kind == "cfg":
        return CFGGuider.execute(model, positive, negative, 3.0)[0]
    if kind == "dual cfg":
        return DualCFGGuider.execute(model, positive, positive, negative, 2.0, 1.5, "regular")[0]
    if kind == "perp neg":
        return PerpNegGuider.execute(model, positive, negative, negative, 2.0, 1.0)[0]
    return ForeignGuider(model, positive)


class ForeignGuider:
    """A guider that is no subclass of core's: it only has the interface samplers use."""

    def __init__(self, model: Any, positive: Any) -> None:
        self._inner = BasicGuider.execute(model, positive)[0]
        self.model_patcher, self.strength = model, 0.9

    def sample(self, *tensors: Any, **options: Any) -> Tensor:
        inner = self._inner
        predict = inner.predict_noise

        def weaker(x: Tensor, sigma: Tensor, *others: Any, **more: Any) -> Tensor:
            return x + self.strength * (predict(x, sigma, *others, **more) - x)

        inner.predict_noise = weaker
        try:
            return inner.sample(*tensors, **options)
        finally:
            del inner.predict_noise


@pytest.mark.parametrize("kind", ["basic", "cfg", "dual cfg", "perp neg", "foreign"])
def test_every_guider_trains_and_its_outputs_sample_in_core(
    kind: str, train: Any, inputs: dict[str, Any], flow: Any, demo_inputs: dict[str, Any]
) -> None:
    guider = guider_of(kind, flow, demo_inputs)
    sigmas, sampler, schedule, *_ = train(guider=guider, name=kind)
    assert sigmas.shape == (4,) and float(sigmas[0]) == 1 and float(sigmas[-1]) == 0
    assert sampler is inputs["sampler"]  # only steps were learned
    assert schedule.info.settings["guider"] == type(guider).__name__
    result = sampled(inputs | {"guider": guider}, sampler, sigmas)
    assert torch.isfinite(result).all() and float(result.std()) > 0.01


def test_the_error_of_the_report_is_that_of_core_sampling(
    train: Any, inputs: dict[str, Any]
) -> None:
    """Test noises are those of RandomNoise for the seeds after training and validation."""
    sigmas, sampler, schedule, *_ = train()
    report, errors = schedule.info.report, []
    for seed in range(8, 12):
        pair = []
        for levels in (sigmas, inputs["sigmas"]):
            noise = RandomNoise.execute(seed)[0]
            given = (noise, inputs["guider"], sampler, levels, inputs["latent_image"])
            pair.append(SamplerCustomAdvanced.execute(*given)[0]["samples"])
        errors.append(float((pair[0] - pair[1]).pow(2).mean().sqrt()))
    name = report["chosen"]
    expected = report["heldout_error"]
    if name != "learned":
        expected = report["baselines"][name]["heldout_error"]
    assert sum(errors) / 4 == pytest.approx(expected, rel=1e-3)


def test_the_full_solver_runs_by_the_sampler_output_and_by_ld3_ksampler(
    train: Any, inputs: dict[str, Any], flow: Any, pack_nodes: dict[str, type],
    demo_inputs: dict[str, Any],
) -> None:  # fmt: skip
    sigmas, sampler, schedule, *_ = train(learn="time steps + full solver", name="full")
    ours = pack_nodes["LD3KSampler"].execute(
        **demo_inputs | {"model": flow}, schedule=schedule, seed=5, cfg=1.0, denoise=1.0
    )[0]["samples"]
    assert torch.equal(sampled(inputs, sampler, sigmas), ours)


def test_identical_settings_return_the_saved_schedule_also_with_a_new_guider(
    train: Any, flow: Any, demo_inputs: dict[str, Any], ld3_folder: Path
) -> None:
    first = train(guider=guider_of("dual cfg", flow, demo_inputs), name="dual")
    files = set(ld3_folder.iterdir())
    again = train(guider=guider_of("dual cfg", flow, demo_inputs), name="dual")
    assert torch.equal(first[0], again[0]) and set(ld3_folder.iterdir()) == files
    other = guider_of("dual cfg", flow, demo_inputs)
    other.set_cfg(2.0, 1.6)
    train(guider=other, name="dual")
    assert len(set(ld3_folder.iterdir())) == len(files) + 1


def test_a_part_of_a_sampling_is_learned_between_its_levels(
    train: Any, flow: Any, inputs: dict[str, Any]
) -> None:
    whole = BasicScheduler.execute(flow, "simple", 12, 1.0)[0]
    high = SplitSigmas.execute(whole, 6)[0]
    sigmas, sampler, schedule, *_ = train(sigmas=high, name="part")
    assert float(sigmas[0]) == 1 and float(sigmas[-1]) == float(high[-1]) > 0
    baselines = schedule.info.report["baselines"]
    assert len(baselines) > 5
    for baseline in baselines.values():
        assert baseline["sigmas"][-1] == pytest.approx(float(high[-1]))
    assert torch.isfinite(sampled(inputs, sampler, sigmas)).all()


@pytest.mark.parametrize("name", ["simple", "beta", "karras", "normal"])
def test_a_scheduler_between_two_levels_has_its_density_there(name: str, flow: Any) -> None:
    sampling = flow.get_model_object("model_sampling")
    whole = comfy.samplers.calculate_sigmas(sampling, name, 40)
    part = Span(sampling, float(whole[10]), float(whole[30])).sigmas(name, 20)
    torch.testing.assert_close(part, whole[10:31], rtol=0.03, atol=2e-3)
    assert Span(sampling, 1.0, 0.0).name_of(whole) == name


def test_resampled_levels_keep_the_ends_and_the_levels_of_the_same_number() -> None:
    sigmas = torch.tensor([1.0, 0.7, 0.2, 0.0])
    assert torch.equal(resampled_levels(sigmas, 3), sigmas)
    assert torch.equal(resampled_levels(sigmas, 1), torch.tensor([1.0, 0.0]))
    doubled = resampled_levels(sigmas, 6)
    assert torch.equal(doubled[::2], sigmas) and (doubled.diff() < 0).all()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"sampler": KSamplerSelect.execute("euler_ancestral")[0]}, ["sampler", "stochastic"]),
        ({"sampler": object()}, ["sampler is a object", "KSamplerSelect"]),
        ({"guider": object()}, ["guider is a object", "model_patcher", "BasicGuider"]),
        ({"steps": 6}, ["sigmas have 6 steps", "steps is 6", "more steps"]),
        ({"steps": 1}, ["steps is 1", "2 or more"]),
        ({"sigmas": torch.tensor([0.5, 0.8, 0.2, 0.1, 0.0])}, ["sigmas", "decrease", "scheduler"]),
        ({"sigmas": torch.tensor([14.0, 8.0, 4.0, 1.0, 0.0])}, ["sigmas start at 14", "largest"]),
        ({"sigmas": torch.zeros(0)}, ["sigmas", "at least 2", "scheduler"]),
        ({"batch_size": -1}, ["batch_size is -1"]),
        ({"quality": "perfect"}, ["quality is 'perfect'"]),
        ({"distance": "pixel-l2"}, ["distance 'pixel-l2'", "vae"]),
        ({"name": "a/b"}, ["'a/b'", "name"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_learned_from_is_refused_and_nothing_saved(
    changes: dict[str, Any], parts: list[str], train: Any, ld3_folder: Path
) -> None:
    files = set(ld3_folder.iterdir())
    with pytest.raises(ValueError) as caught:
        train(**{"name": "refused"} | changes)
    message = str(caught.value)
    for part in parts:
        assert part in message, message
    assert set(ld3_folder.iterdir()) == files


def test_the_sampler_of_a_learned_solver_is_refused(train: Any) -> None:
    sampler = train(learn="time steps + full solver", name="full")[1]
    with pytest.raises(ValueError, match="sampler is that of LD3 schedule.*KSamplerSelect"):
        train(sampler=sampler, name="refused")
