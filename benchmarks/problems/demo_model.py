"""The demo models, called through ComfyUI's guider as a sampler node calls it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from benchmarks.measures import sample_quality
from ld3.table import Discretization

from .live_model import BATCH, TEACHER, LiveModel, Recipe
from .problem import FRECHET_SEED, Problem

T = TypeVar("T")
PROMPT = "grinning face"
# 20 steps of dpmpp_2m are at RMSE 0.004 (cfg 1) and 0.007 (cfg 4) to the reference with beta, at
# 0.001 and 0.010 with karras, which fails for other flows (`suites.flow_teachers`).
FLOW_REFERENCE = Recipe("heun", "beta", 60)
FLOW_TEACHER = Recipe("dpmpp_2m", "beta", 20)
EMOJI_COMPONENTS = 64  # principal components of the data


class DemoProblem(Problem):
    """A demo model that learns for one prompt.

    Its Frechet distance uses many prompts, the captions of the data, one per sample: together the
    samples should then be distributed as the data. Only for seed 0, because of its cost.

    Args:
        name: as in the rows of the benchmarks.
        model: "eps" or "flow".
        cfg: strength of guidance, against the empty prompt.
        prompt: words of emoji names.

    Attributes:
        patcher: the MODEL.
    """

    heldout_noises, frechet_noises = 64, 512
    training_batch = 16

    def __init__(
        self, name: str = "demo", model: str = "eps", cfg: float = 1.0, prompt: str = PROMPT
    ) -> None:
        from demo import demo_model as demo

        super().__init__(name, (3, demo.SIZE, demo.SIZE))
        self.variance_preserving = model == "eps"
        if model == "flow":
            self.reference, self.teacher = FLOW_REFERENCE, FLOW_TEACHER
        self.patcher, self._cfg = demo.load_demo_model(model), cfg
        self._prompt, self._negative = (demo.encode_prompt(text)[0] for text in (prompt, ""))

    def run(self, task: Callable[[LiveModel], T]) -> T:
        """The result of `task`, called inside ComfyUI's guider with the one prompt."""
        return self._guided(self._prompt, task)

    def sampled_by_core(
        self,
        model: Any,
        sampler: str,
        sigmas: Tensor,
        noise: Tensor,
        on_call: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Samples of unit noises by ComfyUI itself, in one batch.

        Args:
            model: `patcher`, perhaps with patches.
            on_call: called before every network evaluation.
        """
        import comfy.sample
        from comfy.patcher_extension import WrappersMP

        from ld3.comfy import core_samplers

        def counted(executor: Any, *args: Any, **kwargs: Any) -> Any:
            on_call()
            return executor(*args, **kwargs)

        model = model.clone()
        model.add_wrapper(WrappersMP.DIFFUSION_MODEL, counted)  # the last wrapper is the innermost
        core = core_samplers.sampler_object(sampler)
        prompts, latent = (self._prompt, self._negative), torch.zeros_like(noise)
        return comfy.sample.sample_custom(
            model, noise, self._cfg, core, sigmas, *prompts, latent, disable_pbar=True
        )

    def frechet(self, solver: Discretization, seed: int) -> tuple[float | None, int]:
        """Frechet distance on principal components of the data; None except for seed 0."""
        if seed:
            return None, 0
        noise, parts, data = self.noises(self.frechet_noises, FRECHET_SEED), [], emoji_data()
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randint(len(data.captions), (len(noise),), generator=generator)
        encoded = data.captions[chosen]
        for part, captions in zip(noise.split(BATCH), encoded.split(BATCH), strict=True):
            prompts = [[captions, {"pooled_output": None}]]
            parts.append(self._guided(prompts, lambda live, part=part: live.samples(solver, part)))
        samples = torch.cat(parts).flatten(1)
        if not torch.isfinite(samples).all():
            return math.inf, len(samples)
        distance = sample_quality.frechet_distance(data.projection(samples), data.projected)
        return distance, len(samples)

    def _guided(self, prompt: Any, task: Callable[[LiveModel], T]) -> T:
        latents = torch.zeros(BATCH, *self.shape)
        negative, cfg, teacher = self._negative, self._cfg, self.teacher
        return guided(self.patcher, prompt, latents, task, negative, cfg, teacher)


class EmojiData(NamedTuple):
    """The data of the demo models.

    Attributes:
        projection: on its principal components.
        projected: the data along them.
        captions: encoded.
    """

    projection: sample_quality.Projection
    projected: Tensor
    captions: Tensor


@functools.cache
def emoji_data() -> EmojiData:
    from demo import demo_model as demo
    from demo import emoji

    images, captions = emoji.load_emoji(size=demo.SIZE)
    data = torch.from_numpy(images).permute(0, 3, 1, 2).flatten(1).double() / 127.5 - 1
    projection = sample_quality.Projection(data, EMOJI_COMPONENTS)
    encoded = [demo.encode_prompt(text)[0][0][0] for text in captions]
    return EmojiData(projection, projection(data), torch.cat(encoded))


def guided(
    model: Any,
    prompt: Any,
    latents: Tensor,
    task: Callable[[LiveModel], T],
    negative: Any = None,
    cfg: float = 1.0,
    teacher: Recipe = TEACHER,
) -> T:
    """The result of `task`, called where ComfyUI's guider calls a sampler.

    Args:
        model: MODEL; for `task` autograd can differentiate it.
        prompt: CONDITIONING.
        latents: (batch, *shape), the largest batch that `task` evaluates.
        negative: CONDITIONING, not used at cfg 1; the prompt by default.
        cfg: strength of guidance.
        teacher: what `LiveModel.teacher` is.
    """
    from ld3.comfy.gradient.differentiable_model import differentiable_run
    from ld3.comfy.guided_run import GuidedRun, run
    from ld3.comfy.guiders import cfg_guider

    def called(guided: GuidedRun) -> T:
        with differentiable_run(guided) as live:
            wrap = live.model_wrap
            return task(LiveModel(live.model, live.sampling, wrap.model_patcher, wrap, teacher))

    levels = torch.tensor([1.0, 0.0])  # not used, but required
    return run(cfg_guider(model, prompt, negative or prompt, cfg), latents, levels, called)
