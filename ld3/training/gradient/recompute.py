"""Reverse mode with the activations of one network call in memory at a time.

The forward pass of every call runs without a graph; the backward pass repeats the call with one and
differentiates it at once (Chen et al. 2016, arXiv 1604.06174, with one segment per call). Unlike
`torch.utils.checkpoint` it detects networks whose output differs the second time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...model import REPEAT_TOLERANCE, Denoiser, Model, repeat_difference


class GradientError(ValueError):
    """The model cannot be differentiated; the text says why."""


def recomputed(model: Model) -> Denoiser:
    """The model as a function autograd can differentiate: to x, and to sigma where it needs it.

    A gradient to sigma is the network's own, or a secant of its answers at the neighbouring noise
    levels where `model.time_neighbours` says so; sigma must then be the same for the whole batch.
    `model.calls` increases by 1 for forward, 1 for recompute, 2 for backward, 2 for a secant.
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return _Call.apply(model, x, sigma)

    return denoise


class _Call(torch.autograd.Function):
    """One network call that keeps its arguments and its result, and nothing between."""

    @staticmethod
    def forward(ctx: Any, model: Model, x: Tensor, sigma: Tensor) -> Tensor:
        output = model(x, sigma)
        ctx.model = model
        ctx.save_for_backward(x, sigma, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        (gradient,) = gradients
        model: Model = ctx.model
        x, sigma, output = (tensor.detach() for tensor in ctx.saved_tensors)
        wanted = ctx.needs_input_grad[2]
        secant = wanted and model.time_neighbours is not None
        x = x.detach().requires_grad_(ctx.needs_input_grad[1])
        sigma = sigma.detach().requires_grad_(wanted and not secant)
        inputs = [tensor for tensor in (x, sigma) if tensor.requires_grad]
        found: dict[int, Tensor | None] = {}
        if inputs:
            # Flux and ControlNet overwrite tensors that autograd has saved
            with torch.enable_grad(), torch.autograd.graph.allow_mutation_on_saved_tensors():
                again = model(x, sigma)
                _check_repeats(again.detach(), output)
                if not again.requires_grad:
                    raise GradientError("the model's output does not depend on its input's graph")
                answers = torch.autograd.grad(again, inputs, gradient, allow_unused=True)
            model.calls += 2 * x.shape[0]
            found = {id(i): a for i, a in zip(inputs, answers, strict=True)}
        to_sigma = found.get(id(sigma))
        if secant:
            to_sigma = _secant(model, x.detach(), sigma.detach(), gradient)
        return None, found.get(id(x)), to_sigma


def _secant(model: Model, x: Tensor, sigma: Tensor, gradient: Tensor) -> Tensor:
    assert model.time_neighbours is not None
    lower, upper = model.time_neighbours(float(sigma.reshape(-1)[0]))
    below, above = (model(x, torch.full_like(sigma, level)) for level in (lower, upper))
    slope = (above - below) / (upper - lower)
    return (slope * gradient).flatten(1).sum(1).to(sigma.dtype).reshape(sigma.shape)


def _check_repeats(again: Tensor, output: Tensor) -> None:
    difference = repeat_difference(output, again)
    if not difference <= REPEAT_TOLERANCE:
        raise GradientError(
            f"the model returns different outputs for the same input (difference {difference:.1%})"
        )
