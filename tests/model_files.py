"""Model files with the names and shapes of published ones, small, for core's loaders to detect.

Core finds the class of a file by names and shapes. Here each file has one block of every kind and
the smallest width that its class can be told by; weights are random. LTX and MiniMax also read
their options from the file's metadata, as published files have them.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.sd
import safetensors.torch
import torch

from . import models
from .models import Family

ONE_HEAD = {"hidden_size": 128, "num_heads": 1, "axes_dim": [16, 56, 56], "mlp_ratio": 4.0}
UNET_320 = models.UNET | {
    "model_channels": 320, "channel_mult": (1,), "num_res_blocks": [1], "num_heads": 8,
    "transformer_depth": [1], "transformer_depth_middle": 1, "transformer_depth_output": [1, 1],
}  # fmt: skip
UNET_1024 = UNET_320 | {
    "context_dim": 1024, "use_linear_in_transformer": True, "num_heads": -1,
    "num_head_channels": 64,
}  # fmt: skip
WAN = models.WAN | {"dim": 128, "num_heads": 1, "freq_dim": 256, "text_dim": 4096}
FLUX = models.FLUX | ONE_HEAD
FILES = {
    "SD 1.5": Family("SD15", UNET_320 | {"context_dim": 768}, (4, 8, 8), 768),
    "SD 2.1": Family("SD20", UNET_1024, (4, 8, 8), 1024),
    "SD 3": Family("SD3", models.MMDIT, (16, 8, 8), pooled=2048),
    "Flux dev": Family("Flux", FLUX | {"guidance_embed": True}, (16, 8, 8), 16, 8, {},
                       models.GUIDANCE),
    "Flux schnell": Family("FluxSchnell", FLUX, (16, 8, 8), pooled=8),
    "Wan 2.1": Family("WAN21_T2V", WAN, (16, 2, 8, 8), 4096),
    "Wan 2.2 5B": Family("WAN22_T2V", WAN | {"in_dim": 48, "out_dim": 48}, (48, 2, 4, 4), 4096),
    "Hunyuan Video": Family(
        "HunyuanVideo", models.HUNYUAN_VIDEO | ONE_HEAD | {"vec_in_dim": 768}, (16, 2, 8, 8), 16,
        768, {}, {"guidance": 6.0},
    ),
    "LTX-Video": models.FAMILIES["LTX-Video"],
    "LTX-2, video and audio": models.NESTED["LTX-2, video and audio"],
    "MiniMax H3, video and audio": models.NESTED["MiniMax H3, video and audio"],
}  # fmt: skip
WITH_CONFIG = ("LTXV", "LTXAV", "MiniMaxH3")
CHECKPOINTS = ("SD15", "SD20")  # with the prefix that their files have


def written(name: str, folder: Path, **options: Any) -> Path:
    """The file of that name in `FILES`, in a folder; some options of its network may differ."""
    family = FILES[name]
    family = replace(family, unet=family.unet | options)
    prefix = "model.diffusion_model." if family.config in CHECKPOINTS else ""
    weights = models.family_model(family).model.diffusion_model.state_dict()
    tensors = {prefix + key: value.clone().contiguous() for key, value in weights.items()}
    metadata = None
    if family.config in WITH_CONFIG:
        metadata = {"config": json.dumps({"transformer": family.unet})}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace(' ', '_')}.safetensors"
    with torch.inference_mode(False):
        safetensors.torch.save_file(tensors, path, metadata)
    return path


def loaded(name: str) -> Any:
    """The MODEL that core's loaders of diffusion models and checkpoints make of the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(written(name, Path(folder)))
        if FILES[name].config in CHECKPOINTS:
            return comfy.sd.load_checkpoint_guess_config(path, output_vae=False, output_clip=False)[
                0
            ]
        return comfy.sd.load_diffusion_model(path)
