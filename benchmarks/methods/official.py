"""LD3's published training loop, re-implemented: the comparison for this pack's own optimizers.

It follows the paper (Tong et al. 2024, arXiv 2405.15506) and, for what the paper leaves open, its
public code (vinhsuhi/LD3: constants of configs/cifar10.yml, order of operations in trainer.py).
Kept as published, because these are choices of method:

- steps are a softmax of N+1 logits, its cumulative sum rescaled to [sigma_max, sigma_min] in log
  sigma; all logits start equal, which is the uniform log-SNR schedule;
- 50 training and 50 validation pairs, batch 2; two rounds of steps and start noises x', then five
  that also learn decoupled times; RMSprop 5e-3 with momentum 0.9 for the logits, SGD 0.1 / N for
  decoupled times, SGD 12 / N for x'; gradients clipped to norm 1, logits and times separately;
- x' lies within r = 0.001 d / N^2 of its noise, and a new x' is accepted if, with the *updated*
  schedule, its loss is lower than before; validation noises have an x' too, updated once per round
  without a step of the schedule; the rate of x' halves after a round that accepted none of those;
- validation on all pairs after every update; after five without improvement the best state so far
  (x' included) is restored and the rates fall by a fifth, except the first time; every round starts
  from the best schedule, which is also the result;
- a solver that predicts noise (euler, ipndm) uses the noise predicted at the decoupled time, one
  that predicts data (dpmpp_2m, uni_pc) the data predicted there; variance-preserving models receive
  their scaled input unchanged.

Differences, with reasons:

- L2 loss, the code's choice where LPIPS is not used: these problems are not photographs.
- The last level is 0, where ComfyUI's samplers end, instead of sigma_min; a sample costs N calls
  in both cases, and the last free level lies above sigma_min.
- Decoupled times stay within half of the smallest step, as in the paper. The code computes that
  limit from the raw logits, whose differences start at 0: so does `bound_from_logits`.
- Any traced sampler is differentiable here. In the published uni_pc, some coefficients are detached
  from the gradient.

Two more settings favour it: `count_validation=False` does not count the validation after every
update, 73 % of all calls, which one could do less often; `FASTER_DECOUPLED` multiplies the rate of
decoupled times by 100, since the published one is for LPIPS and hardly moves them with the L2 loss.

Calls are counted as in that code: 1 per forward pass, 2 more per backward pass, no recomputation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ld3.metrics import Distance
from ld3.model import Model
from ld3.parameters import StepParameters
from ld3.solver_parameters import SolverParameters
from ld3.table import Discretization, SolverTable
from ld3.teacher import TeacherSamples
from ld3.tracing import TracedSampler
from ld3.training.gradient.descent import projected
from ld3.training.gradient.differentiable_rollout import (
    differentiable_rollout,
    differentiable_table,
)
from ld3.training.gradient.recompute import recomputed

NOISE_PREDICTING = ("euler", "ipndm")
L2 = Distance("l2")


@dataclass(frozen=True)
class OfficialSettings:
    """The published constants, see the module's docstring.

    Attributes:
        noise_prediction: whether the sampler predicts noise, see `NOISE_PREDICTING`.
        variance_preserving: whether the network's input is scaled by 1 / (1 + sigma^2)^1/2.
        count_validation: whether calls after updates, which only select a state, count.
    """

    noise_prediction: bool = False
    variance_preserving: bool = False
    training_pairs: int = 50
    validation_pairs: int = 50
    batch: int = 2
    steps_rounds: int = 2
    decoupled_rounds: int = 5
    steps_rate: float = 5e-3
    momentum: float = 0.9
    decoupled_rate: float = 0.1
    noise_rate: float = 12.0
    radius: float = 0.001
    patience: int = 5
    slower: float = 0.8
    least_rates: tuple[float, float] = (5e-5, 1e-6)
    bound_from_logits: bool = False
    count_validation: bool = True


FASTER_DECOUPLED = 10.0


@dataclass
class _State:
    """What is restored together: logits and times (N+1,), x' of both sets (n, *latent)."""

    logits: Tensor
    times: Tensor
    training: Tensor
    validation: Tensor

    def copy(self) -> _State:
        return _State(*(t.detach().clone() for t in vars(self).values()))


class OfficialTraining:
    """One run; `run` returns the solver and adds the calls it makes to `model.calls`.

    Args:
        model: student's network, of variance-exploding or eps type.
        sampler: of one call per step.
        steps: N.
        pairs: training pairs, then validation pairs.
        seed: of the batches' order.
    """

    def __init__(
        self,
        model: Model,
        sampler: TracedSampler,
        steps: int,
        pairs: TeacherSamples,
        seed: int,
        settings: OfficialSettings = OfficialSettings(),
    ) -> None:
        self.model, self.steps, self.settings = model, steps, settings
        levels = StepParameters(model.coordinate, model.sigma_max, model.sigma_min)
        self.parameters = SolverParameters(sampler, levels, model.sigma_max, steps, calls=steps)
        ends = torch.tensor([model.sigma_max, model.sigma_min], dtype=torch.float64)
        self.upper, self.lower = model.coordinate.from_sigma(ends)
        self.training = pairs[: settings.training_pairs]
        self.validation = pairs[settings.training_pairs :]
        self.order = torch.Generator().manual_seed(seed)
        self.radius = settings.radius * pairs.noise[0].numel() / steps**2
        ones = torch.ones(steps + 1, dtype=torch.float64)
        self.state = _State(ones, 0 * ones, self.training.noise, self.validation.noise).copy()
        self.decoupled = False
        self.best = self.state.copy()
        self.best_loss, self.waited, self.restored_once = float("inf"), 0, False

    def run(self) -> Discretization:
        """Train; returns the best solver by validation."""
        s = self.settings
        logits, times = self.state.logits.requires_grad_(), self.state.times.requires_grad_()
        steps = torch.optim.RMSprop([logits], lr=s.steps_rate, momentum=s.momentum)
        decoupled = torch.optim.SGD([times], lr=s.decoupled_rate / self.steps)
        self.noise_rate = s.noise_rate / self.steps
        for round_ in range(s.steps_rounds + s.decoupled_rounds):
            self.decoupled = round_ >= s.steps_rounds
            self.optimizers = [steps, decoupled] if self.decoupled else [steps]
            if round_:
                self._restore(noises=False)
            self._validate()
            for chosen in torch.randperm(len(self.training), generator=self.order).split(s.batch):
                self._update(self.training, self.state.training, chosen, learn=True)
            accepted = [
                self._update(self.validation, self.state.validation, chosen, learn=False)
                for chosen in torch.arange(len(self.validation)).split(s.batch)
            ]
            if not any(accepted):
                self.noise_rate *= 0.5
        self._restore(noises=False)
        return self.discretization()

    def discretization(self) -> Discretization:
        """The current schedule, sigmas (N+1,) float32 and the table that samples with it."""
        with torch.no_grad():
            sigmas = self.parameters.levels.sigmas(self._levels())
            table = self.parameters.sampler.table(sigmas)
            evaluated = self._eval_levels(table.state_sigmas)
            weights = self._decoupling(table.weights, table.state_sigmas, evaluated)
        return Discretization(
            sigmas, SolverTable(table.state_sigmas, evaluated, weights, table.callback_calls)
        )

    def _levels(self) -> Tensor:
        """Free coordinates u (N-1,)."""
        shares = torch.softmax(self.state.logits, 0).cumsum(0)
        down = (shares - shares[0]) / (shares[-1] - shares[0])
        return (self.upper - down * (self.upper - self.lower))[1:-1]

    def _eval_levels(self, states: Tensor) -> Tensor:
        """Levels at which the network is evaluated, (N,); the first is the start of sampling."""
        logits = self.state.logits.detach()
        ends = torch.cat([self.upper[None], self._levels().detach(), self.lower[None]])
        widths = logits if self.settings.bound_from_logits else ends
        bound = 0.5 * float(widths.diff().abs().min())
        times = self.state.times[1:-1].clamp(-bound, bound)
        return self.model.coordinate.shifted(states, torch.cat([times.new_zeros(1), times]))

    def _decoupling(self, weights: Tensor, states: Tensor, evaluated: Tensor) -> Tensor:
        if self.settings.variance_preserving:
            scale = ((1 + evaluated**2) / (1 + states**2)).sqrt()
        else:
            scale = torch.ones_like(states)
        return decoupled_weights(weights, states, evaluated, scale, self.settings.noise_prediction)

    def _table(self) -> tuple[Tensor, Tensor]:
        """Weights and evaluation levels, differentiable with respect to logits and times."""
        weights, states = differentiable_table(self.parameters, self._levels())
        evaluated = self._eval_levels(states)
        return self._decoupling(weights, states, evaluated), evaluated

    def _losses(self, noise: Tensor, pairs: TeacherSamples, gradient: bool) -> Tensor:
        """Each pair's loss of start noises (n, *latent): (n,)."""
        model, target = self.model, pairs.target.to(self.model.device)
        latent = pairs.latent.to(model.device)
        # networks whose derivative in time is a secant cannot be differentiated as they are
        through = recomputed(model) if gradient and model.time_neighbours else model
        weights, evaluated = self._table()
        model.begin_rollout(self.parameters.levels.sigmas(self._levels().detach()))
        x = model.scale_noise(noise, latent, self.parameters.levels.start)
        return L2.between(differentiable_rollout(weights, evaluated, through, x), target)

    def _validate(self) -> None:
        loss = self._validation_loss()
        if loss < self.best_loss:
            self.best_loss, self.best, self.waited = loss, self.state.copy(), 0
            return
        self.waited += 1
        s = self.settings
        if self.waited < s.patience:
            return
        self._restore(noises=True)
        if self.restored_once:
            for optimizer, least in zip(self.optimizers, s.least_rates, strict=False):
                group = optimizer.param_groups[0]
                group["lr"] = max(s.slower * group["lr"], least)
            return
        # here the code switches from one validation batch to all of them, and validates again
        self.restored_once = True
        self.best_loss = self._validation_loss()

    def _validation_loss(self) -> float:
        before = self.model.calls
        with torch.no_grad():
            noise = self.state.validation.to(self.model.device)
            loss = float(self._losses(noise, self.validation, gradient=False).mean())
        if not self.settings.count_validation:
            self.model.calls = before
        return loss

    def _restore(self, noises: bool) -> None:
        """Restore the best schedule so far, with `noises` also the x' of that time; rates stay."""
        self.waited = 0
        with torch.no_grad():
            self.state.logits.copy_(self.best.logits)
            self.state.times.copy_(self.best.times)
        if noises:
            self.state.training.copy_(self.best.training)
            self.state.validation.copy_(self.best.validation)

    def _update(self, pairs: TeacherSamples, noises: Tensor, chosen: Tensor, learn: bool) -> bool:
        """One step on a batch; returns whether a new x' was accepted.

        `noises` contains the x' of all pairs and is written to.
        """
        pairs, before = pairs[chosen], self.model.calls
        start = noises[chosen].to(self.model.device).clone().requires_grad_()
        with torch.enable_grad():
            losses = self._losses(start, pairs, gradient=True)
            losses.mean().backward()
        self.model.calls = before + 3 * len(chosen) * self.steps
        if learn:
            for optimizer in self.optimizers:
                torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
                optimizer.step()
        self.state.logits.grad = self.state.times.grad = None
        if learn:
            self._validate()
        assert start.grad is not None
        center = pairs.noise.to(self.model.device)
        candidate = projected(start.detach() - self.noise_rate * start.grad, center, self.radius)
        with torch.no_grad():
            better = (self._losses(candidate, pairs, gradient=False) < losses.detach()).cpu()
        noises[chosen[better]] = candidate.cpu()[better]
        return bool(better.any())


def decoupled_weights(
    weights: Tensor, states: Tensor, evaluated: Tensor, scale: Tensor, noise_prediction: bool
) -> Tensor:
    """Weights of a sampler that calls the network as LD3's code does: (M+1, 1+M).

    Call m evaluates D'_m = denoise(scale_m X_m, evaluated_m). A sampler that predicts data uses it
    as its D_m; one that predicts noise uses eps_m = (scale_m X_m - D'_m) / evaluated_m, that is
    D_m = X_m - states_m eps_m. Differentiable with respect to all arguments.

    Args:
        weights: (M+1, 1+M), the sampler's own; states, evaluated, scale: (M,).
    """
    units = torch.eye(len(weights), dtype=weights.dtype)
    outputs: list[Tensor] = []
    rows = []
    for m in range(len(weights)):
        row = weights[m, 0] * units[0]
        for weight, output in zip(weights[m, 1 : m + 1], outputs, strict=True):
            row = row + weight * output
        if m == len(states):
            rows.append(row)
            break
        rows.append(scale[m] * row)
        output = units[m + 1]
        if noise_prediction:
            ratio = states[m] / evaluated[m]
            output = ratio * output + (1 - ratio * scale[m]) * row
        outputs.append(output)
    return torch.stack(rows)
