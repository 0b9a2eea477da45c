"""Laws of the map from free coordinates to noise levels, for any start, end and length."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor

from ld3.parameters import (
    KEPT_GAP,
    LOG_SIGMA,
    LOGIT_SIGMA,
    MIN_GAP,
    StepParameters,
    check_sigmas,
)

without_deadline = settings(deadline=None)  # tests share the machine
ROUNDING = 1e-9  # in u; float64 arithmetic of a few dozen levels stays far below


@st.composite
def parameter_sets(draw: st.DrawFn) -> StepParameters:
    """Full and split samplings of variance-exploding and flow models."""
    if draw(st.booleans()):
        start = draw(st.floats(0.5, 200))
        end = draw(st.sampled_from([0.0, 0.1 * start]))
        return StepParameters(LOG_SIGMA, start, draw(st.floats(0.001, 0.4)), end)
    start = draw(st.sampled_from([1.0, 0.99995]) | st.floats(0.3, 1))
    end = draw(st.sampled_from([0.0, 0.5 * start]))
    return StepParameters(LOGIT_SIGMA, start, draw(st.floats(1e-4, 0.1)), end)


coordinates = st.lists(st.floats(-20, 20), min_size=1, max_size=9).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


def gaps(parameters: StepParameters, u: Tensor) -> Tensor:
    """Distances in u from the start level to the first free one, and on to the last free one.

    The gap from there to the end counts where the end is a level in u: above 0.
    """
    ends = [
        float(parameters.coordinate.from_sigma(torch.tensor(parameters.start, dtype=torch.float64)))
    ]
    levels = [torch.tensor(ends, dtype=torch.float64), u]
    if parameters.end > 0:
        end = torch.tensor([parameters.end], dtype=torch.float64)
        levels.append(parameters.coordinate.from_sigma(end))
    return -torch.cat(levels).diff()


@without_deadline
@given(parameter_sets(), coordinates)
def test_separated_coordinates_make_a_strictly_decreasing_float32_schedule(
    parameters: StepParameters, u: Tensor
) -> None:
    assume(parameters.room_for(len(u) + 1))
    sigmas = parameters.sigmas(parameters.separated(u))
    check_sigmas(sigmas)
    assert sigmas.dtype == torch.float32 and len(sigmas) == len(u) + 2
    assert float(sigmas[0]) == float(torch.tensor(parameters.start, dtype=torch.float32))
    assert float(sigmas[-1]) == float(torch.tensor(parameters.end, dtype=torch.float32))
    assert float(sigmas[-2]) >= parameters.sigma_min * (1 - 1e-6)


@without_deadline
@given(parameter_sets(), coordinates)
def test_separated_coordinates_keep_the_smallest_gap_and_the_bounds(
    parameters: StepParameters, u: Tensor
) -> None:
    assume(parameters.room_for(len(u) + 1))
    separated = parameters.separated(u)
    upper, lower = parameters.bounds()
    assert float(gaps(parameters, separated).min()) >= MIN_GAP - ROUNDING
    assert lower - ROUNDING <= float(separated.min()) <= float(separated.max()) <= upper + ROUNDING
    torch.testing.assert_close(parameters.separated(separated), separated, rtol=0, atol=ROUNDING)


@without_deadline
@given(parameter_sets(), st.integers(-2, 2) | st.integers(-500, 500))
def test_room_for_says_whether_that_many_distinct_levels_fit(
    parameters: StepParameters, surplus: int
) -> None:
    upper, lower = parameters.bounds()
    steps = max(2, int((upper - lower) / MIN_GAP) + 2 + surplus)
    spare = upper - lower - MIN_GAP * (steps - 2)
    assume(abs(spare) > ROUNDING)
    crowded = parameters.separated(torch.zeros(steps - 1, dtype=torch.float64))
    fits = float(crowded.max()) <= upper + ROUNDING
    assert parameters.room_for(steps) == fits == (spare > 0)


@without_deadline
@given(parameter_sets(), coordinates)
def test_a_schedule_and_its_coordinates_determine_each_other(
    parameters: StepParameters, u: Tensor
) -> None:
    assume(parameters.room_for(len(u) + 1))
    u = parameters.separated(u)
    sigmas = parameters.sigmas(u)
    back = parameters.from_sigmas(sigmas)
    torch.testing.assert_close(parameters.sigmas(back), sigmas, rtol=3e-7, atol=0)
    # float32 leaves 6e-8 of sigma; d logit = d sigma / (sigma (1 - sigma))
    inner = sigmas[1:-1].double()
    slope = 1 / (1 - inner) if parameters.coordinate is LOGIT_SIGMA else torch.ones_like(inner)
    assert bool(((back - u).abs() <= 1e-7 * len(u) * slope.max() + ROUNDING).all())


@without_deadline
@given(parameter_sets(), coordinates, coordinates)
def test_a_step_keeps_thirty_percent_of_every_gap_and_the_bounds(
    parameters: StepParameters, u: Tensor, step: Tensor
) -> None:
    size = min(len(u), len(step))
    assume(parameters.room_for(size + 1))
    u, step = parameters.separated(u[:size]), step[:size]
    stepped = parameters.stepped(u, step)
    kept = torch.clamp(KEPT_GAP * gaps(parameters, u), min=MIN_GAP)
    assert bool((gaps(parameters, stepped) >= kept - ROUNDING).all())
    upper, lower = parameters.bounds()
    assert lower - ROUNDING <= float(stepped.min()) <= float(stepped.max()) <= upper + ROUNDING


@without_deadline
@given(parameter_sets(), coordinates, st.integers(0, 8), st.floats(-1, 1))
def test_a_small_step_is_made_in_full(
    parameters: StepParameters, u: Tensor, k: int, share: float
) -> None:
    assume(parameters.room_for(len(u) + 1))
    u = parameters.separated(u)
    k %= len(u)
    upper, lower = parameters.bounds()
    edges = torch.cat([u.new_tensor([upper]), u, u.new_tensor([lower])])
    above, below = -edges.diff()[k : k + 2]
    room = min(float(above), float(below)) - MIN_GAP
    assume(room > 0)
    step = torch.zeros_like(u)
    step[k] = 0.7 * share * room
    torch.testing.assert_close(parameters.stepped(u, step), u + step, rtol=0, atol=ROUNDING)


@without_deadline
@given(parameter_sets(), coordinates, st.integers(0, 8), st.floats(0.001, 1))
def test_a_perturbation_stays_between_the_neighbours(
    parameters: StepParameters, u: Tensor, k: int, h: float
) -> None:
    assume(parameters.room_for(len(u) + 1))
    u = parameters.separated(u)
    k %= len(u)
    perturbed = u.clone()
    step = parameters.perturbation(u, k, h)
    perturbed[k] += step
    assert 0 < abs(step) <= h
    check_sigmas(parameters.sigmas(perturbed))
    upper, lower = parameters.bounds()
    edges = torch.cat([u.new_tensor([upper + MIN_GAP]), u, u.new_tensor([lower])])
    side = edges[k] - u[k] if step > 0 else u[k] - edges[k + 2]
    assert abs(step) <= 0.5 * float(side) + ROUNDING


def test_a_perturbation_has_the_given_size_where_there_is_room() -> None:
    parameters = StepParameters(LOG_SIGMA, 80.0, 0.03)
    u = torch.tensor([3.0, 2.9, -1.0], dtype=torch.float64)
    assert [abs(parameters.perturbation(u, k, 0.05)) for k in range(3)] == [0.05] * 3
    assert parameters.perturbation(u, 1, 0.05) < 0  # away from the close neighbour


@without_deadline
@given(parameter_sets(), st.integers(2, 12))
def test_even_levels_are_within_the_bounds_and_evenly_spaced(
    parameters: StepParameters, steps: int
) -> None:
    assume(parameters.room_for(steps))
    upper, lower = parameters.bounds()
    assume((upper - lower) / steps > MIN_GAP)
    ends = [torch.tensor([end], dtype=torch.float64) for end in (upper, lower)]
    differences = torch.cat([ends[0], parameters.even(steps), ends[1]]).diff()
    torch.testing.assert_close(differences, torch.full_like(differences, (lower - upper) / steps))


def test_coordinates_are_log_and_logit() -> None:
    sigma = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float32)
    assert LOG_SIGMA.from_sigma(sigma).tolist() == [math.log(s) for s in (0.25, 0.5, 0.75)]
    assert LOGIT_SIGMA.from_sigma(sigma).tolist() == pytest.approx([-math.log(3), 0, math.log(3)])
    for coordinate in (LOG_SIGMA, LOGIT_SIGMA):
        back = coordinate.to_sigma(coordinate.from_sigma(sigma))
        assert back.dtype == torch.float64
        torch.testing.assert_close(back, sigma.double(), rtol=1e-12, atol=0)


def test_flow_schedules_start_at_exactly_one() -> None:
    parameters = StepParameters(LOGIT_SIGMA, 1.0, 0.001)
    sigmas = parameters.sigmas(parameters.separated(torch.full((3,), 50.0)))
    assert float(sigmas[0]) == 1.0 and float(sigmas[1]) < 1 - 1e-4
    assert bool(torch.isfinite(LOGIT_SIGMA.from_sigma(torch.ones(1))).all())


def test_levels_that_a_scheduler_repeats_are_moved_apart() -> None:
    parameters = StepParameters(LOG_SIGMA, 80.0, 0.03)
    u = parameters.from_sigmas(torch.tensor([80.0, 1.0, 1.0, 1.0, 0.0]))
    assert torch.allclose(-u.diff(), torch.tensor(MIN_GAP, dtype=torch.float64))
    assert u.exp().tolist() == pytest.approx([1.0] * 3, rel=2.1 * MIN_GAP)


@pytest.mark.parametrize(
    "sigmas",
    [
        [2.0],
        [],
        [[2.0, 0.0]],
        [2.0, 2.0],
        [1.0, 2.0],
        [2.0, -0.1],
        [math.inf, 0.0],
        [2.0, math.nan],
    ],
)
def test_invalid_schedules_are_refused(sigmas: list) -> None:
    with pytest.raises(ValueError, match="noise levels"):
        check_sigmas(torch.tensor(sigmas))
