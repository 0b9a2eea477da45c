"""Calls of a running guider's model, as ComfyUI's samplers make them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from .cfg_pp import with_guidance
from .prompts import PromptedCalls

ONE_SAMPLE = "batch size 1"  # in the error of such models (ComfyUI 0.30.0, ldm/minimax/model.py)


class ModelCalls:
    """What a task calls in place of one running guider.

    Args:
        model_wrap, extra_args: what ComfyUI's `Sampler.sample` received; the first is the guider.
        before: called before every call.
    """

    def __init__(
        self,
        model_wrap: Any,
        extra_args: dict[str, Any],
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self._wrap, self._before = model_wrap, before
        self._wrapped: Any = comfy.samplers.KSamplerX0Inpaint(model_wrap, None)
        self.prompts = PromptedCalls(model_wrap)
        self.options: dict[str, Any] = extra_args["model_options"]
        self._arguments = {
            "denoise_mask": extra_args.get("denoise_mask"),
            "model_options": self.options,
            "seed": extra_args.get("seed"),
        }

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See `ld3.model.Denoiser`."""
        self._begin_call()
        call = partial(_one_by_one, self._wrapped, self._arguments)
        return self.prompts(self._wrapped, call, x, sigma)

    def denoise_guided(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """See `ld3.model.GuidedDenoiser`."""
        self._begin_call()
        call = partial(with_guidance, self._wrapped, extra_args=self._arguments)
        return self.prompts(self._wrapped, call, x, sigma)

    def begin_batch(self, noise: Tensor, latent: Tensor) -> None:
        """The calls that follow are of these samples (batch, *latent)."""
        # what a mask leaves is the latent with this noise
        self._wrapped.noise, self._wrapped.latent_image = noise, latent
        self.prompts.begin(noise)

    def begin_rollout(self, sigmas: Tensor) -> None:
        """The calls that follow are of a sampling with these sigmas (N+1,)."""
        # nodes read the current schedule from here, keyframed hooks count calls
        sigmas = sigmas.to(self._wrap.model_patcher.load_device)
        self.options.setdefault("transformer_options", {})["sample_sigmas"] = sigmas
        self._wrapped.sigmas = sigmas
        for conds in self._wrap.conds.values():
            for cond in conds:
                if cond.get("hooks") is not None:
                    cond["hooks"].reset()

    def _begin_call(self) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._before()


def _one_by_one(wrapped: Any, arguments: dict[str, Any], x: Tensor, sigma: Tensor) -> Tensor:
    """A call; one sample at a time where the model takes no batches (MiniMax H3)."""
    if len(x) == 1 or not getattr(wrapped, "one_by_one", False):
        try:
            return wrapped(x, sigma, **arguments)
        except ValueError as error:
            if len(x) == 1 or ONE_SAMPLE not in str(error):
                raise
            wrapped.one_by_one = True
    noise, latent = wrapped.noise, wrapped.latent_image
    found = []
    try:
        for i in range(len(x)):
            wrapped.noise, wrapped.latent_image = noise[i : i + 1], latent[i : i + 1]
            found.append(wrapped(x[i : i + 1], sigma[i : i + 1], **arguments))
    finally:
        wrapped.noise, wrapped.latent_image = noise, latent
    return torch.cat(found)
