"""Training with a mask: the model's calls and errors are those of core's samplers with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from torch import Tensor

from demo import demo_model
from ld3.comfy import core_samplers, latents
from ld3.comfy.guided_run import GuidedRun, run
from ld3.comfy.guiders import cfg_guider

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = 8
SHAPE = (2, 3, SIZE, SIZE)
SIGMAS = torch.tensor([14.0, 3.0, 0.8, 0.0])
TINY = {
    "sampler_name": "dpmpp_2m", "steps": 3, "cfg": 1.0, "name": "masked", "seed": 0,
    "teacher_sampler": "dpmpp_2m", "teacher_scheduler": "karras", "teacher_steps": 6,
    "retrain": False, "denoise": 1.0, "distance": "pseudo-huber", "iterations": 1,
    "training_noises": 4, "heldout_noises": 4, "batch_size": 3, "learn": "time steps",
    "quality": "fast",
}  # fmt: skip


def random_tensor(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def left_half() -> Tensor:
    mask = torch.zeros((1, SIZE, SIZE))
    mask[..., : SIZE // 2] = 1.0
    return mask


def inpaint_model() -> Any:
    """A network of random weights that sees mask and image besides the noise."""

    class Config(demo_model.EmojiConfig):
        unet_config = demo_model.EmojiConfig.unet_config | {"in_channels": 7}

    config = Config(Config.unet_config)
    config.set_inference_dtype(torch.float32, None)
    config.custom_operations = demo_model._operations(
        comfy.ops.pick_operations(torch.float32, None)
    )
    torch.manual_seed(3)
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.1 * torch.randn(weight.shape))
    model.set_inpaint()
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, device, torch.device("cpu"))


@pytest.fixture(params=["plain", "inpaint", "differential"])
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "inpaint":
        yield inpaint_model()
    else:
        plain = demo_model.load_demo_model()
        yield plain if request.param == "plain" else DifferentialDiffusion.execute(plain)[0]
    comfy.model_management.unload_all_models()


@pytest.mark.parametrize("rows", [1, 2])
def test_a_masked_run_samples_as_core_does(rows: int, model: Any) -> None:
    """Also with fewer samples than the run was prepared for."""
    latents, mask = random_tensor(1), left_half()
    if model.model_options.get("denoise_mask_function"):
        mask = torch.linspace(0, 1, SIZE).repeat(1, SIZE, 1)
    if model.model.concat_keys:
        latents = latents[:1].repeat(2, 1, 1, 1)  # of several images core shows it the first
    apple, nothing = (demo_model.encode_prompt(text)[0] for text in ("red apple", ""))
    guider, euler = cfg_guider(model, apple, nothing, 2.0), comfy.samplers.sampler_object("euler")
    noise = random_tensor(0)

    def task(guided: GuidedRun) -> Tensor:
        solver = core_samplers.widget_sampler(
            "sampler", euler, SIGMAS, guided.model_wrap
        ).discretization(SIGMAS)
        given = noise[:rows], guided.latents(latents)[:rows]
        guided.model.sample(solver, noise, given[1][:1].repeat(2, 1, 1, 1))  # others, before
        sample = guided.model.sample(solver, *given)[0]
        return guided.model_wrap.inner_model.process_latent_out(sample)

    found = run(guider, latents, SIGMAS, task, mask=mask)
    core = guider.sample(
        noise[:rows], latents[:rows], euler, SIGMAS, denoise_mask=mask, disable_pbar=True, seed=0
    )
    torch.testing.assert_close(found, core, rtol=1e-5, atol=1e-5 * float(core.abs().max()))
    if not model.model_options.get("denoise_mask_function"):
        kept = latents[:rows, ..., SIZE // 2 :]
        assert torch.allclose(found[..., SIZE // 2 :], kept, atol=1e-5)


@pytest.fixture(scope="module")
def train(pack_nodes: dict[str, type], demo_inputs: dict[str, Any], ld3_folder: Path) -> Any:
    def run(**changes: Any) -> Any:
        return pack_nodes["LD3TrainSchedule"].execute(**(demo_inputs | TINY | changes))

    return run


def picture(count: int = 1, mask: Tensor | None = None) -> dict[str, Any]:
    latent = {"samples": 0.5 * random_tensor(7, (count, 3, SIZE, SIZE))}
    return latent | ({} if mask is None else {"noise_mask": mask})


def test_the_error_of_the_report_is_that_of_core_sampling_with_the_mask(
    train: Any, demo_inputs: dict[str, Any]
) -> None:
    latent = picture(2, left_half())
    sigmas, sampler, schedule, *_ = train(latent_image=latent)
    report, errors = schedule.info.report, []
    model = demo_inputs["model"]
    teacher = core_samplers.scheduler_sigmas(model, "dpmpp_2m", "karras", 6, 1.0)
    for seed in range(8, 12):
        one = picture(2, left_half())
        one["samples"] = one["samples"][seed % 2 : seed % 2 + 1]
        given = {name: demo_inputs[name] for name in ("model", "positive", "negative")}
        given |= {"add_noise": True, "noise_seed": seed, "cfg": 1.0, "sampler": sampler}
        pair = [
            SamplerCustom.execute(**given, sigmas=levels, latent_image=one)[0]["samples"]
            for levels in (sigmas, teacher)
        ]
        errors.append(float((pair[0] - pair[1]).pow(2).mean().sqrt()))
    error = report["heldout_error"]
    if report["chosen"] != "learned":
        error = report["baselines"][report["chosen"]]["heldout_error"]
    assert sum(errors) / 4 == pytest.approx(error, rel=1e-3)


@pytest.mark.slow
def test_another_mask_is_another_training(train: Any, ld3_folder: Path) -> None:
    train(latent_image=picture(1, left_half()))
    files = set(ld3_folder.iterdir())
    train(latent_image=picture(1, left_half()))
    assert set(ld3_folder.iterdir()) == files
    train(latent_image=picture(1, 1 - left_half()))
    train(latent_image=picture(1))
    assert len(set(ld3_folder.iterdir())) == len(files) + 2


@pytest.mark.slow
@pytest.mark.parametrize("learn", ["time steps + full solver", "time steps + D-ODE"])
def test_what_a_mask_keeps_is_kept_by_every_kind_of_solver(
    learn: str, train: Any, pack_nodes: dict[str, type], demo_inputs: dict[str, Any]
) -> None:
    latent = picture(1, left_half())
    schedule = train(latent_image=latent, learn=learn, name="solver")[2]
    result = pack_nodes["LD3KSampler"].execute(
        **demo_inputs | {"latent_image": latent}, schedule=schedule, seed=3, cfg=1.0, denoise=1.0
    )[0]["samples"]
    half = (..., slice(SIZE // 2, None))
    assert torch.allclose(result[half], latent["samples"][half], atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"sampler_name": "ddim"}, ["sampler_name is 'ddim'", "'euler'"]),
        (
            {"latent_image": picture(2, torch.stack([left_half()[0], 1 - left_half()[0]]))},
            ["latent_image has 2 different masks", "one mask"],
        ),
        ({"model": "inpaint", "latent_image": picture(2)}, ["batch of 2 images", "masked_image"]),
    ],
    ids=["ddim", "masks", "images"],
)
def test_masks_that_cannot_be_trained_with_are_refused(
    changes: dict[str, Any], parts: list[str], train: Any
) -> None:
    changes = {"latent_image": picture(1, left_half()), "name": "refused"} | changes
    if changes.get("model"):
        changes["model"] = inpaint_model()
    with pytest.raises(ValueError) as caught:
        train(**changes)
    for part in parts:
        assert part in str(caught.value)


def test_a_mask_of_a_video_has_an_image_per_frame_and_one_of_an_image_may_have_no_batch() -> None:
    """As core's reshape_mask reads them."""
    frames, video = random_tensor(1, (5, SIZE, SIZE)), torch.zeros(1, 16, 5, SIZE, SIZE)
    assert latents.latent_mask({"samples": video, "noise_mask": frames}) is frames
    image = {"samples": torch.zeros(1, 4, SIZE, SIZE), "noise_mask": left_half()[0]}
    assert torch.equal(latents.latent_mask(image), left_half())
