"""Hashes that identify a schedule's model, and identical trainings."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import types
from typing import Any

import torch
from torch import Tensor

from . import guiders

SAMPLED_WEIGHTS = 256
SAMPLED_VALUES = 16
MODEL_SAMPLING = "model_sampling"
OF_SAMPLING = ("model_patcher", "model_options", "original_conds", "conds", "inner_model")
OF_SAMPLING += ("loaded_models",)  # which a GUIDER has while it samples
DEPTH = 4  # of objects within objects; deeper ones count by their class


def model_fingerprint(model: Any) -> str:
    """Hash of a MODEL's architecture, noise levels, a sample of its weights, and patches (LoRA).

    The same after a restart, on another device, and whether or not patches are applied at the
    moment.
    """
    digest = hashlib.sha256(type(model.model).__name__.encode())
    _update(digest, _noise_levels(model.get_model_object(MODEL_SAMPLING)))
    weights = model.model.state_dict()
    # what an object patch replaces differs while it is applied
    replaced = (MODEL_SAMPLING, *model.object_patches, *model.object_patches_backup)
    names = [n for n in sorted(weights) if not n.startswith(tuple(f"{r}." for r in replaced))]
    # of a weight that a LoRA is merged into at the moment the original is in the backup
    originals = {name: backup.weight for name, backup in model.backup.items()}
    _update_weights(digest, {name: weights[name] for name in names}, originals)
    for name in sorted(model.patches, key=str):
        for patch in model.patches[name]:
            digest.update(f"{name}{patch[0]}{patch[2]}".encode())
            for tensor in _tensors(patch[1]):
                digest.update(_values(tensor))
    return digest.hexdigest()[:16]


def weights_hash(network: torch.nn.Module) -> str:
    """Hash of a network's weights' names and shapes, and of a fixed sample of their values."""
    digest = hashlib.sha256(type(network).__name__.encode())
    weights = network.state_dict()
    _update_weights(digest, {name: weights[name] for name in sorted(weights)}, {})
    return digest.hexdigest()[:16]


def _update_weights(digest: Any, weights: dict[str, Any], originals: dict[str, Any]) -> None:
    """Digest all names and shapes, and some values of some weights; originals go first."""
    for name, weight in weights.items():
        digest.update(f"{name}{tuple(weight.shape)}".encode())
    for name in list(weights)[:: max(1, len(weights) // SAMPLED_WEIGHTS)]:
        digest.update(_values(originals.get(name, weights[name])))


def architecture(model: Any) -> str:
    """The model's class, as ComfyUI calls it."""
    return type(model.model).__name__


def model_file(model: Any) -> str:
    """The checkpoint's file name where ComfyUI remembers it, else ""."""
    init = getattr(model, "cached_patcher_init", None)
    path = next((a for a in init[1] if isinstance(a, str)), "") if init else ""
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    # bytes that are no text are half characters in Python, which no file can contain
    return name.encode(errors="replace").decode()


def settings_hash(settings: dict[str, Any], *contents: Any) -> str:
    """Hash of settings and of all other contents a training depends on."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for content in contents:
        _update(digest, content)
    return digest.hexdigest()[:32]


def patches_of(model: Any) -> list[Any]:
    """What is patched onto a MODEL besides weights, for `settings_hash`."""
    names = ("model_options", "object_patches", "wrappers", "attachments", "injections")
    return [getattr(model, name, None) for name in names]


def guidance_hash(guider: Any) -> str:
    """Hash of what a GUIDER does with its MODEL: its kind, numbers, prompts, and other models.

    The same before and after it has sampled.
    """
    digest = hashlib.sha256(type(guider).__qualname__.encode())
    _update(digest, patches_of(guider.model_patcher))
    for name, value in sorted(vars(guider).items()):
        if name.startswith("_") or name in OF_SAMPLING or _is_empty(value):
            continue
        if hasattr(value, "patches_uuid"):
            value = [model_fingerprint(value), patches_of(value)]
        _update(digest, [name, value])
    unused = guiders.unused_prompts(guider)
    for name, prompts in sorted(guiders.prompts_of(guider).items()):
        # every conversion gives a conditioning another uuid
        parts = [{k: v for k, v in prompt.items() if k != "uuid"} for prompt in prompts]
        _update(digest, [name, None if name in unused else parts])
    return digest.hexdigest()[:16]


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (list, tuple, dict)) and not value)


def _noise_levels(sampling: Any) -> list[Any]:
    """The kind of a model_sampling and its constants; patches may create a new class every time."""
    values = {k: v for k, v in vars(sampling).items() if isinstance(v, (int, float, bool))}
    return [[c.__name__ for c in type(sampling).__mro__], values, dict(sampling.named_buffers())]


def _update(digest: Any, value: Any, depth: int = 0) -> None:
    """Digest a value by its content, never by its address in memory."""
    if isinstance(value, Tensor):
        digest.update(str(tuple(value.shape)).encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        digest.update(f"dict of {len(value)}".encode())
        for key in sorted(value, key=str):
            _update(digest, str(key), depth)
            _update(digest, value[key], depth)
    elif isinstance(value, (list, tuple)):
        # how many: [A, B] before [C] is not [A] before [B, C]
        digest.update(f"list of {len(value)}".encode())
        for item in value:
            _update(digest, item, depth)
    elif isinstance(value, (str, int, float, bool, type(None))):
        digest.update(repr(value).encode())
    else:
        digest.update(getattr(value, "__qualname__", type(value).__qualname__).encode())
        if depth < DEPTH:
            _update(digest, _constants(value), depth + 1)


def _constants(value: Any) -> Any:
    """What a function or an object (control net, hook) was made with; networks count by class."""
    if isinstance(value, torch.nn.Module) or hasattr(value, "patches_uuid"):
        return None
    if inspect.ismethod(value):
        return [value.__func__, value.__self__]
    if inspect.isfunction(value):
        cells = [c.cell_contents for c in value.__closure__ or () if c != types.CellType()]
        return [cells, value.__defaults__, value.__kwdefaults__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    return None if isinstance(value, type) else getattr(value, "__dict__", None)


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
