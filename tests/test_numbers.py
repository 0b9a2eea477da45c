"""Numbers that go wrong: a training says so, and what was best before is kept."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ld3.comfy.model_state import keeps_state
from ld3.training.gauss_newton import GaussNewtonSettings
from ld3.training.gradient.gradient_settings import ADAM
from ld3.training.train import train
from ld3.training.verdict import verdict

from .exact_problems import SMALL, Problem, learn, noises, problem, training_task

pytestmark = pytest.mark.usefixtures("one_thread")


def changed(given: Problem, change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Problem:
    """The problem with another output: of (exact output, x, sigma (batch,))."""
    exact = given.model.denoise
    given.model.denoise = lambda x, sigma: change(exact(x, sigma), x, sigma)
    return given


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_undefined_outputs_at_high_levels_only_end_with_a_remedy(bad: float) -> None:
    def broken(output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        return output + torch.where(sigma[:, None] > 1.0, bad, 0.0)

    with pytest.raises(ValueError, match="infinite or undefined .NaN.*plain KSampler"):
        learn(changed(problem("gmm16"), broken), SMALL)


def test_levels_at_which_half_precision_overflows_are_avoided() -> None:
    """Only where students can go, not the teacher: its levels are fine."""
    given = problem("gmm16")
    teacher = training_task(given, SMALL).teacher.sigmas
    low, high = (float(s) for s in (teacher[8] * 0.98, teacher[7] * 0.02 + teacher[8] * 0.98))

    def half(output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        overflows = (low < sigma) & (sigma < high) & ~torch.isin(sigma, teacher)
        factor = torch.where(overflows, 1e6, 1.0)[:, None]
        return (output * factor).half().float() / factor

    solver, report, _ = learn(changed(given, half), SMALL)
    assert report.test_error is not None and math.isfinite(report.test_error)
    assert not any(low < sigma < high for sigma in solver.sigmas.tolist())
    json.dumps(report.as_json(), allow_nan=False)


def test_a_model_that_ignores_the_noise_level_is_named_and_still_gets_a_schedule(
    caplog: Any,
) -> None:
    caplog.set_level(logging.WARNING)
    for ignores in (False, True):
        given = problem("gmm16")
        if ignores:
            changed(given, lambda output, x, sigma: 0.5 * x / (1 + x.abs()))
        noise, latent = noises(given, SMALL)
        guided: Any = SimpleNamespace(model=given.model, options={})
        assert not keeps_state(guided, noise, latent)
        assert ("ignores the noise level" in caplog.text) == ignores
    solver, report, _ = learn(given, replace(SMALL, decoupled=True, order=1))
    assert bool((solver.sigmas.diff() < 0).all()) and math.isfinite(report.test_error or 0)


def test_a_teacher_that_every_student_equals_gives_no_gain_and_no_undefined_number() -> None:
    """For a constant model all samplers are exact."""
    given = problem("gmm16")
    point = torch.linspace(-1, 1, 16)
    changed(given, lambda output, x, sigma: point.expand_as(x).clone())
    solver, report, _ = learn(given, SMALL)
    assert bool((solver.sigmas.diff() < 0).all())
    assert report.test_error == pytest.approx(0, abs=1e-5)
    said = verdict(SMALL.steps, "dpmpp_2m", 24, report)
    assert "nan" not in said and "inf" not in said
    json.dumps(report.as_json(), allow_nan=False)


DIVERGING = {
    "gauss-newton": {
        "gauss_newton": GaussNewtonSettings(
            noises=4, difference=3.0, damping=1e-9, memory=0.0, largest_step=20, smallest_step=20
        )
    },
    "gradient": {"gradient": replace(ADAM, radius=0.0, steps_rate=1e4, extra_rate=1e4)},
}


@pytest.mark.parametrize("optimizer", DIVERGING)
def test_of_an_optimizer_that_diverges_the_best_so_far_is_kept(optimizer: str, caplog: Any) -> None:
    settings = replace(SMALL, decoupled=True, iterations=4, **DIVERGING[optimizer])
    given = problem("gmm16")
    solver, report, _ = train(
        training_task(given, settings, "euler"), settings, *noises(given, settings)
    )
    assert ("diverged in update" in caplog.text) == (optimizer == "gradient")
    assert bool((solver.sigmas.diff() < 0).all()) and bool(torch.isfinite(solver.sigmas).all())
    # the kept one is that of all validations, and on the test noises competes with the standard
    assert report.test_error is not None and math.isfinite(report.test_error)
    best = report.best_baseline()
    assert best is not None and report.baselines[best].test_error is not None
