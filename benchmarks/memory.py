"""Peak bytes of activations against the number of steps, for sampling and both ways of learning.

Counted are the bytes of all tensors made since the start that are alive at once, as PyTorch's
dispatcher sees them: the same in every run, whatever the allocator does. Weights and the noises are
made before and not counted, nor is what a kernel borrows inside.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ld3.metrics import Distance
from ld3.model import Model
from ld3.parameters import StepParameters
from ld3.solver import Sampler
from ld3.student import Student
from ld3.teacher import Pairs, student_samples
from ld3.training.gauss_newton import GaussNewton
from ld3.training.gradient import (
    ADAM,
    GradientDescent,
    backward_loss,
    differentiable_rollout,
    differentiable_table,
)
from ld3.training.guide import Guide
from ld3.trajectories import few_elements

TITLE = "Demo model: peak bytes of activations of one batch of 4 against steps (dpmpp_2m, cfg 1)"
KEYS = ("mode", "steps")
COLUMNS = {"mode": 23, "steps": 5, "peak_bytes": 11, "model_calls": 11}
MODES = ("sampling", "gauss-newton", "gradient", "gradient-no-checkpoint")
STEPS = (3, 6, 12)
BATCH = 4
TEACHER_CALLS = 20
PROMPT = "grinning face"


class PeakBytes(TorchDispatchMode):
    """While it lasts, follows the bytes of tensors that are made and of those that are dropped.

    Attributes:
        now, peak: bytes alive that were made inside, and the most there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._counted: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            # views and results written into an argument are no new memory
            if storage in self._counted or storage.data_ptr() in given:
                continue
            self._counted[storage] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self._drop, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _drop(self, count: int) -> None:
        self.now -= count


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most bytes alive at once of tensors that `work` makes; its second run counts."""
    work()  # some tables are made once and kept
    with PeakBytes() as memory:
        work()
    return memory.peak


def work_of(mode: str, student: Student, theta: Tensor, pairs: Pairs) -> Callable[[], Any]:
    """One batch's work in a mode: a sampling, or one step of an optimiser."""
    model, batch, everything = student.model, len(pairs), torch.arange(len(pairs))
    distance = Distance("pseudo-huber", 0.1)
    if mode == "sampling":
        return torch.no_grad()(partial(student_samples, model, student.plan(theta), pairs))
    if mode == "gauss-newton":
        way = [few_elements(pairs.noise)] * (1 + TEACHER_CALLS)
        levels = torch.linspace(model.sigma_max, 0, TEACHER_CALLS + 1)
        guide = Guide(student.sampler.table(levels), 1.0, model.coordinate)
        pairs = replace(pairs, history=torch.stack(way, 1))
        descent = GaussNewton(student, theta, iterations=12, guide=guide)
        return torch.no_grad()(partial(descent.step, pairs, distance, batch))
    if mode == "gradient":
        settings = replace(ADAM, batch=batch)
        descent = GradientDescent(student, theta, pairs, settings, updates=12)
        return partial(descent.update, everything, distance)
    return partial(_plain_gradient, student, theta, pairs, distance)


def _plain_gradient(student: Student, theta: Tensor, pairs: Pairs, distance: Distance) -> None:
    """The gradient of `GradientDescent.update` by plain autograd, all calls' activations kept."""
    model = student.model
    noise, theta = pairs.noise.clone().requires_grad_(), theta.clone().requires_grad_()
    with torch.enable_grad():
        weights, levels = differentiable_table(student, theta)
        model.begin_rollout(student.plan(theta.detach()).sigmas)
        x = model.scale_noise(noise, pairs.latent, student.levels.start)
        result = differentiable_rollout(weights, levels, model, x)
        backward_loss(result, pairs.target, distance)


def some_student(sampler: Sampler, model: Model, steps: int) -> tuple[Student, Tensor]:
    """A student of evenly spaced levels, and its theta."""
    levels = StepParameters(model.coordinate, model.sigma_max, model.sigma_min)
    theta = torch.linspace(*levels.bounds(), steps + 1, dtype=torch.float64)[1:-1]
    calls = sampler.table(levels.sigmas(theta)).model_calls
    return Student(sampler, levels, model, steps, calls), theta


def cells() -> Iterator[dict[str, Any]]:
    """Every combination measured."""
    for mode in MODES:
        for steps in STEPS:
            yield {"mode": mode, "steps": steps}


def row(mode: str, steps: int) -> dict[str, Any]:
    """One batch of the demo model behind ComfyUI's guider."""
    found: dict[str, Any] = {}

    def measure(model: Model, sampler: Sampler) -> None:
        student, theta = some_student(sampler, model, steps)
        noise = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        # how good the sample is does not matter here: the target may be anything
        pairs = Pairs(noise, torch.zeros_like(noise), torch.zeros_like(noise))
        work = work_of(mode, student, theta, pairs)
        found["peak_bytes"] = peak_bytes(work)
        model.calls = 0
        work()
        found["model_calls"] = model.calls

    _with_demo_model(measure)
    return {"mode": mode, "steps": steps, **found}


def _with_demo_model(measure: Callable[[Model, Sampler], None]) -> None:
    """Call `measure` with the demo model as learning by gradient sees it, and dpmpp_2m."""
    import comfy.samplers

    from demo import model as demo
    from ld3.comfy import differentiable, samplers
    from ld3.comfy.denoiser import guided_model

    class Measuring(comfy.samplers.Sampler):
        def sample(self, model_wrap, sigmas, extra_args, callback, noise, *others) -> Tensor:
            sampling = model_wrap.inner_model.model_sampling
            with differentiable.differentiable(model_wrap, extra_args) as arguments:
                model = guided_model(self, model_wrap, arguments)
                model.time_neighbours = differentiable.time_neighbours(sampling)
                measure(
                    model,
                    samplers.traceable(samplers.sampler_object("dpmpp_2m"), sampling, model_wrap),
                )
            return noise

    guider = comfy.samplers.CFGGuider(demo.load_demo_model())
    prompt, _ = demo.encode_prompt(PROMPT)
    guider.set_conds(prompt, prompt)
    guider.set_cfg(1.0)
    latent = demo.empty_latent(BATCH)["samples"]
    levels = torch.tensor([1.0, 0.0])  # not used, but ComfyUI asks for some
    guider.sample(torch.zeros_like(latent), latent, Measuring(), levels, disable_pbar=True)


def summary(rows: list[dict[str, Any]]) -> str:
    """Growth from the fewest steps to the most, and Gauss-Newton's peak over sampling's."""
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
    """Peak megabytes by steps, one line a mode: a matplotlib Figure."""
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
