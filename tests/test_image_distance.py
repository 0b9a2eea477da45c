"""Laws of distances of images: LPIPS as features, and decoding as ComfyUI decodes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.latent_formats
import comfy.model_management
import comfy.samplers
import comfy.sd
import folder_paths
import pytest
import safetensors.torch
import torch
import torchvision
from comfy.ldm.models.autoencoder import AutoencoderKL
from torch import Tensor

from demo.demo_model import load_demo_model, load_demo_vae
from ld3.comfy import folders, image_distance
from ld3.lpips_features import LEAST_SIZE, LpipsFeatures
from ld3.metrics import IMAGE_DISTANCES

pytestmark = pytest.mark.usefixtures("one_thread")
ARCHITECTURES = {"alex": "alexnet", "squeeze": "squeezenet1_1", "vgg": "vgg16"}
TINY_KL = {
    "embed_dim": 4,
    "ddconfig": {
        "double_z": True,
        "z_channels": 4,
        "resolution": 32,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
}


@functools.cache
def random_backbone(net: str) -> dict[str, Tensor]:
    """SEEDED RANDOM weights in torchvision's layout: the laws hold for any, but these see nothing.

    Only the calibrated weights of the layers, which lpips ships, are real.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(torchvision.models, ARCHITECTURES[net])(weights=None).state_dict()


@functools.cache
def lpips_features(net: str) -> LpipsFeatures:
    return LpipsFeatures(net, random_backbone(net))


def random_tensor(*shape: int, seed: int = 0, uniform: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand if uniform else torch.randn)(*shape, generator=generator)


def tiny_kl_vae(dtype: torch.dtype | None = None) -> comfy.sd.VAE:
    """ComfyUI's AutoencoderKL with seeded random weights; 2 pixels a latent."""
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: torch.randn(weight.shape, generator=generator) * 0.08
        + float("norm" in name and name.endswith("weight"))
        for name, weight in AutoencoderKL(**TINY_KL).state_dict().items()
    }
    return comfy.sd.VAE(sd=weights, config={"params": TINY_KL}, dtype=dtype)


def guider_of(latent_format: comfy.latent_formats.LatentFormat) -> Any:
    """As much of a running guider as decoding uses."""
    return SimpleNamespace(
        inner_model=SimpleNamespace(process_latent_out=latent_format.process_out)
    )


SD15 = guider_of(comfy.latent_formats.SD15())
PIXELS = guider_of(comfy.latent_formats.LatentFormat())


@pytest.fixture
def lpips_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty `models/lpips`, and an empty cache of torch's."""
    folder = tmp_path / "models" / "lpips"
    folder.mkdir(parents=True)
    known = ([str(folder)], {".pth", ".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, folders.LPIPS_KEY, known)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    yield folder


@pytest.fixture
def alexnet(lpips_folder: Path) -> Path:
    """A file named as torchvision's, with random weights in it."""
    path = lpips_folder / "alexnet-owt-7be5be79.pth"
    weights = random_backbone("alex")
    torch.save({name: w for name, w in weights.items() if name.startswith("features")}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("net", LEAST_SIZE)
def test_the_squared_distance_of_features_is_lpips(net: str) -> None:
    features = lpips_features(net)
    one, other = (random_tensor(2, 3, 40, 36, seed=s, uniform=True) for s in (1, 2))
    with torch.no_grad():
        own = features.distance(one, other, normalize=True).flatten()
        ours = (features(one) - features(other)).pow(2).sum(1)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, own, rtol=1e-5, atol=0)


@pytest.mark.slow
def test_distance_of_videos_is_the_mean_over_their_frames() -> None:
    features = lpips_features("alex")
    one, other = (random_tensor(2, 3, 5, 32, 32, seed=s, uniform=True) for s in (1, 2))
    with torch.no_grad():
        whole = (features(one) - features(other)).pow(2).sum(1)
        residuals = [features(one[:, :, f]) - features(other[:, :, f]) for f in range(5)]
    frames = torch.stack([residual.pow(2).sum(1) for residual in residuals])
    torch.testing.assert_close(whole, frames.mean(0))


@pytest.mark.slow
@pytest.mark.parametrize("net", LEAST_SIZE)
def test_least_size_is_the_smallest_that_the_network_accepts(net: str) -> None:
    features, least = lpips_features(net), LEAST_SIZE[net]
    with torch.no_grad():
        assert torch.isfinite(features(torch.rand(1, 3, least, least))).all()
        small = torch.rand(1, 3, least - 1, 64)
        with pytest.raises(RuntimeError):
            features.distance(small, small)
        with pytest.raises(ValueError, match=f"64x{least - 1} pixels .* {net}.* {least}x{least}"):
            features(small)


def test_images_that_are_not_rgb_are_refused() -> None:
    with pytest.raises(ValueError, match="RGB.*latent distance"):
        lpips_features("alex")(torch.rand(1, 4, 64, 64))


def test_backbone_of_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match="weights of squeeze: features.0.weight is missing or"):
        LpipsFeatures("squeeze", random_backbone("alex"))
    wrong = dict(random_backbone("alex")) | {"features.0.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"weights of alex: features.0.weight .*\(64, 3, 11, 11\)"):
        LpipsFeatures("alex", wrong)


def test_construction_draws_no_random_numbers_and_freezes_weights() -> None:
    before = torch.get_rng_state()
    with torch.inference_mode():
        features = LpipsFeatures("squeeze", random_backbone("squeeze"))
    assert torch.equal(torch.get_rng_state(), before)
    weights = list(features.parameters()) + list(features.buffers())
    assert not any(w.requires_grad or w.is_inference() for w in weights)


def test_gradient_is_zero_not_undefined_where_no_channel_is_active() -> None:
    dead = {name: torch.zeros_like(w) for name, w in random_backbone("alex").items()}
    features = LpipsFeatures("alex", dead)
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(features(image).sum(), image)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_gradient_by_latents_is_that_of_central_differences() -> None:
    vae = tiny_kl_vae(torch.float64)
    decode = image_distance.pixel_decoder(vae, SD15)
    features = LpipsFeatures("alex", random_backbone("alex")).double()
    latent, target = (random_tensor(1, 4, 16, 16, seed=s).double() for s in (1, 2))
    with torch.no_grad():
        wanted = features(decode(target))

    def distance(x: Tensor) -> Tensor:
        return (features(decode(x)) - wanted).pow(2).sum()

    (gradient,) = torch.autograd.grad(distance(latent.requires_grad_()), latent)
    with torch.no_grad():
        for seed in (3, 4, 5):
            way = random_tensor(1, 4, 16, 16, seed=seed).double()
            slope = (distance(latent + 1e-6 * way) - distance(latent - 1e-6 * way)) / 2e-6
            assert float((gradient * way).sum()) == pytest.approx(float(slope), rel=1e-6)


def test_decoding_gives_the_pixels_of_vae_decode() -> None:
    latents = random_tensor(2, 4, 16, 16)
    vae, scale = tiny_kl_vae(), comfy.latent_formats.SD15().scale_factor
    with torch.inference_mode():
        shown = vae.decode(latents / scale).movedim(-1, 1)
        decoded = image_distance.pixel_decoder(vae, SD15)(latents)
    assert decoded.dtype == torch.float32 and 0.1 < float(decoded.std())
    torch.testing.assert_close(decoded, shown)
    pixels, vae = random_tensor(2, 3, 32, 32), load_demo_vae()
    decoded = image_distance.pixel_decoder(vae, PIXELS)(pixels)
    assert torch.equal(decoded, vae.decode(pixels).movedim(-1, 1))
    assert 0 <= float(decoded.min()) and float(decoded.max()) <= 1


def test_the_vae_and_the_latents_do_not_change(alexnet: Path) -> None:
    for vae, guider, latents in (
        (tiny_kl_vae(), SD15, random_tensor(1, 4, 16, 16)),
        (load_demo_vae(), PIXELS, random_tensor(1, 3, 32, 32)),
    ):
        weights = {name: w.clone() for name, w in vae.first_stage_model.state_dict().items()}
        given = latents.clone().requires_grad_()
        features = image_distance.feature_map("lpips-alex", vae, guider, latents)
        features(given).sum().backward()
        assert torch.equal(given.detach(), latents) and given.grad is not None
        after = vae.first_stage_model.state_dict()
        assert all(torch.equal(w, after[name]) for name, w in weights.items())


@pytest.mark.parametrize("name", ["lpips-alex", "pixel-l2", "pixel-l1"])
def test_features_are_the_same_in_every_mode_of_autograd(name: str, alexnet: Path) -> None:
    latents = random_tensor(2, 4, 16, 16)
    with torch.inference_mode():  # as nodes run
        features = image_distance.feature_map(name, tiny_kl_vae(), SD15, latents)
        inferred = features(latents)
    vae = tiny_kl_vae()  # its weights are made outside of inference mode
    with torch.no_grad():
        features = image_distance.feature_map(name, vae, SD15, latents)
        plain = features(latents)
    recorded = features(latents.clone().requires_grad_())
    assert recorded.requires_grad and plain.ndim == 2 and len(plain) == 2
    assert torch.equal(inferred, plain) and torch.equal(recorded.detach(), plain)
    if name == "pixel-l2":
        assert torch.equal(plain, image_distance.pixel_decoder(vae, SD15)(latents).flatten(1))


def test_missing_network_names_file_size_address_and_folder(lpips_folder: Path) -> None:
    with pytest.raises(ValueError) as caught:
        image_distance.check_image_distance("lpips-vgg", load_demo_vae())
    for part in (
        "vgg16-397923af.pth",
        "528 MB",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        str(lpips_folder),
        "pseudo-huber, l2, l1 need no file",
    ):
        assert part in str(caught.value)


def test_network_is_found_in_models_lpips_then_in_torchs_cache(lpips_folder: Path) -> None:
    weights = {"features.0.weight": torch.ones(2)}
    cached = lpips_folder.parents[1] / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    cached.parent.mkdir(parents=True)
    torch.save(weights, cached)
    assert image_distance.backbone_path("squeeze") == cached
    own = lpips_folder / "squeezenet1_1-b8a52dc0.safetensors"
    safetensors.torch.save_file({"features.0.weight": torch.zeros(2)}, own)
    assert image_distance.backbone_path("squeeze") == own
    assert torch.equal(image_distance.find_backbone("squeeze")["features.0.weight"], torch.zeros(2))


def test_damaged_network_file_is_named(alexnet: Path) -> None:
    alexnet.write_bytes(alexnet.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{alexnet.name} cannot be read.*download it again"):
        image_distance.find_backbone("alex")


@pytest.mark.parametrize("name", IMAGE_DISTANCES)
def test_image_distance_without_vae_says_what_to_connect(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' compares images.*connect vae.*pseudo-huber"):
        image_distance.check_image_distance(name, None)


def test_a_vae_whose_images_are_too_small_is_refused_at_once(alexnet: Path) -> None:
    with pytest.raises(ValueError, match="16x16 pixels are too small for LPIPS with alex"):
        image_distance.feature_map("lpips-alex", load_demo_vae(), PIXELS, torch.zeros(1, 3, 16, 16))


def test_a_vae_of_another_model_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="connect the VAE that belongs to the model"):
        image_distance.feature_map("pixel-l2", tiny_kl_vae(), SD15, torch.zeros(1, 16, 16, 16))


@pytest.mark.parametrize("make_vae", [load_demo_vae, tiny_kl_vae])
def test_models_and_vae_are_loaded_together(make_vae: Callable[[], comfy.sd.VAE]) -> None:
    model, other, vae = load_demo_model(), load_demo_model(), make_vae()
    guider = comfy.samplers.CFGGuider(model)
    guider.loaded_models = [other]  # as while it runs, when a ControlNet is among its conditions
    image_distance.load_together(guider, vae, (2, 4, 16, 16))
    loaded = comfy.model_management.loaded_models()
    assert all(any(m is wanted for m in loaded) for wanted in (model, other, vae.patcher))


def test_registering_adds_the_model_folder_of_lpips() -> None:
    folders.register()
    paths, extensions = folder_paths.folder_names_and_paths[folders.LPIPS_KEY]
    assert paths[0] == str(folders.lpips_folder())
    assert folders.lpips_folder().parts[-2:] == ("models", "lpips")
    assert {".pth", ".safetensors"} <= extensions
