"""ComfyUI's own model classes, tiny and with random weights: a model of each family people sample.

`FAMILIES` have networks of their own, `NESTED` make video and audio at once; `VARIANTS` are noise
levels, weights and patches of one small network, each made as a loader or a core node makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import comfy_extras.nodes_model_advanced as advanced
import torch
from comfy.nested_tensor import NestedTensor
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_freelunch import FreeU_V2
from torch import Tensor

CPU = torch.device("cpu")
TOKENS = 5


@dataclass(frozen=True)
class Family:
    """A class of `comfy.supported_models` with a small network.

    Attributes:
        config: the class's name. unet: its network's options.
        latent: a latent's shape without the batch.
        audio: that of a second latent, nested with the first.
        text: width of a prompt's tokens. pooled: width of its pooled output, 0 for none.
        weights: what the class reads from a checkpoint to detect its prediction.
        options: further contents of the conditioning.
    """

    config: str
    unet: dict[str, Any]
    latent: tuple[int, ...]
    text: int = 16
    pooled: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    audio: tuple[int, ...] = ()


UNET = {
    "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32,
    "channel_mult": (1, 2), "num_res_blocks": 1, "use_spatial_transformer": True,
    "context_dim": 16, "transformer_depth": [0, 1], "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 1, 1], "use_linear_in_transformer": False, "legacy": False,
    "adm_in_channels": None, "use_temporal_attention": False, "num_heads": 2,
}  # fmt: skip
SDXL = UNET | {"adm_in_channels": 2816, "num_classes": "sequential"}
FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "hidden_size": 32, "num_heads": 2,
    "axes_dim": [4, 6, 6], "depth": 1, "depth_single_blocks": 1, "vec_in_dim": 8, "mlp_ratio": 2.0,
    "context_in_dim": 16, "guidance_embed": False, "qkv_bias": True, "theta": 10000,
    "patch_size": 2, "txt_ids_dims": [],
}  # fmt: skip
CHROMA = {key: value for key, value in FLUX.items() if key != "guidance_embed"} | {
    "image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 32,
    "hidden_dim": 32, "n_layers": 1, "vec_in_dim": None,
}  # fmt: skip
MMDIT = {
    "in_channels": 16, "patch_size": 2, "depth": 1, "input_size": None, "adm_in_channels": 2048,
    "context_embedder_config": {
        "target": "torch.nn.Linear", "params": {"in_features": 16, "out_features": 64},
    },
    "num_patches": 64, "pos_embed_max_size": 8, "pos_embed_scaling_factor": None,
}  # fmt: skip
AURA = {"max_seq": 64, "cond_seq_dim": 16, "n_double_layers": 1, "n_layers": 2, "n_heads": 2,
        "dim": 32}  # fmt: skip
PIXART = {
    "image_model": "pixart_sigma", "num_heads": 2, "patch_size": 2, "hidden_size": 32,
    "in_channels": 4, "depth": 1, "model_max_length": TOKENS, "input_size": 32,
    "micro_condition": False, "caption_channels": 16, "pe_interpolation": 1,
}  # fmt: skip
WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 32, "in_dim": 16, "out_dim": 16,
    "num_heads": 2, "ffn_dim": 32, "num_layers": 1, "patch_size": (1, 2, 2), "freq_dim": 16,
    "text_dim": 16, "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6,
}  # fmt: skip
QWEN = {
    "image_model": "qwen_image", "in_channels": 64, "num_layers": 1, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 16, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 32, "cap_feat_dim": 16,
    "n_layers": 1, "n_refiner_layers": 1, "qk_norm": True, "n_heads": 2, "n_kv_heads": 2,
    "axes_dims": [4, 6, 6], "axes_lens": [300, 64, 64], "rope_theta": 10000.0, "multiple_of": 16,
}  # fmt: skip
ZIMAGE = LUMINA | {
    "dim": 256, "n_heads": 16, "n_kv_heads": 16, "z_image_modulation": True, "time_scale": 1000.0,
    "rope_theta": 256.0,
}  # fmt: skip
LTXV = {
    "image_model": "ltxv", "num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
    "cross_attention_dim": 32, "caption_channels": 16, "in_channels": 128,
}  # fmt: skip
LTX2 = LTXV | {
    "image_model": "ltxav", "audio_in_channels": 128, "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16,
}  # fmt: skip
MINIMAX = {
    "image_model": "minimax_h3", "hidden_size": 64, "num_layers": 1, "token_refiner_num_layers": 1,
    "num_attention_heads": 2, "attention_head_dim": 32, "ffn_hidden_size": 64, "text_dim": 48,
    "time_embed_hidden_size": 32, "time_embed_dim": 32, "rope_inv_freq_len": 4,
}  # fmt: skip
HUNYUAN_VIDEO = {
    "image_model": "hunyuan_video", "in_channels": 16, "patch_size": [1, 2, 2], "out_channels": 16,
    "vec_in_dim": 8, "context_in_dim": 16, "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2,
    "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 6, 6], "theta": 256, "qkv_bias": True,
    "guidance_embed": True, "byt5": False, "meanflow": False, "use_cond_type_embedding": False,
    "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
COSMOS2 = {
    "image_model": "cosmos_predict2", "max_img_h": 16, "max_img_w": 16, "max_frames": 8,
    "in_channels": 16, "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1,
    "concat_padding_mask": True, "model_channels": 32, "num_blocks": 1, "num_heads": 2,
    "crossattn_emb_channels": 16, "pos_emb_cls": "rope3d", "pos_emb_learnable": True,
    "pos_emb_interpolation": "crop", "use_adaln_lora": True, "adaln_lora_dim": 16,
}  # fmt: skip
STABLE_AUDIO = {
    "audio_model": "dit1.0", "global_cond_dim": 1536, "project_cond_tokens": True, "embed_dim": 128,
    "depth": 1, "num_heads": 2, "io_channels": 64, "cond_token_dim": 768, "input_concat_dim": 0,
}  # fmt: skip
V_KEY = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
GUIDANCE = {"guidance": 3.5}
LTXV_OPTIONS = {"frame_rate": 25, "attention_mask": torch.ones(1, TOKENS).long()}
SECONDS = {
    f"conditioner.conditioners.{part}.embedder.embedding.{name}": torch.linspace(-1, 1, size)
    .reshape(shape)
    for part in ("seconds_start", "seconds_total")
    for name, size, shape in (
        ("0.weights", 128, (128,)), ("1.weight", 768 * 257, (768, 257)), ("1.bias", 768, (768,)),
    )
}  # fmt: skip

FAMILIES = {
    "SD 1.5": Family("SD15", UNET, (4, 8, 8)),
    "SD 2.1 v": Family("SD20", UNET, (4, 8, 8), weights={V_KEY: torch.linspace(-1, 1, 64)}),
    "SDXL": Family("SDXL", SDXL, (4, 8, 8), pooled=1280),
    "SDXL refiner": Family("SDXLRefiner", SDXL | {"adm_in_channels": 2560}, (4, 8, 8), pooled=1280),
    "SD 3": Family("SD3", MMDIT, (16, 8, 8), pooled=2048),
    "Flux dev": Family("Flux", FLUX | {"guidance_embed": True}, (16, 8, 8), 16, 8, {}, GUIDANCE),
    "Flux schnell": Family("FluxSchnell", FLUX, (16, 8, 8), pooled=8),
    "Chroma": Family("Chroma", CHROMA, (16, 8, 8), options={"guidance": 0}),
    "AuraFlow": Family("AuraFlow", AURA, (4, 8, 8)),
    "PixArt Sigma": Family("PixArtSigma", PIXART, (4, 40, 40)),
    "Qwen-Image": Family("QwenImage", QWEN, (16, 1, 8, 8)),
    "Lumina 2": Family("Lumina2", LUMINA, (16, 8, 8)),
    "Z-Image": Family("ZImage", ZIMAGE, (16, 8, 8)),
    "Wan 2.1": Family("WAN21_T2V", WAN, (16, 2, 8, 8)),
    "Wan 2.2 5B": Family("WAN22_T2V", WAN | {"in_dim": 48, "out_dim": 48}, (48, 2, 4, 4)),
    "LTX-Video": Family("LTXV", LTXV, (128, 2, 4, 4), options=LTXV_OPTIONS),
    "Hunyuan Video": Family(
        "HunyuanVideo", HUNYUAN_VIDEO, (16, 2, 8, 8), 16, 8, {}, {"guidance": 6.0}
    ),
    "Cosmos Predict2": Family("CosmosT2IPredict2", COSMOS2, (16, 1, 8, 8)),
    "Stable Audio": Family("StableAudio", STABLE_AUDIO, (64, 16), 768, 0, SECONDS),
}
NESTED = {
    "LTX-2, video and audio": Family(
        "LTXAV", LTX2, (128, 2, 4, 4), 32, options=LTXV_OPTIONS, audio=(8, 6, 16)
    ),
    "MiniMax H3, video and audio": Family(
        "MiniMaxH3", MINIMAX, (24, 2, 4, 4), 48, audio=(32, 2, 6)
    ),
}
SD15, FLUX_FAMILY = FAMILIES["SD 1.5"], FAMILIES["Flux schnell"]


def randomised(network: torch.nn.Module) -> None:
    """Random weights with outputs about as large as inputs, zero-initialised layers included."""
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        random = torch.randn(weight.shape, generator=generator)
        inputs = weight[0].numel() if weight.ndim > 1 else 0
        weight.data.copy_(random / inputs**0.5 if inputs else 1 + 0.1 * random)
    for name, buffer in network.named_buffers():
        if name.endswith(
            ("pos_embed", "inv_freq")
        ):  # of SD 3 and MiniMax H3, read from their files
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))


def family_model(
    family: Family, dtype: torch.dtype = torch.float32, cast: Any = None, operations: Any = None
) -> Any:
    """A MODEL of the family, as a loader makes it inside ComfyUI.

    Args:
        dtype: of the weights. cast: what they are computed in, if another.
        operations: a class of layers, as loaders of quantised files bring.
    """
    with torch.inference_mode():
        config = getattr(comfy.supported_models, family.config)(dict(family.unet))
        config.unet_config.update(family.unet)
        config.set_inference_dtype(dtype, cast)
        config.custom_operations = operations
        model = config.get_model(family.weights, "model.diffusion_model.")
        randomised(model.diffusion_model)
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


def conditionings(family: Family) -> tuple[Any, Any]:
    """Positive and negative conditioning of random tokens."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(2):
        tokens = torch.randn(1, TOKENS, family.text, generator=generator)
        pooled = torch.randn(1, family.pooled, generator=generator) if family.pooled else None
        made.append([[tokens, {"pooled_output": pooled} | family.options]])
    return made[0], made[1]


def latent(family: Family) -> dict[str, Any]:
    """A LATENT with one sample: an image, which models that start at it need."""
    generator = torch.Generator().manual_seed(2)
    streams = [
        0.5 * torch.randn(1, *shape, generator=generator)
        for shape in (family.latent, family.audio)
        if shape
    ]
    return {"samples": NestedTensor(streams) if family.audio else streams[0]}


Patch = Callable[[Any], Any]


def discrete(kind: str, zsnr: bool = False) -> Patch:
    """Core's ModelSamplingDiscrete."""
    return lambda model: advanced.ModelSamplingDiscrete().patch(model, kind, zsnr)[0]


def continuous(kind: str, largest: float, smallest: float) -> Patch:
    """Core's ModelSamplingContinuousEDM."""
    return lambda model: advanced.ModelSamplingContinuousEDM().patch(
        model, kind, largest, smallest
    )[0]


def shifted(shift: float) -> Patch:
    """Core's ModelSamplingSD3: a flow model whose noise levels are shifted."""
    return lambda model: advanced.ModelSamplingSD3().patch(model, shift)[0]


def lora(model: Any) -> Any:
    """A LoRA of rank 1 at strength 0.7, as core's loader adds it."""
    patched, generator = model.clone(), torch.Generator().manual_seed(5)
    patches = {}
    for name, weight in model.model.state_dict().items():
        if name.startswith("diffusion_model") and weight.ndim == 2:
            up, down = (torch.randn(size, 1, generator=generator) for size in weight.shape)
            change = 0.02 * up @ down.T
            patches[name] = ("diff", (change,))
    patched.add_patches(patches, 0.7)
    return patched


class DequantisingOps(comfy.ops.manual_cast):
    """Weights in 8 bits that each call restores, as loaders of GGUF files do."""

    class Linear(comfy.ops.manual_cast.Linear):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            scale = self.weight.abs().amax(1, keepdim=True) / 127
            restored = (self.weight / scale).round().to(torch.int8).to(args[0].dtype) * scale
            return torch.nn.functional.linear(args[0], restored.to(args[0]), self.bias)


def apg(momentum: float) -> Patch:
    """Core's APG."""
    return lambda model: APG.execute(model, eta=1.0, norm_threshold=5.0, momentum=momentum)[0]


def easycache(model: Any) -> Any:
    """Core's EasyCache at its defaults."""
    return EasyCacheNode.execute(
        model, reuse_threshold=0.2, start_percent=0.15, end_percent=0.95, verbose=False
    )[0]


VARIANTS: dict[str, Patch] = {
    "eps, zero terminal SNR": discrete("eps", True),
    "v prediction": discrete("v_prediction"),
    "v prediction, zero terminal SNR": discrete("v_prediction", True),
    "LCM": discrete("lcm"),
    "x0 prediction": discrete("x0"),
    "image to image": discrete("img_to_img"),
    "image to image flow": discrete("img_to_img_flow"),
    "EDM": continuous("edm", 120.0, 0.002),
    "EDM playground": continuous("edm_playground_v2.5", 120.0, 0.002),
    "eps, continuous": continuous("eps", 120.0, 0.002),
    "v prediction, continuous EDM": continuous("v_prediction", 120.0, 0.002),
    "Cosmos rectified flow": continuous("cosmos_rflow", 80.0, 0.002),
    "v prediction, continuous": lambda model: advanced.ModelSamplingContinuousV().patch(
        model, "v_prediction", 500.0, 0.03
    )[0],
    "Stable Cascade": lambda model: advanced.ModelSamplingStableCascade().patch(model, 2.0)[0],
    "flow, shift 1": shifted(1.0),
    "flow, shift 3": shifted(3.0),
    "flow, shift 8": shifted(8.0),
    "AuraFlow sampling": lambda model: advanced.ModelSamplingAuraFlow().patch_aura(model, 1.73)[0],
    "Flux sampling": lambda model: advanced.ModelSamplingFlux().patch(model, 1.15, 0.5, 64, 64)[0],
    "RescaleCFG": lambda model: advanced.RescaleCFG().patch(model, 0.7)[0],
    "FreeU": lambda model: FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2)[0],
    "LoRA": lora,
    "APG, momentum -0.5": apg(-0.5),
    "EasyCache": easycache,
}


WEIGHTS: dict[str, dict[str, Any]] = {
    "fp8 weights": {"dtype": torch.float8_e4m3fn, "cast": torch.float32},
    "dequantising weights": {"operations": DequantisingOps},
}
