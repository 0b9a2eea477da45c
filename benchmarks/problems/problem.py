"""What learning is measured on: a model with its noises, its reference solution and its data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from benchmarks.measures import sample_quality
from ld3.metrics import rmse
from ld3.model import Denoiser, Model
from ld3.parameters import LOG_SIGMA
from ld3.table import Discretization
from ld3.teacher import TeacherSamples, sample_teacher

from .flow_models import flow_model
from .live_model import BATCH, TEACHER, LiveModel, Recipe
from .noise_levels import edm_levels, flow_levels

T = TypeVar("T")
REFERENCE = Recipe("heun", "karras", 60)  # 119 calls per sample, never counted
FINE_REFERENCE = Recipe("heun", "karras", 240)
FLOW_REFERENCE = Recipe("heun", "beta", 150)
"""Within 0.0002 of twice as many steps, as `tests/test_problems.py` checks."""
SIGMA_MIN = 0.03
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
        reference: in place of the ODE's solution.
        reference_batch: noises per model call of the reference.
        teacher: what all methods learn from; `LiveModel.teacher` is this one.
    """

    reference, teacher = REFERENCE, TEACHER
    heldout_noises, frechet_noises = 512, 4096
    reference_batch = BATCH
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
        return self.distance(live, live.samples(solver, self.test_noise))

    def distance(self, live: LiveModel, samples: Tensor) -> float:
        """Mean RMSE of samples of `test_noise` to the common reference."""
        return float(rmse(samples - self.reference_samples(live)).mean())

    @property
    def test_noise(self) -> Tensor:
        """The held-out noises."""
        return self.noises(self.heldout_noises, HELDOUT_SEED)

    def reference_samples(self, live: LiveModel) -> Tensor:
        """Their samples by the common reference; its calls do not count."""

        def solved() -> Tensor:
            solver = live.standard(*self.reference)
            return live.samples(solver, self.test_noise, self.reference_batch)

        return self.cached("reference", solved)

    def best_standard(self, live: LiveModel, sampler: str, steps: int) -> tuple[str, float]:
        """The standard schedule that is best on the held-out noises, and its error.

        ddim_uniform, which makes 7 steps if asked for 6, does not count there.
        """
        errors = {
            name: self.cached(
                f"{sampler} {steps} {name}",
                lambda sigmas=sigmas: self.error(live, live.discretization(sampler, sigmas)),
            )
            for name, sigmas in live.schedules(sampler, steps).items()
            if len(sigmas) == steps + 1
        }
        best = min(errors, key=errors.__getitem__)
        return best, errors[best]

    def teacher_samples(self, live: LiveModel, count: int, seed: int) -> TeacherSamples:
        """Training noises with the teacher's samples, counted in `live.model.calls`."""
        noise = self.noises(count, seed)
        return sample_teacher(live.model, live.teacher, noise, torch.zeros_like(noise))

    def cached(self, name: str, compute: Callable[[], T]) -> T:
        """What `compute` returns, computed once in a run of the benchmark."""
        if name not in self._cache:
            self._cache[name] = compute()
        return self._cache[name]


class ExactData(NamedTuple):
    """Data whose denoiser is known exactly.

    Attributes:
        denoise: E[x0 | x0 + sigma noise].
        shape: of one sample.
        moments: mean (d,) and covariance (d, d), float64.
        sigma_max: where sampling starts, unless it is a flow model's.
    """

    denoise: Denoiser
    shape: tuple[int, ...]
    moments: tuple[Tensor, Tensor]
    sigma_max: float


class ExactProblem(Problem):
    """A model whose denoiser is exact, so that errors are those of the solver alone.

    Args:
        name: as in the rows of the benchmarks.
        data: what it generates.
        shift: of ComfyUI's noise levels for a flow model; None for a variance-exploding one.
        reference: of a variance-exploding one.
    """

    reference_batch = 512  # with hundreds of calls, their linear combinations take most of the time

    def __init__(
        self,
        name: str,
        data: ExactData,
        shift: float | None = None,
        reference: Recipe = FINE_REFERENCE,
    ) -> None:
        super().__init__(name, data.shape)
        self.moments = data.moments
        if shift is None:
            self.sampling = edm_levels(SIGMA_MIN, data.sigma_max)
            self.model = Model(data.denoise, LOG_SIGMA, SIGMA_MIN, data.sigma_max)
            self.reference = reference
        else:
            self.sampling = flow_levels(shift)
            self.model = flow_model(data.denoise, float(self.sampling.sigma_min))
            self.reference, self.teacher = FLOW_REFERENCE, flow_teacher(shift)
        self.model.batch_size = BATCH

    def run(self, task: Callable[[LiveModel], T]) -> T:
        """The result of `task`; the model can be called anywhere."""
        with torch.no_grad():
            return task(LiveModel(self.model, self.sampling, recipe=self.teacher))

    def frechet(self, solver: Discretization, seed: int) -> tuple[float | None, int]:
        """Frechet distance of samples to the data's exact moments, and the number of samples."""
        noise = self.noises(self.frechet_noises, FRECHET_SEED)
        flat = self.run(lambda live: live.samples(solver, noise)).flatten(1).double()
        if not torch.isfinite(flat).all():
            return math.inf, len(flat)
        return sample_quality.frechet(flat.mean(0), flat.T.cov(), *self.moments), len(flat)


def flow_teacher(shift: float) -> Recipe:
    """The closer one of simple and beta, which no flow model is bad with; see `flow_teachers`."""
    return Recipe("dpmpp_2m", "simple" if shift == 1 else "beta", 20)
