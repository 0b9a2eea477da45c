"""The divergence of two maps against closed forms, and the bound's own properties."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.measures.divergence import (
    compare,
    normal_points,
    sampling_map,
    soft_loss,
    solve,
    with_jacobian,
)
from benchmarks.problems import registry
from benchmarks.problems.mixtures import HEAVY_MODES, HEAVY_SCALES, heavy16
from benchmarks.suites import theory
from ld3.metrics import rmse

pytestmark = pytest.mark.usefixtures("one_thread")
TEACHER = (torch.tensor([[1.3, 0.2], [-0.4, 0.9]]).double(), torch.tensor([0.3, -1.0]).double())
STUDENT = (torch.tensor([[1.0, -0.3], [0.1, 1.2]]).double(), torch.tensor([0.1, -0.8]).double())


def affine(matrix: Tensor, shift: Tensor):
    return lambda z: z @ matrix.T + shift


def bent(strength: float):
    """Invertible, and far from affine: each element pushed outwards, then rotated slightly."""
    return lambda z: z + strength * torch.tanh(2 * z) + 0.3 * strength * torch.sin(z.flip(1))


@pytest.mark.parametrize("dimension", [1, 2])
def test_divergence_of_affine_maps_is_that_of_two_gaussians(dimension: int) -> None:
    (b, c), (a, s) = ((m[:dimension, :dimension], v[:dimension]) for m, v in (TEACHER, STUDENT))
    found = compare(affine(a, s), affine(b, c), normal_points(8192, dimension, 0))
    q, p = (
        torch.distributions.MultivariateNormal(shift, matrix @ matrix.T)
        for matrix, shift in ((b, c), (a, s))
    )
    exact = float(torch.distributions.kl_divergence(q, p))
    assert found.inverted == 1
    assert found.kl == pytest.approx(exact, rel=0.01)
    volume = float((torch.linalg.det(a) / torch.linalg.det(b)).abs().log().abs())
    assert found.volume == pytest.approx(volume, abs=1e-9)


@pytest.mark.parametrize("strength", [0.1, 0.3])
@pytest.mark.parametrize("dimension", [1, 2])
def test_divergence_stays_below_the_bound_at_the_radius_of_zero_soft_loss(
    dimension: int, strength: float
) -> None:
    z = normal_points(1024, dimension, 1)
    found = compare(bent(strength), bent(0.0), z)
    assert found.inverted == 1
    assert 0 < found.kl <= found.bound(found.radius)
    assert found.bound(found.radius) > found.bound(0.5 * found.radius)


def test_equal_maps_have_no_divergence() -> None:
    found = compare(bent(0.2), bent(0.2), normal_points(256, 2, 0))
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.radius < 1e-6 and found.bound(found.radius) < 1e-5


def test_soft_loss_falls_with_the_radius_from_the_hard_loss_to_zero() -> None:
    student, teacher, z = bent(0.3), bent(0.0), normal_points(512, 2, 0)
    found = compare(student, teacher, z)
    radii = [0.0, 0.05, 0.1, 0.2, found.radius]
    losses = [soft_loss(student, teacher, found, radius) for radius in radii]
    assert losses[0] == pytest.approx(float(rmse(student(z) - teacher(z)).mean()))
    assert all(a > b for a, b in zip(losses, losses[1:], strict=False))
    assert losses[-1] == 0


def test_a_map_that_folds_is_detected() -> None:
    def folding(z: Tensor) -> Tensor:
        return z.square()

    assert compare(folding, lambda z: z, normal_points(256, 1, 0)).inverted < 0.6


def test_jacobian_and_solution_are_right() -> None:
    z = normal_points(64, 2, 3)
    result, jacobian = with_jacobian(bent(0.3), z)
    exact = torch.func.vmap(torch.func.jacrev(lambda x: bent(0.3)(x[None])[0]))(z)
    torch.testing.assert_close(jacobian, exact)
    torch.testing.assert_close(solve(bent(0.3), result, torch.zeros_like(z)), z)


def test_sampling_map_is_the_students_sampling() -> None:
    problem = registry.load("mixture-2d")
    noise = problem.noises(8, 0)

    def task(live):
        solver = live.standard("dpmpp_2m", "karras", 4)
        direct = live.model.sample(solver, noise, torch.zeros_like(noise))[0]
        return sampling_map(live.model, solver)(noise.double()), direct

    mapped, direct = problem.run(task)
    torch.testing.assert_close(mapped.float(), direct, rtol=1e-4, atol=1e-5)


def test_heavy_tails_are_heavy() -> None:
    means, stds, log_weights = heavy16()
    assert len(means) == len(stds) == len(log_weights) == HEAVY_MODES * HEAVY_SCALES
    one_mode = stds[:HEAVY_SCALES]
    kurtosis = float(one_mode.pow(4).mean() / one_mode.pow(2).mean() ** 2)  # a Gaussian's is 1
    assert kurtosis > 3


def test_every_cell_of_theory_is_a_different_number() -> None:
    cells = list(theory.cells())
    keys = {tuple(cell[name] for name in theory.KEYS) for cell in cells}
    assert len(keys) == len(cells)
    chosen = [c for c in cells if c["experiment"] == "kl" and c["method"] == "scheduler:karras"]
    rows = [theory.row(**cell) for cell in chosen if cell["seed"] == 0]
    value = {(row["model"], row["quantity"]): row["value"] for row in rows}
    for model in ("mixture-1d", "mixture-2d"):
        assert value[model, "inverted"] == 1
        assert 0 < value[model, "kl"] <= value[model, "zero_loss_bound"]
