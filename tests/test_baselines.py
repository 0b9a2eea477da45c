"""Published ways to choose steps: their optima, and the results of core's nodes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from benchmarks.methods import baselines
from ld3.parameters import check_sigmas
from ld3.table import SolverTable, rollout


@pytest.mark.parametrize("steps", [4, 6, 10, 13])
def test_tables_are_those_of_the_core_nodes(steps: int) -> None:
    from comfy_extras.nodes_align_your_steps import AlignYourStepsScheduler
    from comfy_extras.nodes_gits import GITSScheduler

    aligned = AlignYourStepsScheduler.execute("SD1", steps, 1.0)[0]
    assert torch.equal(baselines.ays(steps), aligned)
    assert torch.equal(baselines.gits_table(steps), GITSScheduler.execute(1.2, steps, 1.0)[0])


def test_lagrange_weights_are_the_integrals() -> None:
    nodes, h = np.array([-1.3, -0.4, 0.0]), 0.7

    def integrand(t: float, i: int) -> float:
        others = np.delete(nodes, i)
        return math.exp(t) * np.prod((t - others) / (nodes[i] - others))

    expected = [quad(integrand, 0, h, args=(i,))[0] for i in range(3)]
    assert baselines.lagrange_weights(nodes, h) == pytest.approx(expected, rel=1e-9)


def test_bound_of_a_first_order_solver_is_least_at_uniform_steps() -> None:
    # sum_s sigma_s |1/sigma_{s+1} - 1/sigma_s| = sum_s (exp(h_s) - 1), convex in the gaps
    sigmas = baselines.dmn(5, 80.0, 0.03, order=1).double()
    gaps = torch.cat([sigmas[:-1], torch.tensor([0.03]).double()]).log().diff()
    assert torch.allclose(gaps, gaps.mean().expand(5), atol=1e-3)


@pytest.mark.parametrize(("steps", "order"), [(4, 2), (5, 3)])
def test_optimised_steps_have_a_smaller_bound_than_uniform_ones(steps: int, order: int) -> None:
    sigmas = baselines.dmn(steps, 80.0, 0.03, order)
    check_sigmas(sigmas)
    assert sigmas[0] == pytest.approx(80.0)
    levels = -np.log(np.append(sigmas[:-1].double().numpy(), 0.03))
    uniform = np.linspace(levels[0], levels[-1], steps + 1)
    bounds = [baselines.dmn_bound(at, order) for at in (levels, uniform)]
    assert bounds[0] < 0.99 * bounds[1]


def test_bound_agrees_with_the_published_code() -> None:
    # sel_lambdas_lof_obj in step_optim.py of scxue/DM-NonUniform, evaluated at these lambda
    levels = np.array([-2.7, -1.9, -0.8, 0.1, 0.9, 2.2, 3.5])
    assert baselines.dmn_bound(levels, 3, latent=True) == pytest.approx(
        25.944252927579797, rel=1e-9
    )


@pytest.mark.parametrize("coefficient", [1.0, 1.15])
def test_dynamic_programming_finds_the_cheapest_of_all_paths(coefficient: float) -> None:
    costs = torch.rand(8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def cost(path: list[int]) -> float:
        jumps = enumerate(itertools.pairwise(path))
        return sum(coefficient**step * float(costs[i, j]) for step, (i, j) in jumps)

    for steps in (1, 3, 4, 7):
        paths = [[0, *inner, 7] for inner in itertools.combinations(range(1, 7), steps - 1)]
        assert baselines.cheapest_path(costs, steps, coefficient) == min(paths, key=cost)


def test_costs_of_neighbours_on_an_euler_trajectory_are_zero() -> None:
    sigmas = torch.tensor([8.0, 3.0, 1.0, 0.0], dtype=torch.float64)
    weights = torch.zeros(4, 4, dtype=torch.float64)
    weights[0, 0] = 1.0
    for m in range(3):  # x_{m+1} = s x_m + (1 - s) D_m, s = sigma_{m+1} / sigma_m
        ratio = sigmas[m + 1] / sigmas[m]
        weights[m + 1] = ratio * weights[m]
        weights[m + 1, m + 1] += 1 - ratio
    table = SolverTable(sigmas[:-1], sigmas[:-1], weights, torch.arange(3))
    start = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result, history = rollout(table, lambda x, sigma: torch.tanh(x), [8 * start])
    costs = baselines.gits_costs(*baselines.trajectory(table, history, result), sigmas)
    assert costs.diagonal(1).abs().max() < 1e-12
    assert costs[0, 2].abs() > 0.01 and costs[0, 3].abs() > 0.01
    assert torch.isinf(costs.tril()).sum() == 10
