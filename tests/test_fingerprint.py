"""Different models have different fingerprints, and one model always has the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import comfy.lora
import comfy.model_management
import pytest
import torch

from demo.demo_model import encode_prompt, load_demo_model
from ld3.comfy.fingerprint import model_fingerprint, patches_of, settings_hash


@pytest.fixture
def model() -> Iterator[Any]:
    yield load_demo_model()
    comfy.model_management.unload_all_models()


def lora(scale: float) -> dict[str, Any]:
    """A LoRA of every convolution and linear layer, as LoraLoader hands it to add_patches."""
    generator, tensors, keys = torch.Generator().manual_seed(0), {}, {}
    for key, weight in load_demo_model().model.state_dict().items():
        if key.startswith("diffusion_model.") and weight.ndim >= 2:
            up = scale * torch.randn(weight.shape[0], 2, generator=generator)
            down = torch.randn(2, *weight.shape[1:], generator=generator)
            tensors |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
            keys[key] = key
    return comfy.lora.load_lora(tensors, keys)


def patched(model: Any, patches: dict[str, Any], strength: float = 1.0) -> Any:
    clone = model.clone()
    assert set(clone.add_patches(patches, strength)) == set(patches)
    return clone


def test_a_model_loaded_again_has_the_same_fingerprint(model: Any) -> None:
    assert model_fingerprint(model) == model_fingerprint(load_demo_model())
    assert model_fingerprint(model) == model_fingerprint(model.clone())


def test_loading_and_unloading_does_not_change_the_fingerprint(model: Any) -> None:
    with_lora = patched(model, lora(1.0))
    for either in (model, with_lora):
        before = model_fingerprint(either)
        comfy.model_management.load_models_gpu([either])
        assert model_fingerprint(either) == before
        comfy.model_management.unload_all_models()
        assert model_fingerprint(either) == before


def test_merging_a_lora_into_the_weights_does_not_change_the_fingerprint(model: Any) -> None:
    with_lora, plain = patched(model, lora(1.0)), model.model.state_dict()
    before = model_fingerprint(model), model_fingerprint(with_lora)
    with_lora.patch_model()
    merged = model.model.state_dict()  # both patchers share the network
    assert sum(not torch.equal(merged[name], plain[name]) for name in plain) > 50
    assert (model_fingerprint(model), model_fingerprint(with_lora)) == before
    with_lora.unpatch_model()


def test_other_weights_and_patches_have_other_fingerprints(model: Any) -> None:
    other = load_demo_model()
    with torch.no_grad():
        for weight in other.model.state_dict().values():
            weight.mul_(1.001)
    variants = [
        model,
        other,
        patched(model, lora(1.0)),
        patched(model, lora(2.0)),
        patched(model, lora(1.0), strength=0.5),
        patched(patched(model, lora(1.0)), lora(1.0)),
    ]
    found = [model_fingerprint(m) for m in variants]
    assert len(set(found)) == len(found)


def test_any_32_changed_weights_change_the_fingerprint(model: Any) -> None:
    """A fine-tuned checkpoint changes (nearly) all weights; the sample must not depend on luck."""
    before, weights = model_fingerprint(model), model.model.state_dict()
    noticed = 0
    for batch in chunks(sorted(weights), 32):
        saved = {name: weights[name].clone() for name in batch}
        for name in batch:
            weights[name].add_(0.01)
        noticed += model_fingerprint(model) != before
        for name in batch:
            weights[name].copy_(saved[name])
    assert model_fingerprint(model) == before
    assert noticed == len(list(chunks(sorted(weights), 32)))


def chunks(names: list[str], size: int) -> Iterator[list[str]]:
    """Consecutive full groups of names."""
    for i in range(0, len(names) - size + 1, size):
        yield names[i : i + size]


def test_different_settings_and_conditionings_have_different_hashes() -> None:
    settings = {"steps": 5, "cfg": 1.0}
    apple, heart = encode_prompt("red apple")[0], encode_prompt("red heart")[0]
    latent = torch.zeros(1, 3, 32, 32)
    inputs = [
        (settings, apple, latent),
        (settings, heart, latent),
        (settings, latent, apple),
        (settings, apple, latent + 1),
        (settings, apple, latent[..., :16]),
        (settings, apple + apple, latent),
        (settings, [[apple[0][0], {"pooled_output": None, "strength": 0.5}]], latent),
        (settings, [[apple[0][0], {"pooled_output": None, "mask": torch.ones(2, 2)}]], latent),
        (settings | {"steps": 6}, apple, latent),
        (settings | {"cfg": 1.5}, apple, latent),
    ]
    hashes = [settings_hash(*arguments) for arguments in inputs]
    assert len(set(hashes)) == len(hashes)


def test_the_settings_hash_is_the_same_for_equal_contents() -> None:
    again = {"cfg": 1.0, "steps": 5}  # another order, other objects
    first = settings_hash({"steps": 5, "cfg": 1.0}, encode_prompt("apple")[0], torch.zeros(2))
    assert settings_hash(again, encode_prompt("apple")[0], torch.zeros(2)) == first


def test_a_condition_moved_from_positive_to_negative_is_another_training() -> None:
    a, b, c = (encode_prompt(prompt)[0] for prompt in ("apple", "heart", "face"))
    assert settings_hash({}, a + b, c) != settings_hash({}, a, b + c)


def hash_of(model: Any) -> str:
    return settings_hash({}, patches_of(model))


def with_guidance(model: Any, strength: float) -> Any:
    def my_guidance(arguments: dict[str, Any]) -> Any:
        return strength * arguments["denoised"]

    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(my_guidance)
    return clone


def test_the_hash_covers_the_constants_of_a_patched_function(model: Any) -> None:
    assert hash_of(with_guidance(model, 0.5)) == hash_of(with_guidance(model, 0.5))
    assert len({hash_of(m) for m in (model, *(with_guidance(model, s) for s in (0.5, 0.7)))}) == 3


def test_the_hash_covers_the_constants_of_an_object_in_a_condition() -> None:
    class Control:
        def __init__(self, strength: float) -> None:
            self.strength = strength

    def condition(strength: float) -> list[Any]:
        return [[torch.zeros(1, 2, 3), {"control": Control(strength)}]]

    assert settings_hash({}, condition(1.0)) == settings_hash({}, condition(1.0))
    assert settings_hash({}, condition(1.0)) != settings_hash({}, condition(0.5))


def test_patched_noise_levels_change_the_fingerprint_and_loading_them_does_not(
    model: Any, flow_model: Any
) -> None:
    patched = flow_model(model, 3.0)
    plain, three = model_fingerprint(model), model_fingerprint(patched)
    assert len({plain, three, model_fingerprint(flow_model(model, 8.0))}) == 3
    comfy.model_management.load_models_gpu([patched])
    assert model_fingerprint(patched) == three
    assert model_fingerprint(model) == plain
    comfy.model_management.unload_all_models()
    assert model_fingerprint(patched) == three
