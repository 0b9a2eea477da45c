"""Descend by reverse mode, with soft teacher forcing.

Soft teacher forcing (arXiv 2405.15506, eq. 5): the student may start from a noise x' within
r sigma_0 of the teacher's,

    min over xi of  mean_i  min_{|x' - x_i| <= r sigma_0}  d(student_xi(x'), teacher(x_i)) ,

since a student that must reproduce each sample exactly has too few parameters to learn. x' follows
its own gradient, is projected back onto the ball, and is kept only where the loss decreases.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...solver_parameters import SolverParameters
from ...teacher import TeacherSamples
from ..candidates import Start
from ..settings import TrainingSettings
from ..validation import Objective, Validation
from .differentiable_rollout import (
    SoftmaxSteps,
    backward_loss,
    differentiable_rollout,
    differentiable_table,
)
from .gradient_settings import GradientSettings
from .recompute import recomputed

logger = logging.getLogger(__name__)
CALLS_PER_GRADIENT = 4  # a network call, its repetition, and a backward pass that counts as two
CALLS_PER_SECANT = 2


class _Batch(NamedTuple):
    """Training samples of one update, on the model's device, with the table they are run by."""

    index: Tensor
    noise: Tensor
    latent: Tensor
    target: Tensor
    weights: Tensor
    eval_sigmas: Tensor


class GradientDescent:
    """One phase of the descent: theta's free numbers and the start noises of all training samples.

    Args:
        objective: what is minimised.
        parameters: what is learned, with or without decoupled times.
        theta: where to start.
        samples: training samples; x' starts from their noises.
        updates: planned length, over which Adam's rates decrease.
    """

    def __init__(
        self,
        objective: Objective,
        parameters: SolverParameters,
        theta: Tensor,
        samples: TeacherSamples,
        settings: GradientSettings,
        updates: int,
    ) -> None:
        self.objective, self.parameters = objective, parameters
        self.samples, self.settings = samples, settings
        free, calls = parameters.free_levels, parameters.calls
        self.steps = SoftmaxSteps(parameters.levels, theta[:free])
        self.z = torch.zeros(free, dtype=torch.float64, requires_grad=True)
        self.extras = theta[free:].clone().requires_grad_()
        dimension = samples.noise[0].numel()
        published = 0.001 * dimension / calls**2
        self.radius = published if settings.radius is None else settings.radius
        self.noise = samples.noise.clone()
        self.optimizers = self._optimizers()
        self.updates, self.done, self.decay = updates, 0, 1.0

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        s = self.settings
        extras = [self.extras] if len(self.extras) else []
        if s.adam:
            groups = [{"params": [self.z], "lr": s.steps_rate}]
            groups += [{"params": extras, "lr": s.extra_rate}] if extras else []
            return [torch.optim.Adam(groups, betas=(0.9, 0.95))]
        found: list[torch.optim.Optimizer] = [
            torch.optim.RMSprop([self.z], lr=s.steps_rate, momentum=0.9)
        ]
        if extras:
            found.append(torch.optim.SGD(extras, lr=s.extra_rate / self.parameters.calls))
        return found

    def theta(self) -> Tensor:
        """The parameters now, differentiable; decoupled times within half the smallest gap."""
        u = self.steps.u(self.z)
        times = self.parameters.times
        ends = torch.cat([self.steps.upper[None], u, self.steps.lower[None]])
        # of the steps themselves: the published code takes it from their logits
        bound = 0.5 * float(-ends.detach().diff().max())
        return torch.cat([u, self.extras[:times].clamp(-bound, bound), self.extras[times:]])

    def update(self, chosen: Tensor) -> None:
        """One step of everything on the chosen training samples (indices)."""
        model, samples = self.objective.model, self.samples[chosen]
        noise = self.noise[chosen].to(model.device).requires_grad_(self.radius > 0)
        latent, target = samples.latent.to(model.device), samples.target.to(model.device)
        with torch.enable_grad():
            table = differentiable_table(self.parameters, self.theta())
            batch = _Batch(chosen, noise, latent, target, *table)
            model.begin_batch(noise, latent)
            x = model.scale_noise(noise, latent, self.parameters.levels.start)
            model.begin_rollout(self._sigmas())
            result = differentiable_rollout(*table, recomputed(model), x)
            losses = backward_loss(result, target, self.objective.distance)
        if self.radius > 0 and noise.grad is not None:
            self._update_noise(batch, noise.grad, losses)
        free = [self.z] + ([self.extras] if len(self.extras) else [])
        if all(torch.isfinite(p.grad).all() for p in free if p.grad is not None):
            torch.nn.utils.clip_grad_norm_(free, 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.done += 1
        if self.settings.adam:
            self.reduce_rates(self._cosine(self.done) / self._cosine(self.done - 1))

    def _cosine(self, done: int) -> float:
        """Decreases from 1 to 0.02 over the planned updates."""
        return 0.02 + 0.49 * (1 + math.cos(math.pi * min(done / self.updates, 1.0)))

    def _sigmas(self) -> Tensor:
        return self.parameters.levels.sigmas(self.steps.u(self.z.detach()))

    def _update_noise(self, batch: _Batch, gradient: Tensor, losses: Tensor) -> None:
        """x' one step down, back into its ball, and kept where the loss decreases."""
        model = self.objective.model
        if self.settings.adam:
            norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
            step = self.settings.noise_rate * self.radius * gradient / _per_sample(norm, gradient)
        else:
            rate = self.settings.noise_rate / self.parameters.calls * self.decay
            step = rate * gradient * len(gradient)  # of the sample's loss, not of the batch's mean
        center = self.samples.noise[batch.index].to(gradient.device)
        candidate = projected(batch.noise.detach() - step, center, self.radius)
        with torch.no_grad():
            model.begin_batch(candidate, batch.latent)
            x = model.scale_noise(candidate, batch.latent, self.parameters.levels.start)
            model.begin_rollout(self._sigmas())
            table = batch.weights.detach(), batch.eval_sigmas.detach()
            result = differentiable_rollout(*table, model, x)
            better = self.objective.distance.between(result, batch.target) < losses
        better = better.to(candidate.device)  # a distance of images is on the VAE's
        kept = torch.where(_per_sample(better, candidate), candidate, batch.noise.detach())
        self.noise[batch.index] = kept.to(self.noise)

    @property
    def diverged(self) -> bool:
        """Whether noise levels coincide or a number is undefined: no sampler can be run there."""
        found = self._sigmas()
        return not (bool((found.diff() < 0).all()) and bool(torch.isfinite(self.extras).all()))

    def reduce_rates(self, factor: float) -> None:
        """Multiply all learning rates."""
        self.decay *= factor
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= factor


def projected(noise: Tensor, center: Tensor, radius: float) -> Tensor:
    """The nearest point within `radius` of center, per sample: all (batch, *latent)."""
    difference = noise - center
    norm = difference.flatten(1).norm(dim=1).clamp_min(1e-30)
    return center + difference * _per_sample((radius / norm).clamp(max=1.0), difference)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))


class _Phase(NamedTuple):
    """What a phase learns, how often it uses all noises, and how often it validates."""

    parameters: SolverParameters
    rounds: int
    updates: int
    updates_per_validation: int


def _phases(parameters: SolverParameters, settings: TrainingSettings) -> list[_Phase]:
    """The steps alone, then the extras together with them; a quarter of all calls validate."""
    gradient = settings.gradient
    assert gradient is not None
    batches = math.ceil(settings.training_noises / gradient.batch)
    update_calls = gradient.batch * (CALLS_PER_GRADIENT + gradient.soft)
    every = max(1, math.ceil(3 * settings.validation_noises / update_calls))
    learned = [(replace(parameters, decoupled=False, order=0), gradient.steps_rounds)]
    learned += [(parameters, gradient.extra_rounds)] if parameters.extras else []
    return [_Phase(free, rounds, rounds * batches, every) for free, rounds in learned]


def descend_by_gradient(
    parameters: SolverParameters,
    start: Start,
    training: TeacherSamples,
    validation: Validation,
    settings: TrainingSettings,
) -> None:
    """Run all phases; `validation` keeps the best.

    Raises:
        GradientError: the model cannot be differentiated.
    """
    gradient, order = settings.gradient, torch.Generator().manual_seed(settings.seed)
    assert gradient is not None
    for phase in _phases(parameters, settings):
        learned, without_progress = phase.parameters, 0
        name = " and ".join(extra.value for extra in learned.extras) or start.name
        theta = learned.extended(validation.best.theta if learned.extras else start.theta)
        descent = GradientDescent(
            validation.objective, learned, theta, training, gradient, phase.updates
        )
        for chosen in _batches(len(training), phase.rounds, gradient.batch, order):
            descent.update(chosen)
            validation.progress.stage(
                f"learning by gradient: update {descent.done} of {phase.updates}"
            )
            if descent.diverged:
                logger.warning(
                    "LD3: learning by gradient diverged in update %d of %d; the best schedule "
                    "before is kept. Use the optimizer gauss-newton",
                    descent.done,
                    phase.updates,
                )
                break
            if descent.done % phase.updates_per_validation and descent.done != phase.updates:
                continue
            before, theta = validation.best.error, descent.theta().detach()
            validation.consider(name, learned.discretization(theta), theta)
            without_progress = 0 if validation.best.error < before else without_progress + 1
            if without_progress >= gradient.patience and not gradient.adam:
                descent.reduce_rates(0.8)
                without_progress = 0


def _batches(count: int, rounds: int, size: int, order: torch.Generator) -> Iterator[Tensor]:
    """Indices of the samples of every update: all of them in a new order each round."""
    for _ in range(rounds):
        yield from torch.randperm(count, generator=order).split(size)


def planned_calls(parameters: SolverParameters, settings: TrainingSettings, secant: bool) -> int:
    """Model calls of `descend_by_gradient`.

    Args:
        secant: whether the model's derivative in time is a secant.
    """
    total = 0
    assert settings.gradient is not None
    per_call = CALLS_PER_GRADIENT + CALLS_PER_SECANT * secant + settings.gradient.soft
    for phase in _phases(parameters, settings):
        total += phase.rounds * settings.training_noises * per_call
    return parameters.calls * (total + samplings(parameters, settings))


def samplings(parameters: SolverParameters, settings: TrainingSettings) -> int:
    """How many samplings the validations make, each with a first call."""
    phases = _phases(parameters, settings)
    validations = sum(math.ceil(p.updates / p.updates_per_validation) for p in phases)
    return validations * settings.validation_noises
