"""Which model a schedule was learned for, and whether a training was already done."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

SAMPLED_WEIGHTS = 256
SAMPLED_VALUES = 16


def model_fingerprint(model: Any) -> str:
    """Hash of a MODEL's architecture, a fixed sample of its weights, and its patches (LoRA).

    The same after a restart, on another device, and whether or not patches are applied at the
    moment.
    """
    digest = hashlib.sha256(type(model.model).__name__.encode())
    weights = model.model.state_dict()
    names = sorted(weights)
    for name in names:
        digest.update(f"{name}{tuple(weights[name].shape)}".encode())
    stride = max(1, len(names) // SAMPLED_WEIGHTS)
    for name in names[::stride]:
        # a weight a LoRA is merged into at the moment: the original is in the backup
        backup = model.backup.get(name)
        digest.update(_values(weights[name] if backup is None else backup.weight))
    for name in sorted(model.patches, key=str):
        for patch in model.patches[name]:
            digest.update(f"{name}{patch[0]}{patch[2]}".encode())
            for tensor in _tensors(patch[1]):
                digest.update(_values(tensor))
    return digest.hexdigest()[:16]


def architecture(model: Any) -> str:
    """The model's class, as ComfyUI calls it."""
    return type(model.model).__name__


def model_file(model: Any) -> str:
    """The checkpoint's file name where ComfyUI remembers it, else ""."""
    init = getattr(model, "cached_patcher_init", None)
    path = next((a for a in init[1] if isinstance(a, str)), "") if init else ""
    return path.replace("\\", "/").rsplit("/", 1)[-1]


def settings_hash(settings: dict[str, Any], *contents: Any) -> str:
    """Hash of settings and of all else a training depends on (conditionings, latents)."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for content in contents:
        _update(digest, content)
    return digest.hexdigest()[:32]


def options_of(model: Any) -> list[str]:
    """Names of the functions patched into a MODEL's options and of its replaced objects."""
    names = []

    def walk(value: Any) -> None:
        if callable(value):
            names.append(getattr(value, "__qualname__", type(value).__qualname__))
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                names.append(str(key))
                walk(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                walk(item)

    walk(model.model_options)
    walk({key: type(value).__qualname__ for key, value in model.object_patches.items()})
    return names


def _update(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(str(tuple(value.shape)).encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        digest.update(f"dict of {len(value)}".encode())
        for key in sorted(value, key=str):
            _update(digest, str(key))
            _update(digest, value[key])
    elif isinstance(value, (list, tuple)):
        # how many: [A, B] before [C] is not [A] before [B, C]
        digest.update(f"list of {len(value)}".encode())
        for item in value:
            _update(digest, item)
    elif isinstance(value, (str, int, float, bool, type(None))):
        digest.update(repr(value).encode())
    else:
        # control nets, hooks and the like: what they are, not where they lie in memory
        digest.update(type(value).__qualname__.encode())


def _values(tensor: Any) -> bytes:
    flat = torch.as_tensor(tensor).detach().flatten()
    stride = max(1, flat.numel() // SAMPLED_VALUES)
    return flat[::stride][:SAMPLED_VALUES].cpu().float().numpy().tobytes()


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if hasattr(value, "weights"):  # comfy.weight_adapter's LoRA objects
        return _tensors(value.weights)
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in _tensors(item)]
    return []
