"""Latents of two streams, nested as core's nodes for audio and video make them, on exact models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfy_extras.nodes_custom_sampler import (
    BasicGuider,
    BasicScheduler,
    KSamplerSelect,
    RandomNoise,
    SamplerCustomAdvanced,
)
from torch import Tensor

from ld3.model import Model
from ld3.parameters import LOGIT_SIGMA
from ld3.streams import Streams
from ld3.training.report import Report
from ld3.trajectories import subsample

pytestmark = pytest.mark.usefixtures("one_thread")
VIDEO, AUDIO = (3, 2, 6, 6), (2, 10)
SIZES = (math.prod(VIDEO), math.prod(AUDIO))
STDS = (1.0, 0.05)
TINY = {
    "steps": 3, "name": "nested", "seed": 0, "learn": "time steps", "quality": "fast",
    "minutes": 0.0, "retrain": False, "distance": "pseudo-huber", "iterations": 2,
    "training_noises": 4, "heldout_noises": 4, "batch_size": 4,
}  # fmt: skip


def spread_of(x: Tensor) -> Tensor:
    """The standard deviation of the data, for each element of packed latents."""
    return torch.cat([torch.full((n,), s) for n, s in zip(SIZES, STDS, strict=True)]).to(x)


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    """Exact for two modes at +-s in each element, as a flow model."""
    assert x.shape[1:] == (1, sum(SIZES))
    s = spread_of(x)
    return s * torch.tanh((1 - sigma) * s * x / (sigma**2).clamp_min(1e-6))


def latent() -> dict[str, Any]:
    return {"samples": NestedTensor([torch.zeros((1, *VIDEO)), torch.zeros((1, *AUDIO))])}


@pytest.fixture(scope="module")
def guider(pack_nodes: dict[str, type], demo_inputs: dict[str, Any]) -> Any:
    """`guider(one)`: of the exact model; with `one` it takes one sample per call, as MiniMax H3."""

    def made(one: bool = False) -> Any:
        model = pack_nodes["LD3DemoModel"].execute(batch_size=1, model="flow")[0]

        def call(apply: Any, arguments: dict[str, Any]) -> Tensor:
            x = arguments["input"]
            if one and len(x) > 1:
                raise ValueError("Exact model supports batch size 1")
            return denoise(x, arguments["timestep"].reshape(-1, 1, 1))

        model.set_model_unet_function_wrapper(call)
        return BasicGuider.execute(model, demo_inputs["positive"])[0]

    return made


@pytest.fixture(scope="module")
def train(pack_nodes: dict[str, type], guider: Any, ld3_folder: Path) -> Any:
    def run(one: bool = False, **changes: Any) -> Any:
        made = guider(one)
        inputs = {
            "guider": made,
            "sampler": KSamplerSelect.execute("euler")[0],
            "sigmas": BasicScheduler.execute(made.model_patcher, "simple", 16, 1.0)[0],
            "latent_image": latent(),
        }
        return pack_nodes["LD3TrainScheduleAdvanced"].execute(**(inputs | TINY | changes))

    return run


def sampled(guider: Any, sampler: Any, sigmas: Tensor, seed: int) -> list[Tensor]:
    noise = RandomNoise.execute(seed)[0]
    result = SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent())[0]["samples"]
    return result.unbind()


def test_the_errors_of_both_streams_are_those_of_core_sampling(train: Any, guider: Any) -> None:
    sigmas, sampler, schedule, *_ = train()
    report = Report.from_json(schedule.info.report)
    name = report.chosen
    teacher = BasicScheduler.execute(guider().model_patcher, "simple", 16, 1.0)[0]
    squares = torch.zeros(2)
    for seed in range(8, 12):
        pair = [sampled(guider(), sampler, levels, seed) for levels in (sigmas, teacher)]
        for k, (found, wanted) in enumerate(zip(*pair, strict=True)):
            squares[k] += (found - wanted).square().mean() / 4
    known = [sampled(guider(), sampler, teacher, seed) for seed in range(4)]
    stds = torch.stack([torch.cat(stream).std() for stream in zip(*known, strict=True)])
    assert float(stds[1]) < 0.1 * float(stds[0])  # the second would not count without its scale
    errors = report.stream_errors[name]
    assert errors == pytest.approx((squares.sqrt() / stds).tolist(), rel=0.01)
    standard = report.stream_errors[report.best_baseline() or ""]
    assert all(e < 0.3 * s for e, s in zip(errors, standard, strict=True))


def test_nested_latents_are_sampled_by_ld3_ksampler_as_by_core(
    train: Any, guider: Any, pack_nodes: dict[str, type], demo_inputs: dict[str, Any]
) -> None:
    sigmas, sampler, schedule, *_ = train(learn="time steps + full solver", name="solver")
    inputs = demo_inputs | {"model": guider().model_patcher, "latent_image": latent()}
    ours = pack_nodes["LD3KSampler"].execute(
        **inputs, schedule=schedule, seed=5, cfg=1.0, denoise=1.0
    )[0]["samples"]
    core = sampled(guider(), sampler, sigmas, 5)
    assert [tuple(part.shape[1:]) for part in ours.unbind()] == [VIDEO, AUDIO]
    for found, wanted in zip(ours.unbind(), core, strict=True):
        assert torch.equal(found, wanted) and torch.isfinite(found).all()


def test_a_model_that_takes_one_sample_per_call_learns_the_same(train: Any) -> None:
    together = train(name="together", seed=3)[0]
    one_by_one = train(one=True, name="one", seed=3, retrain=True)[0]
    torch.testing.assert_close(one_by_one, together, rtol=1e-3, atol=1e-4)


def test_a_mask_of_one_stream_or_of_both_is_kept(train: Any, guider: Any) -> None:
    kept = NestedTensor([0.5 * torch.ones((1, *VIDEO)), 0.02 * torch.ones((1, *AUDIO))])
    mask = NestedTensor([torch.ones((1, 1, *VIDEO[1:])), torch.zeros((1, 1, AUDIO[-1]))])
    given = {"samples": kept, "noise_mask": mask}
    sigmas, sampler, *_ = train(latent_image=given, name="masked")
    noise = RandomNoise.execute(1)[0]
    result = SamplerCustomAdvanced.execute(noise, guider(), sampler, sigmas, given)[0]["samples"]
    video, audio = result.unbind()
    torch.testing.assert_close(audio, kept.unbind()[1], rtol=0, atol=1e-5)
    assert float((video - kept.unbind()[0]).abs().mean()) > 0.1


@pytest.mark.parametrize("one", [False, True])
def test_another_size_of_a_stream_is_another_training(one: bool, train: Any) -> None:
    first = train(one=one, name="size")[2]
    assert first.info.latent_shape == [1, sum(SIZES)]
    assert first.info.settings["streams"] == [list(VIDEO), list(AUDIO)]


def test_images_cannot_be_compared_of_several_streams(
    train: Any, pack_nodes: dict[str, type]
) -> None:
    vae = pack_nodes["LD3DemoModel"].execute(batch_size=1)[1]
    with pytest.raises(ValueError, match="pixel-l2.*2 streams.*pseudo-huber"):
        train(distance="pixel-l2", vae=vae, name="refused")


def test_scaled_streams_have_equal_shares_of_the_mean_square() -> None:
    samples = torch.randn(64, 1, sum(SIZES)) * spread_of(torch.zeros(1))
    scaled = Streams.of(SIZES, samples).scaled(samples).flatten(1)
    first, second = (part.square().sum() for part in scaled.split(list(SIZES), 1))
    assert float(first / second) == pytest.approx(1.0, rel=0.05)
    assert float(scaled.square().mean()) == pytest.approx(1.0, rel=0.05)


def test_the_errors_of_streams_are_in_their_standard_deviations() -> None:
    samples = torch.randn(64, 1, sum(SIZES)) * spread_of(torch.zeros(1))
    streams = Streams.of(SIZES, samples)
    residual = 0.1 * spread_of(torch.zeros(1)) * torch.ones(4, 1, sum(SIZES))
    found = streams.errors(subsample(streams.scaled(residual)))
    assert found == pytest.approx([0.1, 0.1], rel=0.05)


def test_a_scaled_model_is_the_same_model() -> None:
    def call(x: Tensor, sigma: Tensor) -> Tensor:
        return denoise(x, sigma.reshape(-1, 1, 1))

    plain = Model(call, LOGIT_SIGMA, 0.001, 1.0, scale_noise=lambda n, x, s: s * n + (1 - s) * x)
    samples = torch.randn(8, 1, sum(SIZES)) * spread_of(torch.zeros(1))
    streams = Streams.of(SIZES, samples)
    model = streams.model(plain)
    noise = torch.randn(2, 1, sum(SIZES))
    x = plain.start(torch.tensor([0.8, 0.0]), noise, samples[:2])
    scaled = model.start(
        torch.tensor([0.8, 0.0]), streams.scaled(noise), streams.scaled(samples[:2])
    )
    torch.testing.assert_close(scaled, streams.scaled(x))
    level = torch.full((2,), 0.8)
    torch.testing.assert_close(model(scaled, level), streams.scaled(plain(x, level)))
