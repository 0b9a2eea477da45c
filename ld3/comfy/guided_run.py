"""Run a task where ComfyUI runs a sampler: inside a guider, with the model loaded.

So model loading, conditioning, hooks, memory and cleanup are ComfyUI's own, and any GUIDER works.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ..model import Model
from ..streams import Streams
from .cfg_pp import with_guidance
from .core_samplers import coordinate
from .memory import out_of_memory
from .prompts import PromptedCalls

T = TypeVar("T")
ONE_SAMPLE = "batch size 1"  # in the error of such models (ComfyUI 0.30.0, ldm/minimax/model.py)


class GuidedRun:
    """What a task receives: a running guider, and its model as the method's `Model`.

    Args:
        model_wrap, extra_args: what ComfyUI's `Sampler.sample` received; the first is the guider.
        batch_size: samples per network call, at first.
    """

    def __init__(self, model_wrap: Any, extra_args: dict[str, Any], batch_size: int) -> None:
        self.model_wrap, self.extra_args = model_wrap, extra_args
        self.prompts = PromptedCalls(model_wrap)
        self.model = self._model(batch_size)
        self.streams: Streams | None = None

    @property
    def sampling(self) -> Any:
        """The model's `model_sampling`."""
        return self.model_wrap.inner_model.model_sampling

    @property
    def options(self) -> dict[str, Any]:
        """The model options every call receives."""
        return self.extra_args["model_options"]

    def latents(self, latents: Tensor) -> Tensor:
        """Latents as the sampler receives them (core does not shift an empty latent)."""
        if torch.count_nonzero(latents) == 0:
            return latents
        return self.model_wrap.inner_model.process_latent_in(latents)

    def balance(self, streams: Streams) -> None:
        """From now on the model is that on latents scaled by these."""
        calls = self.model.calls
        self.model, self.streams = streams.model(self.model), streams
        self.model.calls = calls

    def _model(self, batch_size: int) -> Model:
        model_wrap, sampling, options = self.model_wrap, self.sampling, self.options
        device = model_wrap.model_patcher.load_device
        wrapped: Any = comfy.samplers.KSamplerX0Inpaint(model_wrap, None)
        seed, mask = self.extra_args.get("seed"), self.extra_args.get("denoise_mask")

        arguments = {"denoise_mask": mask, "model_options": options, "seed": seed}
        prompts = self.prompts

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            return prompts(wrapped, partial(_one_by_one, wrapped, arguments), x, sigma)

        def denoise_guided(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            comfy.model_management.throw_exception_if_processing_interrupted()
            call = partial(with_guidance, wrapped, extra_args=arguments)
            return prompts(wrapped, call, x, sigma)

        def scale_noise(noise: Tensor, latent: Tensor, sigma: float) -> Tensor:
            level = torch.tensor([sigma], dtype=torch.float32, device=noise.device)
            max_denoise = comfy.samplers.Sampler().max_denoise(model_wrap, level)
            return sampling.noise_scaling(level[0], noise, latent, max_denoise)

        def begin_batch(noise: Tensor, latent: Tensor) -> None:
            # what a mask leaves is the latent with this noise
            wrapped.noise, wrapped.latent_image = noise, latent
            prompts.begin(noise)

        def begin_rollout(sigmas: Tensor) -> None:
            # nodes read the current schedule from here, keyframed hooks count calls
            options.setdefault("transformer_options", {})["sample_sigmas"] = sigmas.to(device)
            wrapped.sigmas = sigmas.to(device)
            for conds in model_wrap.conds.values():
                for cond in conds:
                    if cond.get("hooks") is not None:
                        cond["hooks"].reset()

        return Model(
            denoise,
            coordinate(sampling),
            sigma_min=float(sampling.sigma_min),
            sigma_max=float(sampling.sigma_max),
            scale_noise=scale_noise,
            begin_batch=begin_batch,
            begin_rollout=begin_rollout,
            device=device,
            batch_size=batch_size,
            denoise_guided=denoise_guided,
            out_of_memory=out_of_memory,
            free_memory=comfy.model_management.soft_empty_cache,
        )


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


def run(
    guider: Any,
    latents: Any,
    sigmas: Tensor,
    task: Callable[[GuidedRun], T],
    seed: int = 0,
    mask: Any = None,
) -> T:
    """`task`'s value, computed without gradients while the guider samples.

    Args:
        guider: any GUIDER.
        latents: (batch, *latent), or nested; ComfyUI reserves memory for such a batch, which is
            also the task's batch size.
        sigmas: (N+1,) the noise levels that patches receive before the first rollout.
        mask: a LATENT's noise_mask, the same for all samples: only where it is 1 is sampled.
    """
    sampler = _TaskSampler(task)
    options = {"denoise_mask": mask, "disable_pbar": True, "seed": seed}
    guider.sample(latents * 0.0, latents, sampler, sigmas, **options)
    if not sampler.done:
        raise ValueError("the guider did not sample: remove patches that replace the sampler")
    return sampler.value


class _TaskSampler(comfy.samplers.Sampler):
    """Runs a task where a guider expects a sampler; its value remains in `value`."""

    def __init__(self, task: Callable[[GuidedRun], Any]) -> None:
        self._task, self.value, self.done = task, cast(Any, None), False

    def sample(
        self,
        model_wrap,
        sigmas,
        extra_args,
        callback,
        noise,
        latent_image=None,
        denoise_mask=None,
        disable_pbar=False,
    ) -> Tensor:
        """Run the task; returns the noise it received."""
        mask = None if denoise_mask is None else denoise_mask[:1]  # of batches of any size
        with torch.no_grad():
            given = extra_args | {"denoise_mask": mask}
            self.value = self._task(GuidedRun(model_wrap, given, len(noise)))
        self.done = True
        return noise


def seconds_per_call(guided: GuidedRun, noise: Tensor, latent: Tensor) -> float:
    """Measured time of a model call per sample, of one batch, after one that warms up.

    The batch is the first one of its size: it also shows whether memory suffices. At the lowest
    noise level: patches with state notice that the next sampling begins. A training that is
    continued keeps its first time and batch size, which decide its size and last bits.
    """
    model = guided.model

    def measured() -> float:
        noises, latents = (t[: model.batch_size].to(model.device) for t in (noise, latent))
        model.begin_batch(noises, latents)
        x = model.scale_noise(noises, latents, model.sigma_min)
        sigma = x.new_full((len(x),), model.sigma_min)
        model(x, sigma).cpu()  # which waits for the device
        started = time.perf_counter()
        model(x, sigma).cpu()
        return (time.perf_counter() - started) / len(x)

    def answered() -> tuple[Tensor, Tensor]:
        seconds = torch.tensor(model.within_memory(measured), dtype=torch.float64)
        return seconds, torch.tensor(model.batch_size)

    seconds, size = model.answer(["seconds per call, batch size"], answered)
    model.batch_size = int(size)
    return float(seconds)
