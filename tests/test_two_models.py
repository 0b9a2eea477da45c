"""Two models in one training and sampling, in ComfyUI: the demo's flow model, and it patched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_extras.nodes_custom_sampler import (
    BasicGuider,
    BasicScheduler,
    CFGGuider,
    DisableNoise,
    DualModelGuider,
    KSamplerSelect,
    RandomNoise,
    SamplerCustomAdvanced,
)
from torch import Tensor

from ld3.comfy.executor import recognised
from ld3.comfy.guided_run import GuidedRun, run
from ld3.comfy.guiders import cfg_guider
from ld3.comfy.latents import noise_for
from ld3.comfy.two_models import TwoGuiders
from ld3.table import Discretization

pytestmark = pytest.mark.usefixtures("one_thread", "small_search")
BOUNDARY, CFG, SEED = 0.7, 2.0, 8
BOTH = {
    "steps": 4, "name": "two", "seed": 0, "quality": "fast", "minutes": 0.0, "retrain": False,
    "distance": "pseudo-huber", "iterations": 2, "training_noises": 4, "heldout_noises": 4,
    "batch_size": 4, "boundary": BOUNDARY,
}  # fmt: skip
TINY = BOTH | {
    "cfg": CFG, "sampler_name": "dpmpp_2m", "teacher_sampler": "dpmpp_2m",
    "teacher_scheduler": "simple", "teacher_steps": 8, "denoise": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def flow(pack_nodes: dict[str, type]) -> Any:
    return pack_nodes["LD3DemoModel"].execute(batch_size=1, model="flow")[0]


def patched(model: Any) -> Any:
    """A clone with other weights."""
    clone, patches = model.clone(), {}
    generator = torch.Generator().manual_seed(5)
    for name, weight in model.model.state_dict().items():
        if name.startswith("diffusion_model") and weight.ndim == 2:
            up, down = (torch.randn(size, 1, generator=generator) for size in weight.shape)
            patches[name] = ("diff", (0.02 * up @ down.T,))
    clone.add_patches(patches, 0.7)
    return clone


@pytest.fixture(scope="module")
def changed(pack_nodes: dict[str, type]) -> Any:
    """The low-noise model, loaded from the file a second time."""
    return patched(pack_nodes["LD3DemoModel"].execute(batch_size=1, model="flow")[0])


@pytest.fixture(scope="module")
def conds(demo_inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: demo_inputs[name] for name in ("positive", "negative", "latent_image")}


@pytest.fixture(scope="module")
def train(
    pack_nodes: dict[str, type], flow: Any, changed: Any, conds: dict[str, Any], ld3_folder: Path
) -> Any:
    def learn(**changes: Any) -> Any:
        inputs = {"model": flow, "low_noise_model": changed, **conds} | TINY | changes
        return pack_nodes["LD3TrainSchedule"].execute(**inputs)

    return learn


@pytest.fixture(scope="module")
def full(train: Any) -> Any:
    """The outputs of a full solver."""
    return train(learn="time steps + full solver")


@pytest.fixture(scope="module")
def sample(pack_nodes: dict[str, type], flow: Any, changed: Any, conds: dict[str, Any]) -> Any:
    def sampled(schedule: Any, **changes: Any) -> Tensor:
        inputs = {"model": flow, "low_noise_model": changed, **conds, "seed": SEED, "cfg": CFG}
        inputs |= {"denoise": 1.0, "schedule": schedule}
        return pack_nodes["LD3KSampler"].execute(**inputs | changes)[0]["samples"]

    return sampled


def in_two_nodes(models: tuple[Any, ...], conds: dict[str, Any], outputs: Any) -> Tensor:
    """Core's SamplerCustomAdvanced twice, with a training's outputs."""
    latent, noises = (
        conds["latent_image"],
        (RandomNoise.execute(SEED)[0], DisableNoise.execute()[0]),
    )
    for noise, model, sigmas in zip(noises, models, outputs[4:6], strict=True):
        guider = CFGGuider.execute(model, conds["positive"], conds["negative"], CFG)[0]
        latent = SamplerCustomAdvanced.execute(noise, guider, outputs[1], sigmas, latent)[0]
    return latent["samples"]


def close(found: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * scale)


@pytest.mark.slow
def test_a_full_solver_of_both_models_is_the_same_in_one_node_and_in_two(
    full: Any, sample: Any, flow: Any, changed: Any, conds: dict[str, Any]
) -> None:
    schedule, info = full[2], full[2].info
    assert 0 < info.high_steps == info.high_calls < 4 and info.boundary == BOUNDARY
    assert float(schedule.sigmas[info.high_steps - 1]) >= BOUNDARY
    assert float(schedule.sigmas[info.high_steps]) < BOUNDARY
    assert float(full[4][-1]) == float(full[5][0]) and float(full[5][-1]) == 0
    ours = sample(schedule)
    close(in_two_nodes((flow, changed), conds, full), ours)
    # weights that both share are patched in turn
    assert torch.equal(sample(schedule, low_noise_model=patched(flow)), ours)
    swapped = sample(schedule, model=changed, low_noise_model=flow)
    assert (swapped - ours).abs().max() > 1e-2 * ours.abs().max()


@pytest.mark.slow
def test_ld3_ksampler_samples_as_the_training_did_bit_for_bit_and_loads_each_model_once(
    full: Any, sample: Any, flow: Any, changed: Any, conds: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    schedule, prompts = full[2], (conds["positive"], conds["negative"])
    guiders = TwoGuiders(*(cfg_guider(m, *prompts, CFG) for m in (flow, changed)), BOUNDARY)
    latent = conds["latent_image"]["samples"]

    def rolled_out(guided: GuidedRun) -> Tensor:
        solver = Discretization(schedule.sigmas, schedule.table)
        return guided.model.sample(solver, noise_for(latent, SEED), latent)[0]

    expected = run(guiders, latent, schedule.sigmas, rolled_out, 0)
    loads, load = [], comfy.model_management.load_models_gpu

    def counted(models: Any, *args: Any, **more: Any) -> None:
        loads.append(models[0])
        load(models, *args, **more)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", counted)
    assert torch.equal(sample(schedule), flow.model.process_latent_out(expected))
    assert loads == [flow, changed, flow, changed]  # both when they begin, then each at its turn


@pytest.mark.slow
def test_time_steps_of_a_sampler_with_two_calls_a_step_run_with_core_samplers(
    train: Any, sample: Any, flow: Any, changed: Any, conds: dict[str, Any]
) -> None:
    outputs = train(learn="time steps", sampler_name="heun", teacher_sampler="heun", name="heun")
    info = outputs[2].info
    assert info.high_calls == 2 * info.high_steps and info.model_calls == 7
    assert type(outputs[1]).__name__ == "KSAMPLER"
    close(in_two_nodes((flow, changed), conds, outputs), sample(outputs[2]))


@pytest.mark.slow
def test_two_connected_guiders_with_their_own_cfg_are_learned_and_the_boundary_decides(
    pack_nodes: dict[str, type], flow: Any, changed: Any, conds: dict[str, Any], ld3_folder: Path
) -> None:
    """The low-noise one is itself a guider of two models, one for each prompt."""
    inputs = {
        "guider": BasicGuider.execute(flow, conds["positive"])[0],
        "low_noise_guider": DualModelGuider.execute(
            changed, conds["positive"], 3.0, flow, conds["negative"]
        )[0],
        "sampler": KSamplerSelect.execute("euler")[0],
        "sigmas": BasicScheduler.execute(flow, "simple", 8, 1.0)[0],
        "latent_image": conds["latent_image"],
        "learn": "time steps",
    }
    node = pack_nodes["LD3TrainScheduleAdvanced"]
    schedules = [
        node.execute(**BOTH | inputs | {"name": f"guiders {b}", "boundary": b})[2]
        for b in (0.9, 0.3)
    ]
    for boundary, schedule in zip((0.9, 0.3), schedules, strict=True):
        high = int((schedule.sigmas[:-1] >= boundary).sum())
        assert schedule.info.high_steps == high
    settings = schedules[0].info.settings
    assert settings["low_noise_guider"] == "Guider_DualModel" and settings["low_noise_cfg"] == 3


REFUSED = {
    "boundary above": ({"boundary": 1.2}, ["boundary is 1.2", "high-noise model none", "lower"]),
    "boundary below": ({"boundary": 0.0}, ["boundary is 0", "low-noise model none", "raise"]),
    "boundary unknown": ({"boundary": float("nan")}, ["boundary is nan", "noise level"]),
    "denoise": ({"denoise": 0.5}, ["boundary is 0.7", "high-noise model none"]),
    "gradient": ({"optimizer": "gradient (LD3 paper)"}, ["optimizer is 'gradient", "gauss-newton"]),
    "D-ODE": ({"learn": "time steps + D-ODE"}, ["learn is 'time steps + D-ODE'", "two models"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_two_models_cannot_be_trained_with_is_refused(
    case: str, train: Any, ld3_folder: Path
) -> None:
    changes, parts = REFUSED[case]
    files = set(ld3_folder.iterdir())
    with pytest.raises(ValueError) as caught:
        train(**{"name": "refused"} | changes)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert set(ld3_folder.iterdir()) == files


@pytest.mark.parametrize("kind", ["eps", "format"])
def test_a_second_model_of_another_kind_is_refused(
    kind: str, train: Any, pack_nodes: dict[str, type]
) -> None:
    from comfy.latent_formats import SD15

    name = {"model": "flow"} if kind == "format" else {}
    other = pack_nodes["LD3DemoModel"].execute(batch_size=1, **name)[0]
    if kind == "format":
        other.model.latent_format = SD15()
    with pytest.raises(ValueError, match="low_noise_model's model.*connect a model of the same"):
        train(low_noise_model=other, name="refused")


@pytest.mark.slow
def test_sampling_needs_as_many_models_as_were_trained(full: Any, sample: Any) -> None:
    with pytest.raises(ValueError, match="is for two models: connect.*low_noise_model"):
        sample(full[2], low_noise_model=None)
    with pytest.raises(ValueError, match="high_sigmas or low_sigmas only"):
        recognised(full[2], full[2].sigmas)


@pytest.mark.slow
def test_a_schedule_for_one_model_says_so_where_two_are_expected(train: Any, sample: Any) -> None:
    outputs = train(low_noise_model=None, name="one", learn="time steps")
    assert outputs[2].info.boundary == 0 and outputs[2].info.format_version == 2
    for part in outputs[4:6]:
        assert isinstance(part, ExecutionBlocker) and "is for one model" in str(part.message)
    with pytest.raises(ValueError, match="is for one model, and low_noise_model is connected"):
        sample(outputs[2])
