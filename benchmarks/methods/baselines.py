"""Schedules without learning, (N+1,) float32 that end in 0: the best standard one, published ones.

The fixed tables (Align Your Steps, GITS) were made for Stable Diffusion 1.5 and are ComfyUI's. The
bound of DMN needs no model at all. GITS's dynamic programming needs a few of the teacher's
trajectories, and no call of the student.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Tensor

from ld3.table import Discretization, SolverTable, combine

from .trial import Trial

GITS_TABLE_COEFFICIENT = 1.20  # the node's default
GITS_COEFFICIENT = 1.15  # the paper's, for its dynamic programming
SEPARATE_STEPS = 3  # DMN's first steps, whose bounds are added one by one
SEPARATE_STEPS_UP_TO = 7  # N with such steps


def best_scheduler(trial: Trial) -> tuple[str, Discretization]:
    """The standard schedule that is best on the held-out noises themselves: a strict comparison."""
    live, sampler = trial.live, trial.sampler
    schedules = live.schedules(sampler, trial.steps)
    solvers = {name: live.discretization(sampler, sigmas) for name, sigmas in schedules.items()}
    fair = {n: solver for n, solver in solvers.items() if solver.table.model_calls <= trial.steps}
    best = min(fair, key=lambda name: trial.problem.error(live, fair[name]))
    return best, fair[best]


def ays(steps: int) -> Tensor:
    """Align Your Steps' table of Stable Diffusion 1 (Sabour et al. 2024), as in core's node.

    For other numbers of steps than the table's 10, log(sigma) is interpolated linearly.
    """
    from comfy_extras import nodes_align_your_steps as core

    return _ending_in_zero(_interpolated(core.NOISE_LEVELS["SD1"], steps))


def gits_table(steps: int) -> Tensor:
    """The table of GITS for Stable Diffusion 1.5 in core, coefficient 1.2, 2 to 20 steps."""
    from comfy_extras import nodes_gits as core

    return _ending_in_zero(core.NOISE_LEVELS[GITS_TABLE_COEFFICIENT][steps - 2])


def _interpolated(levels: list[float], steps: int) -> np.ndarray:
    if len(levels) == steps + 1:
        return np.array(levels)
    places = np.linspace(0, 1, steps + 1)
    return np.exp(np.interp(places, np.linspace(0, 1, len(levels)), np.log(levels)))


def _ending_in_zero(levels: np.ndarray | list[float]) -> Tensor:
    sigmas = torch.tensor(np.asarray(levels), dtype=torch.float64).float()
    sigmas[-1] = 0
    return sigmas


def dmn(
    steps: int, sigma_max: float, sigma_min: float, order: int = 3, latent: bool = False
) -> Tensor:
    """Steps that minimise a bound on a multistep solver's error, without any model.

    With lambda = -log(sigma) the exact solution of the ODE over step s is

        x_{s+1} / sigma_{s+1} = x_s / sigma_s + int e^lambda D(lambda) dlambda .

    A solver of order k replaces D by the Lagrange polynomial through its last k predictions, so
    prediction i enters step s with the weight w_si = int e^lambda l_i(lambda) dlambda. If every
    prediction is off by at most eps_i, the result divided by its sigma is off by at most

        sum_i eps_i |sum_s w_si| ,   eps_i = sigma_i for pixels, sigma_i^2 / (1 + sigma_i^2)^1/2
                                     for latents

    (sigma_t^p / alpha_t with p = 1 and p = 2 in variance-preserving terms). That is minimised over
    ordered lambda_1 .. lambda_{N-1} by a trust region method from uniform lambda (pixels).
    As published, the order is lower in the first and the last steps, and for N <= 7 the first three
    steps count separately, sum_s (sum_i (eps_i w_si)^2)^1/2, since cancellation between steps would
    otherwise make the optimum degenerate. The last level is sigma_min in the bound, and 0 in the
    result, since ComfyUI's samplers end there.

    Args:
        order: of the solver: 1 euler (then uniform lambda is the exact optimum), 2 dpmpp_2m,
            3 uni_pc and ipndm; the published code always uses 3.

    Source: Xue et al. 2024 (arXiv 2402.17376), with the constants of its code
    (scxue/DM-NonUniform).
    """
    from scipy.optimize import LinearConstraint, minimize

    first, last = -math.log(sigma_max), -math.log(sigma_min)
    uniform = np.linspace(first, last, steps + 1)
    rows = np.eye(steps, steps - 1) - np.eye(steps, steps - 1, -1)  # every gap is positive
    least = np.zeros(steps)
    least[0], least[-1] = first, -last
    with warnings.catch_warnings():  # about gradients that stay the same at the optimum
        warnings.simplefilter("ignore")
        found = minimize(
            lambda inner: dmn_bound(np.concatenate([[first], inner, [last]]), order, latent),
            uniform[1:-1],
            method="trust-constr",
            constraints=[LinearConstraint(rows, least, np.inf)],
        )
    return _ending_in_zero(np.exp(-np.concatenate([[first], np.sort(found.x), [last]])))


def dmn_bound(levels: np.ndarray, order: int, latent: bool = False) -> float:
    """The bound of `dmn` at lambda (N+1,), increasing."""
    steps = len(levels) - 1
    sigma = np.exp(-levels)
    assumed = sigma**2 / np.sqrt(1 + sigma**2) if latent else sigma
    separate = SEPARATE_STEPS if steps <= SEPARATE_STEPS_UP_TO else 0
    weights, total = np.zeros(steps), 0.0
    for s in range(steps):
        used = min(order, s + 1, steps - s)
        nodes = levels[s - used + 1 : s + 1] - levels[s]
        share = math.exp(levels[s]) * lagrange_weights(nodes, levels[s + 1] - levels[s])
        errors = assumed[s - used + 1 : s + 1] * share
        # errors of the first and the last step, of order 1, do not cancel with others
        if used == 1 or s < separate:
            total += float(np.sqrt((errors**2).sum()))
        else:
            weights[s - used + 1 : s + 1] += errors
    return total + float(np.abs(weights).sum())


def lagrange_weights(nodes: np.ndarray, h: float) -> np.ndarray:
    """int_0^h e^t l_i(t) dt of the Lagrange polynomials on nodes (k,) <= 0: (k,)."""
    moments = [math.expm1(h)]  # of t^0, t^1, .. times e^t, by parts
    for power in range(1, len(nodes)):
        moments.append(math.exp(h) * h**power - power * moments[-1])
    weights = []
    for i, node in enumerate(nodes):
        others = np.delete(nodes, i)
        polynomial = np.atleast_1d(np.poly(others))[::-1] / np.prod(node - others)
        weights.append(sum(c * m for c, m in zip(polynomial, moments, strict=True)))
    return np.array(weights)


def trajectory(table: SolverTable, history: list[Tensor], result: Tensor) -> tuple[Tensor, Tensor]:
    """A teacher's states at its levels and its outputs there, from a rollout of one call per step.

    Args:
        history: [x_init, D_0, ..] of the rollout, each (n, *latent); result: (n, *latent).

    Returns:
        States (M+1, n, d) with the result last, outputs (M, n, d).
    """
    flat = [state.flatten(1) for state in history]
    states = [combine(table.weights[m, : m + 1], flat) for m in range(table.model_calls)]
    return torch.stack([*states, result.flatten(1)]), torch.stack(flat[1:])


def gits_costs(states: Tensor, outputs: Tensor, sigmas: Tensor) -> Tensor:
    """Costs of one Euler step from level i to level j: (M+1, M+1), upper triangle.

    With x' = x_i + (sigma_j - sigma_i) (x_i - D_i) / sigma_i on the trajectory x_0 .. x_M,

        cost[i, j] = mean_n ( deviation(x') - deviation(x_j) ) ,

    where a point's deviation is its distance to the straight line from x_0 to x_M: the default of
    the published code, which also offers |x' - x_j|.

    Args:
        states: (M+1, n, d); outputs: (M, n, d); sigmas: (M+1,), the trajectory's levels.

    Source: Chen et al. 2024 (arXiv 2405.11326), section 4; constants of zju-pi/diff-sampler.
    """
    count, end = len(states), states[-1]
    line = end - states[0]
    line = line / line.norm(dim=1, keepdim=True)

    def deviation(points: Tensor) -> Tensor:
        rest = end - points
        return (rest - (rest * line).sum(1, keepdim=True) * line).norm(dim=1).mean()

    costs = torch.full((count, count), math.inf, dtype=torch.float64)
    for i in range(count - 1):
        slope = (states[i] - outputs[i]) / sigmas[i]
        for j in range(i + 1, count):
            step = states[i] + (sigmas[j] - sigmas[i]) * slope
            costs[i, j] = float(deviation(step) - deviation(states[j]))
    return costs


def cheapest_path(costs: Tensor, steps: int, coefficient: float = GITS_COEFFICIENT) -> list[int]:
    """Indices 0 = i_0 < .. < i_N of the path that minimises sum_s coefficient^s cost[i_s, i_s+1].

    A coefficient above 1 makes errors near the end more expensive: earlier ones are partly undone.

    Args:
        costs: (M+1, M+1), only its upper triangle is read.
    """
    last = len(costs) - 1
    if not 1 <= steps <= last:
        raise ValueError(f"{steps} steps through {last + 1} levels; use 1 to {last}")
    cost = costs.tolist()
    # value[k][i]: cost of the cheapest k steps from i to the end
    value = [[math.inf] * last + [0.0]]
    choice: list[list[int]] = []
    for _ in range(steps):
        best = [
            min(
                ((cost[i][j] + coefficient * value[-1][j], j) for j in range(i + 1, last + 1)),
                default=(math.inf, last),
            )
            for i in range(last + 1)
        ]
        value.append([total for total, _ in best])
        choice.append([j for _, j in best])
    path = [0]
    for k in reversed(range(steps)):
        path.append(choice[k][path[-1]])
    return path
