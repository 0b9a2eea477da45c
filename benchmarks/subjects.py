"""The models that learning is measured on, each with its noises, its reference and its data.

`load(name)` gives a `Subject`; `subject.run(task)` runs `task(stage)` where the model can be
called: at once for exact problems, inside ComfyUI's guider for the demo model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ld3.metrics import rmse
from ld3.model import Model
from ld3.solver import Plan, Sampler
from ld3.teacher import Pairs, student_samples, teach

from . import problems, quality

T = TypeVar("T")
TEACHER = ("dpmpp_2m", "karras", 20)  # 20 calls a sample
REFERENCE = ("heun", "karras", 60)  # 119 calls a sample, never counted
HELDOUT_SEED, FRECHET_SEED, TRAINING_SEED = 900_001, 900_002, 1_000
EMOJI_COMPONENTS = 64
PROMPT = "grinning face"


class Stage:
    """A model that can be called now, with ComfyUI's samplers and schedulers for it.

    Attributes:
        model: counts its calls.
    """

    def __init__(self, model: Model, sampling: Any, patcher: Any, model_wrap: Any = None) -> None:
        self.model, self._sampling, self._patcher = model, sampling, patcher
        self._wrap = model_wrap

    def traced(self, sampler: str) -> Sampler:
        """Core's sampler of that name."""
        from ld3.comfy import samplers

        return samplers.traceable(samplers.sampler_object(sampler), self._sampling, self._wrap)

    def schedules(self, sampler: str, steps: int) -> dict[str, Tensor]:
        """What KSampler would take for each scheduler that can make so many steps."""
        from ld3.comfy import samplers

        return samplers.standard_schedules(self._patcher, sampler, steps, 1.0)

    def plan(self, sampler: str, sigmas: Tensor) -> Plan:
        """The sampler at sigmas (N+1,)."""
        return Plan(sigmas, self.traced(sampler).table(sigmas))

    def standard(self, sampler: str, scheduler: str, steps: int) -> Plan:
        """The sampler at a standard schedule."""
        return self.plan(sampler, self.schedules(sampler, steps)[scheduler])

    @property
    def teacher(self) -> Plan:
        """The teacher of every method that learns."""
        return self.standard(*TEACHER)


class Subject:
    """An exact problem, whose denoiser is known.

    Args:
        name: "digits" or "gmm16".
        model: its denoiser.
        shape: of one sample.
        moments: mean (d,) and covariance (d, d) of the data.
    """

    heldout_noises, frechet_noises, batch = 512, 4096, 64
    training_batch = 32
    variance_preserving = has_tables = False

    def __init__(
        self, name: str, model: Model, shape: tuple[int, ...], moments: tuple[Tensor, Tensor]
    ) -> None:
        self.name, self._model, self.shape = name, model, shape
        self._mean, self._covariance = moments
        self._found: dict[str, Any] = {}

    def run(self, task: Callable[[Stage], T]) -> T:
        """`task` where the model can be called."""
        import comfy.model_sampling as core

        class Sampling(core.ModelSamplingContinuousEDM, core.EDM):
            pass

        sampling = Sampling()
        sampling.set_parameters(self._model.sigma_min, self._model.sigma_max, 1.0)
        patcher = SimpleNamespace(get_model_object=lambda name: sampling, model_options={})
        with torch.no_grad():
            return task(Stage(self._model, sampling, patcher))

    def noises(self, count: int, seed: int) -> Tensor:
        """Standard normal start noises (count, *shape)."""
        return torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(seed))

    def error(self, stage: Stage, plan: Plan) -> float:
        """Mean RMSE of held-out samples to the common reference; its calls are nobody's."""
        noise = self.noises(self.heldout_noises, HELDOUT_SEED)
        reference = self.once(
            "reference", lambda: self._sample(stage, stage.standard(*REFERENCE), noise)
        )
        return float(rmse(self._sample(stage, plan, noise) - reference).mean())

    def once(self, name: str, find: Callable[[], T]) -> T:
        """What `find` returns, found once a run of the benchmark."""
        if name not in self._found:
            self._found[name] = find()
        return self._found[name]

    def pairs(self, stage: Stage, count: int, seed: int) -> Pairs:
        """Training noises with the teacher's samples, counted in `stage.model.calls`."""
        noise = self.noises(count, seed)
        return Pairs.joined(
            [
                teach(stage.model, stage.teacher, part, torch.zeros_like(part))
                for part in noise.split(self.batch)
            ]
        )

    def frechet(self, plan: Plan, seed: int) -> tuple[float | None, int]:
        """Frechet distance of samples to the data's exact moments, and how many samples."""
        noise = self.noises(self.frechet_noises, FRECHET_SEED)
        made = self.run(lambda stage: self._sample(stage, plan, noise))
        flat = made.flatten(1).double()
        if not torch.isfinite(flat).all():
            return math.inf, len(flat)
        distance = quality.frechet(flat.mean(0), flat.T.cov(), self._mean, self._covariance)
        return distance, len(flat)

    def _sample(self, stage: Stage, plan: Plan, noise: Tensor) -> Tensor:
        before = stage.model.calls
        zeros = torch.zeros_like(noise)
        batches = Pairs(noise, zeros, zeros).batches(self.batch, stage.model.device)
        made = torch.cat([student_samples(stage.model, plan, batch)[0].cpu() for batch in batches])
        stage.model.calls = before
        return made


class DemoSubject(Subject):
    """The demo model at cfg 1, which learns for one prompt.

    Its Frechet distance is over many prompts: the captions of the data, one a sample, so that the
    samples together should be distributed as the data. Only for seed 0, since it costs most.
    """

    heldout_noises, frechet_noises, batch = 64, 512, 64
    training_batch = 16
    variance_preserving = has_tables = True

    def __init__(self) -> None:
        from demo import emoji
        from demo import model as demo

        self.name, self.shape = "demo", (3, demo.SIZE, demo.SIZE)
        self._found = {}
        self._patcher, self._prompt = demo.load_demo_model(), demo.encode_prompt(PROMPT)[0]
        images, captions = emoji.load_emoji(size=demo.SIZE)
        data = torch.from_numpy(images).permute(0, 3, 1, 2).flatten(1).double() / 127.5 - 1
        self._projection = quality.Projection(data, EMOJI_COMPONENTS)
        self._data = self._projection(data)
        chosen = torch.randint(
            len(captions), (self.frechet_noises,), generator=torch.Generator().manual_seed(0)
        )
        encoded = [demo.encode_prompt(text)[0][0][0] for text in captions]
        self._captions = torch.cat([encoded[i] for i in chosen.tolist()])

    def run(self, task: Callable[[Stage], T]) -> T:
        """`task` where the model can be called, with the one prompt."""
        return self._guided(self._prompt, task)

    def frechet(self, plan: Plan, seed: int) -> tuple[float | None, int]:
        """Frechet distance on principal components of the data; None but for seed 0."""
        if seed:
            return None, 0
        noise, made = self.noises(self.frechet_noises, FRECHET_SEED), []
        for part, captions in zip(
            noise.split(self.batch), self._captions.split(self.batch), strict=True
        ):
            prompts = [[captions, {"pooled_output": None}]]
            made.append(self._guided(prompts, functools.partial(self._one_batch, plan, part)))
        found = torch.cat(made).flatten(1)
        if not torch.isfinite(found).all():
            return math.inf, len(found)
        return quality.frechet_distance(self._projection(found), self._data), len(found)

    def _one_batch(self, plan: Plan, noise: Tensor, stage: Stage) -> Tensor:
        return self._sample(stage, plan, noise)

    def _guided(self, prompt: Any, task: Callable[[Stage], T]) -> T:
        import comfy.samplers

        from ld3.comfy.denoiser import guided_model
        from ld3.comfy.differentiable import differentiable, time_neighbours

        patcher, results = self._patcher, []

        class Run(comfy.samplers.Sampler):
            def sample(self, model_wrap, sigmas, extra_args, callback, noise, *others, **more):
                sampling = model_wrap.inner_model.model_sampling
                with torch.no_grad(), differentiable(model_wrap, extra_args) as extra_args:
                    model = guided_model(self, model_wrap, extra_args)
                    model.time_neighbours = time_neighbours(sampling)
                    results.append(task(Stage(model, sampling, patcher, model_wrap)))
                return noise

        guider = comfy.samplers.CFGGuider(patcher)
        guider.set_conds(prompt, prompt)
        guider.set_cfg(1.0)
        zeros = torch.zeros(self.batch, *self.shape)
        guider.sample(zeros, zeros, Run(), torch.tensor([1.0, 0.0]), disable_pbar=True, seed=0)
        return results[0]


@functools.cache
def load(name: str) -> Subject:
    """The subject of that name, made once a run."""
    if name == "demo":
        return DemoSubject()
    if name == "digits":
        model, components, shape = problems.digits(), problems.digits_components(), (1, 8, 8)
    else:
        model, components, shape = problems.gmm16(), problems.gmm16_components(), (16,)
    return Subject(name, model, shape, problems.mixture_moments(*components))
