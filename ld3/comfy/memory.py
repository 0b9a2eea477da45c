"""The number of samples per model call: as many as fit into memory by ComfyUI's estimates."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import comfy.model_management

logger = logging.getLogger(__name__)
AUTO = 0  # of the widget batch_size
AUTO_MOST, AUTO_CPU = 16, 4
"""Samples that AUTO allows; on a CPU more are not faster, except for tiny networks."""
NO_MEMORY = ("out of memory", "DefaultCPUAllocator", "not enough memory")


def fitting_batch(model: Any, shapes: Sequence[Sequence[int]], most: int) -> int:
    """Samples per model call: `most`, halved until the whole model fits beside their activations.

    1 if even that does not fit: ComfyUI then keeps a part of the model elsewhere. On a CPU `most`
    is not changed, since ComfyUI's estimates are of graphics memory, and what else runs would
    decide the last bits of a result.

    Args:
        model: a MODEL.
        shapes: of one sample's latents, one per stream.
        most: what the widget says, perhaps `AUTO`.
    """
    device = model.load_device
    if device.type == "cpu":
        return most or AUTO_CPU
    available = _available(device) - model.model_size()
    batch = most or AUTO_MOST
    while batch > 1 and activations(model, shapes, batch) > available:
        batch = (batch + 1) // 2
    if batch < most:
        logger.info("LD3: memory is free for %d samples per model call, not %d", batch, most)
    return batch


def _available(device: Any) -> float:
    """Bytes on a device for a model and its activations: ComfyUI unloads other models."""
    loaded = [m for m in comfy.model_management.current_loaded_models if m.device == device]
    free: Any = comfy.model_management.get_free_memory(device)
    free += sum(m.model_loaded_memory() for m in loaded)
    return free - comfy.model_management.extra_reserved_memory()


def activations(model: Any, shapes: Sequence[Sequence[int]], batch: int) -> int:
    """Bytes of a call with guidance (ComfyUI 0.30.0, sampler_helpers.py, estimate_memory)."""
    return sum(model.memory_required([2 * batch, *shape]) for shape in shapes)


def models_of(model_wrap: Any) -> list[Any]:
    """Every model that a running guider's calls use, such as a ControlNet; some twice."""
    models = [model_wrap.model_patcher, *getattr(model_wrap, "loaded_models", [])]
    # a guider may have another model (ComfyUI 0.30.0, Guider_DualModel)
    others = [value for value in vars(model_wrap).values() if hasattr(value, "patches_uuid")]
    return [*models, *others]


def out_of_memory(error: Exception) -> bool:
    """Whether memory did not suffice, on any device."""
    if comfy.model_management.is_oom(error) or isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)
