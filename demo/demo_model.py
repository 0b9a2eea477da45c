"""The demo models: 4.5 M parameter text-to-emoji diffusion models on 32x32 pixels.

They are ComfyUI's own UNet behind ComfyUI's own BaseModel and ModelPatcher, so every core sampling
node works with them. "eps" predicts eps on Stable Diffusion's noise schedule, "flow" the velocity
of a rectified flow; both in pixel space, and small enough to sample in seconds on a CPU. They share
the words of their prompts. `train_demo_model.py` trained the weights. "flow turbo" is the flow
model with a LoRA for four steps, from `distill_demo_model.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models_base
import torch
from safetensors import safe_open

FOLDER = Path(__file__).parent
WEIGHTS = {
    "flow": FOLDER / "emoji_flow_unet.safetensors",
    "eps": FOLDER / "emoji_unet.safetensors",
}
LORAS = {"flow turbo": ("flow", FOLDER / "emoji_flow_turbo_lora.safetensors")}
"""Name -> the model it changes, and the changes."""
MODELS = ["flow", "flow turbo", "eps"]
MODEL_TYPES = {
    "flow": comfy.model_base.ModelType.FLOW,
    "eps": comfy.model_base.ModelType.EPS,
}
DEFAULT = "eps"  # for prompts and workflows from before there was a choice
SIZE = 32
TOKENS = 12
CONTEXT_DIM = 128
NETWORK_PREFIX = "diffusion_model."
WORDS_KEY = "words"  # (1 + vocabulary, CONTEXT_DIM); row 0 is the null token


class EmojiPixels(comfy.latent_formats.LatentFormat):
    """Latents that are RGB pixels in [-1, 1]."""

    scale_factor = 1.0
    latent_channels = 3
    spacial_downscale_ratio = 1
    latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


class EmojiConfig(comfy.supported_models_base.BASE):
    """What ComfyUI must know about the demo model to build it."""

    unet_config = {
        "image_size": SIZE,
        "in_channels": 3,
        "out_channels": 3,
        "model_channels": 32,
        "channel_mult": (1, 2, 2, 4),
        "num_res_blocks": 1,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "context_dim": CONTEXT_DIM,
        # Attention at 4x4 and in the middle only: ComfyUI's default CPU attention is slow above.
        "transformer_depth": [0, 0, 0, 1],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [0, 0, 0, 0, 0, 0, 1, 1],
        "legacy": False,
    }
    unet_extra_config = {"num_heads": -1, "num_head_channels": 32}
    latent_format = EmojiPixels
    sampling_settings = {"shift": 1.0}  # of a flow model: its training is not shifted
    memory_usage_factor = 0.1
    # Full precision also on a GPU: the model is tiny, and a schedule then fits every machine.
    supported_inference_dtypes = [torch.float32]


def _operations(base: type) -> type:
    """ComfyUI's layers with group norms of at least eight channels.

    The UNet asks for 32 groups. With 32 channels that normalises each channel alone, which
    erases the mean colour the network has to predict.
    """

    class DemoOperations(base):
        class GroupNorm(base.GroupNorm):
            def __init__(self, num_groups: int, num_channels: int, **options: Any) -> None:
                super().__init__(min(num_groups, num_channels // 8), num_channels, **options)

    return DemoOperations


def build_model(
    device: torch.device | None = None, name: str = DEFAULT
) -> comfy.model_base.BaseModel:
    """Build the network with weights not yet set.

    Args:
        device: where it will compute; ComfyUI's device by default.
        name: a key of `WEIGHTS`, which decides what it predicts.

    Returns:
        A BaseModel on (batch, 3, 32, 32) pixels in [-1, 1].
    """
    device = device or comfy.model_management.get_torch_device()
    config = EmojiConfig(EmojiConfig.unet_config)
    dtypes = config.supported_inference_dtypes
    dtype = comfy.model_management.unet_dtype(device, supported_dtypes=dtypes)
    manual_cast = comfy.model_management.unet_manual_cast(dtype, device, dtypes)
    config.set_inference_dtype(dtype, manual_cast)
    config.custom_operations = _operations(comfy.ops.pick_operations(dtype, manual_cast))
    return comfy.model_base.BaseModel(config, MODEL_TYPES[name])


def load_demo_model(name: str = DEFAULT) -> comfy.model_patcher.ModelPatcher:
    """Load a trained demo model.

    Args:
        name: one of `MODELS`.

    Returns:
        A MODEL for every core sampling node; its latents are (batch, 3, 32, 32) in [-1, 1].

    Raises:
        FileNotFoundError: its weights are not beside this file.
        RuntimeError: they belong to another network.
    """
    base, lora = LORAS.get(name, (name, None))
    with _open(WEIGHTS[base]) as file:
        keys = [key for key in file.keys() if key.startswith(NETWORK_PREFIX)]
        weights = {key: file.get_tensor(key).float() for key in keys}
    if lora is not None:
        _add_lora(weights, lora)
    model = build_model(name=base)
    model.diffusion_model.load_state_dict(
        {key.removeprefix(NETWORK_PREFIX): weight for key, weight in weights.items()}
    )
    return comfy.model_patcher.ModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def load_demo_vae() -> comfy.sd.VAE:
    """Return ComfyUI's pixel-space VAE, which turns the demo model's latents into images."""
    return comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})


def empty_latent(batch_size: int = 1) -> dict[str, Any]:
    """Return an empty LATENT of the demo model: zeros (batch_size, 3, 32, 32)."""
    samples = torch.zeros((batch_size, 3, SIZE, SIZE))
    return {"samples": samples, "downscale_ratio_spacial": 1}


def words_of(text: str) -> list[str]:
    """Split a caption or prompt into lower-case words of letters and digits."""
    return re.findall(r"[a-z0-9]+", text.lower())


def token_ids(text: str, vocabulary: list[str]) -> tuple[list[int], list[str]]:
    """Turn text into the model's tokens.

    Args:
        text: a caption or prompt. Words after the TOKENS-th known one are ignored.
        vocabulary: word i has token i + 1; token 0 is the null token.

    Returns:
        TOKENS token ids, the known words over and over (null tokens if there is none), and the
        words the vocabulary lacks.
    """
    ids = {word: index for index, word in enumerate(vocabulary, start=1)}
    words = words_of(text)
    known = [ids[word] for word in words if word in ids][:TOKENS]
    unknown = list(dict.fromkeys(word for word in words if word not in ids))
    # Repeated words, not null tokens, fill the row: else null tokens drown a short prompt.
    known = known or [0]
    return [known[index % len(known)] for index in range(TOKENS)], unknown


def encode_prompt(text: str) -> tuple[list[list[Any]], list[str]]:
    """Turn a prompt into CONDITIONING for all demo models, which have one word table.

    Args:
        text: words of Unicode emoji names, such as "grinning face"; empty for no condition.

    Returns:
        CONDITIONING with one (1, TOKENS, CONTEXT_DIM) float32 tensor, and the words the model
        never saw in training (they are left out of the conditioning).

    Raises:
        FileNotFoundError: its weights are not beside this file.
    """
    with _open(WEIGHTS[DEFAULT]) as file:
        vocabulary = json.loads(file.metadata()["vocabulary"])
        table = file.get_tensor(WORDS_KEY).float()
    ids, unknown = token_ids(text, vocabulary)
    return [[table[ids].unsqueeze(0), {"pooled_output": None}]], unknown


class DemoClip:
    """The words of the demo models as core's nodes use a CLIP."""

    def tokenize(self, text: str, **options: Any) -> str:
        """The text: `encode_from_tokens_scheduled` looks its words up."""
        return text

    def encode_from_tokens_scheduled(self, tokens: str, **options: Any) -> list[list[Any]]:
        """CONDITIONING of a text; words that are not known are left out."""
        return encode_prompt(tokens)[0]


def _add_lora(weights: dict[str, torch.Tensor], path: Path) -> None:
    # Added here, not as ComfyUI's patches: a model of its own, with its own fingerprint.
    with _open(path) as file:
        tensors = {key: file.get_tensor(key).float() for key in file.keys()}
    for name in {key.rsplit(".lora_", 1)[0] for key in tensors}:
        weight = weights[f"{name}.weight"]
        product = tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"]
        weight += product.reshape(weight.shape)


def _open(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(
            f"the demo model's weights are missing: expected {path}. Install the pack again, "
            "or train them as demo/README.md says."
        )
    return safe_open(path, framework="pt")
