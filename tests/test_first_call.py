"""A student's first call is the teacher's where both start alike; it is made once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ld3.metrics import Distance
from ld3.parameters import LOG_SIGMA
from ld3.table import Discretization
from ld3.teacher import TeacherSamples, sample_teacher
from ld3.teacher_store import TeacherStore
from ld3.training.gauss_newton import calls_per_noise, normal_equations
from ld3.training.output_mix import output_mix
from ld3.training.validation import Objective, errors

from .exact_problems import (
    SMALL,
    Problem,
    few_parameters_of,
    learn,
    noises,
    problem,
    sampler_of,
    scheduled,
    training_task,
)

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["gmm16", "digits", "flow"]
SAMPLERS = ["euler", "heun", "dpm_2", "dpmpp_2m", "ipndm", "uni_pc", "res_multistep"]


def taught(given: Problem, count: int = 6, **changes: Any) -> TeacherSamples:
    """Samples of a teacher in twelve steps, in batches of four."""
    given.model.batch_size = 4
    noise = torch.randn(count, *given.shape, generator=torch.Generator().manual_seed(5))
    teacher = scheduled(given.model, "dpmpp_2m", 12)
    return sample_teacher(given.model, teacher, noise, torch.zeros_like(noise), **changes)


def student(given: Problem, sampler: str, **extras: Any) -> Discretization:
    parameters = few_parameters_of(given.model, sampler_of(given.model, sampler), 3, **extras)
    z = parameters.extended(parameters.levels.even(3))
    z[2:] = torch.tensor([-0.3, -0.6, 0.2])[: len(z) - 2]
    return parameters.discretization(z)


def calls_of(given: Problem, samples: TeacherSamples, solver: Discretization) -> int:
    before = given.model.calls
    errors(given.model, solver, samples)
    return given.model.calls - before


@pytest.mark.parametrize("extras", [{}, {"decoupled": True, "order": 1}], ids=["steps", "full"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", NAMES)
def test_sharing_the_first_call_changes_no_sample_and_saves_one_call_each(
    name: str, sampler: str, extras: dict[str, Any]
) -> None:
    given = problem(name)
    samples, solver = taught(given), student(given, sampler, **extras)
    alone = replace(samples, first_output=None)
    calls = [calls_of(given, s, solver) for s in (alone, samples)]
    assert calls == [6 * solver.table.model_calls, 6 * (solver.table.model_calls - 1)]
    for one, other in zip(samples.batches(given.model), alone.batches(given.model), strict=True):
        (found, history), (wanted, whole) = (b.student(given.model, solver) for b in (one, other))
        for a, b in zip([found, *history], [wanted, *whole], strict=True):
            # the first level is that of the teacher's scheduler, rounded to float32
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_that_starts_at_another_level_makes_its_own_first_call(name: str) -> None:
    given = problem(name)
    samples, sampler = taught(given), sampler_of(given.model, "euler")
    sigmas = scheduled(given.model, "euler", 3).sigmas
    for start, shared in ((1.0, True), (1 - 1e-5, False), (0.5, False)):
        solver = sampler.discretization(torch.cat([start * sigmas[:1], 0.4 * sigmas[1:]]))
        assert calls_of(given, samples, solver) == 6 * (3 - shared)
        (batch, *_) = samples.batches(given.model)
        result, _ = batch.student(given.model, solver)
        wanted, _ = given.model.sample(solver, batch.noise, batch.latent)
        torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-4)


def test_tables_start_alike_if_input_and_level_of_the_first_call_are_the_same() -> None:
    given = problem("gmm16")
    teacher, three = (scheduled(given.model, "dpmpp_2m", n).table for n in (12, 3))
    assert teacher.starts_as(three) and three.starts_as(teacher)
    assert student(given, "heun", decoupled=True).table.starts_as(teacher)

    def changed(name: str, factor: float) -> Any:
        values = getattr(three, name).clone()
        values.view(-1)[0] *= factor
        return replace(three, **{name: values})

    for name in ("weights", "state_sigmas", "eval_sigmas"):
        assert not teacher.starts_as(changed(name, 1.01))
        assert not teacher.starts_as(changed(name, 0.99))
        assert teacher.starts_as(changed(name, 1 + 1e-8))  # rounded noise levels


def test_parts_and_batches_of_samples_keep_their_first_outputs() -> None:
    given = problem("gmm16")
    samples = taught(given)
    assert samples.first_output is not None
    sigma = scheduled(given.model, "dpmpp_2m", 12).sigmas[0]
    wanted = given.model.denoise(sigma * samples.noise, sigma.expand(6))
    torch.testing.assert_close(samples.first_output, wanted)
    chosen = torch.tensor([4, 1])
    assert torch.equal(samples[chosen].first_output, samples.first_output[chosen])
    parts = [batch.first_output for batch in samples.batches(given.model)]
    assert [len(part) for part in parts] == [4, 2]
    assert torch.equal(torch.cat(parts), samples.first_output)


def test_a_rollout_from_the_shared_output_is_announced_and_changes_nothing_stored() -> None:
    given, announced = problem("gmm16"), []
    samples, solver = taught(given), student(given, "dpmpp_2m")
    assert samples.first_output is not None
    before = samples.first_output.clone()
    given.model.begin_rollout = announced.append
    for batch in samples.batches(given.model):
        batch.student(given.model, solver)
    assert len(announced) == 2 and all(torch.equal(s, solver.sigmas) for s in announced)
    assert torch.equal(samples.first_output, before)


@pytest.mark.parametrize("extras", [{}, {"decoupled": True, "order": 1}], ids=["steps", "full"])
def test_normal_equations_are_the_same_for_one_call_less_per_noise(extras: dict[str, Any]) -> None:
    given = problem("gmm16")
    samples = taught(given)
    parameters = few_parameters_of(given.model, sampler_of(given.model, "heun"), 3, **extras)
    z = parameters.extended(parameters.levels.even(3))
    objective, found = Objective(given.model, Distance(), 1.0), []
    for part, saved in ((replace(samples, first_output=None), 0), (samples, 6)):
        before = given.model.calls
        found.append(normal_equations(objective, parameters, z, part, 0.05, 1.0))
        made = given.model.calls - before
        assert made == 6 * calls_per_noise(parameters, z, 0.05) - saved
    for a, b in zip(*found, strict=True):
        # of differences that are kept to three digits
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3 * float(a.abs().max()))


def test_an_output_mix_is_the_same_for_one_call_less_per_noise() -> None:
    given = problem("digits")
    samples, solver = taught(given), student(given, "dpmpp_2m")
    objective, found = Objective(given.model, Distance("l2")), []
    for part, calls in ((replace(samples, first_output=None), 3), (samples, 2)):
        before = given.model.calls
        mixed = output_mix(objective, solver, part)
        assert mixed is not None and given.model.calls - before == 6 * calls
        found.append(mixed.table.weights)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_a_store_keeps_first_outputs(tmp_path: Path) -> None:
    given, store = problem("gmm16"), TeacherStore(tmp_path, 10**9).samples("one model, one teacher")
    made = taught(given, 4, store=store)
    calls = given.model.calls
    again = taught(given, 4, store=store)
    assert given.model.calls == calls == 12 * 4
    assert made.first_output is not None and again.first_output is not None
    assert torch.equal(again.first_output, made.first_output)


def test_a_model_that_reads_the_whole_schedule_shares_no_first_call() -> None:
    """Its students are sampled as they will run, at more calls."""

    def trained(reads: bool) -> tuple[Problem, Any]:
        given = problem("gmm16")
        exact, length = given.model.denoise, [0]

        def announce(sigmas: Tensor) -> None:
            length[0] = len(sigmas)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            # as a patch does that weakens the first of many steps
            weaker = reads and length[0] > 10 and float(sigma[0]) > 70
            return exact(x, sigma) * (0.5 if weaker else 1.0)

        given.model.denoise, given.model.begin_rollout = denoise, announce
        return given, learn(given, SMALL)

    (plain, _), (read, learned) = trained(False), trained(True)
    # one more for each of at least four sets of validation noises
    assert read.model.calls >= plain.model.calls + 4 * SMALL.validation_noises
    noise, latent = (part[-SMALL.test_noises :] for part in noises(read, SMALL))
    task = training_task(read, SMALL)
    target = read.model.sample(task.teacher, noise, latent)[0]
    result = read.model.sample(learned.solver, noise, latent)[0]
    error = float((result - target).square().mean(1).sqrt().mean())
    name = learned.report.chosen
    tested = learned.report.baselines.get(name, learned.report).test_error
    assert tested == pytest.approx(error, rel=1e-4)


def test_a_rollout_of_a_log_model_starts_at_its_noise() -> None:
    """What sharing relies on: the start state depends on the first level alone."""
    given = problem("gmm16")
    assert given.model.coordinate is LOG_SIGMA
    noise = torch.randn(2, 16)
    starts = [
        given.model.start(scheduled(given.model, "euler", n).sigmas, noise, 0 * noise)
        for n in (3, 12)
    ]
    assert torch.equal(*starts)
