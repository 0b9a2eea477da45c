"""The surrogate made of teacher trajectories, the search on it, and the ranking of starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import comfy.k_diffusion.sampling as k_diffusion
import pytest
import torch
from torch import Tensor

from ld3.metrics import Distance, rmse
from ld3.model import Model
from ld3.parameters import LOG_SIGMA, check_sigmas
from ld3.step_transfer import LearnedParameters, transferred
from ld3.table import SolverTable, rollout
from ld3.teacher import TeacherSamples, sample_teacher
from ld3.tracing import TracedSampler
from ld3.training import candidates
from ld3.training.candidates import (
    DIFFERENT,
    RANKED_BASELINES,
    RANKED_SCHEDULES,
    SEARCHED_STEPS,
    TYPICAL_CORRECTION,
    TYPICAL_OFFSETS,
    Competitors,
    Start,
    TrajectorySurrogate,
    planned_calls,
    rank_baselines,
    rank_starts,
    shared_first_calls,
    standard_starts,
    surrogate_search,
)
from ld3.training.report import ProgressReporter
from ld3.training.validation import Objective
from ld3.trajectories import TeacherTrajectories, subsample

from .exact_problems import (
    few_parameters_of,
    gmm16,
    karras,
    sampler_of,
    sampling_of,
    scheduled,
    standard_schedules,
)

pytestmark = pytest.mark.usefixtures("one_thread")

EULER = TracedSampler(k_diffusion.sample_euler)
DPMPP_2M = TracedSampler(k_diffusion.sample_dpmpp_2m)
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


EXTRAS = [{}, {"decoupled": True}, {"order": 1}, {"decoupled": True, "order": 2}]
NAMES = ["steps", "times", "corrections", "full"]


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


def test_for_gaussian_data_its_error_is_exact_for_schedules_that_begin_lower() -> None:
    """As ddim_uniform does; at the teacher's levels, where the surrogate is exact."""
    sigmas = karras(10, 0.03, 80.0)
    lower = sigmas[[1, 3, 6, 9, 10]]
    assert lower[0] < 0.7 * sigmas[0] and lower[-1] == 0
    noise = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    table = EULER.table(sigmas)
    # linear: a start scaled to match makes the samples' variance exactly that of the data
    noise /= rollout(table, gaussian, [sigmas[0] * noise])[0].std() / VARIANCE**0.5
    target = rollout(table, gaussian, [sigmas[0] * noise])[0]
    student = EULER.table(lower)
    error = float(rmse(rollout(student, gaussian, [lower[0] * noise])[0] - target).mean())
    surrogate = surrogate_of(gaussian, table, sigmas[0] * noise)
    assert surrogate.error(student) == pytest.approx(error, rel=1e-3)


def test_between_the_teachers_levels_the_surrogate_converges_cubically() -> None:
    anywhere = torch.randn(4, 64, generator=torch.Generator().manual_seed(2))

    def error(steps: int) -> float:
        surrogate, sigmas = gaussian_surrogate(steps)
        between = (sigmas[:-2] * sigmas[1:-1]).sqrt()
        return max(
            float((surrogate(anywhere, s.expand(4)) - gaussian(anywhere, s.expand(4))).abs().max())
            for s in between
        )

    assert error(20) / error(40) == pytest.approx(8, rel=0.25)


def test_a_large_latent_is_represented_by_a_sample_of_its_elements() -> None:
    noise = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    table = EULER.table(karras(6, 0.03, 80.0))
    few = subsample(80 * noise)
    assert few[0].numel() < noise[0].numel() and bool(torch.isin(few, 80 * noise).all())
    surrogate = surrogate_of(gaussian, table, 80 * noise)
    assert surrogate.error(table) < 1e-4


@pytest.mark.parametrize("extras", EXTRAS, ids=NAMES)
@pytest.mark.parametrize("steps", [4, 7])
def test_the_search_is_deterministic_by_seed_sorted_and_makes_no_model_call(
    steps: int, extras: dict[str, Any]
) -> None:
    model, surrogate, _ = gmm_surrogate()
    parameters, calls = few_parameters_of(model, EULER, steps, **extras), model.calls
    rounds: list[int] = []
    found = surrogate_search(surrogate, parameters, 3, lambda: rounds.append(model.calls))
    anew = gmm_surrogate()[1]
    again, other = (surrogate_search(anew, parameters, seed) for seed in (3, 4))
    assert len(found) > RANKED_SCHEDULES
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert not torch.equal(found[0], other[0])
    assert set(rounds) == {model.calls} == {calls}
    errors = [surrogate.error(parameters.discretization(z).table) for z in found]
    assert errors == sorted(errors)
    levels = parameters.levels
    for z in found:
        assert len(z) == parameters.size
        u = z[: parameters.free_levels]
        check_sigmas(levels.sigmas(u))
        torch.testing.assert_close(levels.separated(u), u)


@pytest.mark.parametrize("steps", [2, 5])
@pytest.mark.parametrize("extras", EXTRAS[1:], ids=NAMES[1:])
def test_found_extras_lie_between_zero_and_their_typical_extremes(
    steps: int, extras: dict[str, Any]
) -> None:
    """And some are not zero: descents begin with them."""
    model, surrogate, _ = gmm_surrogate()
    parameters = few_parameters_of(model, DPMPP_2M, steps, **extras)
    offsets = list(TYPICAL_OFFSETS)[-parameters.offsets :] if parameters.offsets else []
    typical = offsets + [TYPICAL_CORRECTION] * bool(extras.get("order"))
    assert len(typical) == parameters.size - parameters.free_levels
    found = torch.stack(surrogate_search(surrogate, parameters, 0))[:, steps - 1 :]
    shares = found / torch.tensor(typical, dtype=torch.float64)
    assert bool((shares >= 0).all()) and bool((shares <= 1).all())
    assert (found != 0).any(0).all()
    for z in surrogate_search(surrogate, parameters, 1):
        torch.testing.assert_close(parameters.stepped(z, 0 * z), z, rtol=0, atol=1e-9)


@pytest.mark.parametrize("extras", EXTRAS, ids=NAMES)
def test_the_search_beats_every_standard_schedule_on_the_surrogate_and_on_the_model(
    extras: dict[str, Any],
) -> None:
    model, surrogate, teacher = gmm_surrogate()
    parameters = few_parameters_of(model, DPMPP_2M, 5, **extras)
    found = surrogate_search(surrogate, parameters, 0)
    noise = torch.randn(32, 16, generator=torch.Generator().manual_seed(9))
    target = rollout(teacher, model, [80 * noise])[0]

    def errors(table: SolverTable) -> tuple[float, float]:
        result = rollout(table, model, [80 * noise])[0]
        return surrogate.error(table), float((result - target).square().mean())

    levels = [karras(5, 0.03, 80.0, rho) for rho in (1.0, 3.0, 7.0, 50.0)]
    standard = [errors(DPMPP_2M.table(sigmas)) for sigmas in levels]
    starts = [errors(parameters.discretization(z).table) for z in found]
    for on_surrogate_or_model in (0, 1):
        best = min(s[on_surrogate_or_model] for s in starts)
        assert best < min(s[on_surrogate_or_model] for s in standard)


def test_many_steps_are_searched_as_a_few_and_stretched_which_ends_nearer_to_the_teacher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, surrogate, teacher = gmm_surrogate()
    few, many = (few_parameters_of(model, DPMPP_2M, n) for n in (SEARCHED_STEPS, 10))
    noise = torch.randn(64, 16, generator=torch.Generator().manual_seed(9))
    target = rollout(teacher, model, [80 * noise])[0]

    def error(found: list[Tensor]) -> float:
        """Of the best that are ranked."""
        tables = [many.discretization(z).table for z in found[:RANKED_SCHEDULES]]
        return min(float(rmse(rollout(t, model, [80 * noise])[0] - target).mean()) for t in tables)

    stretched = []
    for z in surrogate_search(surrogate, few, 0):
        known = [LearnedParameters(few.all, few.expanded(z))]
        stretched.append(many.summarized(transferred(known, many.all)))
    found = surrogate_search(surrogate, many, 0, lambda: pytest.fail("the same search again"))
    assert {tuple(z.tolist()) for z in found} == {tuple(z.tolist()) for z in stretched}
    monkeypatch.setattr(candidates, "SEARCHED_STEPS", 10)
    assert error(found) < 0.8 * error(surrogate_search(surrogate, many, 0))


def test_searched_with_the_levels_extras_reduce_the_error_on_the_surrogate() -> None:
    model, surrogate, _ = gmm_surrogate()
    best = {}
    for name, extras in zip(NAMES, EXTRAS, strict=True):
        parameters = few_parameters_of(model, DPMPP_2M, 4, **extras)
        z = surrogate_search(surrogate, parameters, 0)[0]
        best[name] = surrogate.error(parameters.discretization(z).table)
    assert best["full"] < best["steps"] and best["times"] < best["steps"]


class Ranking(NamedTuple):
    """What a ranking made of a student in four steps; one standard schedule has more."""

    objective: Objective
    competitors: Competitors
    samples: TeacherSamples
    scores: dict[str, Tensor]
    found: list[Tensor]
    starts: list[Start]
    stages: list[str]
    calls: int


def ranked(
    extras: dict[str, Any],
    shared: bool = True,
    broken: tuple[str, ...] = (),
    always: tuple[str, ...] = (),
) -> Ranking:
    """Args: shared: first calls are the teacher's. broken: schedules with infinite results."""
    model = gmm16()
    parameters = few_parameters_of(model, sampler_of(model, "dpmpp_2m"), 4, **extras)
    schedules = standard_schedules(sampling_of(model), 4)
    schedules["longer"] = standard_schedules(sampling_of(model), 9)["karras"]
    baselines = {n: parameters.all.sampler.discretization(s) for n, s in schedules.items()}
    noise = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    teacher = scheduled(model, "dpmpp_2m", 24)
    samples = sample_teacher(model, teacher, noise, torch.zeros_like(noise))
    if not shared:
        samples = replace(samples, first_output=None)
    training, validation = samples[:16], samples[16:]
    known = training.trajectories(model.coordinate)
    surrogate = TrajectorySurrogate(known, subsample(training.target))
    objective, before = Objective(model, Distance()), model.calls
    competitors = Competitors(parameters, baselines, always)
    stages: list[str] = []
    progress = ProgressReporter(model, 0, lambda event: stages.append(event.stage))
    given = objective, competitors, surrogate, validation, progress
    scores = {
        name: score * torch.inf if name in broken else score
        for name, score in rank_baselines(*given).items()
    }
    found = surrogate_search(surrogate, parameters, 0)
    starts = rank_starts(objective, competitors, scores, found, validation, progress)
    calls = model.calls - before
    return Ranking(objective, competitors, validation, scores, found, starts, stages, calls)


@pytest.mark.parametrize("extras", EXTRAS[::3], ids=NAMES[::3])
def test_starts_are_ranked_by_the_model_in_different_basins(extras: dict[str, Any]) -> None:
    given = ranked(extras)
    parameters, starts = given.competitors.parameters, given.starts
    assert len(given.stages) == RANKED_BASELINES + RANKED_SCHEDULES
    assert [start.error for start in starts] == sorted(start.error for start in starts)
    for i, start in enumerate(starts):
        solver = parameters.discretization(start.theta)
        error = given.objective.error(solver, given.samples)
        assert start.error == pytest.approx(error, rel=1e-3)
        for other in starts[:i]:
            assert float((start.theta - other.theta)[:3].abs().max()) > DIFFERENT
    assert len(starts) > 1 and "longer" not in {start.name for start in starts}
    for start in starts:
        if start.name.startswith("trajectory"):
            z = given.found[int(start.name.split()[1]) - 1]
            assert torch.equal(start.theta, z)
        else:
            sigmas = given.competitors.baselines[start.name].sigmas
            torch.testing.assert_close(parameters.levels.sigmas(start.theta[:3]), sigmas)
            assert not start.theta[3:].any()


def test_the_best_standard_schedule_is_known_even_if_a_better_start_is_near() -> None:
    given = ranked({})
    standard = standard_starts(given.competitors, given.scores)
    means = {name: float(score.mean()) for name, score in given.scores.items()}
    first = [name for name in means if name not in ("longer", "ddim_uniform")]  # which differ
    assert [start.name for start in standard] == sorted(first, key=lambda name: means[name])
    scores = given.scores | {standard[0].name: 2 * given.scores[standard[0].name]}
    progress = ProgressReporter(given.objective.model, 0, lambda event: None)
    beside = [standard[0].theta]  # found on the surrogate, and better than its scores say
    starts = rank_starts(
        given.objective, given.competitors, scores, beside, given.samples, progress
    )
    assert "trajectory 1" in {start.name for start in starts}
    assert standard[0].name not in {start.name for start in starts}
    assert standard[0].name in {start.name for start in standard_starts(given.competitors, scores)}


def test_a_schedule_that_begins_lower_is_ranked_but_is_no_start() -> None:
    given = ranked({}, always=("ddim_uniform",))
    levels = given.competitors.parameters.levels
    assert given.competitors.baselines["ddim_uniform"].sigmas[0] < 0.9 * levels.start
    assert "ddim_uniform" in given.scores
    assert "ddim_uniform" not in {start.name for start in given.starts}


def test_of_the_standard_schedules_those_best_on_the_surrogate_are_ranked() -> None:
    given = ranked({})
    assert len(given.scores) == RANKED_BASELINES and "longer" in given.scores
    for name, score in given.scores.items():
        solver = given.competitors.baselines[name]
        assert torch.equal(score, given.objective.scores(solver, given.samples))
    reported = given.competitors.as_baselines()
    assert set(reported) == set(given.competitors.baselines)
    assert not reported["longer"].comparable and reported["longer"].model_calls == 9
    rest = [
        given.objective.error(solver, given.samples)
        for name, solver in given.competitors.baselines.items()
        if name not in given.scores
    ]
    best = min(float(score.mean()) for score in given.scores.values())
    assert rest and best < min(rest)


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
@pytest.mark.parametrize("extras", EXTRAS[::3], ids=NAMES[::3])
def test_rankings_make_the_calls_planned(extras: dict[str, Any], shared: bool) -> None:
    given = ranked(extras, shared)
    noises, competitors = len(given.samples), given.competitors
    teacher = given.samples.table
    assert teacher is not None
    planned = planned_calls(competitors, noises)
    made = sum(competitors.baselines[name].table.model_calls for name in given.scores)
    made += RANKED_SCHEDULES * competitors.parameters.calls
    assert planned == noises * made  # the longer one is among those ranked
    ranked_tables = [competitors.baselines[name].table for name in given.scores]
    saved = RANKED_SCHEDULES + sum(teacher.starts_as(table) for table in ranked_tables)
    assert given.calls == planned - shared * noises * saved
    at_least = shared_first_calls(competitors, teacher, noises)
    assert 0 < at_least <= noises * saved


def test_a_schedule_with_infinite_results_is_the_last_start() -> None:
    plain = ranked({})
    names = [start.name for start in plain.starts if not start.name.startswith("trajectory")]
    assert names
    starts = ranked({}, broken=(names[0],)).starts
    assert all(start.name != names[0] or start.error == float("inf") for start in starts)
    assert starts[0].error < float("inf")
