"""The surrogate made of teacher trajectories, the search on it, and the ranking of starts."""

from __future__ import annotations

from collections.abc import Callable

import comfy.k_diffusion.sampling as k_diffusion
import pytest
import torch
from torch import Tensor

from ld3.metrics import Distance
from ld3.model import Model
from ld3.parameters import LOG_SIGMA, StepParameters, check_sigmas
from ld3.table import SolverTable, rollout
from ld3.teacher import sample_teacher
from ld3.tracing import TracedSampler
from ld3.training.candidates import (
    DIFFERENT,
    RANKED_BASELINES,
    RANKED_SCHEDULES,
    RANKING_NOISES,
    Competitors,
    TrajectorySurrogate,
    planned_calls,
    rank_candidates,
    surrogate_search,
)
from ld3.training.report import ProgressReporter
from ld3.training.validation import Objective
from ld3.trajectories import TeacherTrajectories, subsample

from .exact_problems import (
    gmm16,
    karras,
    parameters_of,
    sampler_of,
    sampling_of,
    scheduled,
    standard_schedules,
)

pytestmark = pytest.mark.usefixtures("one_thread")

EULER = TracedSampler(k_diffusion.sample_euler)
DPMPP_2M = TracedSampler(k_diffusion.sample_dpmpp_2m)
PARAMETERS = StepParameters(LOG_SIGMA, 80.0, 0.03)
MEAN, VARIANCE = 0.5, 0.49


def surrogate_of(
    model: Callable[[Tensor, Tensor], Tensor], table: SolverTable, x_init: Tensor
) -> TrajectorySurrogate:
    result, history = rollout(table, model, [x_init])
    few = torch.stack([subsample(state) for state in history], 1)
    return TrajectorySurrogate(TeacherTrajectories(table, few, LOG_SIGMA), subsample(result))


def gmm_surrogate() -> tuple[Model, TrajectorySurrogate, SolverTable]:
    model = gmm16()
    noise = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    table = DPMPP_2M.table(karras(20, 0.03, 80.0))
    return model, surrogate_of(model, table, 80 * noise), table


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact denoiser of data N(MEAN, VARIANCE)."""
    share = VARIANCE / (VARIANCE + sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2)
    return MEAN + share * (x - MEAN)


def gaussian_surrogate(steps: int) -> tuple[TrajectorySurrogate, Tensor]:
    """A surrogate of `gaussian` whose teacher's samples have exactly its variance; its levels."""
    sigmas = karras(steps, 0.03, 80.0)
    table = EULER.table(sigmas)
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    shrunk = rollout(table, gaussian, [MEAN + noise])[0].std()  # linear: scale the start to match
    return surrogate_of(gaussian, table, MEAN + noise * VARIANCE**0.5 / shrunk), sigmas


@pytest.mark.parametrize("sampler", [EULER, DPMPP_2M])
def test_on_the_teachers_own_trajectory_the_surrogate_is_the_model(sampler: TracedSampler) -> None:
    table = sampler.table(karras(12, 0.03, 80.0))
    noise = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    surrogate = surrogate_of(gmm16(), table, 80 * noise)
    assert surrogate.error(table) < 1e-4  # float32 states start at 80
    assert surrogate.error(sampler.table(karras(4, 0.03, 80.0))) > 1e-2


def test_for_gaussian_data_the_surrogate_is_exact_everywhere_at_the_teachers_levels() -> None:
    surrogate, sigmas = gaussian_surrogate(10)
    anywhere = 30 * torch.randn(4, 64, generator=torch.Generator().manual_seed(2))
    for sigma in sigmas[:-1]:
        level = sigma.expand(4)
        torch.testing.assert_close(
            surrogate(anywhere, level), gaussian(anywhere, level), rtol=1e-4, atol=1e-3
        )


def test_between_the_teachers_levels_the_surrogate_converges_quadratically() -> None:
    anywhere = torch.randn(4, 64, generator=torch.Generator().manual_seed(2))

    def error(steps: int) -> float:
        surrogate, sigmas = gaussian_surrogate(steps)
        between = (sigmas[:-2] * sigmas[1:-1]).sqrt()
        return max(
            float((surrogate(anywhere, s.expand(4)) - gaussian(anywhere, s.expand(4))).abs().max())
            for s in between
        )

    assert error(20) / error(40) == pytest.approx(4, rel=0.25)


def test_a_large_latent_is_represented_by_a_sample_of_its_elements() -> None:
    noise = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    table = EULER.table(karras(6, 0.03, 80.0))
    few = subsample(80 * noise)
    assert few[0].numel() < noise[0].numel() and bool(torch.isin(few, 80 * noise).all())
    surrogate = surrogate_of(gaussian, table, 80 * noise)
    assert surrogate.error(table) < 1e-4


def test_the_search_is_deterministic_by_seed_sorted_and_makes_no_model_call() -> None:
    model, surrogate, _ = gmm_surrogate()
    calls, rounds = model.calls, []
    found = surrogate_search(
        surrogate, EULER.table, PARAMETERS, 4, 3, lambda: rounds.append(model.calls)
    )
    again, other = (surrogate_search(surrogate, EULER.table, PARAMETERS, 4, s) for s in (3, 4))
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert not torch.equal(found[0], other[0])
    assert set(rounds) == {model.calls} == {calls}
    errors = [surrogate.error(EULER.table(PARAMETERS.sigmas(u))) for u in found]
    assert errors == sorted(errors)
    for u in found:
        check_sigmas(PARAMETERS.sigmas(u))
        torch.testing.assert_close(PARAMETERS.separated(u), u)


def test_the_search_beats_every_standard_schedule_on_the_surrogate_and_on_the_model() -> None:
    model, surrogate, teacher = gmm_surrogate()
    found = surrogate_search(surrogate, DPMPP_2M.table, PARAMETERS, 5, 0)
    noise = torch.randn(32, 16, generator=torch.Generator().manual_seed(9))
    target = rollout(teacher, model, [80 * noise])[0]

    def errors(sigmas: Tensor) -> tuple[float, float]:
        table = DPMPP_2M.table(sigmas)
        result = rollout(table, model, [80 * noise])[0]
        return surrogate.error(table), float((result - target).square().mean())

    standard = [errors(karras(5, 0.03, 80.0, rho)) for rho in (1.0, 3.0, 7.0, 50.0)]
    starts = [errors(PARAMETERS.sigmas(u)) for u in found]
    for on_surrogate_or_model in (0, 1):
        best = min(s[on_surrogate_or_model] for s in starts)
        assert best < min(s[on_surrogate_or_model] for s in standard)


def test_starts_are_ranked_by_the_model_in_different_basins_at_the_planned_calls() -> None:
    model = gmm16()
    parameters = parameters_of(model, sampler_of(model, "dpmpp_2m"), 4)
    schedules = standard_schedules(sampling_of(model), 4)
    schedules["longer"] = standard_schedules(sampling_of(model), 9)["karras"]
    baselines = {n: parameters.sampler.discretization(s) for n, s in schedules.items()}
    noise = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    teacher = scheduled(model, "dpmpp_2m", 24)
    samples = sample_teacher(model, teacher, noise, torch.zeros_like(noise))
    training, validation = samples[:16], samples[16:]
    objective, before = Objective(model, Distance()), model.calls
    competitors = Competitors(parameters, baselines)
    stages: list[str] = []
    progress = ProgressReporter(model, 0, lambda event: stages.append(event.stage))
    starts, reported = rank_candidates(objective, competitors, training, validation, 0, progress)

    made, planned = model.calls - before, planned_calls(competitors, len(validation))
    assert planned - 5 * RANKING_NOISES <= made <= planned  # of the longer one, where not ranked
    assert len(stages) > RANKED_BASELINES + RANKED_SCHEDULES
    few = validation[:RANKING_NOISES]
    assert [start.error for start in starts] == sorted(start.error for start in starts)
    for i, start in enumerate(starts):
        error = objective.error(parameters.discretization(start.theta), few)
        assert start.error == pytest.approx(error, rel=1e-3)
        for other in starts[:i]:
            assert float((start.theta - other.theta).abs().max()) > DIFFERENT
    assert len(starts) > 1 and "longer" not in {start.name for start in starts}

    assert set(reported) == set(baselines)
    ranked = {n: b.ranking_error for n, b in reported.items() if b.ranking_error is not None}
    assert len(ranked) == RANKED_BASELINES
    best = min((n for n in ranked if reported[n].comparable), key=lambda n: ranked[n])
    validated = [n for n, b in reported.items() if b.validation_error is not None]
    assert validated == [best] and not reported["longer"].comparable
    error = objective.error(baselines[best], validation)
    assert reported[best].validation_error == pytest.approx(error, rel=1e-6)
