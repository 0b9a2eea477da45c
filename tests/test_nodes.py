"""The nodes, run in this process on the demo model: what they promise, keep and refuse."""

from __future__ import annotations

import copy
import logging
import random
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.model_sampling
import folder_paths
import numpy as np
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom

from ld3 import schedule as schedule_file

SIZE = 8  # the demo model works at any multiple of 8; small latents keep the tests quick

# node_id -> inputs in order, outputs in order. Saved workflows depend on both: append only.
CONTRACT = {
    "LD3TrainSchedule": {
        "inputs": "model:MODEL positive:CONDITIONING negative:CONDITIONING latent_image:LATENT "
        "sampler_name:COMBO steps:INT cfg:FLOAT name:STRING seed:INT teacher_sampler:COMBO "
        "teacher_scheduler:COMBO teacher_steps:INT retrain:BOOLEAN denoise:FLOAT distance:COMBO "
        "iterations:INT training_noises:INT heldout_noises:INT batch_size:INT learn:COMBO "
        "optimizer:COMBO soft_radius:FLOAT vae:VAE",
        "outputs": "sigmas:SIGMAS sampler:SAMPLER schedule:LD3_SCHEDULE report:IMAGE",
    },
    "LD3LoadSchedule": {
        "inputs": "name:COMBO",
        "outputs": "sigmas:SIGMAS sampler:SAMPLER schedule:LD3_SCHEDULE",
    },
    "LD3KSampler": {
        "inputs": "model:MODEL schedule:LD3_SCHEDULE seed:INT cfg:FLOAT positive:CONDITIONING "
        "negative:CONDITIONING latent_image:LATENT denoise:FLOAT",
        "outputs": "None:LATENT",
    },
    "LD3DistillSolver": {
        "inputs": "model:MODEL positive:CONDITIONING negative:CONDITIONING latent_image:LATENT "
        "cfg:FLOAT name:STRING seed:INT teacher_sampler:COMBO training_noises:INT batch_size:INT "
        "schedule:LD3_SCHEDULE sigmas:SIGMAS sampler:SAMPLER",
        "outputs": "sigmas:SIGMAS sampler:SAMPLER schedule:LD3_SCHEDULE",
    },
    "LD3DemoModel": {"inputs": "batch_size:INT", "outputs": "None:MODEL None:VAE None:LATENT"},
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
}


@pytest.fixture(scope="module", autouse=True)
def folders(pack_nodes: dict[str, type], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """ComfyUI's model and temporary folders, away from the user's."""
    saved, temporary = tmp_path_factory.mktemp("ld3"), tmp_path_factory.mktemp("temp")
    before = folder_paths.get_temp_directory(), folder_paths.folder_names_and_paths["ld3"]
    folder_paths.set_temp_directory(str(temporary))
    folder_paths.folder_names_and_paths["ld3"] = ([str(saved)], {".safetensors"})
    yield saved
    folder_paths.set_temp_directory(before[0])
    folder_paths.folder_names_and_paths["ld3"] = before[1]


@pytest.fixture(scope="module")
def model(pack_nodes: dict[str, type]) -> Any:
    return pack_nodes["LD3DemoModel"].execute(batch_size=1)[0]


@pytest.fixture(scope="module")
def conds(pack_nodes: dict[str, type]) -> dict[str, Any]:
    prompt = pack_nodes["LD3DemoPrompt"]
    return {
        "positive": prompt.execute(text="grinning face")[0],
        "negative": prompt.execute(text="")[0],
    }


@pytest.fixture(scope="module")
def train(pack_nodes: dict[str, type], model: Any, conds: dict[str, Any]) -> Any:
    """LD3 Train Schedule with small settings; keywords replace some."""

    def run(**changes: Any) -> Any:
        inputs = {"model": model, "latent_image": empty(), **conds, **TINY, **changes}
        return pack_nodes["LD3TrainSchedule"].execute(**inputs)

    return run


@pytest.fixture(scope="module")
def schedule(train: Any) -> Any:
    return train()[2]


@pytest.fixture(scope="module")
def sample(pack_nodes: dict[str, type], model: Any, conds: dict[str, Any], schedule: Any) -> Any:
    """LD3 KSampler; keywords replace inputs."""

    def run(**changes: Any) -> torch.Tensor:
        inputs = {"model": model, "schedule": schedule, "seed": 5, "cfg": 1.0, "denoise": 1.0}
        inputs |= {"latent_image": empty(2), **conds, **changes}
        return pack_nodes["LD3KSampler"].execute(**inputs)[0]["samples"]

    return run


def empty(batch: int = 1, channels: int = 3, size: int = SIZE) -> dict[str, Any]:
    samples = torch.zeros((batch, channels, size, size))
    return {"samples": samples, "downscale_ratio_spacial": 1}


def picture(batch: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(7)
    samples = 0.5 * torch.randn((batch, 3, SIZE, SIZE), generator=generator)
    return {"samples": samples, "downscale_ratio_spacial": 1}


def bridge(pack: ModuleType, name: str) -> ModuleType:
    """A module of ld3/comfy/ as the nodes use it."""
    return sys.modules[f"{pack.__name__}.ld3.comfy.{name}"]


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


def test_node_contract_is_frozen(pack_nodes: dict[str, type]) -> None:
    found = {}
    for node_id, node in pack_nodes.items():
        schema = node.GET_SCHEMA()
        found[node_id] = {
            "inputs": " ".join(f"{part.id}:{part.io_type}" for part in schema.inputs),
            "outputs": " ".join(f"{part.display_name}:{part.io_type}" for part in schema.outputs),
        }
    assert {key: found[key] for key in CONTRACT} == CONTRACT


def test_only_what_learns_is_an_output_node(pack_nodes: dict[str, type]) -> None:
    outputs = {key for key, node in pack_nodes.items() if node.GET_SCHEMA().is_output_node}
    assert outputs == {"LD3TrainSchedule", "LD3DistillSolver"}


@pytest.mark.parametrize("case", ["plain", "batch_index", "noise_mask", "picture", "cfg 3"])
def test_ld3_ksampler_equals_core_sampler_custom_bit_for_bit(
    case: str, train: Any, sample: Any, model: Any, conds: dict[str, Any]
) -> None:
    sigmas, sampler, schedule, _ = train()
    latent = picture() if case in ("noise_mask", "picture") else empty(2)
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
def test_denoise_takes_as_many_steps_from_a_lower_level(
    denoise: float, pack: ModuleType, schedule: Any, sample: Any, model: Any, conds: dict[str, Any]
) -> None:
    sampling = bridge(pack, "sampling")
    sampler, sigmas, warnings = sampling.sampling_of(schedule, denoise)
    assert not warnings
    assert len(sigmas) == TINY["steps"] + 1 and float(sigmas[-1]) == 0
    assert (sigmas[:-1] > sigmas[1:]).all() and sigmas[0] <= schedule.sigmas[0]
    core = SamplerCustom.execute(
        model=model, add_noise=True, noise_seed=5, cfg=1.0, latent_image=picture(), sigmas=sigmas,
        sampler=sampler, **conds,
    )[0]["samples"]  # fmt: skip
    assert torch.equal(sample(latent_image=picture(), denoise=denoise), core)


def test_batch_index_selects_the_noise(sample: Any) -> None:
    pair, second = empty(2), empty(1)
    second["batch_index"] = [1]
    assert torch.allclose(sample(latent_image=second)[0], sample(latent_image=pair)[1], atol=1e-4)


def test_batch_index_selects_the_training_noises(train: Any) -> None:
    first, second = empty(), empty()
    first["batch_index"], second["batch_index"] = [0], [3]
    changes = {"name": "indexed"}
    plain = train(retrain=True, **changes)[0]
    assert torch.equal(plain, train(latent_image=first, **changes)[0])
    assert not torch.equal(plain, train(latent_image=second, **changes)[0])


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


def test_training_leaves_random_states_and_default_dtype_alone(
    pack: ModuleType, model: Any, conds: dict[str, Any]
) -> None:
    training, request = bridge(pack, "training"), bridge(pack, "request")
    widgets = {k: v for k, v in TINY.items() if k not in ("name", "retrain")}
    torch.manual_seed(11), np.random.seed(11), random.seed(11)
    before = torch.get_rng_state(), flattened(list(np.random.get_state())), random.getstate()
    training.train_schedule(
        model, conds["positive"], conds["negative"], empty(), request.TrainingRequest(**widgets),
        "states", retrain=True,
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), before[0])
    assert flattened(list(np.random.get_state())) == before[1]
    assert random.getstate() == before[2]
    assert torch.get_default_dtype() == torch.float32


def test_same_seed_learns_the_same_bits(train: Any) -> None:
    first = train(retrain=True, name="bits")
    again = train(retrain=True, name="bits")
    assert again[2].name != first[2].name
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], train(seed=1000, name="bits")[0])


def test_learned_sigmas_are_what_core_expects(train: Any, model: Any) -> None:
    sigmas, sampler, schedule, report = train()
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


def test_identical_settings_return_the_saved_schedule(train: Any, folders: Path) -> None:
    first = train(name="kept")
    files = set(folders.iterdir())
    again = train(name="kept")
    assert set(folders.iterdir()) == files
    assert again[2].name == first[2].name and torch.equal(again[0], first[0])


def test_number_of_empty_latents_does_not_matter(train: Any, folders: Path) -> None:
    """A larger batch_size to sample with must not train again."""
    first = train(name="alone")
    files = set(folders.iterdir())
    again = train(name="alone", latent_image=empty(4))
    assert set(folders.iterdir()) == files and torch.equal(again[0], first[0])


def test_retrain_saves_under_a_numbered_name(train: Any, folders: Path) -> None:
    names = [train(name="numbered", retrain=True)[2].name for _ in range(3)]
    assert names == ["numbered", "numbered_2", "numbered_3"]
    loaded = schedule_file.load(folders / "numbered_3.safetensors")
    assert loaded.info.sampler == "dpmpp_2m"


def test_load_schedule_gives_what_training_gave(pack_nodes: dict[str, type], train: Any) -> None:
    sigmas, sampler, schedule, _ = train()
    load = pack_nodes["LD3LoadSchedule"]
    name = f"{schedule.name}.safetensors"
    assert load.validate_inputs(name=name) is True
    loaded = load.execute(name=name)
    assert torch.equal(loaded[0], sigmas) and loaded[2].info == schedule.info
    assert loaded[1].sampler_function is sampler.sampler_function


def test_latents_are_fixed_to_the_models_channels(train: Any, sample: Any) -> None:
    assert train(latent_image=empty(channels=4), name="channels")[2].info.latent_shape == [
        3,
        SIZE,
        SIZE,
    ]
    assert torch.equal(sample(latent_image=empty(2, channels=4)), sample())


def test_learning_for_part_of_the_denoising_starts_lower(train: Any) -> None:
    sigmas = train(denoise=0.5, latent_image=picture(1), name="half")[0]
    assert 0 < float(sigmas[0]) < 0.5 * float(train()[0][0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sampler_name": "euler_ancestral"}, ["sampler_name", "euler_ancestral", "stochastic"]),
        ({"sampler_name": "dpmpp_2m_sde"}, ["sampler_name", "dpmpp_2m_sde", "'dpmpp_2m'"]),
        ({"sampler_name": "dpm_adaptive"}, ["sampler_name", "dpm_adaptive", "Choose"]),
        ({"sampler_name": "dpm_fast"}, ["sampler_name", "dpm_fast", "Choose"]),
        ({"sampler_name": "euler_cfg_pp"}, ["sampler_name", "euler_cfg_pp", "CFG++", "'euler'"]),
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
        ({"iterations": 0}, ["iterations", "0"]),
        ({"name": "../outside"}, ["name", "../outside"]),
        ({"name": "  "}, ["name"]),
        ({"distance": "lpips-alex"}, ["distance 'lpips-alex'", "connect vae", "pseudo-huber"]),
        ({"distance": "nonsense"}, ["distance", "nonsense", "pseudo-huber"]),
        ({"learn": "nonsense"}, ["learn", "nonsense", "time steps"]),
        ({"optimizer": "nonsense"}, ["optimizer", "nonsense", "gauss-newton"]),
        ({"soft_radius": -0.5}, ["soft_radius", "-0.5", "-1 for the paper's"]),
        ({"latent_image": empty(0)}, ["latent_image", "empty", "batch_size"]),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_training_refuses_what_cannot_work_and_writes_nothing(
    changes: dict[str, Any], said: list[str], train: Any, folders: Path
) -> None:
    files = set(folders.iterdir())
    with pytest.raises(ValueError) as caught:
        train(**{"name": "refused"} | changes)
    message = str(caught.value)
    assert message.startswith("LD3 Train Schedule: ")
    for part in said:
        assert part in message, message
    assert set(folders.iterdir()) == files


def test_a_batch_of_prompts_is_refused(train: Any, conds: dict[str, Any]) -> None:
    tensor, options = conds["positive"][0]
    with pytest.raises(ValueError, match="positive holds a batch of 2 prompts"):
        train(positive=[[tensor.repeat(2, 1, 1), options]], name="two")


def test_sampling_twice_with_uni_pc_leaves_the_schedule_alone(train: Any, sample: Any) -> None:
    schedule = train(sampler_name="uni_pc", name="uni")[2]
    before = schedule.sigmas.clone()
    first = sample(schedule=schedule)
    assert torch.equal(sample(schedule=schedule), first)
    assert torch.equal(schedule.sigmas, before) and float(before[-1]) == 0


def test_a_flow_model_can_be_trained_and_sampled(
    train: Any, sample: Any, model: Any, flow_model: Any
) -> None:
    flow = flow_model(model, 3.0)
    schedule = train(model=flow, name="flow", teacher_scheduler="simple")[2]
    assert schedule.info.prediction_type == "flow" and float(schedule.sigmas[0]) == 1
    assert torch.isfinite(sample(model=flow, schedule=schedule)).all()


def test_a_model_that_answers_nan_is_refused(
    pack_nodes: dict[str, type], train: Any, folders: Path
) -> None:
    broken = pack_nodes["LD3DemoModel"].execute(batch_size=1)[0]
    with torch.no_grad():
        for weight in broken.model.diffusion_model.out.parameters():
            weight.fill_(float("nan"))
    files = set(folders.iterdir())
    with pytest.raises(ValueError, match="NaN.*KSampler"):
        train(model=broken, name="nan", retrain=True)
    assert set(folders.iterdir()) == files


def test_sampling_an_empty_batch_is_refused(sample: Any) -> None:
    with pytest.raises(ValueError, match="LD3 KSampler: latent_image.*batch_size"):
        sample(latent_image=empty(0))


def test_another_model_gets_a_warning_and_a_picture(
    pack_nodes: dict[str, type], sample: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        sample()
        assert not caplog.records
        result = sample(model=another_model(pack_nodes))
    assert torch.isfinite(result).all()
    assert "LD3 KSampler: schedule 'tiny' was learned for another model" in caplog.text


def test_another_guidance_gets_a_warning(sample: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        sample(cfg=4.0)
    assert "learned at cfg 1, not 4" in caplog.text


def test_a_flow_model_is_refused_for_an_eps_schedule(sample: Any, model: Any) -> None:
    class Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    flow = model.clone()
    flow.add_object_patch("model_sampling", Flow(model.model.model_config))
    with pytest.raises(ValueError, match="LD3 KSampler: .*'eps'.*'flow'.*LD3 Train Schedule"):
        sample(model=flow)


def test_a_schedule_whose_table_is_not_its_samplers_is_refused(sample: Any, schedule: Any) -> None:
    forged = replace(schedule, info=replace(schedule.info, sampler="euler"))
    with pytest.raises(
        ValueError, match="LD3 KSampler: .*another sampler.*'euler'.*train it again"
    ):
        sample(schedule=forged)


def test_a_schedule_for_a_sampler_not_installed_runs_by_its_table(
    sample: Any, schedule: Any
) -> None:
    foreign = replace(schedule, info=replace(schedule.info, sampler="somebodys_sampler"))
    torch.testing.assert_close(sample(schedule=foreign), sample(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="somebodys_sampler.*not among those installed"):
        sample(schedule=foreign, denoise=0.5)


def test_unknown_schedule_names_are_refused_with_what_there_is(
    pack_nodes: dict[str, type], schedule: Any
) -> None:
    load = pack_nodes["LD3LoadSchedule"]
    for name in ("missing.safetensors", "../../secret.safetensors", ""):
        message = load.validate_inputs(name=name)
        assert message.startswith("LD3 Load Schedule: name: ") and repr(name) in message
        assert "there are: " in message and ".safetensors" in message.split("there are: ")[1]
