"""The nodes, run in this process on the demo model: their results and their errors."""

from __future__ import annotations

import copy
import logging
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_sampling
import numpy as np
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom

from ld3 import schedule_file
from ld3.comfy.distilling_job import Source, distill_solver
from ld3.comfy.job import GraphInputs
from ld3.comfy.requests import DistillRequest, TrainingRequest
from ld3.comfy.sampling import prepared_sampling
from ld3.comfy.training_job import train_schedule

SIZE = 8  # of a latent

# node_id -> inputs in order, outputs in order. Saved workflows depend on both: append only.
CONTRACT = {
    "LD3TrainSchedule": {
        "inputs": "model:MODEL positive:CONDITIONING negative:CONDITIONING latent_image:LATENT "
        "sampler_name:COMBO steps:INT cfg:FLOAT name:STRING seed:INT teacher_sampler:COMBO "
        "teacher_scheduler:COMBO teacher_steps:INT retrain:BOOLEAN denoise:FLOAT distance:COMBO "
        "iterations:INT training_noises:INT heldout_noises:INT batch_size:INT learn:COMBO "
        "optimizer:COMBO soft_radius:FLOAT vae:VAE quality:COMBO minutes:FLOAT "
        "compare_sampler:COMBO compare_scheduler:COMBO cache_gb:FLOAT "
        "options:LD3_TRAINING_OPTIONS also_steps:STRING low_noise_model:MODEL boundary:FLOAT",
        "outputs": "sigmas:SIGMAS sampler:SAMPLER schedule:LD3_SCHEDULE report:IMAGE "
        "high_sigmas:SIGMAS low_sigmas:SIGMAS",
    },
    "LD3TrainScheduleAdvanced": {
        "inputs": "guider:GUIDER sampler:SAMPLER sigmas:SIGMAS latent_image:LATENT steps:INT "
        "name:STRING seed:INT learn:COMBO quality:COMBO minutes:FLOAT retrain:BOOLEAN "
        "distance:COMBO iterations:INT training_noises:INT heldout_noises:INT batch_size:INT "
        "vae:VAE cache_gb:FLOAT options:LD3_TRAINING_OPTIONS teacher_guider:GUIDER "
        "compare_with:SIGMAS also_steps:STRING low_noise_guider:GUIDER boundary:FLOAT "
        "low_noise_teacher:GUIDER",
        "outputs": "sigmas:SIGMAS sampler:SAMPLER schedule:LD3_SCHEDULE report:IMAGE "
        "high_sigmas:SIGMAS low_sigmas:SIGMAS",
    },
    "LD3TrainingOptions": {
        "inputs": "iterations:INT training_noises:INT heldout_noises:INT batch_size:INT",
        "outputs": "options:LD3_TRAINING_OPTIONS",
    },
    "LD3LoadSchedule": {
        "inputs": "name:COMBO steps:INT",
        "outputs": "sigmas:SIGMAS sampler:SAMPLER schedule:LD3_SCHEDULE high_sigmas:SIGMAS "
        "low_sigmas:SIGMAS",
    },
    "LD3KSampler": {
        "inputs": "model:MODEL schedule:LD3_SCHEDULE seed:INT cfg:FLOAT positive:CONDITIONING "
        "negative:CONDITIONING latent_image:LATENT denoise:FLOAT low_noise_model:MODEL",
        "outputs": "None:LATENT",
    },
    "LD3DistillSolver": {
        "inputs": "model:MODEL positive:CONDITIONING negative:CONDITIONING latent_image:LATENT "
        "cfg:FLOAT name:STRING seed:INT teacher_sampler:COMBO training_noises:INT batch_size:INT "
        "schedule:LD3_SCHEDULE sigmas:SIGMAS sampler:SAMPLER",
        "outputs": "sigmas:SIGMAS sampler:SAMPLER schedule:LD3_SCHEDULE",
    },
    "LD3CompareSchedules": {
        "inputs": "model:MODEL positive:CONDITIONING negative:CONDITIONING latent_image:LATENT "
        "vae:VAE schedule:LD3_SCHEDULE seed:INT cfg:FLOAT noises:INT compare_with:STRING "
        "row_names:STRING positive_2:CONDITIONING positive_3:CONDITIONING positive_4:CONDITIONING "
        "schedule_2:LD3_SCHEDULE schedule_3:LD3_SCHEDULE schedule_4:LD3_SCHEDULE "
        "low_noise_model:MODEL",
        "outputs": "picture:IMAGE table:STRING",
    },
    "LD3PlotSchedule": {
        "inputs": "schedule:LD3_SCHEDULE schedule_2:LD3_SCHEDULE schedule_3:LD3_SCHEDULE "
        "sigmas:SIGMAS sigmas_2:SIGMAS sigmas_3:SIGMAS",
        "outputs": "picture:IMAGE text:STRING",
    },
    "LD3DemoModel": {
        "inputs": "batch_size:INT model:COMBO",
        "outputs": "None:MODEL None:VAE None:LATENT None:CLIP",
    },
    "LD3PromptList": {"inputs": "clip:CLIP text:STRING", "outputs": "None:CONDITIONING"},
    "LD3DemoPrompt": {"inputs": "text:STRING", "outputs": "None:CONDITIONING"},
}

TINY = {
    "sampler_name": "dpmpp_2m",
    "steps": 3,
    "cfg": 1.0,
    "name": "tiny",
    "seed": 0,
    "teacher_sampler": "dpmpp_2m",
    "teacher_scheduler": "karras",
    "teacher_steps": 4,
    "retrain": False,
    "denoise": 1.0,
    "distance": "pseudo-huber",
    "iterations": 1,
    "training_noises": 4,
    "heldout_noises": 4,
    "batch_size": 16,
    "learn": "time steps",
    "quality": "fast",
}
EMPTY_BATCH = {"samples": torch.zeros((0, 3, SIZE, SIZE)), "downscale_ratio_spacial": 1}
REQUEST = {key: value for key, value in TINY.items() if key not in ("name", "retrain")}


@pytest.fixture(scope="module")
def model(demo_inputs: dict[str, Any]) -> Any:
    return demo_inputs["model"]


@pytest.fixture(scope="module")
def conds(demo_inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: demo_inputs[name] for name in ("positive", "negative")}


@pytest.fixture(scope="module")
def train(pack_nodes: dict[str, type], demo_inputs: dict[str, Any], ld3_folder: Path) -> Any:
    """LD3 Train Schedule with small settings; keywords replace some."""

    def run(**changes: Any) -> Any:
        return pack_nodes["LD3TrainSchedule"].execute(**(demo_inputs | TINY | changes))

    return run


@pytest.fixture(scope="module")
def schedule(train: Any) -> Any:
    return train()[2]


@pytest.fixture(scope="module")
def sample(
    pack_nodes: dict[str, type], demo_inputs: dict[str, Any], schedule: Any, empty_latent: Any
) -> Any:
    """LD3 KSampler on two latents; keywords replace inputs."""

    def run(**changes: Any) -> torch.Tensor:
        inputs = {"schedule": schedule, "seed": 5, "cfg": 1.0, "denoise": 1.0}
        inputs |= {"latent_image": empty_latent(2)}
        return pack_nodes["LD3KSampler"].execute(**(demo_inputs | inputs | changes))[0]["samples"]

    return run


def picture(batch: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(7)
    samples = 0.5 * torch.randn((batch, 3, SIZE, SIZE), generator=generator)
    return {"samples": samples, "downscale_ratio_spacial": 1}


def another_model(pack_nodes: dict[str, type]) -> Any:
    """The demo model with other weights."""
    other = pack_nodes["LD3DemoModel"].execute(batch_size=1)[0]
    with torch.no_grad():
        for weight in other.model.diffusion_model.parameters():
            weight.mul_(0.9)
    return other


def flattened(value: Any) -> list[Any]:
    """Tensors as bytes and everything else by value, to compare before and after."""
    if isinstance(value, torch.Tensor):
        return [tuple(value.shape), value.detach().cpu().numpy().tobytes()]
    if isinstance(value, dict):
        return [(str(key), flattened(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [flattened(item) for item in value]
    return [repr(value)]


def test_inputs_and_outputs_of_nodes_are_those_that_saved_workflows_have(
    pack_nodes: dict[str, type],
) -> None:
    found = {}
    for node_id, node in pack_nodes.items():
        schema = node.GET_SCHEMA()
        found[node_id] = {
            "inputs": " ".join(f"{part.id}:{part.io_type}" for part in schema.inputs),
            "outputs": " ".join(f"{part.display_name}:{part.io_type}" for part in schema.outputs),
        }
    assert {key: found[key] for key in CONTRACT} == CONTRACT


def test_nodes_that_learn_or_show_are_output_nodes(pack_nodes: dict[str, type]) -> None:
    outputs = {key for key, node in pack_nodes.items() if node.GET_SCHEMA().is_output_node}
    learn = {"LD3TrainSchedule", "LD3TrainScheduleAdvanced", "LD3DistillSolver"}
    assert outputs == learn | {"LD3CompareSchedules", "LD3PlotSchedule"}


@pytest.mark.parametrize("case", ["plain", "batch_index", "noise_mask", "picture", "cfg 3"])
def test_ld3_ksampler_equals_core_sampler_custom_bit_for_bit(
    case: str, train: Any, sample: Any, model: Any, conds: dict[str, Any], empty_latent: Any
) -> None:
    sigmas, sampler, schedule, *_ = train()
    latent = picture() if case in ("noise_mask", "picture") else empty_latent(2)
    cfg = 3.0 if case == "cfg 3" else 1.0
    if case == "batch_index":
        latent["batch_index"] = [4, 1]
    if case == "noise_mask":
        latent["noise_mask"] = torch.zeros((1, SIZE, SIZE))
        latent["noise_mask"][:, :, : SIZE // 2] = 1.0
    core = SamplerCustom.execute(
        model=model, add_noise=True, noise_seed=5, cfg=cfg, sampler=sampler, sigmas=sigmas,
        latent_image=latent, **conds,
    )[0]["samples"]  # fmt: skip
    ours = sample(schedule=schedule, latent_image=latent, cfg=cfg)
    assert torch.equal(ours, core)
    assert ours.shape == (2, 3, SIZE, SIZE) and torch.isfinite(ours).all()
    if case == "noise_mask":
        kept, made = latent["samples"][..., SIZE // 2 :], ours[..., SIZE // 2 :]
        assert torch.allclose(kept, made, atol=1e-5)


@pytest.mark.parametrize("denoise", [0.6, 0.95])
def test_a_lower_denoise_makes_as_many_steps_from_a_lower_level(
    denoise: float, schedule: Any, sample: Any, model: Any, conds: dict[str, Any]
) -> None:
    sampler, sigmas, _, warnings, *_ = prepared_sampling(schedule, model, 1.0, denoise)
    assert warnings == [
        f"schedule 'tiny' was learned at denoise 1; at {denoise:g} its steps are used stretched: "
        f"train one at {denoise:g}"
    ]
    assert len(sigmas) == TINY["steps"] + 1 and float(sigmas[-1]) == 0
    assert (sigmas[:-1] > sigmas[1:]).all() and sigmas[0] <= schedule.sigmas[0]
    core = SamplerCustom.execute(
        model=model, add_noise=True, noise_seed=5, cfg=1.0, latent_image=picture(), sigmas=sigmas,
        sampler=sampler, **conds,
    )[0]["samples"]  # fmt: skip
    assert torch.equal(sample(latent_image=picture(), denoise=denoise), core)


def test_batch_index_selects_the_noise(sample: Any, empty_latent: Any) -> None:
    pair, second = empty_latent(2), empty_latent(1)
    second["batch_index"] = [1]
    assert torch.allclose(sample(latent_image=second)[0], sample(latent_image=pair)[1], atol=1e-4)


@pytest.mark.slow
def test_batch_index_selects_the_training_noises(train: Any, empty_latent: Any) -> None:
    first, second = empty_latent(), empty_latent()
    first["batch_index"], second["batch_index"] = [0], [3]
    changes = {"name": "indexed"}
    plain = train(retrain=True, **changes)[0]
    assert torch.equal(plain, train(latent_image=first, **changes)[0])
    assert not torch.equal(plain, train(latent_image=second, **changes)[0])


@pytest.mark.slow
def test_training_and_sampling_change_no_input(
    train: Any, sample: Any, model: Any, conds: dict[str, Any]
) -> None:
    latent = picture()
    latent["batch_index"] = [0, 1]
    state = [model.model_options, model.model.state_dict(), conds, latent]
    patches = (model.patches_uuid, len(model.patches), len(model.object_patches))
    before, options = flattened(state), copy.deepcopy(list(model.model_options))
    train(latent_image=latent, retrain=True, name="inputs", cfg=2.0)
    sample(latent_image=latent, cfg=2.0)
    assert flattened(state) == before
    assert list(model.model_options) == options
    assert (model.patches_uuid, len(model.patches), len(model.object_patches)) == patches


@pytest.mark.slow
def test_training_changes_no_random_state_and_no_default_dtype(
    demo_inputs: dict[str, Any], ld3_folder: Path
) -> None:
    """Without the node around it, whose preview draws a random file name."""
    parts = ("model", "positive", "negative", "latent_image")
    inputs = GraphInputs(*(demo_inputs[part] for part in parts))
    torch.manual_seed(11), np.random.seed(11), random.seed(11)
    before = torch.get_rng_state(), flattened(list(np.random.get_state())), random.getstate()
    train_schedule(inputs, TrainingRequest(**REQUEST), "states", retrain=True)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert flattened(list(np.random.get_state())) == before[1]
    assert random.getstate() == before[2]
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.slow
def test_same_seed_learns_the_same_bits(train: Any) -> None:
    first = train(retrain=True, name="bits")
    again = train(retrain=True, name="bits")
    assert again[2].name != first[2].name
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], train(seed=1000, name="bits")[0])


def test_outputs_of_training_are_what_core_nodes_accept(train: Any, model: Any) -> None:
    sigmas, sampler, schedule, report, *_ = train()
    sampling = model.get_model_object("model_sampling")
    assert sigmas.dtype == torch.float32 and sigmas.device.type == "cpu"
    assert sigmas.shape == (TINY["steps"] + 1,) and float(sigmas[-1]) == 0
    assert (sigmas[:-1] > sigmas[1:]).all()
    assert float(sigmas[0]) == pytest.approx(float(sampling.sigma_max))
    assert type(sampler).__name__ == "KSAMPLER"
    assert schedule.info.model_calls == TINY["steps"]
    assert report.ndim == 4 and report.shape[-1] == 3 and 0 <= report.min() <= report.max() <= 1


def test_outputs_are_copies_that_nodes_may_write_into(train: Any) -> None:
    sigmas = train()[0]
    sigmas.zero_()
    assert float(train()[0][0]) > 0


def test_identical_settings_return_the_saved_schedule(train: Any, ld3_folder: Path) -> None:
    first = train(name="kept")
    files = set(ld3_folder.iterdir())
    again = train(name="kept")
    assert set(ld3_folder.iterdir()) == files
    assert again[2].name == first[2].name and torch.equal(again[0], first[0])


def test_connected_options_are_the_same_numbers_as_those_of_older_workflows(
    pack_nodes: dict[str, type], train: Any, ld3_folder: Path
) -> None:
    names = ("iterations", "training_noises", "heldout_noises", "batch_size")
    options = pack_nodes["LD3TrainingOptions"].execute(**{name: TINY[name] for name in names})[0]
    first, files = train(name="widgets"), set(ld3_folder.iterdir())
    others = {"iterations": 0, "training_noises": 7, "heldout_noises": 0, "batch_size": 1}
    again = train(name="options", options=options, **others)
    assert set(ld3_folder.iterdir()) == files and torch.equal(again[0], first[0])


def test_the_number_of_empty_latents_does_not_matter(
    train: Any, ld3_folder: Path, empty_latent: Any
) -> None:
    """A larger batch_size to sample with must not train again."""
    first = train(name="alone")
    files = set(ld3_folder.iterdir())
    again = train(name="alone", latent_image=empty_latent(4))
    assert set(ld3_folder.iterdir()) == files and torch.equal(again[0], first[0])


@pytest.mark.slow
def test_retrain_saves_under_a_numbered_name(train: Any, ld3_folder: Path) -> None:
    names = [train(name="numbered", retrain=True)[2].name for _ in range(3)]
    assert names == ["numbered", "numbered_2", "numbered_3"]
    loaded = schedule_file.load(ld3_folder / "numbered_3.safetensors")
    assert loaded.info.sampler == "dpmpp_2m"


def test_load_schedule_returns_what_training_returned(
    pack_nodes: dict[str, type], train: Any
) -> None:
    sigmas, sampler, schedule, *_ = train()
    load = pack_nodes["LD3LoadSchedule"]
    name = f"{schedule.name}.safetensors"
    assert load.validate_inputs(name=name) is True
    loaded = load.execute(name=name)
    assert torch.equal(loaded[0], sigmas) and loaded[2].info == schedule.info
    assert loaded[1].sampler_function is sampler.sampler_function


def test_latents_get_the_models_channels(train: Any, sample: Any, empty_latent: Any) -> None:
    schedule = train(latent_image=empty_latent(channels=4), name="channels")[2]
    assert schedule.info.latent_shape == [3, SIZE, SIZE]
    assert torch.equal(sample(latent_image=empty_latent(2, channels=4)), sample())


@pytest.mark.slow
def test_training_at_a_lower_denoise_starts_at_a_lower_level(train: Any) -> None:
    sigmas = train(denoise=0.5, latent_image=picture(1), name="half")[0]
    assert 0 < float(sigmas[0]) < 0.5 * float(train()[0][0])


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"sampler_name": "euler_ancestral"}, ["sampler_name", "euler_ancestral", "stochastic"]),
        ({"sampler_name": "dpmpp_2m_sde"}, ["sampler_name", "dpmpp_2m_sde", "'dpmpp_2m'"]),
        ({"sampler_name": "dpm_adaptive"}, ["sampler_name", "dpm_adaptive", "Choose"]),
        ({"sampler_name": "dpm_fast"}, ["sampler_name", "dpm_fast", "Choose"]),
        (
            {"sampler_name": "euler_cfg_pp"},
            ["sampler_name", "euler_cfg_pp", "CFG++", "teacher_sampler"],
        ),
        ({"teacher_sampler": "euler_ancestral"}, ["teacher_sampler", "stochastic"]),
        ({"sampler_name": "nonsense"}, ["nonsense"]),
        ({"steps": 1}, ["steps", "1", "2 or more"]),
        ({"steps": 70, "teacher_steps": 71, "denoise": 0.01}, ["steps", "70", "fewer"]),
        ({"teacher_steps": 3}, ["teacher_steps", "3", "more steps"]),
        (
            {"teacher_steps": 1000, "teacher_scheduler": "simple", "denoise": 0.5},
            ["teacher_steps", "1000", "'simple'", "fewer"],
        ),
        ({"cfg": -1.0}, ["cfg", "-1"]),
        ({"cfg": float("nan")}, ["cfg", "nan"]),
        ({"iterations": -1}, ["iterations", "-1"]),
        ({"name": "../outside"}, ["name", "../outside"]),
        ({"name": "  "}, ["name"]),
        ({"distance": "lpips-alex"}, ["distance 'lpips-alex'", "connect vae", "pseudo-huber"]),
        ({"distance": "nonsense"}, ["distance", "nonsense", "pseudo-huber"]),
        ({"learn": "nonsense"}, ["learn", "nonsense", "time steps"]),
        ({"optimizer": "nonsense"}, ["optimizer", "nonsense", "gauss-newton"]),
        ({"soft_radius": -0.5}, ["soft_radius", "-0.5", "-1 for the paper's"]),
        ({"latent_image": EMPTY_BATCH}, ["latent_image", "empty", "batch_size"]),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_invalid_settings_are_refused_and_nothing_is_saved(
    changes: dict[str, Any], parts: list[str], train: Any, ld3_folder: Path
) -> None:
    files = set(ld3_folder.iterdir())
    with pytest.raises(ValueError) as caught:
        train(**{"name": "refused"} | changes)
    message = str(caught.value)
    for part in parts:
        assert part in message, message
    assert set(ld3_folder.iterdir()) == files


NOTHING = GraphInputs(None, None, None, {})
"""Inputs with which any work on model, prompts or latents fails otherwise than by ValueError."""


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"steps": 1}, ["steps is 1", "2 or more"]),
        ({"steps": 4}, ["teacher_steps is 4", "more steps"]),
        ({"teacher_steps": 2}, ["teacher_steps is 2", "more steps"]),
        ({"cfg": -0.5}, ["cfg is -0.5"]),
        ({"cfg": float("nan")}, ["cfg is nan"]),
        ({"denoise": 0.0}, ["denoise is 0"]),
        ({"denoise": 1.1}, ["denoise is 1.1"]),
        ({"denoise": float("nan")}, ["denoise is nan"]),
        ({"distance": "nonsense"}, ["distance is 'nonsense'", "pseudo-huber", "lpips-alex"]),
        ({"distance": "lpips-vgg"}, ["distance 'lpips-vgg'", "vae"]),
        ({"optimizer": "nonsense"}, ["optimizer is 'nonsense'", "gauss-newton", "gradient"]),
        ({"learn": "nonsense"}, ["learn is 'nonsense'", "time steps", "full solver"]),
        ({"soft_radius": -0.5}, ["soft_radius is -0.5"]),
        ({"soft_radius": float("nan")}, ["soft_radius is nan"]),
        ({"iterations": -1}, ["iterations is -1", "0 or more"]),
        ({"training_noises": -1}, ["training_noises is -1", "0 or more"]),
        ({"heldout_noises": -1}, ["heldout_noises is -1", "0 or more"]),
        ({"batch_size": -1}, ["batch_size is -1", "0 or more"]),
        ({"name": "a/b"}, ["'a/b'", "name"]),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_training_settings_are_checked_before_any_work_and_named(
    changes: dict[str, Any], parts: list[str]
) -> None:
    name, widgets = changes.get("name", "any"), {k: v for k, v in changes.items() if k != "name"}
    with pytest.raises(ValueError) as caught:
        train_schedule(NOTHING, TrainingRequest(**(REQUEST | widgets)), name)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"cfg": -0.5}, ["cfg is -0.5"]),
        ({"cfg": float("nan")}, ["cfg is nan"]),
        ({"training_noises": 1}, ["training_noises is 1", "2 or more"]),
        ({"batch_size": -1}, ["batch_size is -1", "0 or more"]),
        ({"name": "a/b"}, ["'a/b'", "name"]),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_distilling_settings_are_checked_before_any_work_and_named(
    changes: dict[str, Any], parts: list[str], schedule: Any
) -> None:
    widgets = {
        "cfg": 1.0, "seed": 0, "teacher_sampler": "dpmpp_2m", "training_noises": 2,
        "batch_size": 1, "name": "any", **changes,
    }  # fmt: skip
    name = widgets.pop("name")
    with pytest.raises(ValueError) as caught:
        distill_solver(NOTHING, DistillRequest(**widgets), name, Source(schedule, None, None))
    for part in parts:
        assert part in str(caught.value)


def test_batches_of_prompts_of_different_sizes_are_refused(
    train: Any, conds: dict[str, Any]
) -> None:
    tensor, options = conds["positive"][0]
    two, three = ([tensor.repeat(n, 1, 1), options] for n in (2, 3))
    with pytest.raises(ValueError, match="positive.* different sizes .2, 3 prompts.*Prompt List"):
        train(positive=[two, three], name="mixed")
    with pytest.raises(ValueError, match="numbers of prompts differ: 2 of positive, 3 of negative"):
        train(positive=[two], negative=[three], name="mixed")


@pytest.mark.slow
def test_sampling_with_uni_pc_does_not_change_the_schedule(train: Any, sample: Any) -> None:
    schedule = train(sampler_name="uni_pc", name="uni")[2]
    before = schedule.sigmas.clone()
    first = sample(schedule=schedule)
    assert torch.equal(sample(schedule=schedule), first)
    assert torch.equal(schedule.sigmas, before) and float(before[-1]) == 0


@pytest.mark.slow
def test_a_flow_model_can_be_trained_and_sampled(
    train: Any, sample: Any, model: Any, flow_model: Any
) -> None:
    flow = flow_model(model, 3.0)
    schedule = train(model=flow, name="flow", teacher_scheduler="simple")[2]
    assert schedule.info.prediction_type == "flow" and float(schedule.sigmas[0]) == 1
    assert torch.isfinite(sample(model=flow, schedule=schedule)).all()


def test_a_model_that_returns_nan_is_refused(
    pack_nodes: dict[str, type], train: Any, ld3_folder: Path
) -> None:
    broken = pack_nodes["LD3DemoModel"].execute(batch_size=1)[0]
    with torch.no_grad():
        for weight in broken.model.diffusion_model.out.parameters():
            weight.fill_(float("nan"))
    files = set(ld3_folder.iterdir())
    with pytest.raises(ValueError, match="NaN.*KSampler"):
        train(model=broken, name="nan", retrain=True)
    assert set(ld3_folder.iterdir()) == files


def test_sampling_an_empty_batch_is_refused(sample: Any) -> None:
    with pytest.raises(ValueError, match="latent_image.*batch_size"):
        sample(latent_image=EMPTY_BATCH)


def test_another_model_samples_with_a_warning(
    pack_nodes: dict[str, type], sample: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        sample()
        assert not caplog.records
        result = sample(model=another_model(pack_nodes))
    assert torch.isfinite(result).all()
    assert "LD3 KSampler: schedule 'tiny' was learned for another model" in caplog.text


def test_another_guidance_scale_samples_with_a_warning(
    sample: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        sample(cfg=4.0)
    assert "learned at cfg 1, not 4" in caplog.text


def test_another_size_samples_with_a_warning(
    sample: Any, empty_latent: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        sample(latent_image=empty_latent(5))
        assert not caplog.records  # the number of latents does not matter
        sample(latent_image=empty_latent(1, size=2 * SIZE))
    assert "learned for latents of 3x8x8, not 3x16x16: compare it" in caplog.text


@pytest.mark.slow
def test_another_shift_or_strength_is_named_in_the_warning(
    train: Any, sample: Any, flow_model: Any, model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    name = next(key for key in model.model.state_dict() if key.endswith("out.2.weight"))
    delta = torch.full_like(model.model.state_dict()[name], 1e-3)

    def patched(shift: float, strength: float) -> Any:
        clone = flow_model(model, shift)
        clone.add_patches({name: ("diff", (delta,))}, strength)
        return clone

    schedule = train(model=patched(3.0, 0.8), name="shifted", teacher_scheduler="simple")[2]
    with caplog.at_level(logging.WARNING):
        sample(schedule=schedule, model=patched(3.0, 0.8))
        assert not caplog.records
        sample(schedule=schedule, model=patched(5.0, 1.0))
    expected = "another model (at shift 3, not 5 and with LoRAs at strength 0.8, not 1)"
    assert expected in caplog.text


def test_a_flow_model_is_refused_for_an_eps_schedule(sample: Any, model: Any) -> None:
    class Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    flow = model.clone()
    flow.add_object_patch("model_sampling", Flow(model.model.model_config))
    with pytest.raises(ValueError, match="'eps'.*'flow'.*LD3 Train Schedule"):
        sample(model=flow)


def test_a_schedule_with_the_table_of_another_sampler_is_refused(
    sample: Any, schedule: Any
) -> None:
    forged = replace(schedule, info=replace(schedule.info, sampler="euler"))
    with pytest.raises(ValueError, match="another sampler.*'euler'.*again"):
        sample(schedule=forged)


def test_a_schedule_whose_sampler_is_not_installed_is_sampled_by_its_table(
    sample: Any, schedule: Any
) -> None:
    foreign = replace(schedule, info=replace(schedule.info, sampler="somebodys_sampler"))
    torch.testing.assert_close(sample(schedule=foreign), sample(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="somebodys_sampler.*not among those installed"):
        sample(schedule=foreign, denoise=0.5)


def test_unknown_schedule_names_are_refused_and_the_known_ones_listed(
    pack_nodes: dict[str, type], schedule: Any
) -> None:
    load = pack_nodes["LD3LoadSchedule"]
    for name in ("missing.safetensors", "../../secret.safetensors", ""):
        message = load.validate_inputs(name=name)
        assert message.startswith("there is no schedule ") and repr(name) in message
        assert "there are: " in message and ".safetensors" in message.split("there are: ")[1]
