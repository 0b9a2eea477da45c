"""What learning is measured on: a model with its noises, its reference solution and its data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.measures import sample_quality
from ld3.metrics import rmse
from ld3.model import Model
from ld3.table import Discretization
from ld3.teacher import TeacherSamples, sample_teacher

from .live_model import LiveModel

T = TypeVar("T")
REFERENCE = ("heun", "karras", 60)  # 119 calls per sample, never counted
HELDOUT_SEED, FRECHET_SEED, TRAINING_SEED = 900_001, 900_002, 1_000


class Problem:
    """A model to learn schedules for, called inside `run`.

    Args:
        name: as in the rows of the benchmarks.
        shape: of one sample.

    Attributes:
        heldout_noises, frechet_noises: sizes of the two test sets.
        training_batch: noises per model call while learning.
        variance_preserving: whether the network's input is scaled by 1 / (1 + sigma^2)^1/2.
    """

    heldout_noises, frechet_noises = 512, 4096
    training_batch = 32
    variance_preserving = False

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape
        self._cache: dict[str, Any] = {}

    def run(self, task: Callable[[LiveModel], T]) -> T:
        """The result of `task`, called where the model can be called."""
        raise NotImplementedError

    def frechet(self, solver: Discretization, seed: int) -> tuple[float | None, int]:
        """Frechet distance of the solver's samples to the data, and the number of samples.

        None where it is not measured for this seed. Not to be called inside `run`.
        """
        raise NotImplementedError

    def noises(self, count: int, seed: int) -> Tensor:
        """Standard normal start noises (count, *shape)."""
        return torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(seed))

    def error(self, live: LiveModel, solver: Discretization) -> float:
        """Mean RMSE of held-out samples to the common reference; its calls do not count."""
        noise = self.noises(self.heldout_noises, HELDOUT_SEED)
        reference = self.cached("reference", lambda: live.samples(live.standard(*REFERENCE), noise))
        return float(rmse(live.samples(solver, noise) - reference).mean())

    def teacher_samples(self, live: LiveModel, count: int, seed: int) -> TeacherSamples:
        """Training noises with the teacher's samples, counted in `live.model.calls`."""
        noise = self.noises(count, seed)
        return sample_teacher(live.model, live.teacher, noise, torch.zeros_like(noise))

    def cached(self, name: str, compute: Callable[[], T]) -> T:
        """What `compute` returns, computed once in a run of the benchmark."""
        if name not in self._cache:
            self._cache[name] = compute()
        return self._cache[name]


class MixtureProblem(Problem):
    """A Gaussian mixture, whose denoiser and moments are exact.

    Args:
        name: as in the rows of the benchmarks.
        model: its denoiser.
        shape: of one sample.
        moments: mean (d,) and covariance (d, d) of the data.
    """

    def __init__(
        self, name: str, model: Model, shape: tuple[int, ...], moments: tuple[Tensor, Tensor]
    ) -> None:
        super().__init__(name, shape)
        self._model = model
        self._mean, self._covariance = moments

    def run(self, task: Callable[[LiveModel], T]) -> T:
        """The result of `task`; the model can be called anywhere."""
        import comfy.model_sampling as core

        class Sampling(core.ModelSamplingContinuousEDM, core.EDM):
            pass

        sampling = Sampling()
        sampling.set_parameters(self._model.sigma_min, self._model.sigma_max, 1.0)
        with torch.no_grad():
            return task(LiveModel(self._model, sampling))

    def frechet(self, solver: Discretization, seed: int) -> tuple[float | None, int]:
        """Frechet distance of samples to the data's exact moments, and the number of samples."""
        noise = self.noises(self.frechet_noises, FRECHET_SEED)
        flat = self.run(lambda live: live.samples(solver, noise)).flatten(1).double()
        if not torch.isfinite(flat).all():
            return math.inf, len(flat)
        distance = sample_quality.frechet(flat.mean(0), flat.T.cov(), self._mean, self._covariance)
        return distance, len(flat)
