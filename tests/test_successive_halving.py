"""Successive halving of Gauss-Newton's descents, on problems whose denoiser is exact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from ld3.table import Discretization, Extra
from ld3.training import train as training_module
from ld3.training.candidates import RANKING_NOISES, Start
from ld3.training.gauss_newton import calls_per_noise
from ld3.training.settings import TrainingSettings
from ld3.training.validation import Validation

from .exact_problems import SMOOTH, Problem, learn, parameters_of, problem, sampler_of

pytestmark = pytest.mark.usefixtures("one_thread")
FULL = {"decoupled": True, "order": 1}


@pytest.fixture
def considered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Discretization, Tensor]]:
    """(student, theta) of all that is validated after the first."""
    seen: list[tuple[Discretization, Tensor]] = []
    consider = Validation.consider

    def recorded(self: Validation, name: str, student: Discretization, theta: Tensor) -> float:
        seen.append((student, theta))
        return consider(self, name, student, theta)

    monkeypatch.setattr(Validation, "consider", recorded)
    return seen


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[list[Start]]:
    """The different starts that each training found."""
    found: list[list[Start]] = []
    rank = training_module.rank_candidates

    def recorded(*given: Any) -> Any:
        ranked = rank(*given)
        found.append(ranked[0])
        return ranked

    monkeypatch.setattr(training_module, "rank_candidates", recorded)
    return found


@pytest.mark.parametrize("extras", [{}, {"decoupled": True}, FULL], ids=["steps", "times", "full"])
@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
def test_ever_fewer_descents_go_on_and_one_remains(extras: dict[str, Any], iterations: int) -> None:
    rounds = TrainingSettings(steps=4, iterations=iterations, **extras).rounds
    descents = [planned.descents for planned in rounds]
    assert descents == sorted(descents, reverse=True) and descents[-1] == 1
    assert all(planned.noises >= 1 for planned in rounds)
    total = sum(planned.iterations for planned in rounds)
    assert total == iterations if not extras else total >= 1.6 * iterations - 2


@pytest.mark.parametrize("extras", [{}, FULL], ids=["steps", "full"])
def test_the_end_of_a_lone_descent_is_validated(
    extras: dict[str, Any],
    considered: list[tuple[Discretization, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rank = training_module.rank_candidates

    def only_the_best(*given: Any) -> Any:
        starts, baselines = rank(*given)
        return starts[:1], baselines

    monkeypatch.setattr(training_module, "rank_candidates", only_the_best)
    given, settings = problem("gmm16"), replace(SMOOTH, steps=2, iterations=1, **extras)
    initial = learn(given, settings).report.initial_sigmas
    student, theta = considered[-1]
    assert student.sigmas.tolist() != initial
    if extras:
        assert (theta[settings.steps - 1 :] != 0).any()


def test_corrections_join_in_the_last_round(
    considered: list[tuple[Discretization, Tensor]],
) -> None:
    given, settings = problem("digits"), replace(SMOOTH, steps=3, iterations=4, **FULL)
    report = learn(given, settings).report
    corrected = [Extra.SOLVER_CORRECTIONS in student.extras for student, _ in considered]
    assert all(Extra.DECOUPLED_TIMES in student.extras for student, _ in considered)
    # the two that were left, and the later students of the better one
    assert corrected[:2] == [False, False] and set(corrected[2:]) == {True}
    # before them the best start, with steps alone
    assert len(report.history) == len(considered) + 1
    parameters = parameters_of(given.model, sampler_of(given.model, "dpmpp_2m"), 3, **FULL)
    _, theta = considered[-1]
    assert len(theta) == parameters.size
    assert (theta[-len(parameters.corrections) :] != 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "steps", "training_noises", "extras", "enough"),
    [
        ("heun", 3, 32, FULL, False),
        ("euler", 2, 4, FULL, False),
        ("exp_heun_2_x0", 3, 4, {"order": 2}, False),
        ("dpm_2", 3, 4, {}, True),
        ("ipndm", 6, 32, FULL, True),
    ],
)
def test_planned_calls_are_those_made_and_those_of_starts_that_were_not_found(
    sampler: str,
    steps: int,
    training_noises: int,
    extras: dict[str, Any],
    enough: bool,
    starts: list[list[Start]],
) -> None:
    given, events = problem("gmm16"), []
    settings = replace(SMOOTH, steps=steps, training_noises=training_noises, **extras)
    learn(given, settings, sampler, events.append)
    missing = max(0, settings.starts - len(starts[0]))
    assert (missing == 0) == enough
    planned = events[0].planned_calls
    assert_planned(planned - missing * calls_of_a_start(given, sampler, settings), given, settings)
    assert planned < 1.08 * given.model.calls


def assert_planned(planned: int, given: Problem, settings: TrainingSettings) -> None:
    """Exactly the calls made; a decoupled time that stops at a limit makes some unnecessary."""
    made = given.model.calls
    assert made <= planned <= (1.005 if settings.decoupled else 1.0) * made


def calls_of_a_start(given: Problem, sampler: str, settings: TrainingSettings) -> int:
    """Model calls of a descent of the first round, and of judging it."""
    parameters = parameters_of(
        given.model,
        sampler_of(given.model, sampler),
        settings.steps,
        decoupled=settings.decoupled,
    )
    theta = parameters.extended(parameters.levels.even(settings.steps))
    _, iterations, noises = settings.rounds[0]
    noises = iterations * min(noises, settings.training_noises)
    return noises * calls_per_noise(parameters, theta, 0.05) + RANKING_NOISES * parameters.calls


@pytest.mark.slow
@pytest.mark.parametrize(
    "extras",
    [{}, {"decoupled": True}, {"order": 2}, {**FULL, "output_mix": True}],
    ids=["steps", "times", "corrections", "full"],
)
@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
def test_as_many_calls_are_planned_as_are_made(extras: dict[str, Any], iterations: int) -> None:
    given, events = problem("gmm16"), []
    settings = replace(SMOOTH, iterations=iterations, **extras)
    learn(given, settings, on_progress=events.append)
    assert_planned(events[0].planned_calls, given, settings)
