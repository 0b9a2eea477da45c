"""Peak bytes of activations against the number of steps, for sampling and both optimizers.

Counted are the bytes of tensors alive at once that were created since the start (see
`measures.peak_bytes`). Weights and noises are created before, so they are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.measures.peak_bytes import peak_bytes
from benchmarks.problems import demo_model
from benchmarks.problems.live_model import LiveModel
from ld3.metrics import Distance
from ld3.model import Model
from ld3.parameters import StepParameters
from ld3.solver_parameters import SolverParameters
from ld3.teacher import TeacherSamples
from ld3.tracing import TracedSampler
from ld3.training.gauss_newton import GaussNewton
from ld3.training.gradient.descent import GradientDescent
from ld3.training.gradient.differentiable_rollout import (
    backward_loss,
    differentiable_rollout,
    differentiable_table,
)
from ld3.training.gradient.gradient_settings import ADAM
from ld3.training.validation import Objective
from ld3.trajectories import subsample

TITLE = "Demo model: peak bytes of activations of one batch of 4 against steps (dpmpp_2m, cfg 1)"
KEYS = ("mode", "steps")
COLUMNS = {"mode": 23, "steps": 5, "peak_bytes": 11, "model_calls": 11}
MODES = ("sampling", "gauss-newton", "gradient", "gradient-no-checkpoint")
STEPS = (3, 6, 12)
BATCH = 4
TEACHER_CALLS = 20


def work_of(
    mode: str, model: Model, parameters: SolverParameters, samples: TeacherSamples
) -> Callable[[], Any]:
    """One batch's work in a mode at evenly spaced levels: sampling, or one step of an optimizer."""
    theta = parameters.levels.even(parameters.steps)
    objective = Objective(model, Distance("pseudo-huber", 0.1), data_std=1.0)
    if mode == "sampling":
        solver = parameters.discretization(theta)
        return torch.no_grad()(partial(model.sample, solver, samples.noise, samples.latent))
    if mode == "gauss-newton":
        states = [subsample(samples.noise)] * (1 + TEACHER_CALLS)
        levels = torch.linspace(model.sigma_max, 0, TEACHER_CALLS + 1)
        teacher = parameters.sampler.table(levels)
        samples = replace(samples, history=torch.stack(states, 1), table=teacher)
        descent = GaussNewton(objective, parameters, theta, iterations=12)
        return torch.no_grad()(partial(descent.step, samples))
    if mode == "gradient":
        settings = replace(ADAM, batch=len(samples))
        descent = GradientDescent(objective, parameters, theta, samples, settings, updates=12)
        return partial(descent.update, torch.arange(len(samples)))
    return partial(_plain_gradient, objective, parameters, theta, samples)


def _plain_gradient(
    objective: Objective, parameters: SolverParameters, theta: Tensor, samples: TeacherSamples
) -> None:
    """The gradient of `GradientDescent.update` by plain autograd, which keeps all activations."""
    model = objective.model
    noise, theta = samples.noise.clone().requires_grad_(), theta.clone().requires_grad_()
    with torch.enable_grad():
        weights, levels = differentiable_table(parameters, theta)
        model.begin_rollout(parameters.discretization(theta.detach()).sigmas)
        x = model.scale_noise(noise, samples.latent, parameters.levels.start)
        result = differentiable_rollout(weights, levels, model, x)
        backward_loss(result, samples.target, objective.distance)


def parameters_of(model: Model, sampler: TracedSampler, steps: int) -> SolverParameters:
    """The free noise levels of a sampler."""
    levels = StepParameters(model.coordinate, model.sigma_max, model.sigma_min)
    return SolverParameters.of_steps(sampler, levels, model.sigma_max, steps)


def cells() -> Iterator[dict[str, Any]]:
    """Every combination measured."""
    for mode in MODES:
        for steps in STEPS:
            yield {"mode": mode, "steps": steps}


def row(mode: str, steps: int) -> dict[str, Any]:
    """One batch of the demo model behind ComfyUI's guider."""
    from demo import demo_model as demo

    def measure(live: LiveModel) -> tuple[int, int]:
        model = live.model
        parameters = parameters_of(model, live.traced("dpmpp_2m"), steps)
        noise = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        # the quality of the samples does not matter: any target will do
        samples = TeacherSamples(noise, torch.zeros_like(noise), torch.zeros_like(noise))
        work = work_of(mode, model, parameters, samples)
        peak, model.calls = peak_bytes(work), 0
        work()
        return peak, model.calls

    prompt, _ = demo.encode_prompt(demo_model.PROMPT)
    latent = demo.empty_latent(BATCH)["samples"]
    peak, calls = demo_model.guided(demo.load_demo_model(), prompt, latent, measure)
    return {"mode": mode, "steps": steps, "peak_bytes": peak, "model_calls": calls}


def summary(rows: list[dict[str, Any]]) -> str:
    """Growth from the fewest steps to the most, and Gauss-Newton's peak over that of sampling."""
    peak = {(row["mode"], row["steps"]): row["peak_bytes"] for row in rows}
    lines = []
    for mode in dict.fromkeys(row["mode"] for row in rows):
        steps = sorted(n for m, n in peak if m == mode)
        growth = peak[mode, steps[-1]] / peak[mode, steps[0]]
        lines.append(f"{mode}: {steps[-1]} steps need {growth:.3f} x the bytes of {steps[0]}")
    for steps in sorted({row["steps"] for row in rows}):
        if ("gauss-newton", steps) in peak and ("sampling", steps) in peak:
            ratio = peak["gauss-newton", steps] / peak["sampling", steps]
            lines.append(f"{steps} steps: gauss-newton needs {ratio:.3f} x the bytes of sampling")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]]) -> Any:
    """Peak megabytes by steps, one line per mode: a matplotlib Figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    for mode in MODES:
        points = sorted((r["steps"], r["peak_bytes"] / 2**20) for r in rows if r["mode"] == mode)
        axes.plot(*zip(*points, strict=True), marker="o", label=mode)
    axes.set_yscale("log")
    axes.set_xlabel("steps")
    axes.set_ylabel("peak of activations, MiB")
    axes.set_title("Demo model, batch of 4", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    return figure
