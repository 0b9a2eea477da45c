"""What was learned in some numbers of steps, in another number of steps.

Learned solvers of one model look alike in all numbers of steps N. Their N - 1 free levels are
spread like quantiles of one distribution over u, close to a logistic one: with i = 1 .. N-1,

    u_i = U(logit(1 - i / N)) ,

where U is nearly straight and moves slowly with N. So a schedule is read off another one along the
straight lines between its levels, and beyond the outer ones along the last line: more steps reach
further up and down. Of several it is read off the nearest in 1/N alone, since two can be solvers of
different kinds, between which nothing good lies.

Extras of the calls are read off at the same share of the way from the first to the last call; the
offsets of the first and of the last call, unlike those between them, stay with these.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .few_parameters import FewParameters
from .parameters import Coordinate
from .solver_parameters import SolverParameters


@dataclass(frozen=True, eq=False)
class LearnedParameters:
    """A solver's parameters and their values theta."""

    parameters: SolverParameters
    theta: Tensor


def nearest(known: list[LearnedParameters], steps: int) -> LearnedParameters:
    """Which of several numbers of steps another one is read off."""
    return min(known, key=lambda one: abs(1 / one.parameters.steps - 1 / steps))


def transferred(known: list[LearnedParameters], target: SolverParameters) -> Tensor:
    """theta of `target`, from what was learned in other numbers of steps for the same sampler."""
    theta = _stretched(nearest(known, target.steps), target)
    free = target.free_levels
    theta[:free] = target.levels.separated(theta[:free])
    return target.stepped(theta, torch.zeros_like(theta))


def stretched_sigmas(
    sigmas: Tensor, steps: int, coordinate: Coordinate, sigma_min: float
) -> Tensor:
    """A complete schedule (N+1,) in another number of steps: (steps+1,) float32 with its ends.

    Where lines beyond the outer levels leave the model's range, levels are even in u up to its end.

    Args:
        sigma_min: the smallest noise level the model knows.

    Raises:
        ValueError: float32 cannot tell so many levels apart.
    """
    if steps == len(sigmas) - 1:
        return sigmas.clone()
    inner = sigmas[1:1]
    if steps > 1:
        known = coordinate.from_sigma(sigmas[1:-1] if len(sigmas) > 2 else sigmas[:1])
        u = _stretched_levels(known, steps - 1)
        low, high = coordinate.from_sigma(torch.tensor([sigma_min, float(sigmas[0])]))
        above, below = int((u > known[0]).sum()), int((u < known[-1]).sum())
        if float(u[0]) >= float(high):
            u[:above] = torch.linspace(high, known[0], above + 2, dtype=u.dtype)[1:-1]
        if float(u[-1]) < float(low) < float(known[-1]):
            u[len(u) - below :] = torch.linspace(known[-1], low, below + 1, dtype=u.dtype)[1:]
        inner = coordinate.to_sigma(u).float()
    found = torch.cat([sigmas[:1], inner, sigmas[-1:]])
    if not bool((found.diff() < 0).all()):
        raise ValueError(f"{steps} steps are too many for a schedule of {len(sigmas) - 1}")
    return found


def _stretched(one: LearnedParameters, target: SolverParameters) -> Tensor:
    """theta of one number of steps stretched to that of the target."""
    source, theta = one.parameters, one.theta
    levels = _stretched_levels(theta[: source.free_levels], target.free_levels)
    times = theta[source.free_levels : source.free_levels + source.times]
    corrections = theta[source.free_levels + source.times :]
    if source.calls != source.steps or target.calls != target.steps:
        # calls within a step differ: only what is common to all of them is transferred
        few = FewParameters(target)
        ends = [times[0], times[-1]][: few.offsets] if len(times) else []
        common = corrections.mean()[None] if len(corrections) else corrections
        z = torch.cat([levels, torch.stack(ends) if ends else times, common])
        return few.expanded(z)
    offsets = times[:0]
    if target.decoupled:
        offsets = _resampled(times, target.times)
        if target.times > 2:
            inner = times[1:-1] if len(times) > 2 else times.new_zeros(1)
            offsets = torch.cat([times[:1], _resampled(inner, target.times - 2), times[-1:]])
    extras = [offsets]
    if target.order:
        extras.append(_resampled(corrections, len(target.corrections)))
    return torch.cat([levels, *extras])


def _stretched_levels(u: Tensor, count: int) -> Tensor:
    """Free levels (N-1,) of another schedule along the curve of these, straight beyond them."""
    if len(u) == 1:  # a level has no slope: that of a logistic distribution in u
        return u + _places(count)
    known, wanted = _places(len(u)), _places(count)
    right = torch.searchsorted(-known, -wanted).clamp(1, len(u) - 1)
    left = right - 1
    share = (wanted - known[left]) / (known[right] - known[left])
    return torch.lerp(u[left], u[right], share)


def _places(count: int) -> Tensor:
    """logit(1 - i/N) of the free levels i = 1 .. N-1."""
    q = torch.arange(1, count + 1, dtype=torch.float64) / (count + 1)
    return torch.logit(1 - q)


def _resampled(values: Tensor, count: int) -> Tensor:
    """Values at evenly spaced places, linearly between them, at `count` such places."""
    if count == 1:
        return values[-1:].clone()
    place = torch.linspace(0, len(values) - 1, count, dtype=torch.float64)
    low = place.floor().long().clamp(max=max(len(values) - 2, 0))
    high = (low + 1).clamp(max=len(values) - 1)
    return torch.lerp(values[low], values[high], place - low)
