"""The bundled demo models: genuine ComfyUI models with trained weights and one vocabulary."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import pytest
import torch
from safetensors import safe_open

from demo import demo_model
from demo.distill_demo_model import GUIDANCE

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = ["apple", "face", "grinning", "heart", "red", "shaped"]


TRAINED = [*demo_model.WEIGHTS]


@pytest.fixture(scope="module", params=TRAINED)
def model(request: pytest.FixtureRequest) -> comfy.model_patcher.ModelPatcher:
    return demo_model.load_demo_model(request.param)


def is_flow(model: Any) -> bool:
    return model.model.model_type == comfy.model_base.ModelType.FLOW


def sample(
    model: Any,
    prompt: str,
    cfg: float = 1.0,
    steps: int = 10,
    batch: int = 1,
    sampler: str = "dpmpp_2m",
) -> Any:
    positive, _ = demo_model.encode_prompt(prompt)
    negative, _ = demo_model.encode_prompt("")
    latent = demo_model.empty_latent(batch)["samples"]
    noise = comfy.sample.prepare_noise(latent, 3)
    scheduler = "simple" if is_flow(model) else "karras"
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler, scheduler, positive, negative, latent,
        disable_pbar=True, seed=3,
    )  # fmt: skip


def denoise(model: Any, x: torch.Tensor, sigma: float, prompts: list[str]) -> torch.Tensor:
    contexts = [demo_model.encode_prompt(prompt)[0][0][0] for prompt in prompts]
    with torch.no_grad():
        return model.model.apply_model(
            x, torch.full((len(x),), sigma), c_crossattn=torch.cat(contexts)
        )


def test_words_are_split_at_everything_but_letters_and_digits() -> None:
    assert demo_model.words_of("Heart-shaped, RED; 'apple'") == ["heart", "shaped", "red", "apple"]


def test_unknown_words_are_listed_once_and_ignored() -> None:
    ids, unknown = demo_model.token_ids("purple grinning face, purple xyzzy", VOCABULARY)
    assert unknown == ["purple", "xyzzy"]
    assert ids == [3, 2] * (demo_model.TOKENS // 2)


def test_words_after_the_last_token_are_ignored() -> None:
    ids, unknown = demo_model.token_ids("face " * 40, VOCABULARY)
    assert ids == [2] * demo_model.TOKENS
    assert unknown == []


def test_empty_prompt_is_all_null_tokens() -> None:
    [[context, _]], unknown = demo_model.encode_prompt("")
    assert context.shape == (1, demo_model.TOKENS, demo_model.CONTEXT_DIM)
    assert unknown == []
    with safe_open(demo_model.WEIGHTS["eps"], framework="pt") as file:
        null = file.get_tensor(demo_model.WORDS_KEY)[0].float()
    assert torch.equal(context[0], null.expand_as(context[0]))


def test_a_prompt_of_unknown_words_equals_the_empty_prompt() -> None:
    unknown_only, words = demo_model.encode_prompt("xyzzy")
    assert words == ["xyzzy"]
    assert torch.equal(unknown_only[0][0], demo_model.encode_prompt("")[0][0][0])


def test_prompts_mean_the_same_to_all_models() -> None:
    tables, vocabularies = [], []
    for path in demo_model.WEIGHTS.values():
        with safe_open(path, framework="pt") as file:
            tables.append(file.get_tensor(demo_model.WORDS_KEY))
            vocabularies.append(file.metadata()["vocabulary"])
    assert all(torch.equal(table, tables[0]) for table in tables)
    assert len(set(vocabularies)) == 1


@pytest.mark.parametrize("name", TRAINED)
def test_vocabulary_and_word_table_agree(name: str) -> None:
    with safe_open(demo_model.WEIGHTS[name], framework="pt") as file:
        vocabulary = json.loads(file.metadata()["vocabulary"])
        rows = file.get_slice(demo_model.WORDS_KEY).get_shape()
    assert rows == [1 + len(vocabulary), demo_model.CONTEXT_DIM]
    assert vocabulary == sorted(set(vocabulary))
    assert {"grinning", "apple", "cat", "rocket"} <= set(vocabulary)


def test_weights_files_are_small() -> None:
    for path in demo_model.WEIGHTS.values():
        assert path.stat().st_size <= 9.1e6
    for _, path in demo_model.LORAS.values():
        assert path.stat().st_size <= 1e6


@pytest.mark.parametrize("name", demo_model.MODELS)
def test_missing_weights_are_reported_with_a_remedy(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = dict.fromkeys(TRAINED, tmp_path / "absent.safetensors")
    monkeypatch.setattr(demo_model, "WEIGHTS", absent)
    with pytest.raises(FileNotFoundError, match="Install the pack again") as caught:
        demo_model.load_demo_model(name)
    named = re.findall(r"demo/\w+\.\w+", str(caught.value))
    assert named and all((ROOT / script).is_file() for script in named)
    with pytest.raises(FileNotFoundError, match="absent.safetensors"):
        demo_model.encode_prompt("red apple")


def test_demo_model_is_a_genuine_comfyui_model(model: comfy.model_patcher.ModelPatcher) -> None:
    assert isinstance(model, comfy.model_patcher.ModelPatcher)
    assert type(model.model) is comfy.model_base.BaseModel


def test_eps_model_has_stable_diffusions_noise_levels() -> None:
    model = demo_model.load_demo_model("eps")
    assert model.model.model_type == comfy.model_base.ModelType.EPS
    sampling = model.get_model_object("model_sampling")
    assert float(sampling.sigma_min) == pytest.approx(0.0292, rel=1e-2)
    assert float(sampling.sigma_max) == pytest.approx(14.615, rel=1e-3)


def test_flow_model_is_a_rectified_flow_with_shift_1() -> None:
    model = demo_model.load_demo_model("flow")
    assert model.model.model_type == comfy.model_base.ModelType.FLOW
    sampling = model.get_model_object("model_sampling")
    assert sampling.shift == 1.0
    torch.testing.assert_close(sampling.sigmas, torch.arange(1, 1001) / 1000)
    x, velocity = torch.full((1, 3, 2, 2), 0.5), torch.full((1, 3, 2, 2), 2.0)
    sigma = torch.tensor([0.25])
    assert torch.equal(sampling.calculate_denoised(sigma, velocity, x), x - 0.25 * velocity)
    assert float(sampling.timestep(sigma)) == 250


@pytest.mark.slow
def test_turbo_in_four_steps_is_closer_to_guided_samples_than_flow() -> None:
    flow, turbo = (demo_model.load_demo_model(name) for name in ("flow", "flow turbo"))
    assert is_flow(turbo)
    for prompt in ("red apple", "crying face"):
        target = sample(flow, prompt, cfg=GUIDANCE, steps=30, batch=4)
        error, *others = (
            (sample(model, prompt, cfg, 4, 4, "euler") - target).square().mean()
            for model, cfg in ((turbo, 1.0), (flow, 1.0), (flow, GUIDANCE))
        )
        assert error < min(others)


def test_lora_changes_the_weights_of_every_layer_it_names() -> None:
    weights = {
        name: demo_model.load_demo_model(name).model.state_dict() for name in ("flow", "flow turbo")
    }
    changed = {
        key
        for key, weight in weights["flow"].items()
        if not weight.equal(weights["flow turbo"][key])
    }
    with safe_open(demo_model.LORAS["flow turbo"][1], framework="pt") as file:
        named = {key.rsplit(".lora_", 1)[0] + ".weight" for key in file.keys()}
    assert changed == named


def test_default_model_is_eps(pack_nodes: dict[str, type]) -> None:
    """Prompts and workflows from before there was a choice keep their result."""
    node = pack_nodes["LD3DemoModel"]
    inputs = {part.id: part for part in node.GET_SCHEMA().inputs}
    assert inputs["model"].optional and inputs["model"].default == "eps"
    assert inputs["model"].options == ["flow", "flow turbo", "eps"]
    assert not is_flow(node.execute(batch_size=1).args[0])
    assert is_flow(node.execute(batch_size=1, model="flow").args[0])


def test_group_norms_span_several_channels(model: comfy.model_patcher.ModelPatcher) -> None:
    norms = [m for m in model.model.diffusion_model.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert norms
    assert all(norm.num_channels // norm.num_groups >= 8 for norm in norms)


def test_foreign_empty_latent_becomes_the_models_size(
    model: comfy.model_patcher.ModelPatcher,
) -> None:
    own = demo_model.empty_latent(2)
    fixed = comfy.sample.fix_empty_latent_channels(
        model, own["samples"], own["downscale_ratio_spacial"]
    )
    assert fixed.shape == (2, 3, 32, 32)
    foreign = comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, 4, 4, 4), 8)
    assert foreign.shape == (1, 3, 32, 32)


def test_denoiser_batches_do_not_mix(model: comfy.model_patcher.ModelPatcher) -> None:
    x = 2.0 * torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prompts = ["red apple", "rocket", ""]
    together = denoise(model, x, 2.0, prompts)
    for index, prompt in enumerate(prompts):
        alone = denoise(model, x[index : index + 1], 2.0, [prompt])
        torch.testing.assert_close(alone[0], together[index], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.5, 2.0, 14.0])
def test_demo_model_denoises_better_than_the_mean(
    model: comfy.model_patcher.ModelPatcher, ratio: float
) -> None:
    # The model's own sample is a picture it knows; the blind guess is its mean colour.
    picture = sample(model, "yellow heart", steps=20)
    noise = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    sigma = ratio / (1 + ratio) if is_flow(model) else ratio
    sampling = model.get_model_object("model_sampling")
    noisy = sampling.noise_scaling(torch.tensor([sigma]), noise, picture)
    guess = denoise(model, noisy, sigma, ["yellow heart"] * 4)
    blind = picture.mean(dim=(2, 3), keepdim=True)
    assert (guess - picture).square().mean() < 0.5 * (blind - picture).square().mean()


def test_core_sampler_runs_on_the_demo_model(model: comfy.model_patcher.ModelPatcher) -> None:
    result = sample(model, "red apple", cfg=4.0, batch=2)
    assert result.shape == (2, 3, 32, 32)
    assert torch.isfinite(result).all()
    # Emoji lie on white: the corners are bright and the middle is not.
    corners = result[:, :, :2, :2].mean()
    assert corners > 0.7
    assert result[:, :, 12:20, 12:20].mean() < corners - 0.3


def test_red_apple_is_red_and_green_apple_is_green(
    model: comfy.model_patcher.ModelPatcher,
) -> None:
    for prompt, strong, weak in (("red apple", 0, 1), ("green apple", 1, 0)):
        middle = sample(model, prompt, cfg=4.0, batch=2)[:, :, 12:22, 12:20].mean(dim=(0, 2, 3))
        assert middle[strong] > middle[weak] + 0.2, prompt


def test_guidance_changes_the_picture(model: comfy.model_patcher.ModelPatcher) -> None:
    assert (sample(model, "rocket", cfg=4.0) - sample(model, "rocket")).abs().mean() > 0.01


def test_pixel_space_vae_maps_latents_to_images() -> None:
    vae = demo_model.load_demo_vae()
    latent = torch.full((1, 3, 32, 32), -1.0)
    latent[:, 0] = 1.0
    image = vae.decode(latent)
    assert image.shape == (1, 32, 32, 3)
    assert torch.allclose(image[..., 0], torch.ones(()))
    assert torch.allclose(image[..., 1:], torch.zeros(()))


def test_demo_nodes_return_what_core_nodes_accept(pack_nodes: dict[str, type]) -> None:
    model, vae, latent, clip = pack_nodes["LD3DemoModel"].execute(batch_size=3).args
    assert isinstance(model, comfy.model_patcher.ModelPatcher)
    assert vae.downscale_ratio == 1
    assert latent["samples"].shape == (3, 3, 32, 32)
    ours = pack_nodes["LD3DemoPrompt"].execute(text="red apple")[0][0]
    theirs = clip.encode_from_tokens_scheduled(clip.tokenize("red apple"))[0]
    assert torch.equal(theirs[0], ours[0])


def test_demo_prompt_node_warns_of_unknown_words(
    pack_nodes: dict[str, type], caplog: pytest.LogCaptureFixture
) -> None:
    output = pack_nodes["LD3DemoPrompt"].execute(text="red xyzzy")
    assert "xyzzy" in caplog.text
    assert "xyzzy" in output.ui.as_dict()["text"][0]
    caplog.clear()
    output = pack_nodes["LD3DemoPrompt"].execute(text="red apple")
    assert output.ui is None
    assert not caplog.records
