"""Dividing a number of model calls: never exceeded, well used, and refused where too small."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from ld3.training.budget import (
    DESCENTS,
    LEAST_NOISES,
    LEAST_OTHERS,
    LEAST_TRAINING,
    QUALITIES,
    calls_of,
    within,
)
from ld3.training.planning import planned_calls, within_budget
from ld3.training.problem import TrainingProblem
from ld3.training.settings import TrainingSettings
from ld3.training.steps_saved import (
    MOST_OWN,
    MOST_STANDARD,
    OWN_MULTIPLES,
    STANDARD_MULTIPLES,
    Rival,
)

from .exact_problems import Problem, learn, problem, scheduled, training_task

pytestmark = pytest.mark.usefixtures("one_thread")
TIMES, FULL = {"decoupled": True}, {"decoupled": True, "order": 1, "output_mix": True}
LEARNED = [{}, TIMES, FULL]
NAMES = ["steps", "times", "full"]


def task_of(settings: TrainingSettings, sampler: str = "dpmpp_2m", teacher: int = 20) -> Any:
    given = problem("gmm16")
    reference = scheduled(given.model, "dpmpp_2m", teacher)
    return training_task(given, settings, sampler, teacher=reference)


def divided(task: TrainingProblem, settings: TrainingSettings, calls: int) -> tuple[Any, int]:
    """The settings for a budget, and the calls planned for them."""
    found = within_budget(task, settings, calls)
    return found, planned_calls(task, found)


@pytest.mark.parametrize("extras", LEARNED, ids=NAMES)
@pytest.mark.parametrize(("sampler", "steps"), [("dpmpp_2m", 4), ("heun", 4), ("euler", 8)])
def test_a_budget_is_never_exceeded(sampler: str, steps: int, extras: dict[str, Any]) -> None:
    settings = TrainingSettings(steps=steps, **extras)
    task = task_of(settings, sampler)
    for calls in (1_500, 2_500, 4_000, 8_000, 25_000, 100_000):
        found, planned = divided(task, settings, calls)
        assert planned <= calls
        assert 20 * found.noises <= max(calls / 3, 20 * (LEAST_TRAINING + 2 * LEAST_OTHERS))
        assert found.training_noises >= LEAST_TRAINING
        assert min(found.validation_noises, found.test_noises) >= LEAST_OTHERS
        assert (found.descents, found.iterations) in DESCENTS
        least = LEAST_NOISES if found.iterations > 1 else 1
        assert least <= found.gauss_newton.noises <= found.training_noises


@pytest.mark.parametrize("extras", LEARNED, ids=NAMES)
@pytest.mark.parametrize(
    ("sampler", "steps"), [("dpmpp_2m", 2), ("dpmpp_2m", 6), ("ipndm", 10), ("heun", 5)]
)
def test_every_quality_uses_more_than_sixty_percent_of_its_calls(
    sampler: str, steps: int, extras: dict[str, Any]
) -> None:
    settings = TrainingSettings(steps=steps, **extras)
    task = task_of(settings, sampler)
    for quality in QUALITIES:
        calls = calls_of(quality, steps)
        found, planned = divided(task, settings, calls)
        assert 0.6 * calls <= planned <= calls
        assert found.iterations >= 4 or found.training_noises == LEAST_TRAINING


@pytest.mark.slow
def test_a_larger_budget_suffices_however_many_calls_the_student_makes() -> None:
    """Ranking heun's students in 10 steps costs 8 * 19 calls for each validation noise."""
    settings = TrainingSettings(steps=10, **FULL)
    task = task_of(settings, "heun")
    _, planned = divided(task, settings, calls_of("normal", 10))
    assert planned <= calls_of("normal", 10)
    found, planned = divided(task, settings, calls_of("best", 10))
    assert planned <= calls_of("best", 10) and found.iterations >= 4


def test_a_quality_makes_more_calls_for_more_than_six_steps() -> None:
    assert [calls_of("normal", steps) for steps in (2, 6, 9, 12)] == [2500, 2500, 3750, 5000]
    assert list(QUALITIES.values()) == sorted(QUALITIES.values())


def test_only_sizes_change_and_what_is_learned_stays() -> None:
    settings = TrainingSettings(steps=4, decoupled=True, order=1, distance="l2", seed=7)
    found = within_budget(task_of(settings), settings, 2_500)
    sizes = {
        name: getattr(settings, name)
        for name in (
            "training_noises", "validation_noises", "test_noises", "descents", "iterations"
        )
    }  # fmt: skip
    constants = replace(found.gauss_newton, noises=settings.gauss_newton.noises)
    assert replace(found, **sizes, gauss_newton=constants) == settings


def test_one_more_noise_per_iteration_would_exceed_the_budget() -> None:
    """Or there are no more training noises."""
    settings = TrainingSettings(steps=4, **TIMES)
    task = task_of(settings)
    for calls in range(1_500, 6_000, 500):
        found = within_budget(task, settings, calls)
        noises = found.gauss_newton.noises + 1
        more = replace(found, gauss_newton=replace(found.gauss_newton, noises=noises))
        assert noises > found.training_noises or planned_calls(task, more) > calls


def test_more_descents_than_chosen_would_not_have_noises_enough() -> None:
    settings = TrainingSettings(steps=4, **TIMES)
    task = task_of(settings)
    for calls in (1_500, 2_500, 5_000, 10_000):
        found = within_budget(task, settings, calls)
        for descents, iterations in DESCENTS[: DESCENTS.index((found.descents, found.iterations))]:
            constants = replace(found.gauss_newton, noises=LEAST_NOISES)
            more = replace(found, descents=descents, iterations=iterations, gauss_newton=constants)
            assert planned_calls(task, more) > calls


@pytest.mark.parametrize("teacher", [20, 60])
def test_a_budget_that_is_too_small_is_refused_with_the_numbers(teacher: int) -> None:
    settings = TrainingSettings(steps=4)
    task = task_of(settings, teacher=teacher)
    least = LEAST_TRAINING + 2 * LEAST_OTHERS
    with pytest.raises(ValueError) as caught:
        within_budget(task, settings, 300)
    text = str(caught.value)
    assert "budget of 300 model calls" in text
    assert f"{least} times with {teacher} calls" in text and "higher quality" in text
    needed = int(text.split("and makes ")[1].split(" calls")[0])
    assert planned_calls(task, within_budget(task, settings, needed)) <= needed
    with pytest.raises(ValueError, match=f"{needed} calls in all"):
        within_budget(task, settings, needed - 1)


def test_a_training_that_costs_nothing_per_noise_gets_all_training_noises() -> None:
    """`within` needs nothing but a count of calls."""
    settings = TrainingSettings(steps=4)

    def count(fixed: int, s: TrainingSettings) -> int:
        return fixed + s.iterations * s.gauss_newton.noises

    found = within(3_000, settings, 20, partial(count, 1_000))
    assert (found.descents, found.iterations) == DESCENTS[0]
    assert found.training_noises == found.gauss_newton.noises == 50 - 2 * 10 == 30
    assert (found.validation_noises, found.test_noises) == (10, 10)


def test_a_standard_schedule_that_cannot_be_run_is_not_planned_for() -> None:
    given, asked = problem("gmm16"), []

    def standard(scheduler: str) -> Rival:
        asked.append(scheduler)
        return rival(given, "dpmpp_2m", scheduler, (STANDARD_MULTIPLES, 8))

    settings = TrainingSettings(steps=4)
    task = training_task(given, settings, standard=standard)
    other = replace(task, baselines={"broken": torch.zeros(0)} | task.baselines)
    assert planned_calls(other, settings) == planned_calls(task, settings)
    assert "broken" not in asked and asked


@pytest.mark.slow
def test_the_users_own_schedule_is_counted_once_if_it_is_the_best_standard_one() -> None:
    """And no call is made for it that the best standard schedule's does not need."""
    given, settings = problem("gmm16"), TrainingSettings(steps=4, **FULL)
    baselines = {"karras": scheduled(given.model, "dpmpp_2m", 4).sigmas}
    own = rival(given, "dpmpp_2m", "karras", (OWN_MULTIPLES, 4 * MOST_OWN))
    rivals = {
        "teacher": scheduled(given.model, "dpmpp_2m", 20),
        "baselines": baselines,
        "own": own,
        "standard": lambda scheduler: replace(own, name=f"dpmpp_2m + {scheduler}"),
    }
    task = training_task(given, settings, **rivals)
    report = learn(given, within_budget(task, settings, 2_500), **rivals).report
    assert report.chosen == "learned"
    assert [curve.name for curve in report.compared] == [own.name]
    assert report.compared[0].steps[0] == 4  # known from the test


@pytest.mark.slow
@pytest.mark.parametrize("extras", LEARNED, ids=NAMES)
@pytest.mark.parametrize("name", ["gmm16", "digits"])
def test_a_training_within_a_budget_makes_at_most_so_many_calls(
    name: str, extras: dict[str, Any]
) -> None:
    """And of normal quality a quarter of them at most serves the report, its teacher included."""
    for calls in (1_500, calls_of("normal", 4)):
        given = problem(name)
        settings = TrainingSettings(steps=4, **extras)
        rivals = {
            "teacher": scheduled(given.model, "dpmpp_2m", 20),
            "own": rival(given, "euler", "simple", (OWN_MULTIPLES, 4 * MOST_OWN)),
            "standard": lambda scheduler, given=given: rival(
                given, "dpmpp_2m", scheduler, (STANDARD_MULTIPLES, 4 * MOST_STANDARD)
            ),
        }
        task = training_task(given, settings, **rivals)
        report = learn(given, within_budget(task, settings, calls), **rivals).report
        assert 0.6 * calls <= given.model.calls <= calls
        assert report.teacher_calls + report.training_calls + report.report_calls <= calls
        assert report.chosen != "learned" or len(report.compared) == 2
    assert report.report_calls <= 0.25 * given.model.calls


def rival(given: Problem, sampler: str, scheduler: str, tried: tuple[Any, int]) -> Rival:
    """ComfyUI's sampler and scheduler, at these multiples of steps and most calls."""
    solver = partial(scheduled, given.model, sampler, scheduler=scheduler)
    return Rival(f"{sampler} + {scheduler}", solver, *tried)
