"""D-ODE: one number a network call, in closed form (arXiv 2309.16421, CVPR 2024).

Every denoised output is moved along its last change,

    D_m -> D_m + lambda_m (D_m - D_p) ,   p the latest call at a different noise level,

a column operation on the sampler's table. lambda_m is the least-squares answer to: after this call,
where should the next state be? With R the teacher's state there minus the student's, and V what
lambda_m = 1 would add,

    lambda_m = <V, R> / <V, V> ,

summed over a batch of noises in float64, call after call along the student's own corrected
trajectory, against a teacher that passes through every one of the student's states. No
backpropagation; about 11 network calls for each call of the student and noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..metrics import rmse
from ..model import Model
from ..rollout import combine
from ..solver import Plan, Sampler, SolverTable
from ..teacher import Pairs, student_samples

TEACHER_STEPS = 10  # for each step of the student
LARGEST_LAMBDA = 2.0
RIDGE = 1e-3  # relative: lambda stays 0 where V is only rounding


def previous_calls(table: SolverTable) -> list[int | None]:
    """For each call the latest one at a different noise level; None where there is none.

    heun asks twice at one level; the difference of those two is no direction along the trajectory.
    """
    levels, found = table.state_sigmas.tolist(), []
    for m, level in enumerate(levels):
        earlier = [p for p in range(m) if abs(levels[p] - level) > 1e-6 * level]
        found.append(earlier[-1] if earlier else None)
    return found


def with_lambdas(table: SolverTable, lambdas: Tensor) -> SolverTable:
    """The table whose call m answers D_m + lambda_m (D_m - D_p); lambdas (M,)."""
    weights = table.weights.clone()
    for m, p in enumerate(previous_calls(table)):
        if p is not None:
            weights[:, m + 1] += lambdas[m] * table.weights[:, m + 1]
            weights[:, p + 1] -= lambdas[m] * table.weights[:, m + 1]
    return replace(table, weights=weights)


@dataclass(frozen=True)
class Distilled:
    """Lambdas (M,) float64, with mean errors on the validation noises before and after."""

    lambdas: Tensor
    plain_error: float
    error: float


def teacher_sigmas(model: Model, plan: Plan, steps: int) -> Tensor:
    """Noise levels that pass through all of the student's states: (about 10 N + 1,) float32.

    Each stretch between two states is cut evenly in the model's coordinate; the last one goes down
    to the lowest level the network knows before it ends where the student does.
    """
    states = sorted({float(s) for s in plan.table.state_sigmas.float()}, reverse=True)
    cuts = max(1, round(TEACHER_STEPS * steps / len(states)))
    end = float(plan.sigmas[-1])
    lowest = end if end > 0 else min(model.sigma_min, 0.5 * states[-1])
    levels: list[float] = []
    for upper, lower in zip(states, [*states[1:], lowest], strict=True):
        u = model.coordinate.from_sigma(torch.tensor([upper, lower], dtype=torch.float64))
        inner = torch.lerp(u[0], u[1], torch.arange(1, cuts, dtype=torch.float64) / cuts)
        cut = model.coordinate.to_sigma(inner).tolist()
        # not all are between: a flow model's coordinate is clipped near 1
        levels += [upper, *(level for level in cut if lower < level < upper)]
    return torch.tensor([*levels, end], dtype=torch.float64).float()


def teacher_states(model: Model, teacher: Plan, plan: Plan, pairs: Pairs) -> list[Tensor]:
    """The teacher at the student's states after each call, and its result: M of (n, *latent)."""
    result, history = student_samples(model, teacher, pairs)
    levels = teacher.table.state_sigmas
    found = []
    for level in plan.table.state_sigmas[1:]:
        away = (levels.log() - level.log()).abs()
        call = int((away <= away.min() + 1e-6).nonzero().max())  # of two the corrected state
        found.append(combine(teacher.table.weights[call, : call + 1], history))
    return [*found, result]


def distill(
    model: Model,
    plan: Plan,
    teacher_sampler: Sampler,
    training: Pairs,
    validation: Pairs,
    batch_size: int,
    tell: Callable[[str], None] = lambda stage: None,
) -> Distilled:
    """Fit the lambdas of a plan; one that does not bring validation nearer the teacher stays 0.

    Args:
        plan: the sampler at any schedule, decoupled times included.
        teacher_sampler: sampled in 10 times the plan's steps.
        training, validation: noises and latents; their targets are not used.

    Raises:
        ValueError: the teacher's result is not finite.
    """
    sigmas = teacher_sigmas(model, plan, len(plan.sigmas) - 1)
    teacher = Plan(sigmas, teacher_sampler.table(sigmas))
    trained, validated = (
        _Students(model, plan, teacher, pairs, batch_size, tell) for pairs in (training, validation)
    )
    lambdas = torch.zeros(plan.table.model_calls, dtype=torch.float64)
    for m, p in enumerate(previous_calls(plan.table)):
        tell(f"distilling: call {m + 1} of {len(lambdas)}")
        table = with_lambdas(plan.table, lambdas)
        vv, vr = trained.after_call(table, m, p)
        checked_vv, checked_vr = validated.after_call(table, m, p)
        if p is None or vv == 0:
            continue
        fitted = max(-LARGEST_LAMBDA, min(vr / (vv * (1 + RIDGE)), LARGEST_LAMBDA))
        # |R - lambda V|^2 - |R|^2 on the validation noises
        if fitted**2 * checked_vv - 2 * fitted * checked_vr < 0:
            lambdas[m] = fitted
    plain = validated.sampled_error(plan.table)
    error = validated.error(with_lambdas(plan.table, lambdas))
    if error < plain:
        return Distilled(lambdas, plain, error)
    # each state came nearer but the result did not: go half the way, or stay
    half = 0.5 * lambdas
    error = validated.sampled_error(with_lambdas(plan.table, half))
    if error < plain:
        return Distilled(half, plain, error)
    return Distilled(torch.zeros_like(lambdas), plain, plain)


class _Students:
    """A set of noises on their way through the student, with the teacher's states beside."""

    def __init__(
        self,
        model: Model,
        plan: Plan,
        teacher: Plan,
        pairs: Pairs,
        batch_size: int,
        tell: Callable[[str], None],
    ) -> None:
        self.model, self.plan = model, plan
        self.batches = list(pairs.batches(batch_size, model.device))
        self.states: list[list[Tensor]] = []
        for batch in self.batches:
            tell("distilling: teacher")
            self.states.append(teacher_states(model, teacher, plan, batch))
            if not all(torch.isfinite(state).all() for state in self.states[-1]):
                raise ValueError(
                    "the teacher's result is infinite or undefined (NaN); check that the model "
                    "works in a plain KSampler"
                )
        start = float(plan.sigmas[0])
        self.history = [[model.scale_noise(b.noise, b.latent, start)] for b in self.batches]

    def after_call(self, table: SolverTable, m: int, p: int | None) -> tuple[float, float]:
        """Make call m with the table's lambdas so far: <V, V> and <V, R> of the next state."""
        vv = vr = 0.0
        if m == 0:
            self.model.begin_rollout(self.plan.sigmas)
        for history, states in zip(self.history, self.states, strict=True):
            x = combine(table.weights[m, : m + 1], history)
            level = x.new_full((len(x),), float(table.eval_sigmas[m]))
            history.append(self.model(x, level))
            if p is None:
                continue
            reached = combine(table.weights[m + 1, : m + 2], history)
            v = float(table.weights[m + 1, m + 1]) * (history[m + 1] - history[p + 1]).double()
            vv += float((v * v).sum())
            vr += float((v * (states[m] - reached).double()).sum())
        return vv, vr

    def error(self, table: SolverTable) -> float:
        """Mean RMSE of the results to the teacher's."""
        found = [
            rmse(combine(table.weights[-1], history) - states[-1])
            for history, states in zip(self.history, self.states, strict=True)
        ]
        return float(torch.cat(found).mean())

    def sampled_error(self, table: SolverTable) -> float:
        """The same of another table, sampled anew."""
        plan = Plan(self.plan.sigmas, table)
        found = [
            rmse(student_samples(self.model, plan, batch)[0] - states[-1])
            for batch, states in zip(self.batches, self.states, strict=True)
        ]
        return float(torch.cat(found).mean())
