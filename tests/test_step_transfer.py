"""Solvers in other numbers of steps: read off what was learned, without a model call."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from ld3.few_parameters import FewParameters
from ld3.parameters import MIN_GAP
from ld3.solver_parameters import SolverParameters
from ld3.step_transfer import LearnedParameters, transferred

from .exact_problems import few_parameters_of, parameters_of, problem, sampler_of

GIVEN = problem("digits")
SAMPLER = sampler_of(GIVEN.model, "dpmpp_2m")


def solver(steps: int, sampler: str = "dpmpp_2m") -> SolverParameters:
    """Steps, decoupled times and corrections of one output back."""
    traced = SAMPLER if sampler == "dpmpp_2m" else sampler_of(GIVEN.model, sampler)
    return parameters_of(GIVEN.model, traced, steps, decoupled=True, order=1)


def logistic(steps: int, middle: float, width: float) -> Tensor:
    """Quantiles of a logistic distribution in u: (N-1,)."""
    q = torch.arange(1, steps, dtype=torch.float64) / steps
    return middle + width * torch.logit(1 - q)


def theta_of(parameters: SolverParameters, u: Tensor, *extras: float) -> Tensor:
    """Levels u with the offset of the first, of inner and of the last call, and one correction."""
    first, inner, last, correction = extras
    offsets = torch.full((parameters.times,), inner, dtype=torch.float64)
    offsets[0], offsets[-1] = first, last
    corrections = torch.full((len(parameters.corrections),), correction, dtype=torch.float64)
    return torch.cat([u, offsets, corrections])


EXTRAS = (-0.2, 0.05, -0.6, 0.15)


@pytest.mark.parametrize("steps", [2, 3, 5, 8])
def test_the_same_number_of_steps_gives_the_same_parameters(steps: int) -> None:
    parameters = solver(steps)
    theta = theta_of(parameters, logistic(steps, 0.1, 0.8), *EXTRAS)
    known = [LearnedParameters(parameters, theta)]
    assert torch.allclose(transferred(known, parameters), theta, atol=1e-12)


@given(
    st.integers(3, 8), st.integers(3, 12), st.floats(-0.5, 0.5), st.floats(0.3, 0.7),
)  # fmt: skip
@settings(deadline=None, max_examples=30)
def test_logistic_levels_and_even_extras_stay_what_they_are_in_all_numbers_of_steps(
    few: int, many: int, middle: float, width: float
) -> None:
    source, target = solver(few), solver(many)
    theta = theta_of(source, logistic(few, middle, width), *EXTRAS)
    found = transferred([LearnedParameters(source, theta)], target)
    expected = theta_of(target, logistic(many, middle, width), *EXTRAS)
    if few == 3:  # there is no call between the first and the last one
        free = target.free_levels
        expected[free + 1 : free + target.times - 1] = 0
    assert torch.allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize(("steps", "nearest"), [(5, 6), (7, 6), (9, 12), (3, 4), (20, 12)])
def test_of_several_numbers_the_nearest_inverse_alone_decides(steps: int, nearest: int) -> None:
    known = {}
    for i, number in enumerate((4, 6, 12)):
        parameters = solver(number)
        extras = [0.1 * i, 0.2 * i, 0.3 * i, 0.1 * i]
        theta = theta_of(parameters, logistic(number, 0.3 * i, 0.6), *extras)
        known[number] = LearnedParameters(parameters, theta)
    found = transferred(list(known.values()), solver(steps))
    assert torch.equal(found, transferred([known[nearest]], solver(steps)))


def test_where_steps_make_several_calls_ends_and_the_mean_correction_are_kept() -> None:
    source, target = solver(3, "heun"), solver(5, "heun")
    theta = theta_of(source, logistic(3, 0.0, 0.5), *EXTRAS)
    theta[-1] += 0.1 * len(source.corrections)
    found = transferred([LearnedParameters(source, theta)], target)
    z = FewParameters(target).summarized(found)
    assert torch.allclose(z[-3:], torch.tensor([-0.2, -0.6, 0.25]).double(), atol=1e-12)
    assert torch.allclose(found, FewParameters(target).expanded(z))


@given(st.integers(2, 9), st.integers(2, 12), st.integers(0, 2**31))
@settings(deadline=None, max_examples=40)
def test_what_is_transferred_can_always_be_sampled(few: int, many: int, seed: int) -> None:
    source, target = solver(few), solver(many)
    generator = torch.Generator().manual_seed(seed)
    theta = 3 * torch.randn(source.size, generator=generator, dtype=torch.float64)
    theta = source.stepped(
        torch.cat([source.levels.separated(theta[: few - 1].sort(descending=True).values),
                   theta[few - 1 :]]),
        torch.zeros(source.size).double(),
    )  # fmt: skip
    found = transferred([LearnedParameters(source, theta)], target)
    u = found[: target.free_levels]
    assert bool((u.diff() <= -MIN_GAP + 1e-9).all())
    sigmas = target.discretization(found).sigmas
    assert bool((sigmas.diff() < 0).all()) and torch.isfinite(sigmas).all()


def test_levels_alone_are_transferred_alone() -> None:
    source, target = (replace(solver(n), decoupled=False, order=0) for n in (4, 7))
    found = transferred([LearnedParameters(source, logistic(4, 0.2, 0.5))], target)
    assert torch.allclose(found, logistic(7, 0.2, 0.5), atol=1e-9)


@pytest.mark.parametrize("steps", [2, 3, 6])
def test_few_parameters_summarize_what_they_expand(steps: int) -> None:
    few = few_parameters_of(GIVEN.model, SAMPLER, steps, decoupled=True, order=1)
    z = torch.linspace(0.9, -0.9, few.size, dtype=torch.float64)
    theta = few.expanded(z)
    assert torch.allclose(few.summarized(theta), z) and few.describes(theta)
    theta[-1] += 0.1
    assert few.describes(theta) == (steps == 2)
