"""Distances and the least-squares weights that represent them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ld3.metrics import LATENT_DISTANCES, Distance, mean_distance, rmse

# the least-squares problem 1/2 sum w r^2 / d has this many times the gradient of the distance
CONSTANT = {"pseudo-huber": 1.0, "l1": 1.0, "l2": 0.5}


def residuals() -> Tensor:
    """Samples of very different size, far above L1's smoothing: (6, 2, 3, 4) float64."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 2, 3, 4, generator=generator, dtype=torch.float64)
    sizes = torch.tensor([0.1, 0.5, 1, 2, 10, 100]).reshape(-1, 1, 1, 1)
    return (values.abs() + 0.5) * values.sign() * sizes


@pytest.mark.parametrize("name", LATENT_DISTANCES)
def test_weighted_least_squares_descends_the_distance(name: str) -> None:
    """IRLS: w r / d is the distance's gradient, up to one constant for all samples and elements."""
    distance = Distance(name, scale=1.0 if name != "l1" else 0.1)
    r = residuals()
    step = 1e-2 * r.abs()
    differences = torch.zeros_like(r)
    for index in range(r[0].numel()):
        move = torch.zeros_like(r).flatten(1)
        move[:, index] = step.flatten(1)[:, index]
        rise = distance.value(r + move.view_as(r)) - distance.value(r - move.view_as(r))
        differences.flatten(1)[:, index] = rise.double() / (2 * step.flatten(1)[:, index])
    weighted = distance.weights(r).double() * r.flatten(1) / r[0].numel()
    torch.testing.assert_close(
        CONSTANT[name] * differences.flatten(1), weighted, rtol=5e-3, atol=1e-4
    )


def test_distances_of_equal_deviations_have_their_closed_form() -> None:
    r = torch.full((1, 3, 2), -2.0)
    assert float(rmse(r)) == pytest.approx(2)
    assert float(Distance("l1").value(r)) == pytest.approx(2)
    assert float(Distance("l2").value(r)) == pytest.approx(4)
    assert float(Distance("pseudo-huber", 1.5).value(r)) == pytest.approx(1.0)  # 3-4-5


@pytest.mark.parametrize("name", LATENT_DISTANCES)
def test_a_distance_is_zero_at_zero_and_grows_with_the_residual(name: str) -> None:
    distance = Distance(name)
    ladder = torch.tensor([0.0, 1e-3, 0.1, 1.0, 10.0]).reshape(-1, 1).expand(5, 7)
    values = distance.value(ladder)
    assert float(values[0]) == 0 and bool((values.diff() > 0).all())
    assert bool(torch.isfinite(distance.weights(ladder)).all())


@pytest.mark.parametrize(("name", "power"), [("pseudo-huber", 1), ("l1", 1), ("l2", 2)])
def test_a_distance_scales_with_the_unit_of_latents(name: str, power: int) -> None:
    r = residuals()
    plain, scaled = Distance(name, 0.7).value(r), Distance(name, 0.7 * 8).value(r * 8)
    torch.testing.assert_close(scaled, 8**power * plain)


def test_pseudo_huber_is_a_square_below_its_scale_and_linear_above() -> None:
    distance = Distance("pseudo-huber", scale=10.0)
    small, large = torch.full((1, 4), 0.01), torch.full((1, 4), 1e5)
    assert float(distance.value(small)) == pytest.approx(0.01**2 / 20, rel=1e-5)
    assert float(distance.value(large)) == pytest.approx(1e5 - 10, rel=1e-5)


@pytest.mark.parametrize("name", LATENT_DISTANCES)
def test_samples_of_a_batch_do_not_mix(name: str) -> None:
    r, distance = residuals(), Distance(name)
    assert torch.equal(distance.value(r)[2:4], distance.value(r[2:4]))
    assert torch.equal(distance.weights(r)[2:4], distance.weights(r[2:4]))


@pytest.mark.parametrize("scale", [0.1, 5.0])
@pytest.mark.parametrize("name", LATENT_DISTANCES)
def test_scores_do_not_depend_on_a_scale_that_is_known_later(name: str, scale: float) -> None:
    """They are the distance, for pseudo-Huber its limit of large residuals."""
    targets, distance = torch.ones(6, 2, 3, 4), Distance(name, scale)
    samples = targets + residuals().float()
    scores = distance.score(samples, targets)
    torch.testing.assert_close(scores, Distance(name).score(samples, targets))
    wanted = rmse(samples - targets)
    if name != "pseudo-huber":
        wanted = distance.between(samples, targets)
    torch.testing.assert_close(scores, wanted)


def test_scores_of_images_are_those_of_their_features() -> None:
    def features(x: Tensor) -> Tensor:
        return torch.tanh(x).flatten(1)

    samples, targets = residuals().float(), torch.zeros(6, 2, 3, 4)
    distance = Distance("pixel-l2", 1.0, features)
    wanted = torch.tanh(samples).flatten(1).square().mean(1)
    torch.testing.assert_close(distance.score(samples, targets), wanted)


def test_an_unknown_distance_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'cosine'.*pseudo-huber, l2, l1"):
        Distance("cosine")


def test_the_mean_distance_leaves_out_pairs_of_the_same_index() -> None:
    samples = torch.tensor([[0.0, 0.0], [3.0, 3.0]])
    others = torch.tensor([[100.0, 100.0], [1.0, 1.0]])
    # from the first to the second, and from the second to the first
    assert mean_distance(samples, others) == pytest.approx((1 + 97) / 2)
    assert mean_distance(samples[:1], others[:1]) != mean_distance(samples[:1], others[:1])  # NaN
