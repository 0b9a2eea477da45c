"""Whole trainings on problems whose denoiser is exact, so that errors are the schedule's alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import comfy.model_sampling as model_sampling
import comfy.samplers
import pytest
import torch
from torch import Tensor

from benchmarks.problems.mixtures import digits, gmm16
from ld3.comfy.samplers import sampler_object, traceable
from ld3.metrics import LATENT_DISTANCES
from ld3.model import Model
from ld3.parameters import check_sigmas
from ld3.rollout import rollout
from ld3.solver import Plan
from ld3.training.gauss_newton import GaussNewtonSettings
from ld3.training.loop import ScheduleTraining
from ld3.training.report import Progress, Report
from ld3.training.settings import TrainingSettings

# heavy-tailed errors: one noise in a hundred falls into another mode, so many must judge
SETTINGS = TrainingSettings(
    steps=5, training_noises=64, validation_noises=256, test_noises=256, iterations=8,
    batch_size=64, gauss_newton=GaussNewtonSettings(noises=16),
)  # fmt: skip
SMOOTH = replace(SETTINGS, training_noises=32, validation_noises=32, test_noises=64)
SMALL = replace(
    SETTINGS, steps=3, training_noises=4, validation_noises=4, test_noises=4, iterations=2,
    batch_size=4, gauss_newton=GaussNewtonSettings(noises=4),
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


class Problem(NamedTuple):
    model: Model
    shape: tuple[int, ...]
    sampling: Any


def edm(model: Model) -> Any:
    """ComfyUI's noise levels for a variance-exploding problem."""
    bases = (model_sampling.ModelSamplingContinuousEDM, model_sampling.EDM)
    sampling = type("Sampling", bases, {})()
    sampling.set_parameters(model.sigma_min, model.sigma_max, 1.0)
    return sampling


def problem(name: str) -> Problem:
    if name == "digits":
        return Problem(digits(), (1, 8, 8), edm(digits()))
    if name == "gmm16":
        return Problem(gmm16(), (16,), edm(gmm16()))
    bases = (model_sampling.ModelSamplingDiscreteFlow, model_sampling.CONST)
    return Problem(gmm16(flow=True), (16,), type("Sampling", bases, {})())


def standard_schedules(sampling: Any, steps: int) -> dict[str, Tensor]:
    """What ComfyUI's schedulers make of these noise levels."""
    schedules = {
        name: comfy.samplers.calculate_sigmas(sampling, name, steps)
        for name in comfy.samplers.SCHEDULER_NAMES
    }
    return {n: s.float() for n, s in schedules.items() if bool((s.diff() < 0).all())}


def training(
    task: Problem, settings: TrainingSettings = SETTINGS, sampler: str = "dpmpp_2m", **options: Any
) -> ScheduleTraining:
    teacher_sigmas = comfy.samplers.calculate_sigmas(task.sampling, "beta", 24).float()
    teacher = traceable(sampler_object("dpmpp_2m"), task.sampling)
    return ScheduleTraining(
        task.model,
        traceable(sampler_object(sampler), task.sampling),
        Plan(teacher_sigmas, teacher.table(teacher_sigmas)),
        options.pop("baselines", standard_schedules(task.sampling, settings.steps)),
        settings,
        float(task.sampling.sigma_max),
        **options,
    )


def noises(task: Problem, settings: TrainingSettings = SETTINGS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    noise = torch.randn(settings.noises, *task.shape, generator=generator)
    return noise, torch.zeros_like(noise)


def heldout(run: ScheduleTraining, task: Problem, sigmas: Tensor, noise: Tensor) -> float:
    """Mean RMSE to the teacher, from scratch."""
    x = task.model.scale_noise(noise, torch.zeros_like(noise), float(sigmas[0]))
    student, _ = rollout(run.sampler.table(sigmas), task.model.denoise, [x])
    x = task.model.scale_noise(noise, torch.zeros_like(noise), float(run.teacher.sigmas[0]))
    teacher, _ = rollout(run.teacher.table, task.model.denoise, [x])
    return float((student - teacher).flatten(1).square().mean(1).sqrt().mean())


@pytest.mark.parametrize(
    ("name", "sampler"),
    [("gmm16", "dpmpp_2m"), ("gmm16", "euler"), ("digits", "dpmpp_2m"), ("flow", "dpmpp_2m")],
)
def test_the_learned_schedule_beats_every_standard_one_on_noises_it_never_saw(
    name: str, sampler: str
) -> None:
    task = problem(name)
    settings = SMOOTH if name == "digits" else SETTINGS
    run, (noise, latent) = training(task, settings, sampler), noises(task, settings)
    sigmas, _, report = run.run(noise, latent)
    assert report.chosen == "learned" and report.sigmas == sigmas.tolist()
    assert len(report.baselines) >= 6
    assert all(baseline["counted"] for baseline in report.baselines.values())
    assert report.heldout_error < 0.9 * min(b["heldout_error"] for b in report.baselines.values())

    check_sigmas(sigmas)
    assert sigmas.dtype == torch.float32 and len(sigmas) == settings.steps + 1
    assert (float(sigmas[0]), float(sigmas[-1])) == (float(task.sampling.sigma_max), 0.0)

    unseen = noise[-settings.test_noises :]
    assert report.heldout_error == pytest.approx(heldout(run, task, sigmas, unseen), rel=1e-4)
    learned_from = noise[: settings.training_noises]
    error = heldout(run, task, sigmas, learned_from)
    assert report.training_error == pytest.approx(error, rel=1e-4)
    for baseline in report.baselines.values():
        error = heldout(run, task, torch.tensor(baseline["sigmas"]), unseen)
        assert baseline["heldout_error"] == pytest.approx(error, rel=1e-4)
    start = torch.tensor(report.initial_sigmas)
    assert report.initial_error == pytest.approx(heldout(run, task, start, unseen), rel=1e-4)


def test_every_model_call_is_counted_and_reported() -> None:
    task, asked, told = problem("gmm16"), [0], []
    exact = task.model.denoise

    def counting(x: Tensor, sigma: Tensor) -> Tensor:
        asked[0] += len(x)
        return exact(x, sigma)

    task.model.denoise = counting
    run = training(task, SMALL, watch=lambda progress: told.append(progress))
    report = run.run(*noises(task, SMALL)).report
    assert task.model.calls == asked[0]
    assert report.teacher_calls + report.training_calls + report.report_calls == asked[0]
    assert report.teacher_calls == SMALL.noises * 24
    calls = [entry["calls"] for entry in report.history]
    assert calls == sorted(calls) and calls[-1] <= report.teacher_calls + report.training_calls
    seen = [progress.calls for progress in told]
    assert seen == sorted(seen) and seen[-1] == asked[0]
    assert all(progress.calls <= progress.planned_calls for progress in told)


@pytest.mark.parametrize(
    "extras",
    [{}, {"decoupled": True}, {"decoupled": True, "order": 1, "output_mix": True}],
    ids=["steps", "decoupled", "solver"],
)
def test_the_plan_announces_about_as_many_calls_as_are_made(extras: dict[str, Any]) -> None:
    task, told, settings = problem("gmm16"), [], replace(SMOOTH, **extras)
    run = training(task, settings, watch=lambda progress: told.append(progress))
    run.run(*noises(task, settings))
    assert 0.8 < told[0].planned_calls / task.model.calls < 1.25


def test_extras_bring_samples_nearer_the_teacher_on_noises_never_seen() -> None:
    task, errors = problem("digits"), []
    for extras in ({}, {"decoupled": True}, {"decoupled": True, "order": 1, "output_mix": True}):
        settings = replace(SMOOTH, **extras)
        errors.append(training(task, settings).run(*noises(task, settings)).report)
    steps, decoupled, solver = (report.heldout_error for report in errors)
    assert decoupled < 0.5 * steps and solver < 0.95 * decoupled
    assert errors[1].extras == ["decoupled times"]
    assert errors[2].extras[:2] == ["decoupled times", "solver corrections"]


def test_the_same_seed_gives_the_same_bits() -> None:
    results = []
    for _ in range(2):
        task = problem("gmm16")
        results.append(training(task, SMALL).run(*noises(task, SMALL)))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0].report == results[1].report


@pytest.mark.parametrize("distance", LATENT_DISTANCES)
def test_every_distance_learns(distance: str) -> None:
    task = problem("gmm16")
    settings = replace(SETTINGS, distance=distance, iterations=4)
    report = training(task, settings).run(*noises(task)).report
    assert report.heldout_error < min(b["heldout_error"] for b in report.baselines.values())


def test_a_standard_schedule_that_wins_is_returned_and_said() -> None:
    task = problem("gmm16")
    baselines = standard_schedules(task.sampling, 3)
    run = training(task, SMALL, baselines=baselines)
    # nothing can be nearer to this teacher
    run.teacher = Plan(baselines["beta"], run.sampler.table(baselines["beta"]))
    sigmas, _, report = run.run(*noises(task, SMALL))
    assert report.chosen == "beta" and torch.equal(sigmas, baselines["beta"])
    assert report.sigmas == sigmas.tolist()
    assert report.heldout_error == 0 == report.baselines["beta"]["heldout_error"]


def test_a_standard_schedule_with_more_calls_is_measured_but_cannot_win() -> None:
    task = problem("gmm16")
    baselines = {
        "karras": standard_schedules(task.sampling, 3)["karras"],
        "longer": standard_schedules(task.sampling, 16)["karras"],
    }
    sigmas, _, report = training(task, SMALL, baselines=baselines).run(*noises(task, SMALL))
    assert [b["counted"] for b in report.baselines.values()] == [True, False]
    assert report.baselines["longer"]["heldout_error"] < report.heldout_error
    assert report.best_baseline() == "karras"
    assert len(sigmas) == 4 and report.chosen != "longer"


def test_a_schedule_can_be_learned_without_any_standard_one() -> None:
    task = problem("gmm16")
    sigmas, _, report = training(task, SMALL, baselines={}).run(*noises(task, SMALL))
    check_sigmas(sigmas)
    assert report.chosen == "learned" and report.best_baseline() is None


def test_the_end_of_the_first_part_of_a_split_sampling_is_kept() -> None:
    task = problem("gmm16")
    whole = standard_schedules(task.sampling, 6)["karras"]
    end = float(whole[3])
    teacher = whole.new_tensor([80.0, 40, 30, 20, 15, 12, 10, 9, 8, 7])
    teacher = torch.cat([teacher[teacher > end], torch.tensor([end])])
    sampler = traceable(sampler_object("euler"), task.sampling)
    run = ScheduleTraining(
        task.model, sampler, Plan(teacher, sampler.table(teacher)), {"karras": whole[:4]},
        SMALL, 80.0, end,
    )  # fmt: skip
    sigmas = run.run(*noises(task, SMALL)).sigmas
    assert (float(sigmas[0]), float(sigmas[-1])) == (80.0, end)
    check_sigmas(sigmas)


def test_report_and_history_are_plain_json() -> None:
    task, reports = problem("gmm16"), []
    report = (
        training(
            task,
            SMALL,
            watch=lambda progress: reports.append(json.dumps(progress.report.as_dict())),
        )
        .run(*noises(task, SMALL))
        .report
    )
    again = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert Report(**again) == report
    assert len(reports) > 5 and len(again["history"]) >= SMALL.iterations


def test_a_teacher_that_is_no_better_is_refused() -> None:
    task = problem("gmm16")
    sampler = traceable(sampler_object("euler"), task.sampling)
    sigmas = standard_schedules(task.sampling, 3)["karras"]
    with pytest.raises(ValueError, match="teacher steps are 3, student steps 3"):
        ScheduleTraining(task.model, sampler, Plan(sigmas, sampler.table(sigmas)), {}, SMALL, 80.0)


@pytest.mark.parametrize(("steps", "reason"), [(1, "use 2 or more"), (500, "fewer steps")])
def test_numbers_of_steps_without_a_schedule_to_learn_are_refused(steps: int, reason: str) -> None:
    with pytest.raises(ValueError, match=f"steps is {steps}.*{reason}"):
        training(problem("gmm16"), replace(SMALL, steps=steps), baselines={})


@pytest.mark.parametrize("bad", [1, 12])
def test_a_model_without_a_usable_result_is_refused(bad: int) -> None:
    task = problem("gmm16")
    exact = task.model.denoise
    noise, latent = noises(task, SMALL)

    def broken(x: Tensor, sigma: Tensor) -> Tensor:
        return exact(x, sigma) * torch.where(x[:, :1].abs() > 1e4, torch.nan, 1.0)

    task.model.denoise = broken
    noise[:bad, 0] = 1e6
    with pytest.raises(ValueError, match="undefined .NaN. for .*plain KSampler"):
        training(task, SMALL).run(noise, latent)


def test_noise_levels_at_which_a_model_fails_are_avoided() -> None:
    task = problem("gmm16")
    exact = task.model.denoise
    run = training(task, SMALL)
    level = float(run.baselines["karras"].sigmas[1])

    def gap(x: Tensor, sigma: Tensor) -> Tensor:
        return exact(x, sigma) * (torch.nan if abs(float(sigma[0]) / level - 1) < 0.01 else 1.0)

    task.model.denoise = gap
    sigmas, _, report = run.run(*noises(task, SMALL))
    assert report.heldout_error < 10
    assert all(abs(s / level - 1) >= 0.01 for s in sigmas.tolist())


def test_an_interruption_comes_through() -> None:
    task = problem("gmm16")

    def interrupt_after(stage: str) -> Callable[[Progress], None]:
        def watch(progress: Progress) -> None:
            if progress.stage.startswith(stage):
                raise KeyboardInterrupt

        return watch

    for stage in ("teacher", "screening", "searching", "learning", "measuring"):
        with pytest.raises(KeyboardInterrupt):
            training(task, SMALL, watch=interrupt_after(stage)).run(*noises(task, SMALL))
