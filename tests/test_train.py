"""Whole trainings on problems whose denoiser is exact, so that errors are the schedule's alone."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor

from ld3.metrics import LATENT_DISTANCES
from ld3.parameters import check_sigmas
from ld3.table import Discretization, rollout
from ld3.training.bootstrap import bootstrap_interval
from ld3.training.gradient.gradient_settings import ADAM, PAPER, GradientSettings
from ld3.training.planning import planned_calls
from ld3.training.problem import TrainingProblem
from ld3.training.report import Progress, Report
from ld3.training.train import train

from .exact_problems import (
    SETTINGS,
    SMALL,
    SMOOTH,
    karras,
    learn,
    noises,
    problem,
    sampler_of,
    standard_schedules,
    training_task,
)

pytestmark = pytest.mark.usefixtures("one_thread")
HARD = replace(ADAM, radius=0.0)


def measured_errors(task: TrainingProblem, solver: Discretization, noise: Tensor) -> Tensor:
    """RMSE of each sample of a solver to the teacher's, from scratch."""
    model = task.model
    x = model.scale_noise(noise, torch.zeros_like(noise), float(solver.sigmas[0]))
    student, _ = rollout(solver.table, model.denoise, [x])
    x = model.scale_noise(noise, torch.zeros_like(noise), float(task.teacher.sigmas[0]))
    teacher, _ = rollout(task.teacher.table, model.denoise, [x])
    return (student - teacher).flatten(1).square().mean(1).sqrt()


def most_unused(task: TrainingProblem, settings: Any) -> int:
    """Planned calls that need not be made: first calls of standard schedules that start elsewhere.

    Which of them are ranked and tested is not known before.
    """
    first = task.teacher.table
    tables = [task.sampler.table(sigmas) for sigmas in task.baselines.values()]
    elsewhere = sum(not first.starts_as(table) for table in tables)
    return min(elsewhere, 4) * settings.validation_noises + settings.test_noises


@pytest.mark.parametrize(
    ("name", "sampler"),
    [("gmm16", "dpmpp_2m"), ("gmm16", "euler"), ("digits", "dpmpp_2m"), ("flow", "dpmpp_2m")],
)
def test_the_learned_schedule_beats_every_standard_one_on_unseen_noises(
    name: str, sampler: str
) -> None:
    given = problem(name)
    settings = SMOOTH if name == "digits" else SETTINGS
    task, (noise, latent) = training_task(given, settings, sampler), noises(given, settings)
    solver, report, _ = train(task, settings, noise, latent)
    sigmas = solver.sigmas
    assert report.chosen == "learned" and report.sigmas == sigmas.tolist()
    assert len(report.baselines) >= 6
    assert all(baseline.comparable for baseline in report.baselines.values())

    check_sigmas(sigmas)
    assert sigmas.dtype == torch.float32 and len(sigmas) == settings.steps + 1
    assert (float(sigmas[0]), float(sigmas[-1])) == (float(given.sampling.sigma_max), 0.0)

    unseen = noise[-settings.test_noises :]
    learned = measured_errors(task, solver, unseen)
    assert report.test_error == pytest.approx(float(learned.mean()), rel=1e-4)
    for baseline in report.baselines.values():
        standard = task.sampler.discretization(torch.tensor(baseline.sigmas))
        assert float(learned.mean()) < 0.9 * float(measured_errors(task, standard, unseen).mean())


def test_the_result_competes_with_the_schedule_that_won_the_ranking_on_the_test_noises() -> None:
    given = problem("gmm16")
    task, (noise, latent) = training_task(given, SMOOTH), noises(given, SMOOTH)
    solver, report, _ = train(task, SMOOTH, noise, latent)
    start = SMOOTH.training_noises
    validating = noise[start : start + SMOOTH.validation_noises]
    unseen = noise[-SMOOTH.test_noises :]
    ranked = {n: b for n, b in report.baselines.items() if b.ranking_error is not None}
    assert len(ranked) == 4
    for baseline in ranked.values():
        standard = task.sampler.discretization(torch.tensor(baseline.sigmas))
        error = float(measured_errors(task, standard, validating).mean())
        assert baseline.ranking_error == pytest.approx(error, rel=1e-4)
    (name,) = (n for n, b in report.baselines.items() if b.test_error is not None)
    assert ranked[name].ranking_error == min(b.ranking_error for b in ranked.values())
    assert report.best_baseline() == name

    learned = measured_errors(task, solver, unseen)
    standard = task.sampler.discretization(torch.tensor(report.baselines[name].sigmas))
    other = measured_errors(task, standard, unseen)
    assert report.baselines[name].test_error == pytest.approx(float(other.mean()), rel=1e-4)
    low, high = report.gain
    assert low <= float(learned.mean() / other.mean()) <= high < 1
    assert report.gain == pytest.approx(bootstrap_interval(learned, other), rel=1e-3)


@pytest.mark.parametrize("extras", [{}, {"decoupled": True, "order": 1, "output_mix": True}])
def test_every_model_call_is_counted_and_reported(extras: dict[str, Any]) -> None:
    given, made, events = problem("gmm16"), [0], []
    exact = given.model.denoise

    def counting(x: Tensor, sigma: Tensor) -> Tensor:
        made[0] += len(x)
        return exact(x, sigma)

    given.model.denoise = counting
    settings = replace(SMALL, **extras)
    report = learn(given, settings, on_progress=events.append).report
    assert given.model.calls == made[0]
    assert report.teacher_calls + report.training_calls + report.report_calls == made[0]
    taught = settings.training_noises + settings.validation_noises
    assert report.teacher_calls == taught * 24 + 1  # whether a first call repeats
    assert report.report_calls >= settings.test_noises * (24 + 2 + 2)
    calls = [entry.calls for entry in report.history]
    assert calls == sorted(calls) and calls[-1] <= report.teacher_calls + report.training_calls
    seen = [progress.calls for progress in events]
    assert seen == sorted(seen) and seen[-1] == made[0]
    task = training_task(given, settings)
    assert made[0] <= planned_calls(task, settings)
    assert {event.planned_calls for event in events} == {planned_calls(task, settings)}


def test_the_network_is_never_asked_the_same_twice() -> None:
    """Except once, by the check whether it repeats its answer: no set is sampled again."""
    given, asked = problem("gmm16"), Counter()
    exact = given.model.denoise

    def noting(x: Tensor, sigma: Tensor) -> Tensor:
        asked.update((float(s), tuple(row)) for s, row in zip(sigma, x.tolist(), strict=True))
        return exact(x, sigma)

    given.model.denoise = noting
    schedules = standard_schedules(given.sampling, SMALL.steps)
    del schedules["normal"]  # the same as exponential
    learn(given, SMALL, baselines=schedules)
    start = float(training_task(given, SMALL).teacher.sigmas[0])
    ((sigma, row),) = (question for question, count in asked.items() if count > 1)
    assert sigma == start
    torch.testing.assert_close(torch.tensor(row), start * noises(given, SMALL)[0][0])
    first = sum(count for (sigma, _), count in asked.items() if abs(sigma / start - 1) < 1e-6)
    assert first == SMALL.noises + 1


def test_a_training_counts_only_its_own_calls() -> None:
    """Its model may have been used before."""
    reports = []
    for earlier in (0, 1000):
        given = problem("gmm16")
        given.model.calls = earlier
        reports.append(learn(given, SMALL).report)
    assert reports[0] == reports[1]


@pytest.mark.slow
@pytest.mark.parametrize("decoupled", [False, True], ids=["steps", "decoupled"])
@pytest.mark.parametrize("secant", [False, True], ids=["derivative", "secant"])
@pytest.mark.parametrize("gradient", [ADAM, PAPER, HARD], ids=["adam", "paper", "hard"])
def test_as_many_calls_are_planned_as_a_training_by_gradient_makes(
    gradient: GradientSettings, secant: bool, decoupled: bool
) -> None:
    given, events = problem("gmm16"), []
    if secant:
        given.model.time_neighbours = lambda sigma: (0.95 * sigma, 1.05 * sigma)
    few = replace(gradient, steps_rounds=3, extra_rounds=4)
    # 10 noises are no multiple of a batch
    settings = replace(SMOOTH, steps=3, training_noises=10, gradient=few, decoupled=decoupled)
    learn(given, settings, on_progress=events.append)
    unused = events[0].planned_calls - given.model.calls
    assert 0 <= unused <= most_unused(training_task(given, settings), settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sampler", "extras"),
    [
        ("gmm16", "dpmpp_2m", {}),
        ("gmm16", "heun", {"output_mix": True}),
        ("digits", "dpmpp_2m", {"order": 1}),
        ("flow", "euler", {}),
        ("gmm16", "euler", {"gradient": replace(ADAM, steps_rounds=2)}),
    ],
)
def test_of_the_calls_planned_for_dode_only_those_of_rejected_lambdas_are_not_made(
    name: str, sampler: str, extras: dict[str, Any]
) -> None:
    """Planned are the validations of half the lambdas and of the student with lambdas."""
    given, events = problem(name), []
    settings = replace(SMOOTH, training_noises=16, dode=True, **extras)
    solver = learn(given, settings, sampler, events.append).solver
    calls = solver.table.model_calls
    rejected = (0, calls, calls + calls - 1)  # validations; the second begins as the teacher does
    unused = events[0].planned_calls - given.model.calls
    most = most_unused(training_task(given, settings, sampler), settings)
    unused -= max(n for n in rejected if n * settings.validation_noises <= unused) * (
        settings.validation_noises
    )
    assert 0 <= unused <= most


@pytest.mark.slow
def test_extras_bring_samples_closer_to_the_teacher_on_unseen_noises() -> None:
    """On average: which basin one seed finds is chance."""
    given, errors, named = problem("digits"), [], []
    for extras in ({}, {"decoupled": True}, {"decoupled": True, "order": 1, "output_mix": True}):
        settings = replace(SMOOTH, **extras)
        reports = [learn(given, replace(settings, seed=seed)).report for seed in range(3)]
        errors.append(fmean(report.test_error or math.inf for report in reports))
        named.append([report.extras for report in reports])
    steps, decoupled, solver = errors
    assert decoupled < 0.5 * steps and solver < 0.95 * decoupled
    assert all(extras == ["decoupled times"] for extras in named[1])
    assert all(extras[:2] == ["decoupled times", "solver corrections"] for extras in named[2])


def test_the_same_seed_gives_the_same_bits() -> None:
    results = [learn(problem("gmm16"), SMALL) for _ in range(2)]
    assert torch.equal(results[0].solver.sigmas, results[1].solver.sigmas)
    assert results[0].report == results[1].report


@pytest.mark.slow
@pytest.mark.parametrize("distance", LATENT_DISTANCES)
def test_every_distance_learns(distance: str) -> None:
    given = problem("gmm16")
    settings = replace(SETTINGS, distance=distance, iterations=4)
    report = learn(given, settings).report
    name = report.best_baseline()
    assert name and report.chosen == "learned"
    assert report.test_error < report.baselines[name].test_error
    assert report.gain[1] < 1


def test_a_standard_schedule_that_wins_is_returned_and_named() -> None:
    """The report still says what was learned."""
    given = problem("gmm16")
    baselines = standard_schedules(given.sampling, 3)
    task = training_task(given, SMALL, baselines=baselines)
    # the teacher's samples are this schedule's: no student can be closer to them
    teacher = replace(task.teacher, table=task.sampler.table(baselines["beta"]))
    task = replace(task, teacher=teacher)
    noise, latent = noises(given, SMALL)
    solver, report, _ = train(task, SMALL, noise, latent)
    assert report.chosen == "beta" and torch.equal(solver.sigmas, baselines["beta"])
    assert report.baselines["beta"].test_error == pytest.approx(0, abs=1e-4)
    learned = task.sampler.discretization(torch.tensor(report.sigmas))
    error = float(measured_errors(task, learned, noise[-SMALL.test_noises :]).mean())
    assert report.test_error == pytest.approx(error, rel=1e-4, abs=1e-4)


def test_a_standard_schedule_with_more_calls_is_ranked_but_cannot_win() -> None:
    given = problem("gmm16")
    baselines = {
        "karras": standard_schedules(given.sampling, 3)["karras"],
        "longer": standard_schedules(given.sampling, 16)["karras"],
    }
    solver, report, _ = learn(given, SMALL, baselines=baselines)
    assert [b.comparable for b in report.baselines.values()] == [True, False]
    assert report.baselines["longer"].ranking_error < report.baselines["karras"].ranking_error
    assert report.baselines["longer"].test_error is None
    assert report.baselines["karras"].test_error is not None
    assert report.best_baseline() == "karras"
    assert len(solver.sigmas) == 4 and report.chosen != "longer"


def test_a_schedule_can_be_learned_without_any_standard_one() -> None:
    solver, report, _ = learn(problem("gmm16"), SMALL, baselines={})
    check_sigmas(solver.sigmas)
    assert report.chosen == "learned" and report.best_baseline() is None
    assert report.gain == [] and report.test_error is not None


def test_the_end_of_the_first_part_of_a_split_sampling_is_kept() -> None:
    given = problem("gmm16")
    whole = standard_schedules(given.sampling, 6)["karras"]
    end = float(whole[3])
    teacher = whole.new_tensor([80.0, 40, 30, 20, 15, 12, 10, 9, 8, 7])
    teacher = torch.cat([teacher[teacher > end], torch.tensor([end])])
    sampler = sampler_of(given.model, "euler")
    task = TrainingProblem(
        given.model, sampler, sampler.discretization(teacher), 80.0, {"karras": whole[:4]}, end
    )
    sigmas = train(task, SMALL, *noises(given, SMALL)).solver.sigmas
    assert (float(sigmas[0]), float(sigmas[-1])) == (80.0, end)
    check_sigmas(sigmas)


def test_reports_are_plain_json_at_every_stage() -> None:
    texts = []

    def note(progress: Progress) -> None:
        texts.append(json.dumps(progress.report.as_json(), allow_nan=False))

    report = learn(problem("gmm16"), SMALL, on_progress=note).report
    again = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert Report.from_json(again) == report
    assert len(texts) > 5 and len(again["history"]) == 1 + SMALL.validations


def test_a_teacher_without_more_steps_than_the_student_is_refused() -> None:
    given = problem("gmm16")
    sampler = sampler_of(given.model, "euler")
    teacher = sampler.discretization(standard_schedules(given.sampling, 3)["karras"])
    task = TrainingProblem(given.model, sampler, teacher, 80.0)
    with pytest.raises(ValueError, match="teacher_steps is 3 and steps 3"):
        train(task, SMALL, *noises(given, SMALL))


@pytest.mark.parametrize(("steps", "reason"), [(1, "use 2 or more"), (500, "fewer steps")])
def test_numbers_of_steps_without_a_schedule_to_learn_are_refused(steps: int, reason: str) -> None:
    given = problem("gmm16")
    teacher = sampler_of(given.model, "euler").discretization(karras(501, 0.03, 80.0))
    with pytest.raises(ValueError, match=f"steps is {steps}.*{reason}"):
        learn(given, replace(SMALL, steps=steps), baselines={}, teacher=teacher)
    assert given.model.calls == 0


@pytest.mark.parametrize("bad", [1, 12])
def test_a_model_without_a_usable_result_is_refused(bad: int) -> None:
    given = problem("gmm16")
    exact = given.model.denoise
    noise, latent = noises(given, SMALL)

    def broken(x: Tensor, sigma: Tensor) -> Tensor:
        return exact(x, sigma) * torch.where(x[:, :1].abs() > 1e4, torch.nan, 1.0)

    given.model.denoise = broken
    noise[:bad, 0] = 1e6
    with pytest.raises(ValueError, match="undefined .NaN. for .*plain KSampler"):
        train(training_task(given, SMALL), SMALL, noise, latent)


def test_noise_levels_at_which_a_model_fails_are_avoided() -> None:
    given = problem("gmm16")
    exact = given.model.denoise
    task = training_task(given, SMALL)
    level = float(task.baselines["karras"][1])

    def gap(x: Tensor, sigma: Tensor) -> Tensor:
        return exact(x, sigma) * (torch.nan if abs(float(sigma[0]) / level - 1) < 0.01 else 1.0)

    given.model.denoise = gap
    solver, report, _ = train(task, SMALL, *noises(given, SMALL))
    assert report.test_error < 10
    assert all(abs(s / level - 1) >= 0.01 for s in solver.sigmas.tolist())
    # undefined errors are unknown numbers, also in files
    assert report.baselines["karras"].ranking_error is None
    assert report.baselines["karras"].test_error is None
    json.dumps(report.as_json(), allow_nan=False)


def test_an_interruption_comes_through() -> None:
    def interrupt_at(stage: str) -> Callable[[Progress], None]:
        def on_progress(progress: Progress) -> None:
            if progress.stage.startswith(stage):
                raise KeyboardInterrupt

        return on_progress

    for stage in ("teacher", "ranking", "searching", "learning", "measuring"):
        with pytest.raises(KeyboardInterrupt):
            learn(problem("gmm16"), SMALL, on_progress=interrupt_at(stage))
