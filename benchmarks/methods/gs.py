"""The Generalised Solver's published training, re-implemented: the comparison for learned solvers.

It follows the paper (Oganov et al. 2025, arXiv 2510.17699) and, for what the paper leaves open, its
public code (3145tttt/GAS, without its adversarial part). Kept as published, because these are
choices of method:

- times t in [0.001, 1] of the linear variance-preserving schedule that runs from the model's
  sigma_min to its sigma_max, by stick breaking: 1 - t_n is a product of sigmoids, one per free
  time, each kept 1e-5 away from 0 and 1. They start evenly spaced;
- a sample takes N calls and ends at t = 0.001;
- step n goes from state x_n to x_{n+1} (scaled as a variance-preserving state) as DPM-Solver++
  does, of order 1 in the first step, 2 in the second, 3 in all that follow, and a learned number is
  added to each coefficient: of x_n, of the latest output, and of the two difference terms; all
  earlier states, and outputs more than three steps back, have learned coefficients that start at 0;
- each call evaluates the network at its own time, t_n plus a learned number, to predict the noise
  in x_n; the data prediction follows from this noise at t_n;
- no soft teacher forcing; the loss is the mean absolute difference to the teacher's sample, as
  published for latent models;
- 1,400 pairs, in a new order each epoch, incomplete batches left out; Adam 1e-3 for all
  parameters, their gradient clipped to norm 1 as one vector; the result is an exponential moving
  average of the parameters, 0.999, or (1 + n) / (10 + n) at update n while that is less; there is
  no validation;
- three published budgets: `PUBLISHED` for Stable Diffusion, batch 4 and 2,000 updates; `LONG` for
  other latent models, batch 8 and 30,000 updates; `EDM` for pixel models of EDM, which the exact
  problems resemble most, batch 24 and 10,000 updates (configs/edm; there with LPIPS as its loss,
  which does not exist for these problems).

Differences, with reasons:

- The common teacher's samples, as for every method here, instead of UniPC's.
- The demo model's times, too, are those of the linear schedule; the code uses such a model's own
  table of 1,000 steps. Where the network's derivative in time is only a secant, that is used.
- The network is never evaluated below t = 0.001: there the schedule has no noise level.
- Tables are computed in float64.

Calls are counted as in that code: 1 per forward pass, 2 more per backward pass, no recomputation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ld3.metrics import Distance
from ld3.model import Model
from ld3.table import Discretization, SolverTable
from ld3.teacher import TeacherSamples
from ld3.training.gradient.differentiable_rollout import differentiable_rollout
from ld3.training.gradient.recompute import recomputed

from .trial import Trial

L1 = Distance("l1")
LAST_TIME = 1e-3
MARGIN = 1e-5  # of the sigmoids to 0 and 1


@dataclass(frozen=True)
class GsSettings:
    """The published constants, see the module's docstring."""

    training_pairs: int = 1400
    batch: int = 4
    updates: int = 2000
    rate: float = 1e-3
    average_decay: float = 0.999
    largest_gradient: float = 1.0


PUBLISHED = GsSettings()
LONG = GsSettings(batch=8, updates=30_000)
EDM = GsSettings(batch=24, updates=10_000)


def training_pairs(trial: Trial, settings: GsSettings) -> tuple[TeacherSamples, int]:
    """A trial's pairs, sampled once in a run of a benchmark, and the teacher's calls for them."""
    model, count = trial.live.model, settings.training_pairs

    def sampled() -> tuple[TeacherSamples, int]:
        model.calls = 0
        return trial.teacher_samples(count), model.calls

    return trial.problem.cached(f"gs pairs {count} {trial.seed}", sampled)


class Parameters(NamedTuple):
    """What is learned for N steps and calls, float64.

    Attributes:
        logits: (N-1,), arguments of the sigmoids.
        times: (N,) added to the time of each call.
        outputs: (N, N), entry (n, k) added to step n's coefficient of its k-th latest output or
            difference term; zero above the diagonal.
        states: (N, N), the same for its k-th latest state.
    """

    logits: Tensor
    times: Tensor
    outputs: Tensor
    states: Tensor


class GeneralisedSolver:
    """A solver of N steps for a model: computes its table from `Parameters`."""

    def __init__(self, model: Model, steps: int) -> None:
        self.steps = steps
        lowest, highest = (math.log1p(s**2) for s in (model.sigma_min, model.sigma_max))
        self.beta_d = 2 * (highest - lowest / LAST_TIME) / (1 - LAST_TIME)
        self.beta_min = highest - 0.5 * self.beta_d

    def start(self) -> Parameters:
        """Evenly spaced times, DPM-Solver++'s own coefficients."""
        left = torch.arange(self.steps - 1, 0, -1, dtype=torch.float64) / self.steps  # 1 - t_n
        # broken from the last time upwards: each share is of what is left above
        shares = left / torch.cat([left.new_ones(1), left[:-1]])
        logits = torch.logit((shares - MARGIN) / (1 - 2 * MARGIN))
        n = self.steps
        zeros = (torch.zeros(*shape, dtype=torch.float64) for shape in ((n,), (n, n), (n, n)))
        return Parameters(logits, *zeros)

    def times(self, logits: Tensor) -> Tensor:
        """Times of the states, (N+1,), from 1 down to the last."""
        shares = MARGIN + (1 - 2 * MARGIN) * torch.sigmoid(logits)
        rising = LAST_TIME + (1 - LAST_TIME) * (1 - shares.cumprod(0))
        ends = logits.new_tensor([1.0, LAST_TIME])
        return torch.cat([ends[:1], rising.flip(0), ends[1:]])

    def sigma(self, t: Tensor) -> Tensor:
        """Noise levels of times, in ComfyUI's convention."""
        return torch.expm1(0.5 * self.beta_d * t**2 + self.beta_min * t).sqrt()

    def table(self, p: Parameters) -> tuple[Tensor, Tensor, Tensor]:
        """Levels of the states (N+1,) and calls (N,), weights (N+1, 1+N); differentiable."""
        t = self.times(p.logits)
        levels = self.sigma(t)
        evaluated = self.sigma((t[:-1] + p.times).clamp(min=LAST_TIME))
        keep = (1 + levels**2).rsqrt()  # of the data, in a variance-preserving state
        h = -levels.log().diff()  # of the half log SNR
        phi_1 = keep[1:] * torch.expm1(-h)
        phi_2 = phi_1 / h + keep[1:]
        phi_3 = phi_2 / h - 0.5 * keep[1:]
        steps = zip(*(v.unbind() for v in (phi_1, phi_2, phi_3)), strict=True)
        noise = levels * keep
        ratio, gaps = noise[1:] / noise[:-1], h.unbind()
        # the data that follow from the noise predicted at the level of evaluation
        share = levels[:-1] / evaluated
        scale = keep[:-1] * (1 + evaluated**2).sqrt()
        units = torch.eye(1 + self.steps, dtype=torch.float64)
        states, outputs, rows = [keep[0] * units[0]], [], []
        for n, phi in enumerate(steps):
            state = states[n] / keep[n]
            rows.append(scale[n] * state)
            outputs.append(share[n] * units[n + 1] + (1 - share[n] * scale[n]) * state)
            before = p.states[n, : n + 1].flip(0) @ torch.stack(states)
            states.append(
                ratio[n] * states[n]
                + before
                + _from_outputs(p.outputs[n], phi, gaps[: n + 1], outputs)
            )
        return levels, evaluated, torch.stack([*rows, states[-1] / keep[-1]])


def _from_outputs(
    change: Tensor, phi: tuple[Tensor, ...], gaps: tuple[Tensor, ...], outputs: list[Tensor]
) -> Tensor:
    """What all outputs so far contribute to a step, a row; gaps: those of all steps so far."""
    c, h, latest = change.unbind(), gaps[-1], outputs[-1]
    row = -(phi[0] + c[0]) * latest
    if len(outputs) == 1:
        return row
    r_0 = gaps[-2] / h
    slope = (latest - outputs[-2]) / r_0
    if len(outputs) == 2:
        return row - (0.5 * phi[0] + c[1]) * slope
    r_1 = gaps[-3] / h
    bend = (slope - (outputs[-2] - outputs[-3]) / r_1) / (r_0 + r_1)
    row = row + (phi[1] + c[1]) * (slope + r_0 * bend) - (phi[2] + c[2]) * bend
    for k in range(3, len(outputs)):
        row = row + c[k] * outputs[-1 - k]
    return row


class GsTraining:
    """One run; `run` returns the solver and adds the calls it makes to `model.calls`.

    Args:
        model: student's network, of variance-exploding or eps type.
        steps: N.
        pairs: training pairs.
        seed: of the batches' order.
    """

    def __init__(
        self,
        model: Model,
        steps: int,
        pairs: TeacherSamples,
        seed: int,
        settings: GsSettings = PUBLISHED,
    ) -> None:
        if len(pairs) < settings.batch:
            raise ValueError(f"{len(pairs)} pairs are fewer than a batch of {settings.batch}")
        self.model, self.pairs, self.settings = model, pairs, settings
        self.solver = GeneralisedSolver(model, steps)
        self.order = torch.Generator().manual_seed(seed)
        self.average = self.solver.start()
        self.learned = Parameters(*(p.clone().requires_grad_() for p in self.average))

    def run(self) -> Discretization:
        """Train; returns the average's solver."""
        for _ in self.each_update():
            pass
        return self.discretization()

    def each_update(self) -> Iterator[int]:
        """Train; yields the number of updates after each, where `discretization` may be called."""
        s, done = self.settings, 0
        optimizer = torch.optim.Adam(self.learned, lr=s.rate)
        while done < s.updates:
            batches = torch.randperm(len(self.pairs), generator=self.order).split(s.batch)
            for chosen in batches[: min(len(self.pairs) // s.batch, s.updates - done)]:
                self.update(self.pairs[chosen], optimizer)
                done += 1
                keep = min(s.average_decay, (1 + done) / (10 + done))
                for average, now in zip(self.average, self.learned, strict=True):
                    average.lerp_(now.detach(), 1 - keep)
                yield done

    def update(self, pairs: TeacherSamples, optimizer: torch.optim.Optimizer) -> float:
        """One step on a batch; returns its loss."""
        model, before = self.model, self.model.calls
        noise, latent, target = (
            part.to(model.device) for part in (pairs.noise, pairs.latent, pairs.target)
        )
        # networks whose derivative in time is a secant cannot be differentiated as they are
        through = recomputed(model) if model.time_neighbours else model
        with torch.enable_grad():
            levels, evaluated, weights = self.solver.table(self.learned)
            model.begin_rollout(levels.detach().float())
            x = model.scale_noise(noise, latent, float(levels[0].detach()))
            loss = L1.between(differentiable_rollout(weights, evaluated, through, x), target).mean()
            loss.backward()
        model.calls = before + 3 * len(pairs) * self.solver.steps
        torch.nn.utils.clip_grad_norm_(self.learned, self.settings.largest_gradient)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    def discretization(self) -> Discretization:
        """The solver and schedule of the averaged parameters."""
        levels, evaluated, weights = self.solver.table(self.average)
        table = SolverTable(levels[:-1], evaluated, weights, torch.arange(self.solver.steps))
        return Discretization(levels.float(), table)
