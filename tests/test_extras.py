"""Schedules whose table holds more than a core sampler can do, from training to sampling."""

from __future__ import annotations

import json
import logging
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.model_management
import comfy.model_sampling as model_sampling
import comfy.samplers
import folder_paths
import pytest
import safetensors.torch
import torch
import torchvision
from comfy_extras.nodes_custom_sampler import RandomNoise, SamplerCustom, SamplerCustomAdvanced
from torch import Tensor

from ld3.comfy import core_samplers
from ld3.comfy.executor import TableSampler
from ld3.comfy.guiders import cfg_guider
from ld3.comfy.sampling import schedule_sampler
from ld3.schedule import Schedule, ScheduleInfo
from ld3.schedule_file import load, save

SIZE = 8
GOOD, FLOW = {"spread": 0.95, "heldout_error": 0.0}, {"prediction_type": "flow"}
TINY = {
    "sampler_name": "euler", "steps": 3, "cfg": 1.0, "name": "extras", "seed": 0,
    "teacher_sampler": "dpmpp_2m", "teacher_scheduler": "karras", "teacher_steps": 12,
    "retrain": False, "denoise": 1.0, "distance": "pseudo-huber", "iterations": 8,
    "training_noises": 16, "heldout_noises": 8, "batch_size": 8,
    "learn": "time steps + decoupled times", "quality": "fast",
}  # fmt: skip
DETERMINISTIC = (
    "euler", "heun", "heunpp2", "exp_heun_2_x0", "dpm_2", "lms", "dpmpp_2m", "ipndm", "ipndm_v",
    "deis", "res_multistep", "gradient_estimation", "uni_pc", "uni_pc_bh2", "ddim",
)  # fmt: skip


@pytest.fixture(scope="module")
def vae(pack_nodes: dict[str, type]) -> Any:
    return pack_nodes["LD3DemoModel"].execute(batch_size=1)[1]


@pytest.fixture(scope="module")
def train(pack_nodes: dict[str, type], demo_inputs: dict[str, Any], ld3_folder: Path) -> Any:
    """LD3 Train Schedule with small settings; keywords replace some."""

    def run(**changes: Any) -> Any:
        return pack_nodes["LD3TrainSchedule"].execute(**(demo_inputs | TINY | changes))

    return run


@pytest.fixture(scope="module")
def sample(pack_nodes: dict[str, type], demo_inputs: dict[str, Any]) -> Any:
    """LD3 KSampler; keywords replace inputs."""

    def run(schedule: Any, **changes: Any) -> Tensor:
        sampling = {"schedule": schedule, "seed": 5, "cfg": 1.0, "denoise": 1.0}
        return pack_nodes["LD3KSampler"].execute(**(demo_inputs | sampling | changes))[0]["samples"]

    return run


def custom(demo_inputs: dict[str, Any], sampler: Any, sigmas: Tensor, **changes: Any) -> Tensor:
    """Core's SamplerCustom."""
    settings = {"add_noise": True, "noise_seed": 5, "cfg": 1.0}
    given = demo_inputs | settings | {"sampler": sampler, "sigmas": sigmas} | changes
    return SamplerCustom.execute(**given)[0]["samples"]


def plain_schedule(model: Any, sampler: str, sigmas: Tensor) -> Schedule:
    """A schedule without extras, as its table would run elsewhere."""
    sampling = model.get_model_object("model_sampling")
    table = core_samplers.traced_sampler(core_samplers.sampler_object(sampler), sampling).table(
        sigmas
    )
    info = ScheduleInfo(
        sampler, len(sigmas) - 1, table.model_calls, 1.0, 1.0, [3, SIZE, SIZE],
        core_samplers.prediction_type(sampling), float(sampling.sigma_max), "", {}, "", {}, "", {},
    )  # fmt: skip
    return Schedule(sigmas, table, info, sampler)


@pytest.mark.parametrize("split", [False, True], ids=["complete", "first part"])
@pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_a_table_without_extras_samples_as_the_core_sampler_does(
    sampler: str, flow: bool, split: bool, demo_inputs: dict[str, Any], flow_model: Any
) -> None:
    model = flow_model(demo_inputs["model"], 3.0) if flow else demo_inputs["model"]
    sigmas = core_samplers.scheduler_sigmas(model, "euler", "simple" if flow else "karras", 4, 1.0)
    sigmas = sigmas[:-1] if split else sigmas
    given = demo_inputs | {"model": model}
    core = custom(given, comfy.samplers.sampler_object(sampler), sigmas.clone())
    table = custom(given, TableSampler(plain_schedule(model, sampler, sigmas)), sigmas.clone())
    # uni_pc's own arithmetic in float32 is the roughest; in float64 all agree to 1e-12
    rounding = 1e-3 if sampler.startswith("uni_pc") else 1e-5
    assert float((table - core).abs().max()) <= rounding * float(core.abs().max())


def test_an_image_to_image_flow_is_sampled_as_core_does(demo_inputs: dict[str, Any]) -> None:
    """Its sigmas are Stable Diffusion's, it starts at the latent, and core subtracts from 1."""
    kinds = (model_sampling.ModelSamplingDiscrete, model_sampling.IMG_TO_IMG_FLOW)
    sampling = type("ImageToImageFlow", kinds, {})()
    assert not core_samplers.is_flow(sampling)
    model = demo_inputs["model"].clone()
    model.add_object_patch("model_sampling", sampling)
    image = torch.rand((2, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    given = demo_inputs | {"model": model, "latent_image": {"samples": image}}
    sigmas = core_samplers.scheduler_sigmas(model, "euler", "simple", 4, 1.0)
    core = custom(given, comfy.samplers.sampler_object("dpmpp_2m"), sigmas)
    table = custom(given, TableSampler(plain_schedule(model, "dpmpp_2m", sigmas)), sigmas)
    assert float((table - core).abs().max()) <= 1e-5 * float(core.abs().max())


def test_sigmas_whose_last_one_uni_pc_has_changed_give_the_same_sample(
    demo_inputs: dict[str, Any], flow_model: Any
) -> None:
    """uni_pc writes into its SIGMAS, which a graph passes on to the next sampler."""
    model = flow_model(demo_inputs["model"], 3.0)
    given = demo_inputs | {"model": model}
    sigmas = core_samplers.scheduler_sigmas(model, "euler", "simple", 4, 1.0)
    table = TableSampler(plain_schedule(model, "uni_pc", sigmas.clone()))
    wanted = custom(given, table, sigmas.clone())
    custom(given, comfy.samplers.sampler_object("uni_pc"), sigmas)
    assert float(sigmas[-1]) > 0
    assert torch.equal(custom(given, table, sigmas), wanted)


def test_a_table_samples_in_a_guider_as_in_sampler_custom(demo_inputs: dict[str, Any]) -> None:
    """SamplerCustomAdvanced with a CFGGuider gives the bits of SamplerCustom."""
    model = demo_inputs["model"]
    sigmas = core_samplers.scheduler_sigmas(model, "euler", "karras", 4, 1.0)
    table = TableSampler(plain_schedule(model, "dpmpp_2m", sigmas))
    guider = cfg_guider(model, demo_inputs["positive"], demo_inputs["negative"], 1.0)
    noise = RandomNoise.execute(5)[0]
    found = SamplerCustomAdvanced.execute(noise, guider, table, sigmas, demo_inputs["latent_image"])
    assert torch.equal(found[0]["samples"], custom(demo_inputs, table, sigmas))


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
def test_masks_guidance_and_batches_work_as_with_the_core_sampler(
    sampler: str, demo_inputs: dict[str, Any]
) -> None:
    generator = torch.Generator().manual_seed(7)
    samples = 0.5 * torch.randn((2, 3, SIZE, SIZE), generator=generator)
    mask = torch.zeros((1, SIZE, SIZE))
    mask[:, :, : SIZE // 2] = 1.0
    latent = {"samples": samples, "noise_mask": mask}
    sigmas = core_samplers.scheduler_sigmas(demo_inputs["model"], "euler", "karras", 4, 1.0)
    given = demo_inputs | {"latent_image": latent, "cfg": 3.0}
    core = custom(given, comfy.samplers.sampler_object(sampler), sigmas.clone())
    schedule = plain_schedule(demo_inputs["model"], sampler, sigmas)
    table = custom(given, TableSampler(schedule), sigmas.clone())
    torch.testing.assert_close(table, core, rtol=1e-3, atol=1e-3)
    assert torch.allclose(table[..., SIZE // 2 :], samples[..., SIZE // 2 :], atol=1e-4)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "uni_pc"])
def test_every_step_is_reported_once_as_core_does(
    sampler: str, demo_inputs: dict[str, Any]
) -> None:
    model = demo_inputs["model"]
    sigmas = core_samplers.scheduler_sigmas(model, "euler", "karras", 4, 1.0)
    reported: list[list[int]] = []
    schedule = plain_schedule(model, sampler, sigmas)
    for chosen in (comfy.samplers.sampler_object(sampler), TableSampler(schedule)):
        seen: list[int] = []
        guider = cfg_guider(model, demo_inputs["positive"], demo_inputs["negative"], 1.0)
        noise = torch.randn((1, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
        guider.sample(
            noise, torch.zeros_like(noise), chosen, sigmas.clone(), seed=0, disable_pbar=True,
            callback=lambda step, denoised, x, total, seen=seen: seen.append(step),
        )  # fmt: skip
        reported.append(seen)
    assert reported[0] == reported[1]


@pytest.mark.slow
def test_decoupled_times_are_learned_saved_loaded_and_sampled(
    train: Any, sample: Any, demo_inputs: dict[str, Any], pack_nodes: dict[str, type]
) -> None:
    sigmas, sampler, schedule, *_ = train()
    assert schedule.info.extras == ["decoupled times"] and schedule.info.report["eval_sigmas"]
    table = schedule.table
    assert not torch.equal(table.state_sigmas, table.eval_sigmas)
    assert float(table.eval_sigmas[0]) == pytest.approx(float(sigmas[0]))
    loaded = pack_nodes["LD3LoadSchedule"].execute(name=f"{schedule.name}.safetensors")
    assert torch.equal(loaded[2].table.eval_sigmas, table.eval_sigmas)
    ours = sample(schedule)
    assert torch.equal(ours, custom(demo_inputs, sampler, sigmas))
    assert torch.equal(ours, custom(demo_inputs, loaded[1], loaded[0]))
    steps_alone = custom(demo_inputs, comfy.samplers.sampler_object("euler"), sigmas)
    assert not torch.allclose(ours, steps_alone, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("learn", "extras"),
    [
        ("time steps + D-ODE", {"D-ODE"}),
        ("time steps + full solver", {"decoupled times", "solver corrections", "output mix"}),
    ],
)
def test_learned_solvers_are_saved_and_sampled_by_their_table(
    learn: str, extras: set[str], train: Any, sample: Any, demo_inputs: dict[str, Any]
) -> None:
    sigmas, sampler, schedule, *_ = train(learn=learn, name="solver")
    report = schedule.info.report
    assert set(schedule.info.extras) <= extras and report["extras"] == schedule.info.extras
    assert schedule.info.extras, "no extra reduced the error, so the test shows nothing"
    assert bool(report["lambdas"]) == ("D-ODE" in schedule.info.extras)
    assert torch.equal(sample(schedule), custom(demo_inputs, sampler, sigmas))


@pytest.fixture(scope="module")
def distill(pack_nodes: dict[str, type], demo_inputs: dict[str, Any], ld3_folder: Path) -> Any:
    """LD3 Distill Solver with small settings; keywords replace some."""
    small = {
        "cfg": 1.0, "name": "distilled", "seed": 0, "teacher_sampler": "dpmpp_2m",
        "training_noises": 8, "batch_size": 8,
    }  # fmt: skip

    def run(**changes: Any) -> Any:
        return pack_nodes["LD3DistillSolver"].execute(**(demo_inputs | small | changes))

    return run


def euler_sigmas(demo_inputs: dict[str, Any]) -> Tensor:
    return core_samplers.scheduler_sigmas(demo_inputs["model"], "euler", "karras", 4, 1.0)


@pytest.mark.slow
def test_any_sigmas_and_sampler_can_be_distilled(
    distill: Any, sample: Any, demo_inputs: dict[str, Any], pack_nodes: dict[str, type]
) -> None:
    plain = euler_sigmas(demo_inputs)
    euler = comfy.samplers.sampler_object("euler")
    sigmas, sampler, schedule = distill(sigmas=plain, sampler=euler)
    info = schedule.info
    assert torch.equal(sigmas, plain)
    assert info.sampler == "euler" and info.extras == ["D-ODE"] and info.method == "d-ode"
    assert info.report["error"] < info.report["plain_error"]
    assert info.report["training_calls"] <= 12 * 4 * 16
    result = sample(schedule)
    assert torch.equal(result, custom(demo_inputs, sampler, sigmas))
    assert not torch.allclose(result, custom(demo_inputs, euler, plain.clone()), atol=1e-3)
    loaded = pack_nodes["LD3LoadSchedule"].execute(name=f"{schedule.name}.safetensors")
    assert torch.equal(custom(demo_inputs, loaded[1], loaded[0]), result)


@pytest.mark.slow
def test_a_learned_schedule_can_be_distilled_once(distill: Any, train: Any, sample: Any) -> None:
    learned = train(learn="time steps", name="plain", iterations=1)[2]
    schedule = distill(schedule=learned, name="twice")[2]
    assert torch.equal(schedule.sigmas, learned.sigmas)
    assert torch.isfinite(sample(schedule)).all()
    if schedule.info.extras:
        with pytest.raises(ValueError, match="has D-ODE's lambdas already"):
            distill(schedule=schedule)


@pytest.mark.slow
@pytest.mark.parametrize("sigmas", [[14.6146, 10.0, 3.0, 2.0], [14.6146, 3.0, 2.0, 1.9]])
def test_the_first_part_of_a_split_sampling_can_be_distilled(
    sigmas: list[float], distill: Any, demo_inputs: dict[str, Any]
) -> None:
    euler = comfy.samplers.sampler_object("euler")
    found, sampler, _ = distill(sigmas=torch.tensor(sigmas), sampler=euler)
    assert torch.isfinite(custom(demo_inputs, sampler, found)).all()


@pytest.mark.slow
def test_distilled_sigmas_that_start_low_are_not_stretched(
    distill: Any, sample: Any, demo_inputs: dict[str, Any]
) -> None:
    euler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([2.0, 1.0, 0.5, 0.0])
    schedule = distill(sigmas=sigmas, sampler=euler, name="low")[2]
    assert schedule.info.extras == ["D-ODE"]
    found = custom(demo_inputs, schedule_sampler(schedule), schedule.sigmas.clone())
    assert torch.equal(sample(schedule), found)


@pytest.mark.slow
def test_other_options_of_a_sampler_are_other_work_and_are_kept(
    distill: Any, demo_inputs: dict[str, Any]
) -> None:
    """The file made with other options is not returned, and the result has the options."""

    def scaled(factor: float) -> Any:
        def step(model: Any, x: Tensor, sigmas: Tensor, extra_args=None, **keywords: Any) -> Tensor:
            for sigma, after in zip(sigmas, sigmas[1:], strict=False):
                x0 = model(x, sigma * x.new_ones(len(x)), **(extra_args or {}))
                x = x0 + (x - x0) * (after / sigma) * factor
            return x

        return comfy.samplers.KSAMPLER(step, inpaint_options={"random": True})

    sigmas = euler_sigmas(demo_inputs)
    tables = [distill(sigmas=sigmas, sampler=scaled(f))[2].table for f in (1.0, 0.9)]
    assert tables[0].distance(tables[1]) > 0.01
    assert distill(sigmas=sigmas, sampler=scaled(1.0))[1].inpaint_options == {"random": True}
    ddim = comfy.samplers.sampler_object("ddim")
    made = distill(sigmas=sigmas, sampler=ddim)
    assert made[2].info.sampler == "ddim"
    assert made[1].inpaint_options == ddim.inpaint_options != {}


@pytest.mark.slow
def test_work_whose_saved_file_is_damaged_is_repeated(
    distill: Any, demo_inputs: dict[str, Any], ld3_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"sigmas": euler_sigmas(demo_inputs), "sampler": comfy.samplers.sampler_object("euler")}
    first = distill(name="damaged", seed=3, **given)[2]
    path = ld3_folder / f"{first.name}.safetensors"
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        metadata = file.metadata()
    tensors["weights"] = tensors["weights"] * math.nan
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    again = distill(name="damaged", seed=3, **given)[2]
    assert "the work is repeated" in caplog.text and again.name != first.name
    assert torch.equal(again.table.weights, first.table.weights)


@pytest.mark.slow
def test_a_schedule_for_another_model_is_refused_or_warned_about(
    distill: Any, demo_inputs: dict[str, Any], flow_model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    schedule = plain_schedule(demo_inputs["model"], "euler", euler_sigmas(demo_inputs))
    with pytest.raises(ValueError, match="'eps' noise levels"):
        distill(schedule=schedule, model=flow_model(demo_inputs["model"], 3.0))
    distill(schedule=schedule, cfg=2.0, name="guided")
    assert "was learned at cfg 1, not 2" in caplog.text


def test_an_interrupted_distilling_saves_nothing(
    distill: Any, demo_inputs: dict[str, Any], ld3_folder: Path
) -> None:
    files = set(ld3_folder.iterdir())
    euler = comfy.samplers.sampler_object("euler")
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        distill(sigmas=euler_sigmas(demo_inputs), sampler=euler, seed=9)
    assert set(ld3_folder.iterdir()) == files


@pytest.mark.slow
def test_identical_distilling_returns_the_saved_file(
    distill: Any, demo_inputs: dict[str, Any], ld3_folder: Path
) -> None:
    given = {"sigmas": euler_sigmas(demo_inputs), "sampler": comfy.samplers.sampler_object("euler")}
    first = distill(name="again", **given)
    files = set(ld3_folder.iterdir())
    assert distill(name="again", **given)[2].name == first[2].name
    assert set(ld3_folder.iterdir()) == files


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, ["connect either schedule, or both sigmas and sampler"]),
        ({"sampler": "euler"}, ["connect either schedule"]),
        ({"sampler": "euler_ancestral", "sigmas": None}, ["sampler: ", "stochastic", "'euler'"]),
        ({"sampler": "euler", "sigmas": [9.0, 0.0]}, ["1 step", "2 steps or more"]),
        ({"sampler": "euler", "sigmas": [1.0, 2.0, 0.0]}, ["sigmas", "strictly decrease"]),
        ({"sampler": "euler", "sigmas": [80.0, 1.0, 0.0]}, ["sigmas start at 80", "14.61"]),
        ({"sampler": "own", "sigmas": None}, ["that of LD3 schedule", "the input schedule"]),
        ({"sampler": "other", "sigmas": None}, ["sampler is a Sampler", "KSamplerSelect"]),
        ({"sampler": "euler", "sigmas": None, "training_noises": 1}, ["training_noises is 1"]),
        ({"sampler": "euler", "sigmas": None, "cfg": -1.0}, ["cfg", "-1"]),
        ({"sampler": "euler", "sigmas": None, "name": "../x"}, ["../x"]),
    ],
)
def test_invalid_inputs_of_distilling_are_refused_and_nothing_is_saved(
    changes: dict[str, Any],
    parts: list[str],
    distill: Any,
    demo_inputs: dict[str, Any],
    ld3_folder: Path,
) -> None:
    given = dict(changes)
    if "sigmas" in given:
        levels = given["sigmas"]
        given["sigmas"] = torch.tensor(levels) if levels else euler_sigmas(demo_inputs)
    if given.get("sampler") == "own":
        euler = comfy.samplers.sampler_object("euler")
        given["sampler"] = distill(sigmas=euler_sigmas(demo_inputs), sampler=euler)[1]
    elif given.get("sampler") == "other":
        given["sampler"] = comfy.samplers.Sampler()
    elif "sampler" in given:
        given["sampler"] = comfy.samplers.sampler_object(given["sampler"])
    files = set(ld3_folder.iterdir())
    with pytest.raises(ValueError) as caught:
        distill(**given)
    for part in parts:
        assert part in str(caught.value)
    assert set(ld3_folder.iterdir()) == files


@pytest.mark.slow
@pytest.mark.parametrize("change", ["fewer", "moved"])
def test_a_sampler_with_extras_refuses_other_sigmas(
    change: str, train: Any, demo_inputs: dict[str, Any]
) -> None:
    sigmas, sampler, *_ = train()
    other = sigmas[1:] if change == "fewer" else sigmas * torch.tensor([1, 0.9, 1, 1])
    with pytest.raises(ValueError, match="decoupled times.* 3 steps.*LD3 KSampler"):
        custom(demo_inputs, sampler, other)


@pytest.mark.slow
def test_a_lower_denoise_samples_without_extras_and_warns(
    train: Any, sample: Any, caplog: pytest.LogCaptureFixture
) -> None:
    schedule = train()[2]
    with caplog.at_level(logging.WARNING):
        result = sample(schedule, denoise=0.6)
    assert "its steps are used without its decoupled times" in caplog.text
    plain = replace(schedule, info=replace(schedule.info, extras=[]))
    plain = replace(plain, table=replace(plain.table, eval_sigmas=plain.table.state_sigmas))
    assert torch.equal(result, sample(plain, denoise=0.6))


def test_files_of_format_1_still_load(tmp_path: Any, demo_inputs: dict[str, Any]) -> None:
    sigmas = core_samplers.scheduler_sigmas(demo_inputs["model"], "euler", "karras", 4, 1.0)
    path = save(plain_schedule(demo_inputs["model"], "dpmpp_2m", sigmas), tmp_path, "old")
    with safetensors.safe_open(path, framework="pt") as file:
        info = json.loads(file.metadata()["ld3"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    del info["extras"]
    info["format_version"] = 1
    safetensors.torch.save_file(tensors, path, metadata={"ld3": json.dumps(info)})
    loaded = load(path)
    assert loaded.info.extras == [] and torch.equal(loaded.sigmas, sigmas)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["gradient (LD3 paper)", "gradient (Adam, thorough)"])
def test_the_gradient_optimizers_learn_and_do_not_change_the_model(
    optimizer: str, train: Any, demo_inputs: dict[str, Any]
) -> None:
    euler = comfy.samplers.sampler_object("euler")
    sigmas = core_samplers.scheduler_sigmas(demo_inputs["model"], "euler", "karras", 3, 1.0)
    before = custom(demo_inputs, euler, sigmas)
    weights = {k: v.clone() for k, v in demo_inputs["model"].model.state_dict().items()}
    with torch.inference_mode():  # as ComfyUI runs nodes
        learned = train(
            optimizer=optimizer, name="gradient", soft_radius=0.5, iterations=1, training_noises=4
        )
    assert torch.equal(custom(demo_inputs, euler, sigmas), before)
    after = demo_inputs["model"].model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in weights.items())
    info = learned[2].info
    assert info.method == "gradient" and info.settings["gradient"]["radius"] == 0.5
    assert not comfy.model_management.in_training
    assert info.report["training_calls"] > 0


@pytest.mark.slow
def test_images_can_be_compared_instead_of_latents(train: Any, vae: Any) -> None:
    learned = train(distance="pixel-l2", vae=vae, name="pixels", iterations=1, training_noises=4)
    assert learned[2].info.settings["distance"] == "pixel-l2"


@pytest.fixture
def random_squeezenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SEEDED RANDOM backbone where a user puts the real one: it runs everything, sees nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = torchvision.models.squeezenet1_1(weights=None).state_dict()
    safetensors.torch.save_file(weights, tmp_path / "squeezenet1_1-b8a52dc0.safetensors")
    known = folder_paths.folder_names_and_paths
    monkeypatch.setitem(known, "lpips", ([str(tmp_path)], {".pth", ".safetensors"}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer", ["gauss-newton (fast, no autograd)", "gradient (Adam, thorough)"]
)
def test_both_optimizers_learn_by_lpips(
    optimizer: str, train: Any, vae: Any, random_squeezenet: None
) -> None:
    latent = {"samples": torch.zeros((1, 3, 24, 24)), "downscale_ratio_spacial": 1}
    with torch.inference_mode():  # as ComfyUI runs nodes
        info = train(
            distance="lpips-squeeze", vae=vae, name="lpips", latent_image=latent,
            optimizer=optimizer, steps=2, iterations=1, training_noises=4,
        )[2].info  # fmt: skip
    assert info.settings["distance"] == "lpips-squeeze"
    assert all(entry["error"] > 0 for entry in info.report["history"])


def test_images_too_small_for_the_network_are_refused(
    train: Any, vae: Any, random_squeezenet: None
) -> None:
    with pytest.raises(ValueError, match="8.*17"):
        train(distance="lpips-squeeze", vae=vae, name="small")


def test_a_missing_lpips_network_is_named_and_nothing_is_saved(
    train: Any, vae: Any, ld3_folder: Path
) -> None:
    files = set(ld3_folder.iterdir())
    with pytest.raises(ValueError, match=r"alexnet-owt-7be5be79.pth.*lpips"):
        train(distance="lpips-alex", vae=vae, name="lpips")
    assert set(ld3_folder.iterdir()) == files


def teacher(karras: float | None, beta: float | None) -> dict[str, Any]:
    """A teacher with the scheduler karras that was tested against beta."""
    check = {"errors": {"karras": karras, "beta": beta}, "reference_steps": 40, "calls": 1}
    return {"scheduler": "karras", "check": check | {"deviation": 1.0}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"spread": 0.8, "heldout_error": 0.0}, ["80%", "Use more steps"]),
        (GOOD | {"gain": [0.9, 1.1]}, ["0.90 to 1.10", "not certain", "quality best"]),
        (GOOD | {"gain": [0.5, 0.9]}, []),
        (GOOD, []),
        (
            GOOD | FLOW | {"teacher": {"scheduler": "karras"}},
            ["karras", "use auto, simple or beta"],
        ),
        (GOOD | FLOW | {"teacher": teacher(0.5, 0.01)}, ["karras", "0.5", "beta 0.01", "auto"]),
        ({"spread": 0.95, "heldout_error": 0.02, "teacher": teacher(0.015, 0.01)}, []),
        (GOOD | {"teacher": teacher(0.3, 0.3)}, ["30%", "40 steps", "raise teacher_steps"]),
        (GOOD | {"teacher": teacher(None, 0.01)}, ["not finite", "choose auto"]),
        (GOOD | {"teacher": teacher(None, None)}, []),
        (
            {"spread": 1.0, "heldout_error": 1e-3, "teacher": teacher(0.01, 0.01)},
            ["less exact", "0.001"],
        ),
        (GOOD | FLOW | {"teacher": {"scheduler": "beta"}}, []),
        (GOOD | {"teacher": {"scheduler": "karras"}}, []),
    ],
)
def test_poor_results_have_warnings(
    changed: dict[str, Any], parts: list[str], train: Any, pack: ModuleType
) -> None:
    changed = {"gain": []} | changed
    messages = sys.modules[f"{pack.__name__}.nodes.messages"]
    info = train(learn="time steps", name="plain", iterations=1)[2].info
    untested = {"teacher": {"scheduler": "karras"}}
    kinds = ("prediction_type", "teacher")
    kind = untested | {key: changed.pop(key) for key in kinds if key in changed}
    info = replace(info, report=info.report | changed, **kind)
    warnings = messages.training_warnings(info)
    assert all(part in " ".join(warnings) for part in parts)
    assert bool(warnings) == bool(parts)
