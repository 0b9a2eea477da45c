"""LD3 as published: reverse mode through the whole few-step sampling.

The student's result is differentiated with respect to its noise levels, its decoupled times and its
start noise. Any traced sampler is differentiable: backward multiplies with the central differences
of its table, so no sampler's code has to be. One network call's activations are held at a time
(`ld3.recompute`).

Soft teacher forcing (arXiv 2405.15506, eq. 5): the student may start from a noise x' within
r sigma_0 of the teacher's,

    min over xi of  mean_i  min_{|x' - x_i| <= r sigma_0}  d(student_xi(x'), teacher(x_i)) ,

since one that must reproduce each sample exactly has too few numbers to learn. x' follows its own
gradient, is projected back onto the ball, and kept only where the loss falls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..metrics import Distance
from ..model import Denoiser
from ..parameters import StepParameters
from ..recompute import recomputed
from ..solver import Sampler, SolverTable
from ..student import Student
from ..teacher import Pairs
from .selection import Selection

RELATIVE_STEP = 1e-4  # of a level's smaller gap, for the table's central differences in float64
CALLS_A_GRADIENT = 4  # a network call, its repetition, and a backward pass that counts as two


@dataclass(frozen=True)
class GradientSettings:
    """Constants of the descent.

    Attributes:
        radius: r of soft teacher forcing; None is the paper's 0.001 d / NFE^2, 0 is hard.
        adam: Adam with a falling rate for everything; False is the paper's RMSprop for the steps
            and SGD for decoupled times and start noises.
        steps_rounds, extra_rounds: how often each phase goes through the training noises.
        batch: noises an update.
        steps_rate, extra_rate, noise_rate: learning rates; the last is a share of the radius
            with Adam, and divided by the number of model calls in the paper's.
        patience: validations without progress after which the paper's rates fall by a fifth.
    """

    radius: float | None = None
    adam: bool = False
    steps_rounds: int = 2
    extra_rounds: int = 5
    batch: int = 2
    steps_rate: float = 5e-3
    extra_rate: float = 0.1
    noise_rate: float = 12.0
    patience: int = 5

    def with_rounds(self, rounds: int) -> GradientSettings:
        """The same with so many rounds for the steps, and a third more for decoupled times."""
        return replace(self, steps_rounds=rounds, extra_rounds=rounds + rounds // 3)


PAPER = GradientSettings()
ADAM = GradientSettings(
    adam=True, steps_rounds=10, extra_rounds=13, batch=4, steps_rate=0.1, extra_rate=0.05,
    noise_rate=0.25,
)  # fmt: skip


class SoftmaxSteps:
    """Free noise levels as shares of the way down to sigma_min; monotone for any z.

    The gaps between start, u_1 .. u_{N-1} and the floor are a softmax of N logits, the last of
    which is fixed; z = 0 (N-1,) is the schedule it was made with.
    """

    def __init__(self, levels: StepParameters, u: Tensor) -> None:
        self.upper = levels.coordinate.from_sigma(torch.tensor(levels.start, dtype=torch.float64))
        self.lower = levels.coordinate.from_sigma(torch.tensor(levels.floor, dtype=torch.float64))
        ends = torch.cat([self.upper[None], u, self.lower[None]])
        self.logits = (-ends.diff()).clamp_min(1e-6).log()

    def u(self, z: Tensor) -> Tensor:
        """Coordinates (N-1,) of z (N-1,), differentiable."""
        shares = torch.softmax(self.logits + torch.cat([z, z.new_zeros(1)]), 0)
        return self.upper - (self.upper - self.lower) * shares[:-1].cumsum(0)


class _Table(torch.autograd.Function):
    """sigmas (N+1,) float64 -> weights and state_sigmas; the first and last level are fixed."""

    @staticmethod
    def forward(ctx: Any, sampler: Sampler, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        table = sampler.table(sigmas)
        ctx.sampler = sampler
        ctx.save_for_backward(sigmas)
        return table.weights, table.state_sigmas.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        to_weights, to_levels = gradients
        (sigmas,) = ctx.saved_tensors
        found = torch.zeros_like(sigmas)
        for k in range(1, len(sigmas) - 1):
            h = RELATIVE_STEP * float(-sigmas[k - 1 : k + 2].diff().max())
            above, below = (_table_at(ctx.sampler, sigmas, k, step) for step in (h, -h))
            found[k] = (
                (to_weights * (above.weights - below.weights)).sum()
                + (to_levels * (above.state_sigmas - below.state_sigmas)).sum()
            ) / (2 * h)
        return None, found


def _table_at(sampler: Sampler, sigmas: Tensor, k: int, step: float) -> SolverTable:
    moved = sigmas.detach().clone()
    moved[k] += step
    return sampler.table(moved)


def differentiable_table(student: Student, theta: Tensor) -> tuple[Tensor, Tensor]:
    """The student's weights (M+1, 1+M) and eval_sigmas (M,) at theta, both float64."""
    sigmas = student.levels.exact_sigmas(theta[: student.free_levels])
    weights, state_sigmas = _Table.apply(student.sampler, sigmas)
    return student.weights(theta, weights), student.eval_sigmas(theta, state_sigmas)


def differentiable_rollout(
    weights: Tensor, eval_sigmas: Tensor, denoise: Denoiser, x: Tensor
) -> Tensor:
    """`ld3.rollout.rollout` for autograd: to the table, the levels and x (batch, *latent)."""
    history = [x]
    for row, sigma in zip(weights[:-1], eval_sigmas, strict=True):
        state = _combined(row, history)
        history.append(denoise(state, sigma.to(x).expand(len(x))))
    return _combined(weights[-1], history)


def _combined(row: Tensor, history: list[Tensor]) -> Tensor:
    total = torch.zeros_like(history[0])
    for weight, state in zip(row, history, strict=False):
        total = total + weight.to(state) * state
    return total


def backward_loss(result: Tensor, target: Tensor, distance: Distance) -> Tensor:
    """Differentiate the mean distance down to everything below; returns each sample's: (batch,).

    Image by image where images are compared: a decoder's activations are large too.
    """
    leaf = result.detach().requires_grad_()
    values = []
    for part in distance.parts(len(leaf)):
        with torch.no_grad():
            wanted = distance.features(target[part])
        value = distance.value(distance.features(leaf[part]) - wanted)
        (value.sum() / len(leaf)).backward()
        values.append(value.detach())
    result.backward(leaf.grad)
    return torch.cat(values)


class GradientDescent:
    """One phase of the descent: theta's free numbers and the start noises of all training pairs.

    Args:
        student: what is learned, with or without decoupled times.
        theta: where to start.
        pairs: training pairs; their noises are what x' starts from.
        updates: planned length, over which Adam's rates fall.
    """

    def __init__(
        self,
        student: Student,
        theta: Tensor,
        pairs: Pairs,
        settings: GradientSettings,
        updates: int,
    ) -> None:
        self.student, self.pairs, self.settings = student, pairs, settings
        free, calls = student.free_levels, student.calls
        self.steps = SoftmaxSteps(student.levels, theta[:free])
        self.z = torch.zeros(free, dtype=torch.float64, requires_grad=True)
        self.extras = theta[free:].clone().requires_grad_()
        dimension = pairs.noise[0].numel()
        published = 0.001 * dimension / calls**2
        self.radius = published if settings.radius is None else settings.radius
        self.noise = pairs.noise.clone()
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
            found.append(torch.optim.SGD(extras, lr=s.extra_rate / self.student.calls))
        return found

    def theta(self) -> Tensor:
        """The parameters now, differentiable; decoupled times within half the least gap."""
        u = self.steps.u(self.z)
        times = self.student.times
        ends = torch.cat([self.steps.upper[None], u, self.steps.lower[None]])
        # of the steps themselves: the published code takes it from their logits
        bound = 0.5 * float(-ends.detach().diff().max())
        return torch.cat([u, self.extras[:times].clamp(-bound, bound), self.extras[times:]])

    def update(self, chosen: Tensor, distance: Distance) -> None:
        """One step of everything on the chosen training pairs (indices)."""
        model, pairs = self.student.model, self.pairs[chosen]
        noise = self.noise[chosen].to(model.device).requires_grad_(self.radius > 0)
        latent, target = pairs.latent.to(model.device), pairs.target.to(model.device)
        start = self.student.levels.start
        with torch.enable_grad():
            weights, levels = differentiable_table(self.student, self.theta())
            x = model.scale_noise(noise, latent, start)
            model.begin_rollout(self._sigmas())
            result = differentiable_rollout(weights, levels, recomputed(model), x)
            losses = backward_loss(result, target, distance)
        if self.radius > 0 and noise.grad is not None:
            self._move_noise(chosen, noise, latent, target, losses, weights, levels, distance)
        free = [self.z] + ([self.extras] if len(self.extras) else [])
        if all(torch.isfinite(p.grad).all() for p in free if p.grad is not None):
            torch.nn.utils.clip_grad_norm_(free, 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.done += 1
        if self.settings.adam:
            self.slow_down(self._cosine(self.done) / self._cosine(self.done - 1))

    def _cosine(self, done: int) -> float:
        """Falls from 1 to 0.02 over the planned updates."""
        return 0.02 + 0.49 * (1 + math.cos(math.pi * min(done / self.updates, 1.0)))

    def _sigmas(self) -> Tensor:
        return self.student.levels.sigmas(self.steps.u(self.z.detach()))

    def _move_noise(
        self,
        chosen: Tensor,
        noise: Tensor,
        latent: Tensor,
        target: Tensor,
        losses: Tensor,
        weights: Tensor,
        levels: Tensor,
        distance: Distance,
    ) -> None:
        """x' one step down, back into its ball, and kept where that lowers the loss."""
        assert noise.grad is not None
        model, gradient = self.student.model, noise.grad
        if self.settings.adam:
            norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
            step = self.settings.noise_rate * self.radius * gradient / _per_sample(norm, gradient)
        else:
            rate = self.settings.noise_rate / self.student.calls * self.decay
            step = rate * gradient * len(gradient)  # of the sample's loss, not of the batch's mean
        center = self.pairs.noise[chosen].to(noise.device)
        candidate = projected(noise.detach() - step, center, self.radius)
        with torch.no_grad():
            x = model.scale_noise(candidate, latent, self.student.levels.start)
            model.begin_rollout(self._sigmas())
            result = differentiable_rollout(weights.detach(), levels.detach(), model, x)
            better = distance.between(result, target) < losses
        kept = torch.where(_per_sample(better, candidate), candidate, noise.detach())
        self.noise[chosen] = kept.to(self.noise)

    def slow_down(self, factor: float) -> None:
        """Multiply all rates."""
        self.decay *= factor
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= factor


def projected(noise: Tensor, center: Tensor, radius: float) -> Tensor:
    """The nearest point within `radius` of center, sample by sample: all (batch, *latent)."""
    difference = noise - center
    norm = difference.flatten(1).norm(dim=1).clamp_min(1e-30)
    return center + difference * _per_sample((radius / norm).clamp(max=1.0), difference)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))


def updates_a_validation(update: int, validation: int) -> int:
    """Updates between validations, from the model calls of each: a quarter of all validate."""
    return max(1, math.ceil(3 * validation / update))


def descend_by_gradient(
    student: Student,
    theta: Tensor,
    training: Pairs,
    selection: Selection,
    settings: GradientSettings,
    order: torch.Generator,
    name: str,
) -> None:
    """One phase from theta; the best by validation is left in `selection`."""
    rounds = settings.extra_rounds if student.extras else settings.steps_rounds
    batches = math.ceil(len(training) / settings.batch)
    descent = GradientDescent(student, theta, training, settings, rounds * batches)
    soft = 1 if descent.radius > 0 else 0
    update_calls = settings.batch * student.calls * (CALLS_A_GRADIENT + soft)
    every = updates_a_validation(update_calls, len(selection.validation) * student.calls)
    waited = 0
    for _ in range(rounds):
        for chosen in torch.randperm(len(training), generator=order).split(settings.batch):
            descent.update(chosen, selection.distance)
            selection.tell(f"learning by gradient: update {descent.done} of {descent.updates}")
            if descent.done % every and descent.done != descent.updates:
                continue
            before = selection.best_error
            selection.offer(name, student, descent.theta().detach())
            waited = 0 if selection.best_error < before else waited + 1
            if waited >= settings.patience and not settings.adam:
                descent.slow_down(0.8)
                waited = 0
