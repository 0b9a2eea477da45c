"""The extras of a sampler in three numbers, against the same extras one by one."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from ld3.few_parameters import FewParameters
from ld3.solver_parameters import LARGEST_CORRECTION, LARGEST_OFFSET
from ld3.table import Discretization

from .exact_problems import few_parameters_of, gmm16, problem, sampler_of

EXTRAS = [
    {},
    {"decoupled": True},
    {"order": 2},
    {"decoupled": True, "order": 1},
    {"decoupled": True, "order": 3},
]
U = torch.tensor([3.0, 1.5, 0.0, -1.5], dtype=torch.float64)


def few(extras: dict, steps: int = 5, sampler: str = "dpmpp_2m") -> FewParameters:
    model = gmm16()
    return few_parameters_of(model, sampler_of(model, sampler), steps, **extras)


def some(parameters: FewParameters, seed: int = 0) -> Tensor:
    """z with extras of both signs, well inside their limits."""
    generator = torch.Generator().manual_seed(seed)
    z = parameters.extended(U[: parameters.free_levels])
    count = parameters.size - parameters.free_levels
    z[parameters.free_levels :] = torch.rand(count, generator=generator, dtype=torch.float64) - 0.5
    return z


def assert_same(one: Discretization, other: Discretization) -> None:
    assert torch.equal(one.sigmas, other.sigmas) and one.extras == other.extras
    for name in ("state_sigmas", "eval_sigmas", "weights", "callback_calls"):
        assert torch.equal(getattr(one.table, name), getattr(other.table, name)), name


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
@pytest.mark.parametrize("extras", EXTRAS, ids=str)
def test_z_is_the_levels_the_first_and_the_last_offset_and_one_correction(
    extras: dict, sampler: str
) -> None:
    parameters = few(extras, sampler=sampler)
    one_by_one, z = parameters.all, some(parameters)
    decoupled, corrected = one_by_one.decoupled, one_by_one.order > 0
    assert parameters.size == len(z) == 4 + 2 * decoupled + corrected
    assert parameters.calls == one_by_one.calls == (5 if sampler == "dpmpp_2m" else 9)
    expected = z[:4].tolist()
    if decoupled:
        between = [0.0] * (parameters.calls - 3)
        expected += [float(z[4]), *between, float(z[5])]
    expected += [float(z[-1])] * len(one_by_one.corrections)
    assert parameters.expanded(z).tolist() == expected
    assert len(expected) == one_by_one.size


@pytest.mark.parametrize("extras", EXTRAS, ids=str)
def test_the_solver_is_that_of_the_expanded_parameters(extras: dict) -> None:
    parameters = few(extras)
    z = some(parameters)
    solver = parameters.discretization(z)
    assert_same(solver, parameters.all.discretization(parameters.expanded(z)))
    assert solver.extras == parameters.extras == parameters.all.extras
    plain = parameters.all.sampler.discretization(solver.sigmas)
    weights, levels = plain.table.weights, plain.table.eval_sigmas
    assert torch.equal(solver.table.weights, weights) == (not extras.get("order"))
    moved = (solver.table.eval_sigmas != levels).tolist()
    decoupled = bool(extras.get("decoupled"))
    assert moved == [False, decoupled, False, False, decoupled]


@pytest.mark.parametrize("extras", EXTRAS, ids=str)
def test_extras_of_zero_sample_as_without_them(extras: dict) -> None:
    parameters = few(extras)
    plain = parameters.all.sampler.discretization(parameters.levels.sigmas(U))
    table = parameters.discretization(parameters.extended(U)).table
    assert torch.equal(table.weights, plain.table.weights)
    assert torch.equal(table.eval_sigmas, plain.table.eval_sigmas)


def test_without_extras_the_parameters_are_those_of_the_levels() -> None:
    parameters = few({})
    assert parameters.size == parameters.all.size == parameters.free_levels == 4
    assert torch.equal(parameters.expanded(U), U) and torch.equal(parameters.extended(U), U)
    step = torch.tensor([0.5, -3.0, 1.0, 0.2], dtype=torch.float64)
    assert torch.equal(parameters.stepped(U, step), parameters.all.stepped(U, step))
    for k in range(4):
        (h, solver), (other_h, other) = (
            p.perturbed(U, k, 0.05) for p in (parameters, parameters.all)
        )
        assert h == other_h
        assert_same(solver, other)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_where_the_second_call_is_the_last_there_is_one_offset(order: int) -> None:
    parameters = few({"decoupled": True, "order": order}, steps=2)
    assert (parameters.calls, parameters.offsets) == (2, 1)
    z = some(parameters)
    assert parameters.size == parameters.all.size == len(z) == 2 + (order > 0)
    assert torch.equal(parameters.expanded(z), z)
    assert_same(parameters.discretization(z), parameters.all.discretization(z))


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
@pytest.mark.parametrize("extras", EXTRAS, ids=str)
def test_a_perturbation_changes_one_entry_by_exactly_what_it_says(
    extras: dict, sampler: str
) -> None:
    parameters = few(extras, sampler=sampler)
    coordinate = parameters.levels.coordinate
    for z, k in itertools.product((some(parameters), -some(parameters)), range(parameters.size)):
        z[:4] = U
        before = z.clone()
        h, solver = parameters.perturbed(z, k, 0.05)
        assert torch.equal(z, before) and 0 < abs(h) <= 0.05 * (1 + 1e-3)
        changed = z.clone()
        changed[k] += h
        expected = parameters.discretization(changed)
        if k < 4:  # float32 sigmas round what h asks for, and h says what they became
            u = coordinate.from_sigma(solver.sigmas[1:-1])
            old = coordinate.from_sigma(parameters.levels.sigmas(U)[1:-1])
            difference = torch.zeros(4, dtype=torch.float64)
            difference[k] = h
            torch.testing.assert_close(u - old, difference, rtol=0, atol=1e-12)
            torch.testing.assert_close(solver.sigmas, expected.sigmas, rtol=1e-6, atol=0)
        else:
            assert h * float(z[k]) <= 0
            assert_same(solver, expected)


def test_a_perturbed_extra_moves_towards_the_inside_of_its_limits() -> None:
    parameters = few({"decoupled": True, "order": 1})
    z = parameters.extended(U)
    for value in (-LARGEST_OFFSET, LARGEST_OFFSET):
        z[4:] = value
        for k in range(4, 7):
            h, _ = parameters.perturbed(z, k, 0.05)
            assert abs(float(z[k]) + h) < abs(float(z[k]))


@pytest.mark.parametrize("size", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("extras", EXTRAS, ids=str)
def test_a_step_stays_within_the_limits_of_all_parameters(extras: dict, size: float) -> None:
    parameters = few(extras)
    generator = torch.Generator().manual_seed(1)
    z = parameters.extended(U)
    for _ in range(20):
        step = size * torch.randn(parameters.size, generator=generator, dtype=torch.float64)
        old, z = z, parameters.stepped(z, step)
        free, end = 4, 4 + parameters.offsets
        assert torch.equal(z[:free], parameters.levels.stepped(old[:free], step[:free]))
        inside = [
            (z[free:end], old[free:end] + step[free:end], LARGEST_OFFSET),
            (z[end:], old[end:] + step[end:], LARGEST_CORRECTION),
        ]
        for found, wanted, limit in inside:
            assert torch.equal(found, wanted.clamp(-limit, limit))
        theta = parameters.expanded(z)
        torch.testing.assert_close(parameters.all.stepped(theta, 0 * theta), theta)


@pytest.mark.parametrize("extras", EXTRAS[1:], ids=str)
def test_no_extra_changes_the_sum_of_a_rows_weights_on_outputs(extras: dict) -> None:
    """The largest extras, too, give a table that can be run."""
    parameters = few(extras)
    z = parameters.extended(U)
    z[4:] = 10.0
    z = parameters.stepped(z, 0 * z)
    table = parameters.discretization(z).table
    assert torch.isfinite(table.weights).all() and (table.eval_sigmas > 0).all()
    sums = table.weights[:, 1:].sum(1)
    plain = parameters.discretization(parameters.extended(U)).table
    torch.testing.assert_close(sums, plain.weights[:, 1:].sum(1))


def test_offsets_of_a_flow_model_keep_within_the_levels_it_knows() -> None:
    given = problem("flow")
    sampler = sampler_of(given.model, "euler")
    parameters = few_parameters_of(given.model, sampler, 4, decoupled=True)
    z = parameters.extended(torch.tensor([8.0, 0.0, -6.0], dtype=torch.float64))
    for offsets in ((1.0, 1.0), (-1.0, -1.0)):
        z[3:] = torch.tensor(offsets)
        table = parameters.discretization(z).table
        levels = table.eval_sigmas
        assert float(levels.max()) <= given.model.sigma_max
        assert float(levels.min()) >= min(given.model.sigma_min, float(table.state_sigmas.min()))
