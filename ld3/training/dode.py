"""D-ODE: one number per network call, in closed form (arXiv 2309.16421, CVPR 2024).

Every denoised output is extrapolated along its last change,

    D_m -> D_m + lambda_m (D_m - D_p) ,   p the latest call at a different noise level,

a column operation on the sampler's table. lambda_m is the least-squares solution for the next
state: with R the teacher's state there minus the student's, and V what lambda_m = 1 would add,

    lambda_m = <V, R> / <V, V> ,

summed over a batch of noises in float64, call after call along the student's own corrected
trajectory, with a teacher that passes through every one of the student's states. No
backpropagation; about 12 network calls per call of the student and noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..metrics import rmse
from ..model import Model
from ..table import Discretization, Extra, SolverTable, combine
from ..teacher import TeacherSamples
from ..tracing import TracedSampler

TEACHER_STEPS = 10  # per step of the student
LARGEST_LAMBDA = 2.0
NO_DODE = (
    "D-ODE's teacher divides the student's steps, and a CFG++ sampler guides more strongly in more "
    "steps; use another sampler, or learn something else"
)
LAMBDA_RIDGE = 1e-3  # relative: lambda stays 0 where V is only rounding


def previous_calls(table: SolverTable) -> list[int | None]:
    """For each call the latest one at a different noise level; None where there is none.

    heun evaluates twice at one level; the difference of these two is no direction along the
    trajectory.
    """
    levels, found = table.state_sigmas.tolist(), []
    for m, level in enumerate(levels):
        earlier = [p for p in range(m) if abs(levels[p] - level) > 1e-6 * level]
        found.append(earlier[-1] if earlier else None)
    return found


def with_lambdas(table: SolverTable, lambdas: Tensor) -> SolverTable:
    """The table in which D_m + lambda_m (D_m - D_p) replaces D_m; lambdas (M,)."""
    weights, plain = table.weights.clone(), table.weights[:, table.denoised]
    columns = weights[:, table.denoised]
    for m, p in enumerate(previous_calls(table)):
        if p is not None:
            columns[:, m] += lambdas[m] * plain[:, m]
            columns[:, p] -= lambdas[m] * plain[:, m]
    return replace(table, weights=weights)


@dataclass(frozen=True)
class Distilled:
    """A student with lambdas.

    Attributes:
        student: the student; as it was where no lambda helps.
        lambdas: (M,) float64.
        plain_error, error: mean RMSE on the validation noises before and after.
    """

    student: Discretization
    lambdas: Tensor
    plain_error: float
    error: float


def teacher_sigmas(model: Model, student: Discretization) -> Tensor:
    """Noise levels that pass through all of the student's states: (about 10 N + 1,) float32.

    Each interval between two states is divided evenly in the model's coordinate; the last one goes
    down to the lowest level the network knows before it ends where the student does.
    """
    states = sorted({float(s) for s in student.table.state_sigmas.float()}, reverse=True)
    cuts = max(1, round(TEACHER_STEPS * student.steps / len(states)))
    end = float(student.sigmas[-1])
    lowest = end if end > 0 else min(model.sigma_min, 0.5 * states[-1])
    levels: list[float] = []
    for upper, lower in zip(states, [*states[1:], lowest], strict=True):
        u = model.coordinate.from_sigma(torch.tensor([upper, lower], dtype=torch.float64))
        inner = torch.lerp(u[0], u[1], torch.arange(1, cuts, dtype=torch.float64) / cuts)
        cut = model.coordinate.to_sigma(inner).tolist()
        # not all lie between: a flow model's coordinate is clipped near 1
        levels += [upper, *(level for level in cut if lower < level < upper)]
    return torch.tensor([*levels, end], dtype=torch.float64).float()


def teacher_states(
    model: Model, teacher: Discretization, student: Discretization, samples: TeacherSamples
) -> list[Tensor]:
    """The teacher at the student's states after each call, and its result: M of (n, *latent).

    Args:
        samples: one batch; its noises and latents are used.
    """
    result, history = model.sample(teacher, samples.noise, samples.latent)
    levels = teacher.table.state_sigmas
    found = []
    for level in student.table.state_sigmas[1:]:
        difference = (levels.log() - level.log()).abs()
        # of two calls at one level the corrected state
        call = int((difference <= difference.min() + 1e-6).nonzero().max())
        found.append(combine(teacher.table.weights[call], history))
    return [*found, result]


def distill(
    model: Model,
    student: Discretization,
    teacher_sampler: TracedSampler,
    training: TeacherSamples,
    validation: TeacherSamples,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Distilled:
    """Fit the lambdas of a student; one that does not reduce the validation error stays 0.

    Args:
        student: the sampler at any schedule, decoupled times included.
        teacher_sampler: samples in 10 times the student's steps.
        training, validation: noises and latents; their targets are not used.

    Raises:
        ValueError: the teacher's result is not finite, or a sampler is a CFG++ one.
    """
    teacher = teacher_sampler.discretization(teacher_sigmas(model, student))
    if 2 in (student.table.outputs, teacher.table.outputs):
        raise ValueError(NO_DODE)
    asked = ["d-ode", *student.identity, *teacher.identity]
    asked += [*training.identity, *validation.identity]
    lambdas, found = model.answer(
        asked,
        lambda: model.within_memory(
            lambda: _fitted(model, student, teacher, (training, validation), on_stage)
        ),
    )
    plain, error = found.tolist()
    if not lambdas.any():
        return Distilled(student, lambdas, plain, error)
    table, extras = with_lambdas(student.table, lambdas), (*student.extras, Extra.D_ODE)
    return Distilled(Discretization(student.sigmas, table, extras), lambdas, plain, error)


def _fitted(
    model: Model,
    student: Discretization,
    teacher: Discretization,
    sets: tuple[TeacherSamples, TeacherSamples],
    on_stage: Callable[[str], None],
) -> tuple[Tensor, Tensor]:
    """The lambdas (M,), 0 where they do not help, and the errors without and with them (2,)."""
    trained, validated = (_Rollouts(model, student, teacher, part, on_stage) for part in sets)
    lambdas = torch.zeros(student.table.model_calls, dtype=torch.float64)
    for m, p in enumerate(previous_calls(student.table)):
        on_stage(f"distilling: call {m + 1} of {len(lambdas)}")
        table = with_lambdas(student.table, lambdas)
        vv, vr = trained.after_call(table, m, p)
        validation_vv, validation_vr = validated.after_call(table, m, p)
        if p is None or vv == 0:
            continue
        fitted = max(-LARGEST_LAMBDA, min(vr / (vv * (1 + LAMBDA_RIDGE)), LARGEST_LAMBDA))
        # |R - lambda V|^2 - |R|^2 on the validation noises
        if fitted**2 * validation_vv - 2 * fitted * validation_vr < 0:
            lambdas[m] = fitted
    plain = validated.sampled_error(student.table)
    error = validated.error(with_lambdas(student.table, lambdas))
    if not error < plain:
        # each state came closer to the teacher's, but the result did not: use half the lambdas
        lambdas = 0.5 * lambdas
        error = validated.sampled_error(with_lambdas(student.table, lambdas))
    if not error < plain:
        lambdas, error = torch.zeros_like(lambdas), plain
    return lambdas, torch.tensor([plain, error], dtype=torch.float64)


def planned_calls(
    model: Model,
    student: Discretization,
    teacher_sampler: TracedSampler,
    training: int,
    validation: int,
) -> int:
    """Model calls of `distill`, at most, for these numbers of training and validation noises."""
    teacher = teacher_sampler.table(teacher_sigmas(model, student)).model_calls
    calls = student.table.model_calls
    return training * (teacher + calls) + validation * (teacher + 3 * calls)


class _Rollouts:
    """A set of noises with the student's history so far and the teacher's states."""

    def __init__(
        self,
        model: Model,
        student: Discretization,
        teacher: Discretization,
        samples: TeacherSamples,
        on_stage: Callable[[str], None],
    ) -> None:
        self.model, self.student = model, student
        self.batches = list(samples.batches(model))
        self.states: list[list[Tensor]] = []
        for batch in self.batches:
            on_stage("distilling: teacher")
            self.states.append(teacher_states(model, teacher, student, batch))
            if not all(torch.isfinite(state).all() for state in self.states[-1]):
                raise ValueError(
                    "the teacher's result is infinite or undefined (NaN); check that the model "
                    "works in a plain KSampler"
                )
        start = float(student.sigmas[0])
        self.history = [[model.scale_noise(b.noise, b.latent, start)] for b in self.batches]

    def after_call(self, table: SolverTable, m: int, p: int | None) -> tuple[float, float]:
        """Make call m with the table's lambdas so far: <V, V> and <V, R> of the next state."""
        vv = vr = 0.0
        if m == 0:
            self.model.begin_rollout(self.student.sigmas)
        known = zip(self.batches, self.history, self.states, strict=True)
        for batch, history, states in known:
            self.model.begin_batch(batch.noise, batch.latent)
            x = combine(table.weights[m, : m + 1], history)
            level = x.new_full((len(x),), float(table.eval_sigmas[m]))
            history.append(self.model(x, level))
            if p is None:
                continue
            reached = combine(table.weights[m + 1, : m + 2], history)
            v = (history[m + 1] - history[p + 1]).cpu().double()
            v *= float(table.weights[m + 1, m + 1])
            vv += float((v * v).sum())
            vr += float((v * (states[m] - reached).cpu().double()).sum())
        return vv, vr

    def error(self, table: SolverTable) -> float:
        """Mean RMSE of the results to the teacher's."""
        found = [
            rmse(combine(table.weights[-1], history) - states[-1])
            for history, states in zip(self.history, self.states, strict=True)
        ]
        return float(torch.cat(found).mean())

    def sampled_error(self, table: SolverTable) -> float:
        """The same for another table, which is sampled with."""
        solver = Discretization(self.student.sigmas, table)
        found = [
            rmse(self.model.sample(solver, batch.noise, batch.latent)[0] - states[-1])
            for batch, states in zip(self.batches, self.states, strict=True)
        ]
        return float(torch.cat(found).mean())
