"""Other numbers of steps from one training: few calls each, and none between them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from ld3.metrics import rmse
from ld3.model import Model
from ld3.table import Discretization
from ld3.training import final_test, other_steps, other_steps_planning
from ld3.training import train as train_module
from ld3.training.other_steps import INTERPOLATED
from ld3.training.planning import planned_calls, within_budget
from ld3.training.report import Learned, Progress, Report
from ld3.training.settings import TrainingSettings
from ld3.training.train import train

from .exact_problems import (
    SMALL,
    Problem,
    noises,
    problem,
    scheduled,
    standard_schedules,
    training_task,
)

FULL = {"decoupled": True, "order": 1}
BUDGET = 2_500


def trained(
    given: Problem, also_steps: tuple[int, ...], sampler: str = "dpmpp_2m", **changes: Any
) -> tuple[Learned, int, list[Progress]]:
    """A training of 4 steps with the calls of quality normal; what it returns, plans and shows."""
    settings = TrainingSettings(steps=4, also_steps=also_steps, **changes)
    task = training_task(given, settings, sampler)
    task = replace(task, schedules=partial(standard_schedules, given.sampling))
    settings = within_budget(task, settings, BUDGET + 300 * len(also_steps))
    events: list[Progress] = []
    learned = train(task, settings, *noises(given, settings), on_progress=events.append)
    return learned, planned_calls(task, settings), events


def error_of(model: Model, solver: Discretization, shape: tuple[int, ...]) -> float:
    """Mean RMSE to 60 steps of the teacher's sampler, on 128 other noises."""
    noise = torch.randn(128, *shape, generator=torch.Generator().manual_seed(977))
    reference = scheduled(model, "dpmpp_2m", 60, "beta")
    outs = [model.sample(s, noise, torch.zeros_like(noise))[0] for s in (solver, reference)]
    return float(rmse(outs[0] - outs[1]).mean())


@pytest.fixture(scope="module")
def digits() -> tuple[Learned, int, list[Progress]]:
    """The full solver of 4 steps, and of 3, 6 and 8."""
    return trained(problem("digits"), (3, 6, 8), **FULL)


def test_every_number_from_the_smallest_to_the_largest_is_returned(digits: Any) -> None:
    learned = digits[0]
    assert list(learned.others) == [3, 5, 6, 7, 8]
    for steps, other in learned.others.items():
        assert other.solver.steps == steps and other.solver.extras == learned.solver.extras
        assert other.report.sigmas == other.solver.sigmas.tolist()
        assert (other.report.chosen == INTERPOLATED) == (steps in (5, 7))


def test_another_number_of_steps_costs_at_most_300_calls(digits: Any) -> None:
    learned, planned, events = digits
    report = learned.report
    calls = report.teacher_calls + report.training_calls + report.report_calls
    for steps, other in learned.others.items():
        cost = other.report.teacher_calls + other.report.training_calls + other.report.report_calls
        assert cost <= 300 * max(steps, 6) / 6 if steps in (3, 6, 8) else cost == 0
        calls += cost
    assert events[-1].calls == calls <= planned <= BUDGET + 3 * 300
    assert all(event.calls <= event.planned_calls for event in events)


def test_all_numbers_of_steps_are_far_better_than_standard_schedules(digits: Any) -> None:
    given = problem("digits")
    for steps, other in digits[0].others.items():
        standards = [
            scheduled(given.model, "dpmpp_2m", steps, name)
            for name in standard_schedules(given.sampling, steps)
        ]
        best = min(
            error_of(given.model, standard, given.shape)
            for standard in standards
            if standard.steps == steps
        )
        assert error_of(given.model, other.solver, given.shape) < 0.75 * best, steps


def test_the_first_number_of_steps_is_learned_as_without_others() -> None:
    given = problem("flow")
    settings = replace(SMALL, steps=4, **FULL)
    task = training_task(given, settings)
    task = replace(task, schedules=partial(standard_schedules, given.sampling))
    found = [
        train(task, replace(settings, also_steps=also), *noises(given, settings))
        for also in ((), (3, 5))
    ]
    assert torch.equal(found[0].solver.sigmas, found[1].solver.sigmas)
    assert torch.equal(found[0].solver.table.weights, found[1].solver.table.weights)
    assert list(found[0].others) == [] and list(found[1].others) == [3, 5]


def test_plain_sigmas_of_others_have_their_steps_and_ends(digits: Any) -> None:
    for steps, other in digits[0].others.items():
        plain = other.report.steps_sigmas
        assert len(plain) == steps + 1
        assert (plain[0], plain[-1]) == (other.report.sigmas[0], other.report.sigmas[-1])


def test_steps_for_the_plain_sampler_are_learned_where_no_standard_schedule_begins() -> None:
    """As below denoise 1, where standard schedules begin a little lower or higher."""
    given = problem("flow")
    settings = replace(SMALL, steps=4, also_steps=(3,), **FULL)
    task = training_task(given, settings)

    def lower(steps: int) -> dict[str, Tensor]:
        return {"lower": 0.97 * torch.linspace(task.start_sigma, 0, steps + 1)}

    task = replace(task, baselines=lower(4), schedules=lower)
    learned = train(task, settings, *noises(given, settings))
    for report in (learned.report, learned.others[3].report):
        plain = report.steps_sigmas
        assert report.chosen == "learned" and plain[0] == pytest.approx(task.start_sigma)
        assert plain == sorted(plain, reverse=True)
    assert learned.report.steps_error is not None
    assert learned.others[3].report.steps_error is None  # nothing was measured


@pytest.mark.parametrize("sampler", ["heun", "euler"])
def test_steps_alone_and_samplers_of_several_calls_are_learned_too(sampler: str) -> None:
    learned = trained(problem("flow"), (5,), sampler)[0]
    other = learned.others[5]
    assert other.solver.steps == 5 and not other.solver.extras and not other.report.steps_sigmas


def test_between_numbers_that_return_a_standard_schedule_nothing_learned_is_interpolated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def standard_wins(*given: Any) -> Report:
        return replace(final_test.measured_report(*given), chosen="simple")

    for module in (train_module, other_steps):
        monkeypatch.setattr(module, "measured_report", standard_wins)
    given = problem("flow")
    settings = replace(SMALL, steps=4, also_steps=(6,), **FULL)
    task = training_task(given, settings)
    task = replace(task, schedules=partial(standard_schedules, given.sampling))
    others = train(task, settings, *noises(given, settings)).others
    assert [other.report.chosen for other in others.values()] == [INTERPOLATED, "simple"]
    between = others[5].solver
    torch.testing.assert_close(between.table.eval_sigmas, between.table.state_sigmas)
    plain = task.sampler.table(between.sigmas)
    torch.testing.assert_close(between.table.weights, plain.weights)
    known = standard_schedules(given.sampling, 5)["simple"]
    assert bool(((between.sigmas - known)[1:-1].abs() < 0.05).all())


def test_a_number_that_the_teacher_does_not_exceed_is_refused() -> None:
    with pytest.raises(ValueError, match="also_steps contains 24: teacher_steps is 24"):
        trained(problem("digits"), (24,))


def test_a_number_with_more_calls_than_a_file_holds_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(other_steps_planning, "MOST_CALLS", 7)
    with pytest.raises(ValueError, match="also_steps contains 8, .* makes 8 model calls"):
        trained(problem("digits"), (8,))
