"""What a training costs beyond the model calls it makes, and its memory beside plain sampling's.

Times are those of this process's threads on the processor, so that other programs do not count, and
peaks are of the process's memory, so that nothing is left out.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

GIGABYTE = 1e9


class CountedModel:
    """A MODEL whose network is timed.

    Args:
        model: it is not changed.

    Attributes:
        model: to sample with; calls, seconds: of samples, and spent in the network.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.calls, self.seconds = model.clone(), 0, 0.0
        self.model.set_model_unet_function_wrapper(self._call)

    def _call(self, network: Callable[..., Tensor], given: dict[str, Any]) -> Tensor:
        started = time.process_time()
        found = network(given["input"], given["timestep"], **given["c"])
        self.seconds += time.process_time() - started
        self.calls += len(found)
        return found


def measured(counted: CountedModel, work: Callable[[], Any]) -> dict[str, float]:
    """Calls, seconds in the network, seconds in all, and the peak of the memory so far, in GB."""
    calls, seconds, started = counted.calls, counted.seconds, time.process_time()
    work()
    return {
        "calls": counted.calls - calls,
        "network_seconds": counted.seconds - seconds,
        "seconds": time.process_time() - started,
        "peak_gb": peak_gb(),
    }


def peak_gb() -> float:
    """The largest memory this process has had; NaN where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIGABYTE


def random_sd15() -> Any:
    """A MODEL of Stable Diffusion 1.5's size, 860 million weights, all random.

    Source of the sizes: ComfyUI 0.30.0, supported_models.py (SD15) and model_detection.py.
    """
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD15(
        {
            "image_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": 320,
            "num_res_blocks": [2, 2, 2, 2],
            "channel_mult": (1, 2, 4, 4),
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
            "transformer_depth_middle": 1,
            "use_spatial_transformer": True,
            "use_linear_in_transformer": False,
            "context_dim": 768,
            "num_heads": 8,
            "num_head_channels": -1,
            "legacy": False,
        }
    )
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.diffusion_model.parameters():
            # about as large as those of a trained network, so that numbers stay usual
            scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
            weight.normal_(0.0, scale, generator=generator)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, device, device)
