"""LD3's published training loop, written anew: what the pack's own optimisers are compared with.

From the paper (Tong et al. 2024, arXiv 2405.15506) and, where it is silent, from what its public
code does (vinhsuhi/LD3: constants of configs/cifar10.yml, the order of events in trainer.py). Kept
as published, because they are choices of method:

- steps are a softmax of N+1 logits, its cumulative sum rescaled to [sigma_max, sigma_min] in log
  sigma; all logits start equal, which is the uniform log-SNR schedule;
- 50 training and 50 validation pairs, batch 2; two rounds of steps and start noises x', then five
  of these and decoupled times; RMSprop 5e-3 with momentum 0.9 for the logits, SGD 0.1 / N for
  decoupled times, SGD 12 / N for x'; gradients clipped to norm 1, logits and times each by itself;
- x' lies within r = 0.001 d / N^2 of its noise, and a moved x' is kept if, with the *updated*
  schedule, its loss is below the one before; validation noises get their x' too, once a round,
  without a step of the schedule; the rate of x' halves after a round that moved none of those;
- all validation pairs after every update; after five without progress the best state so far (x'
  included) is restored and the rates fall by a fifth, except the first time; every round starts
  from the best schedule, and that is the result;
- a solver that predicts noise (euler, ipndm) uses the noise found at the decoupled time, one that
  predicts data (dpmpp_2m, uni_pc) the data found there; variance-preserving models see their scaled
  input unchanged.

Different, and why:

- L2 loss, the code's choice where there is no LPIPS: these problems are no photographs.
- The last level is 0, where ComfyUI's samplers end, instead of sigma_min; a sample costs N calls
  either way, and the last free level lies above sigma_min.
- Decoupled times stay within half of the smallest step, as the paper says. The code takes that
  limit from the raw logits, whose differences start at 0: `bound_from_logits` does too.
- Any traced sampler is differentiable here. In the published uni_pc a part of the coefficients is
  cut from the gradient.

Calls are counted as that code makes them: 1 a forward pass, 2 more a backward pass, no recompute.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ld3.metrics import Distance
from ld3.model import Model
from ld3.parameters import StepParameters
from ld3.recompute import recomputed
from ld3.solver import Plan, Sampler, SolverTable
from ld3.student import Student
from ld3.teacher import Pairs
from ld3.training.gradient import differentiable_rollout, differentiable_table, projected

NOISE_PREDICTING = ("euler", "ipndm")
L2 = Distance("l2")


@dataclass(frozen=True)
class OfficialSettings:
    """The published constants, see the module's text."""

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


@dataclass
class _State:
    """All that is restored together: logits and times (N+1,), x' of both sets (n, *latent)."""

    logits: Tensor
    times: Tensor
    training: Tensor
    validation: Tensor

    def copy(self) -> _State:
        return _State(*(t.detach().clone() for t in vars(self).values()))


class OfficialTraining:
    """One run; `run` returns the plan, `model.calls` has grown by what it spent.

    Args:
        model: student's network, of variance-exploding or eps type.
        sampler: of one call a step.
        steps: N.
        pairs: training pairs, then validation pairs.
        seed: of the batches' order.
        noise_prediction: whether the sampler predicts noise, see `NOISE_PREDICTING`.
        variance_preserving: whether the network's input is scaled by 1 / (1 + sigma^2)^1/2.
    """

    def __init__(
        self,
        model: Model,
        sampler: Sampler,
        steps: int,
        pairs: Pairs,
        seed: int,
        noise_prediction: bool,
        variance_preserving: bool = False,
        settings: OfficialSettings = OfficialSettings(),
    ) -> None:
        self.model, self.steps, self.settings = model, steps, settings
        self.noise_prediction, self.variance_preserving = noise_prediction, variance_preserving
        levels = StepParameters(model.coordinate, model.sigma_max, model.sigma_min)
        self.student = Student(sampler, levels, model, steps, calls=steps)
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

    def run(self) -> Plan:
        """Train; returns the best plan by validation."""
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
            moved = [
                self._update(self.validation, self.state.validation, chosen, learn=False)
                for chosen in torch.arange(len(self.validation)).split(s.batch)
            ]
            if not any(moved):
                self.noise_rate *= 0.5
        self._restore(noises=False)
        return self.plan()

    def plan(self) -> Plan:
        """The schedule as it is now, sigmas (N+1,) float32 and the table that samples with it."""
        with torch.no_grad():
            sigmas = self.student.levels.sigmas(self._levels())
            table = self.student.sampler.table(sigmas)
            asked = self._asked(table.state_sigmas)
            weights = self._decoupling(table.weights, table.state_sigmas, asked)
        return Plan(sigmas, SolverTable(table.state_sigmas, asked, weights, table.callback_calls))

    def _levels(self) -> Tensor:
        """Free coordinates u (N-1,)."""
        shares = torch.softmax(self.state.logits, 0).cumsum(0)
        down = (shares - shares[0]) / (shares[-1] - shares[0])
        return (self.upper - down * (self.upper - self.lower))[1:-1]

    def _asked(self, states: Tensor) -> Tensor:
        """Where the network is asked, (N,): the first call where the sampling starts."""
        logits = self.state.logits.detach()
        ends = torch.cat([self.upper[None], self._levels().detach(), self.lower[None]])
        widths = logits if self.settings.bound_from_logits else ends
        bound = 0.5 * float(widths.diff().abs().min())
        times = self.state.times[1:-1].clamp(-bound, bound)
        return self.model.coordinate.moved(states, torch.cat([times.new_zeros(1), times]))

    def _decoupling(self, weights: Tensor, states: Tensor, asked: Tensor) -> Tensor:
        if self.variance_preserving:
            scale = ((1 + asked**2) / (1 + states**2)).sqrt()
        else:
            scale = torch.ones_like(states)
        return decoupled_weights(weights, states, asked, scale, self.noise_prediction)

    def _table(self) -> tuple[Tensor, Tensor]:
        """Weights and asked levels, differentiable to logits and times."""
        weights, states = differentiable_table(self.student, self._levels())
        asked = self._asked(states)
        return self._decoupling(weights, states, asked), asked

    def _losses(self, noise: Tensor, pairs: Pairs, gradient: bool) -> Tensor:
        """Each pair's loss of start noises (n, *latent): (n,)."""
        model, target = self.model, pairs.target.to(self.model.device)
        latent = pairs.latent.to(model.device)
        # networks whose derivative in time is a secant cannot be differentiated as they are
        through = recomputed(model) if gradient and model.time_neighbours else model
        weights, asked = self._table()
        model.begin_rollout(self.student.levels.sigmas(self._levels().detach()))
        x = model.scale_noise(noise, latent, self.student.levels.start)
        return L2.between(differentiable_rollout(weights, asked, through, x), target)

    def _validate(self) -> None:
        with torch.no_grad():
            noise = self.state.validation.to(self.model.device)
            loss = float(self._losses(noise, self.validation, gradient=False).mean())
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
        # the code goes over from one validation batch to all of them here, and validates again
        self.restored_once = True
        with torch.no_grad():
            noise = self.state.validation.to(self.model.device)
            self.best_loss = float(self._losses(noise, self.validation, gradient=False).mean())

    def _restore(self, noises: bool) -> None:
        """The best schedule so far and, `noises`, the x' it was found with; rates stay."""
        self.waited = 0
        with torch.no_grad():
            self.state.logits.copy_(self.best.logits)
            self.state.times.copy_(self.best.times)
        if noises:
            self.state.training.copy_(self.best.training)
            self.state.validation.copy_(self.best.validation)

    def _update(self, pairs: Pairs, noises: Tensor, chosen: Tensor, learn: bool) -> bool:
        """One step on a batch; whether an x' was moved.

        `noises` holds the x' of all pairs and is written to.
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
        moved = projected(start.detach() - self.noise_rate * start.grad, center, self.radius)
        with torch.no_grad():
            better = (self._losses(moved, pairs, gradient=False) < losses.detach()).cpu()
        noises[chosen[better]] = moved.cpu()[better]
        return bool(better.any())


def decoupled_weights(
    weights: Tensor, states: Tensor, asked: Tensor, scale: Tensor, noise_prediction: bool
) -> Tensor:
    """Weights of a sampler whose calls are made as LD3's code makes them: (M+1, 1+M).

    Call m asks D'_m = denoise(scale_m X_m, asked_m). A sampler that predicts data uses it as its
    D_m; one that predicts noise takes eps_m = (scale_m X_m - D'_m) / asked_m, which stands for
    D_m = X_m - states_m eps_m. Differentiable to all arguments.

    Args:
        weights: (M+1, 1+M), the sampler's own; states, asked, scale: (M,).
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
            ratio = states[m] / asked[m]
            output = ratio * output + (1 - ratio * scale[m]) * row
        outputs.append(output)
    return torch.stack(rows)
