"""The interval of a measured gain, against what is known of ratios of means."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ld3.training.bootstrap import bootstrap_interval


def scores(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) + 0.1


@pytest.mark.parametrize("count", [2, 4, 12, 64, 500])
def test_the_interval_contains_the_ratio_of_means(count: int) -> None:
    one, other = scores(count), scores(count, 1)
    low, high = bootstrap_interval(one, other)
    assert 0 < low <= float(one.mean() / other.mean()) <= high < math.inf


def test_the_interval_is_deterministic_and_draws_no_global_numbers() -> None:
    before = torch.get_rng_state()
    first = bootstrap_interval(scores(12), scores(12, 1))
    torch.manual_seed(5)
    assert bootstrap_interval(scores(12), scores(12, 1)) == first
    torch.set_rng_state(before)
    bootstrap_interval(scores(12), scores(12, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_noises_are_paired() -> None:
    """A ratio that is the same for every noise is certain, however much the noises differ."""
    difficult = scores(20) ** 3
    low, high = bootstrap_interval(0.7 * difficult, difficult)
    assert low == pytest.approx(0.7, rel=1e-6) and high == pytest.approx(0.7, rel=1e-6)
    shuffled = difficult.flip(0)
    low, high = bootstrap_interval(0.7 * difficult, shuffled)
    assert high - low > 0.1


def test_more_noises_are_surer_by_the_root_of_their_number() -> None:
    widths = []
    for count in (100, 1600):
        low, high = bootstrap_interval(scores(count), scores(count, 1))
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.2)


def test_the_interval_is_that_of_the_normal_approximation_for_many_noises() -> None:
    """90 % of a normal distribution lie within 1.645 deviations, by the delta method."""
    one, other = scores(2000).double(), scores(2000, 1).double()
    ratio = one.mean() / other.mean()
    deviation = (one - ratio * other).std() / other.mean() / 2000**0.5
    low, high = bootstrap_interval(one, other)
    assert low == pytest.approx(float(ratio - 1.645 * deviation), abs=0.15 * float(deviation))
    assert high == pytest.approx(float(ratio + 1.645 * deviation), abs=0.15 * float(deviation))


def test_in_about_90_percent_of_repetitions_the_interval_contains_the_true_ratio() -> None:
    generator = torch.Generator().manual_seed(3)
    hits = 0
    for _ in range(200):
        common = torch.rand(40, generator=generator) + 0.5
        one, other = (common * (torch.rand(40, generator=generator) + 0.5) for _ in range(2))
        low, high = bootstrap_interval(0.8 * one, other)
        hits += low <= 0.8 <= high
    assert 160 <= hits <= 195  # 90 % are 180, with a deviation of 4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_have_no_interval(bad: float) -> None:
    broken = scores(8)
    broken[3] = bad
    assert bootstrap_interval(broken, scores(8, 1)) == []
    assert bootstrap_interval(scores(8, 1), broken) == []


def test_one_noise_has_no_interval() -> None:
    assert bootstrap_interval(scores(1), scores(1, 1)) == []


def test_a_standard_schedule_without_any_error_has_a_finite_interval() -> None:
    """Numbers of a report must be finite, also where the division is by zero."""
    low, high = bootstrap_interval(scores(4), torch.zeros(4))
    assert math.isfinite(low) and math.isfinite(high) and low > 1
    assert bootstrap_interval(torch.zeros(4), torch.zeros(4)) == [0.0, 0.0]
