"""Successive halving of Gauss-Newton's descents, on problems whose denoiser is exact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ld3.training import loop
from ld3.training.selection import Selection
from ld3.training.settings import TrainingSettings

from .test_training_loop import SMOOTH, noises, problem, training

pytestmark = pytest.mark.usefixtures("one_thread")
FULL = {"decoupled": True, "order": 1}


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """(student, theta) of all that is validated."""
    seen: list[Any] = []
    offer = Selection.offer

    def recorded(self: Selection, name: str, student: Any, theta: Any) -> float:
        seen.append((student, theta))
        return offer(self, name, student, theta)

    monkeypatch.setattr(Selection, "offer", recorded)
    return seen


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
def test_what_a_lone_start_comes_to_is_validated(
    extras: dict[str, Any], offered: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    screened = loop.screened_starts
    monkeypatch.setattr(loop, "screened_starts", lambda *given: screened(*given)[:1])
    task, settings = problem("gmm16"), replace(SMOOTH, steps=2, iterations=1, **extras)
    training(task, settings).run(*noises(task, settings))
    (_, start), *_, (student, last) = offered
    assert not torch.equal(student.start(start), last)


def test_corrections_join_in_the_last_round(offered: list[Any]) -> None:
    task, settings = problem("digits"), replace(SMOOTH, steps=3, iterations=4, **FULL)
    training(task, settings).run(*noises(task, settings))
    orders = [student.order for student, _ in offered]
    # the start, the two that were left, and what the best of them came to
    assert orders[:3] == [0, 0, 0] and set(orders[3:]) == {1}
    student, theta = offered[-1]
    assert (theta[-len(student.corrected) :] != 0).all()


@pytest.mark.parametrize(
    ("sampler", "steps", "training_noises", "extras"),
    [("heun", 3, 32, FULL), ("euler", 2, 4, FULL), ("dpm_2", 3, 4, {}), ("ipndm", 6, 32, FULL)],
)
def test_calls_are_planned_for_every_sampler_and_number_of_noises(
    sampler: str, steps: int, training_noises: int, extras: dict[str, Any]
) -> None:
    task, told = problem("gmm16"), []
    settings = replace(SMOOTH, steps=steps, training_noises=training_noises, **extras)
    run = training(task, settings, sampler, watch=lambda progress: told.append(progress))
    run.run(*noises(task, settings))
    assert 0.75 < told[0].planned_calls / task.model.calls < 1.35
