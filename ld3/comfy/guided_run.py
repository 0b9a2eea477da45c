"""Run a task where ComfyUI runs a sampler: inside a guider, with the model loaded.

So model loading, conditioning, hooks, memory and cleanup are ComfyUI's own, and any GUIDER works.
Of two guiders, the second samples inside the first, and the task inside both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ..model import Model
from ..streams import Streams
from .core_samplers import coordinate
from .memory import out_of_memory
from .model_calls import ModelCalls
from .two_models import Turns, TwoGuiders

T = TypeVar("T")


class Running(NamedTuple):
    """What ComfyUI's `Sampler.sample` received: the guider, and what its calls receive."""

    model_wrap: Any
    extra_args: dict[str, Any]


class LowNoise(NamedTuple):
    """The second of two guiders, and the boundary below which it samples."""

    running: Running
    boundary: float


class GuidedRun:
    """What a task receives: a running guider, and its model as the method's `Model`.

    Args:
        model_wrap, extra_args: what ComfyUI's `Sampler.sample` received; the first is the guider.
        batch_size: samples per network call, at first.
        shape: of the batch that ComfyUI reserved memory for.
        low: of two guiders the second.
    """

    def __init__(
        self,
        model_wrap: Any,
        extra_args: dict[str, Any],
        batch_size: int,
        shape: tuple[int, ...] = (),
        low: LowNoise | None = None,
    ) -> None:
        self.model_wrap, self.extra_args = model_wrap, extra_args
        self.sampling = model_wrap.inner_model.model_sampling
        if low is not None:  # the other may be loaded at the moment, with the same weights
            self.sampling = model_wrap.model_patcher.get_model_object("model_sampling")
        self.streams: Streams | None = None
        self.turns: Turns | None = None
        if low is None:
            self._calls = (ModelCalls(model_wrap, extra_args),)
        else:
            turns = self.turns = Turns((model_wrap, low.running.model_wrap), shape)
            self._calls = (
                ModelCalls(model_wrap, extra_args, partial(turns.take, 0)),
                ModelCalls(*low.running, partial(turns.take, 1)),
            )
        self.model = self._model(batch_size, low.boundary if low else 0.0)

    @property
    def options(self) -> dict[str, Any]:
        """The model options every call receives; of two models the first's."""
        return self.extra_args["model_options"]

    @property
    def prompts(self) -> Any:
        """Which noise is sampled with which prompt."""
        return self._calls[0].prompts

    def know_prompts(self, noises: Tensor, prompts: Tensor) -> None:
        """From now on noises (n, *latent) have these prompts (n,)."""
        for calls in self._calls:
            calls.prompts.know(noises, prompts)

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

    def _model(self, batch_size: int, boundary: float) -> Model:
        model_wrap, sampling, every = self.model_wrap, self.sampling, self._calls
        first, last = every[0], every[-1]

        def scale_noise(noise: Tensor, latent: Tensor, sigma: float) -> Tensor:
            level = torch.tensor([sigma], dtype=torch.float32, device=noise.device)
            max_denoise = comfy.samplers.Sampler().max_denoise(model_wrap, level)
            return sampling.noise_scaling(level[0], noise, latent, max_denoise)

        def begin_batch(noise: Tensor, latent: Tensor) -> None:
            for calls in every:
                calls.begin_batch(noise, latent)

        def begin_rollout(sigmas: Tensor) -> None:
            for calls in every:
                calls.begin_rollout(sigmas)

        return Model(
            first.denoise,
            coordinate(sampling),
            sigma_min=float(sampling.sigma_min),
            sigma_max=float(sampling.sigma_max),
            scale_noise=scale_noise,
            begin_batch=begin_batch,
            begin_rollout=begin_rollout,
            device=model_wrap.model_patcher.load_device,
            batch_size=batch_size,
            denoise_guided=first.denoise_guided,
            out_of_memory=out_of_memory,
            free_memory=comfy.model_management.soft_empty_cache,
            boundary=boundary,
            low_noise=last.denoise if boundary else None,
            low_noise_guided=last.denoise_guided if boundary else None,
        )


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
        guider: any GUIDER, or `TwoGuiders`.
        latents: (batch, *latent), or nested; ComfyUI reserves memory for such a batch, which is
            also the task's batch size.
        sigmas: (N+1,) the noise levels that patches receive before the first rollout.
        mask: a LATENT's noise_mask, the same for all samples: only where it is 1 is sampled.
    """

    def sampled(one: Any, sampler: _TaskSampler) -> Any:
        options = {"denoise_mask": mask, "disable_pbar": True, "seed": seed}
        one.sample(latents * 0.0, latents, sampler, sigmas, **options)
        if not sampler.done:
            raise ValueError("the guider did not sample: remove patches that replace the sampler")
        return sampler.value

    if not isinstance(guider, TwoGuiders):
        return sampled(guider, _TaskSampler(lambda r, shape: task(GuidedRun(*r, shape[0]))))

    def inside(high: Running, shape: tuple[int, ...]) -> T:
        def both(low: Running, shape: tuple[int, ...]) -> T:
            second = LowNoise(low, guider.boundary)
            return task(GuidedRun(*high, shape[0], shape, second))

        return sampled(guider.low, _TaskSampler(both))

    return sampled(guider.high, _TaskSampler(inside))


class _TaskSampler(comfy.samplers.Sampler):
    """Runs a task where a guider expects a sampler; its value remains in `value`."""

    def __init__(self, task: Callable[[Running, tuple[int, ...]], Any]) -> None:
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
            self.value = self._task(Running(model_wrap, given), tuple(noise.shape))
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
