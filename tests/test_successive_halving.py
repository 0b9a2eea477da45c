"""Successive halving of Gauss-Newton's descents, on problems whose denoiser is exact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ld3.few_parameters import FewParameters
from ld3.solver_parameters import SolverParameters
from ld3.table import Discretization
from ld3.training import train as training_module
from ld3.training.candidates import Start
from ld3.training.gauss_newton import GaussNewton, calls_per_noise
from ld3.training.gradient.gradient_settings import PAPER
from ld3.training.settings import ITERATIONS_PER_VALIDATION, TrainingSettings
from ld3.training.successive_halving import planned_calls, samplings
from ld3.training.validation import Validation

from .exact_problems import (
    SMOOTH,
    Problem,
    few_parameters_of,
    learn,
    problem,
    sampler_of,
    training_task,
)

pytestmark = pytest.mark.usefixtures("one_thread")
TIMES, FULL = {"decoupled": True}, {"decoupled": True, "order": 1}
FORMS = [(1, 1), (1, 6), (2, 8), (3, 2), (3, 12), (6, 20)]


@pytest.fixture
def considered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Discretization, Tensor]]:
    """(student, theta) of all that is validated after the first."""
    seen: list[tuple[Discretization, Tensor]] = []
    consider = Validation.consider

    def recorded(
        self: Validation, name: str, student: Discretization, theta: Tensor, descended: bool
    ) -> float:
        seen.append((student, theta))
        return consider(self, name, student, theta, descended)

    monkeypatch.setattr(Validation, "consider", recorded)
    return seen


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[list[Start]]:
    """The different starts that each training found."""
    found: list[list[Start]] = []
    rank = training_module.rank_starts

    def recorded(*given: Any) -> Any:
        found.append(rank(*given))
        return found[-1]

    monkeypatch.setattr(training_module, "rank_starts", recorded)
    return found


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> list[GaussNewton]:
    """The descent of each iteration."""
    seen: list[GaussNewton] = []
    step = GaussNewton.step

    def recorded(self: GaussNewton, samples: Any) -> Tensor:
        seen.append(self)
        return step(self, samples)

    monkeypatch.setattr(GaussNewton, "step", recorded)
    return seen


@pytest.mark.parametrize(("descents", "iterations"), FORMS)
def test_ever_fewer_descents_go_on_and_the_best_makes_all_iterations(
    descents: int, iterations: int
) -> None:
    settings = TrainingSettings(steps=4, descents=descents, iterations=iterations)
    rounds = settings.rounds
    going = [planned.descents for planned in rounds]
    assert going[0] == settings.starts == descents
    assert going == sorted(set(going), reverse=True) and going[-1] == 1
    assert all(planned.noises == settings.gauss_newton.noises for planned in rounds)
    assert all(planned.iterations >= 1 for planned in rounds)
    total = sum(planned.iterations for planned in rounds)
    assert total == max(iterations, len(rounds))
    if len(rounds) > 1:  # a quarter for the many
        assert rounds[0].iterations == max(1, iterations // 4)


def test_a_descent_by_gradient_has_one_start() -> None:
    assert TrainingSettings(steps=4, descents=3, gradient=PAPER).starts == 1


@pytest.mark.parametrize("extras", [{}, TIMES, FULL], ids=["steps", "times", "full"])
@pytest.mark.parametrize(("descents", "iterations"), FORMS)
def test_students_are_validated_where_descents_compete_and_then_regularly(
    descents: int,
    iterations: int,
    extras: dict[str, Any],
    considered: list[tuple[Discretization, Tensor]],
    starts: list[list[Start]],
) -> None:
    few = {"training_noises": 8, "validation_noises": 4, "test_noises": 4}
    settings = replace(SMOOTH, steps=3, descents=descents, iterations=iterations, **few, **extras)
    report = learn(problem("gmm16"), settings).report
    missing = max(0, descents - len(starts[0]))
    last = settings.rounds[-1].iterations
    assert len(considered) == settings.validations - missing
    assert len(considered) >= -(-last // ITERATIONS_PER_VALIDATION)
    # before them the best start
    assert len(report.history) == len(considered) + 1
    assert report.history[0].error == pytest.approx(starts[0][0].error)


@pytest.mark.parametrize("extras", [{}, FULL], ids=["steps", "full"])
def test_the_end_of_a_lone_descent_is_validated(
    extras: dict[str, Any], considered: list[tuple[Discretization, Tensor]]
) -> None:
    settings = replace(SMOOTH, steps=2, descents=1, iterations=1, **extras)
    initial = learn(problem("gmm16"), settings).report.initial_sigmas
    (student, theta), *more = considered
    assert not more and student.sigmas.tolist() != initial
    if extras:
        assert (theta[settings.steps - 1 :] != 0).any()


@pytest.mark.parametrize(("descents", "iterations"), [(1, 6), (3, 8), (6, 8)])
def test_the_last_iterations_learn_the_extras_one_by_one(
    descents: int, iterations: int, stepped: list[GaussNewton]
) -> None:
    """Half of the last round; before them few numbers, and all continue where those ended."""
    settings = replace(SMOOTH, steps=4, descents=descents, iterations=iterations, **FULL)
    few_noises = replace(settings, training_noises=8, validation_noises=4, test_noises=4)
    learn(problem("gmm16"), few_noises)
    full = [d for d in stepped if d.parameters.extras]  # not of the steps alone
    kinds = [type(descent.parameters) for descent in full]
    single = settings.rounds[-1].iterations // 2
    assert single > 0 and kinds[-single:] == [SolverParameters] * single
    assert set(kinds[:-single]) == {FewParameters}
    before, after = full[-single - 1], full[-1]
    assert isinstance(before.parameters, FewParameters)
    assert after.parameters == before.parameters.all and after is full[-single]
    theta = before.parameters.expanded(before.theta)
    assert len(after.theta) == len(theta) > len(before.theta)
    assert not torch.equal(after.theta, theta)
    assert after.done == sum(planned.iterations for planned in settings.rounds)
    assert after.iterations == before.iterations  # the caps of steps go on decreasing


def test_without_extras_nothing_is_learned_one_by_one(stepped: list[GaussNewton]) -> None:
    learn(problem("gmm16"), replace(SMOOTH, training_noises=8, validation_noises=4, test_noises=4))
    assert {type(descent.parameters) for descent in stepped} == {FewParameters}


@pytest.mark.parametrize("extras", [{}, TIMES, FULL], ids=["steps", "times", "full"])
@pytest.mark.parametrize("descents", [1, 2, 3, 6])
def test_planned_calls_are_those_of_all_normal_equations_and_validations(
    descents: int, extras: dict[str, Any]
) -> None:
    """One more noise per iteration, or validation noise, costs what its samplings cost."""
    given = problem("gmm16")
    sampler = sampler_of(given.model, "dpmpp_2m")
    parameters = few_parameters_of(given.model, sampler, 4, **extras)
    settings = replace(SMOOTH, steps=4, descents=descents, iterations=8, **extras)

    def more(**changes: Any) -> int:
        return planned_calls(parameters, replace(settings, **changes)) - planned_calls(
            parameters, settings
        )

    noises = settings.gauss_newton.noises
    z = parameters.extended(parameters.levels.even(4))
    few = calls_per_noise(parameters, z, 0.05)
    single = calls_per_noise(parameters.all, parameters.expanded(z), 0.05)
    late = settings.rounds[-1].iterations // 2 if extras else 0
    steps = sum(planned.descents * planned.iterations for planned in settings.rounds)
    one = replace(settings.gauss_newton, noises=noises + 1)
    assert more(gauss_newton=one) == (steps - late) * few + late * single
    assert more(validation_noises=SMOOTH.validation_noises + 1) == settings.validations * 4
    expected = steps * noises + settings.validations * settings.validation_noises
    assert samplings(settings) == expected
    if extras:
        assert few < single


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "steps", "training_noises", "extras"),
    [
        ("heun", 3, 32, FULL),
        ("euler", 2, 4, FULL),
        ("exp_heun_2_x0", 3, 4, {"order": 2}),
        ("dpm_2", 3, 4, {}),
        ("ipndm", 6, 32, FULL),
    ],
)
def test_planned_calls_are_those_made_and_those_of_starts_that_were_not_found(
    sampler: str,
    steps: int,
    training_noises: int,
    extras: dict[str, Any],
    starts: list[list[Start]],
) -> None:
    given, events = problem("gmm16"), []
    settings = replace(SMOOTH, steps=steps, training_noises=training_noises, **extras)
    chosen = learn(given, settings, sampler, events.append).report.chosen
    missing = max(0, settings.starts - len(starts[0]))
    planned = events[0].planned_calls
    assert given.model.calls <= planned
    planned -= missing * calls_of_a_start(given, sampler, settings)
    assert_planned(planned, given, settings, sampler, chosen)


def assert_planned(
    planned: int, given: Problem, settings: TrainingSettings, sampler: str, chosen: str
) -> None:
    """All calls planned are made, but for a few.

    An offset at a limit makes a call unnecessary. Steps alone are not tested if a standard schedule
    is chosen. And which of these, some with first calls of their own, are ranked is not known
    before.
    """
    task, made = training_task(given, settings, sampler), given.model.calls
    tables = [task.sampler.table(sigmas) for sigmas in task.baselines.values()]
    elsewhere = sum(not task.teacher.table.starts_as(table) for table in tables)
    unused = min(4, elsewhere) * settings.validation_noises + settings.test_noises
    if settings.decoupled:
        unused += samplings(replace(settings, validation_noises=0))
    if chosen != "learned" and (settings.decoupled or settings.order):
        unused += settings.test_noises * (tables[0].model_calls - 1)
    assert made <= planned <= made + unused


def calls_of_a_start(given: Problem, sampler: str, settings: TrainingSettings) -> int:
    """Model calls of a descent of the first round, and of judging it."""
    parameters = few_parameters_of(
        given.model,
        sampler_of(given.model, sampler),
        settings.steps,
        decoupled=settings.decoupled,
        order=settings.order,
    )
    z = parameters.extended(parameters.levels.even(settings.steps))
    _, iterations, noises = settings.rounds[0]
    noises = iterations * min(noises, settings.training_noises)
    # the first call of each sampling is the teacher's
    descent = noises * (calls_per_noise(parameters, z, 0.05) - 1)
    return descent + settings.validation_noises * (parameters.calls - 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "extras",
    [{}, TIMES, {"order": 2}, {**FULL, "output_mix": True}],
    ids=["steps", "times", "corrections", "full"],
)
@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
def test_as_many_calls_are_planned_as_are_made(
    extras: dict[str, Any], iterations: int, starts: list[list[Start]]
) -> None:
    given, events = problem("gmm16"), []
    settings = replace(SMOOTH, iterations=iterations, **extras)
    chosen = learn(given, settings, on_progress=events.append).report.chosen
    missing = max(0, settings.starts - len(starts[0]))
    planned = events[0].planned_calls - missing * calls_of_a_start(given, "dpmpp_2m", settings)
    assert_planned(planned, given, settings, "dpmpp_2m", chosen)
