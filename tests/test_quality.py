"""Measures that compare two sets of samples, against what is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from benchmarks.measures.sample_quality import (
    Projection,
    digits_classifier,
    frechet,
    frechet_distance,
    inception_score,
    measures,
    precision_recall_coverage,
    sliced_wasserstein,
)
from benchmarks.problems.mixtures import digits_data
from ld3.metrics import spread

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(size: int, rank: int, seed: int) -> Tensor:
    factor = normal(size, rank, seed=seed)
    return factor @ factor.T


def rotation(size: int) -> Tensor:
    return torch.linalg.qr(normal(size, size, seed=9)).Q


@pytest.fixture(scope="module")
def classify() -> Callable[[Tensor], Tensor]:
    return digits_classifier()


# Frechet distance


def test_frechet_of_diagonal_gaussians_has_its_closed_form() -> None:
    a, b = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([4.0, 2.0, 1.0])
    std_a, std_b = torch.tensor([1.0, 0.5, 2.0]), torch.tensor([3.0, 0.0, 2.5])
    expected = float((a - b).pow(2).sum() + (std_a - std_b).pow(2).sum())
    found = frechet(a, std_a.pow(2).diag(), b, std_b.pow(2).diag())
    assert found == pytest.approx(expected, rel=1e-12)


def test_frechet_agrees_with_the_general_matrix_square_root() -> None:
    mean_a, mean_b = normal(12), normal(12, seed=1)
    cov_a, cov_b = covariance(12, 20, 2), covariance(12, 14, 3)
    root = scipy.linalg.sqrtm((cov_a @ cov_b).numpy()).real
    expected = float((mean_a - mean_b).pow(2).sum() + (cov_a + cov_b).trace() - 2 * np.trace(root))
    assert frechet(mean_a, cov_a, mean_b, cov_b) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_a_gaussian_with_itself_is_zero_at_any_rank() -> None:
    for rank in (1, 5, 40):
        cov = covariance(40, rank, 4)
        assert frechet(normal(40), cov, normal(40), cov) < 1e-11 * float(cov.trace())


def test_frechet_of_gaussians_in_orthogonal_subspaces_adds_their_variances() -> None:
    turn = rotation(8)
    cov_a = turn[:, :3] @ covariance(3, 3, 5) @ turn[:, :3].T
    cov_b = turn[:, 3:] @ covariance(5, 5, 6) @ turn[:, 3:].T
    zero = torch.zeros(8)
    expected = float((cov_a + cov_b).trace())
    assert frechet(zero, cov_a, zero, cov_b) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_sets_is_symmetric_and_invariant_to_rotation() -> None:
    a, b, turn = normal(50, 6), 2 * normal(70, 6, seed=1) + 1, rotation(6)
    found = frechet_distance(a, b)
    assert found == pytest.approx(frechet_distance(b, a), rel=1e-10)
    assert found == pytest.approx(frechet_distance(a @ turn, b @ turn), rel=1e-10)
    assert found == pytest.approx(frechet_distance(3 * a, 3 * b) / 9, rel=1e-10)


def test_frechet_distance_of_a_shift_and_a_scale_is_exact() -> None:
    a = normal(30, 4)
    shift = torch.tensor([1.0, -2.0, 0.0, 2.0], dtype=torch.float64)
    assert frechet_distance(a, a + shift) == pytest.approx(9, rel=1e-10)
    variance = float(a.var(0).sum())
    centred = a - a.mean(0)
    assert frechet_distance(centred, 0.5 * centred) == pytest.approx(0.25 * variance, rel=1e-10)


def test_frechet_distance_bounds_the_transport_of_sets_from_below() -> None:
    """Gelbrich 1990: for given means and covariances, Gaussians have the smallest distance."""
    a, b = normal(40, 3).exp(), normal(40, 3, seed=1).exp() * 1.5
    cost = torch.cdist(a, b).pow(2).numpy()
    transport = cost[scipy.optimize.linear_sum_assignment(cost)].mean()
    # of the sets themselves, so with covariances that divide by n
    found = frechet(a.mean(0), a.T.cov(correction=0), b.mean(0), b.T.cov(correction=0))
    assert 0 < found <= transport


# Principal components


def test_a_projection_is_the_singular_value_decomposition_up_to_signs() -> None:
    data, other = normal(60, 10) @ covariance(10, 10, 1), normal(20, 10, seed=2)
    project = Projection(data, 4)
    _, values, directions = torch.linalg.svd(data - data.mean(0), full_matrices=False)
    for samples in (data, other):
        expected = (samples - data.mean(0)) @ directions[:4].T
        torch.testing.assert_close(project(samples).abs(), expected.abs())
    share = values[:4].square().sum() / values.square().sum()
    assert project.explained == pytest.approx(float(share))


def test_components_of_the_data_are_uncorrelated_and_descend() -> None:
    data = normal(60, 10) @ covariance(10, 10, 1)
    cov = Projection(data, 6)(data).T.cov()
    torch.testing.assert_close(cov, cov.diagonal().diag(), atol=1e-9, rtol=0)
    assert bool((cov.diagonal().diff() < 0).all())


def test_all_components_keep_the_frechet_distance_and_fewer_reduce_it() -> None:
    a, b = normal(60, 10), 1.5 * normal(60, 10, seed=1) + 0.3
    whole, part = Projection(a, 10), Projection(a, 5)
    assert frechet_distance(whole(a), whole(b)) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert whole.explained == pytest.approx(1)
    assert frechet_distance(part(a), part(b)) < frechet_distance(a, b)


def test_more_components_than_the_data_have_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"20 components.*\(20, 64\).*1 to 19"):
        Projection(normal(20, 64), 20)


# Sliced Wasserstein distance


def test_sliced_wasserstein_of_a_shifted_line_is_the_shift() -> None:
    a = normal(50, 1)
    assert sliced_wasserstein(a, a - 3) == pytest.approx(3, rel=1e-12)


def test_sliced_wasserstein_of_a_shifted_set_is_the_shift_over_root_dimension() -> None:
    a, shift = normal(40, 16), normal(1, 16, seed=1)
    found = sliced_wasserstein(a, a + shift, projections=20000)
    assert found == pytest.approx(float(shift.norm()) / 4, rel=0.02)


def test_sliced_wasserstein_is_at_most_the_transport_distance() -> None:
    a, b = normal(40, 3), normal(40, 3, seed=1) * 2
    cost = torch.cdist(a, b).pow(2).numpy()
    transport = math.sqrt(cost[scipy.optimize.linear_sum_assignment(cost)].mean())
    assert 0 < sliced_wasserstein(a, b) <= transport


def test_sliced_wasserstein_does_not_count_copies_or_order() -> None:
    a, b = normal(12, 5), normal(18, 5, seed=1)
    found = sliced_wasserstein(a, b)
    assert found == pytest.approx(sliced_wasserstein(b, a), rel=1e-12)
    # both sets brought to 36 samples
    assert found == pytest.approx(sliced_wasserstein(a.repeat(3, 1), b.repeat(2, 1)), rel=1e-12)
    assert sliced_wasserstein(a, a.flip(0)) < 1e-12
    assert sliced_wasserstein(a, a.repeat(3, 1)) < 1e-12


def test_sliced_wasserstein_is_a_function_of_its_seed() -> None:
    a, b = normal(20, 5), normal(20, 5, seed=1)
    torch.manual_seed(1)
    first = sliced_wasserstein(a, b)
    torch.manual_seed(2)
    assert sliced_wasserstein(a, b) == first
    assert sliced_wasserstein(a, b, seed=1) != first


# Precision, recall, coverage


def test_identical_sets_have_all_of_precision_recall_and_coverage() -> None:
    a = normal(600, 8).float()
    assert set(precision_recall_coverage(a, a).values()) == {1.0}


def test_disjoint_sets_have_none_of_precision_recall_and_coverage() -> None:
    a = normal(60, 8)
    assert set(precision_recall_coverage(a, a + 100).values()) == {0.0}


def test_a_collapsed_set_loses_recall_and_coverage_but_not_precision() -> None:
    real = normal(200, 8)
    found = precision_recall_coverage(real, real[:1] + 1e-3 * normal(100, 8, seed=1))
    assert found["precision"] == 1
    assert found["recall"] <= 1 / 200 and found["coverage"] < 0.2


def test_a_blown_up_set_loses_precision_but_not_recall() -> None:
    real, fake = normal(300, 8), 3 * normal(300, 8, seed=1)
    found = precision_recall_coverage(real, fake)
    assert found["precision"] < 0.1 and found["recall"] > 0.9


def test_precision_and_recall_change_places_with_the_sets() -> None:
    a, b = normal(100, 4), 1.3 * normal(80, 4, seed=1) + 1.5
    forth, back = precision_recall_coverage(a, b), precision_recall_coverage(b, a)
    assert 0 < forth["precision"] < 1 and 0 < forth["recall"] < 1
    assert (forth["precision"], forth["recall"]) == (back["recall"], back["precision"])


def test_one_outlier_raises_recall_but_not_coverage() -> None:
    real, fake = normal(200, 4), normal(100, 4, seed=1) + 20
    with_outlier = torch.cat([fake, torch.full((1, 4), -50.0, dtype=torch.float64)])
    assert precision_recall_coverage(real, fake)["recall"] == 0
    found = precision_recall_coverage(real, with_outlier)
    assert found["recall"] == 1 and found["coverage"] == 0


@pytest.mark.parametrize(("k", "count"), [(1, 800), (3, 800), (3, 400)])
def test_coverage_of_the_same_distribution_has_its_closed_form(k: int, count: int) -> None:
    """Naeem et al. 2020, lemma 2, any distribution: 1 - product over i of (n - i) / (m + n - i)."""
    found = precision_recall_coverage(normal(800, 4), normal(count, 4, seed=1), k)["coverage"]
    missed = math.prod((800 - i) / (800 + count - i) for i in range(1, k + 1))
    assert found == pytest.approx(1 - missed, abs=0.06)


@pytest.mark.parametrize("k", [1, 5])
def test_precision_recall_and_coverage_are_their_definitions(k: int) -> None:
    real, fake = normal(100, 4), 1.3 * normal(80, 4, seed=1) + 0.5
    radius_real, radius_fake = (torch.cdist(x, x).sort().values[:, k] for x in (real, fake))
    distance = torch.cdist(real, fake)
    assert precision_recall_coverage(real, fake, k) == {
        "precision": float((distance <= radius_real[:, None]).any(0).double().mean()),
        "recall": float((distance <= radius_fake).any(1).double().mean()),
        "coverage": float((distance.amin(1) <= radius_real).double().mean()),
    }


def test_too_many_neighbours_are_refused() -> None:
    with pytest.raises(ValueError, match="k = 5 for sets of 100 and 5 samples"):
        precision_recall_coverage(normal(100, 4), normal(5, 4))


# Inception score


def test_inception_score_of_confident_uniform_classes_is_their_number() -> None:
    assert inception_score(torch.eye(10).repeat(3, 1)) == pytest.approx(10)
    assert inception_score(torch.eye(10)[:4]) == pytest.approx(4)


def test_inception_score_of_one_constant_answer_is_one() -> None:
    same = normal(1, 10).softmax(1).expand(20, 10)
    assert inception_score(same) == pytest.approx(1)
    assert inception_score(torch.eye(10)[:1].expand(20, 10)) == pytest.approx(1)


def test_inception_score_of_symmetric_uncertainty_has_its_closed_form() -> None:
    """Two classes distinguished with probability 0.9: exp(log 2 - H(0.9))."""
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64)
    expected = 2 * 0.9**0.9 * 0.1**0.1
    assert inception_score(p) == pytest.approx(expected)


def test_inception_score_refuses_logits() -> None:
    with pytest.raises(ValueError, match="after the softmax"):
        inception_score(normal(20, 10))


@pytest.mark.slow
def test_the_digits_classifier_recognises_noisy_digits(
    classify: Callable[[Tensor], Tensor],
) -> None:
    data = digits_data()
    probabilities = classify(data + 0.15 * normal(*data.shape).float())
    labels = torch.from_numpy(load_digits().target)
    assert probabilities.shape == (len(data), 10)
    assert float((probabilities.argmax(1) == labels).double().mean()) > 0.98


@pytest.mark.slow
def test_inception_score_prefers_digits_to_blurs_and_noise(
    classify: Callable[[Tensor], Tensor],
) -> None:
    data = digits_data()
    blurred = data.mean(0) + 0.4 * (data - data.mean(0))
    scores = [inception_score(classify(x)) for x in (data, blurred, normal(1797, 1, 8, 8))]
    assert 9 < scores[0] <= 10 and all(1 <= score < 7 for score in scores[1:])


@pytest.mark.slow
def test_the_digits_classifier_is_always_the_same(classify: Callable[[Tensor], Tensor]) -> None:
    data = digits_data()[:100]
    torch.testing.assert_close(digits_classifier()(data), classify(data), rtol=0, atol=1e-6)


# Spread


def test_spread_of_known_points_is_their_mean_distance() -> None:
    triangle = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    assert spread(triangle) == pytest.approx(4)
    assert spread(triangle.reshape(3, 1, 2, 1)) == pytest.approx(4)


def test_spread_scales_with_samples_and_does_not_depend_on_their_position() -> None:
    a = normal(50, 8)
    assert spread(2.5 * a) == pytest.approx(2.5 * spread(a), rel=1e-5)
    assert spread(a + 3) == pytest.approx(spread(a), rel=1e-5)
    assert spread(a @ rotation(8)) == pytest.approx(spread(a), rel=1e-5)


def test_spread_of_normal_samples_is_about_root_two_d() -> None:
    assert spread(normal(200, 256)) == pytest.approx(math.sqrt(2 * 256), rel=0.01)


def test_spread_of_one_point_is_zero_and_of_one_sample_undefined() -> None:
    assert spread(normal(1, 8).expand(5, 8)) == 0
    assert math.isnan(spread(normal(1, 8)))


# All together


def test_each_measure_prefers_new_samples_to_the_fault_it_detects() -> None:
    data = digits_data()[torch.randperm(1797, generator=torch.Generator().manual_seed(0))]
    real, fresh = data[:800], data[800:1600]
    project = Projection(real.flatten(1), 32)
    good = measures(real, fresh, project)
    collapsed = measures(real, fresh[:40].repeat(20, 1, 1, 1), project)
    noisy = measures(real, fresh + 0.5 * normal(800, 1, 8, 8), project)
    for name in ("frechet", "sliced_wasserstein"):
        assert 0 < good[name] < min(collapsed[name], noisy[name])
    assert good["precision"] > noisy["precision"]
    assert good["recall"] > collapsed["recall"] and good["coverage"] > collapsed["coverage"]
    assert good["spread"] == pytest.approx(1, abs=0.02)


def test_a_set_measured_against_itself_is_perfect() -> None:
    found = measures(normal(100, 2, 3), normal(100, 2, 3))
    assert found == pytest.approx(
        {
            "frechet": 0,
            "sliced_wasserstein": 0,
            "precision": 1,
            "recall": 1,
            "coverage": 1,
            "spread": 1,
        },
        abs=1e-10,
    )


@pytest.mark.parametrize("measure", [frechet_distance, sliced_wasserstein, measures])
def test_sets_of_another_width_or_with_undefined_values_are_refused(measure: Callable) -> None:
    a = normal(20, 4)
    with pytest.raises(ValueError, match=r"\(20, 4\) and \(20, 3\)"):
        measure(a, a[:, :3])
    with pytest.raises(ValueError, match="NaN"):
        measure(a, torch.full_like(a, float("nan")))
