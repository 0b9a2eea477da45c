"""The check of teachers: which one it prefers on exact problems, what it costs, and the node."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.problems.flow_models import flow_model
from benchmarks.problems.mixtures import mixture_2d, mixture_denoiser
from ld3.comfy.auto_teacher import KARRAS_BETA
from ld3.comfy.requests import AUTO
from ld3.parameters import LOG_SIGMA, LOGIT_SIGMA, check_sigmas
from ld3.training.planning import within_budget
from ld3.training.teacher_choice import (
    JUDGED_NOISES,
    LEAST_NOISES,
    ROUNDS,
    Candidate,
    TeacherCheck,
    check_teachers,
    checked_noises,
    mean_sigmas,
    planned_calls,
    rounds_of,
)

from .exact_problems import (
    BATCH,
    Problem,
    problem,
    sampler_of,
    sampling_of,
    scheduled,
    standard_schedules,
)

STEPS = 20
TINY = {
    "sampler_name": "dpmpp_2m", "steps": 3, "cfg": 1.0, "name": "auto", "seed": 0,
    "teacher_sampler": "dpmpp_2m", "teacher_scheduler": AUTO, "teacher_steps": 6,
    "retrain": False, "denoise": 1.0, "distance": "pseudo-huber", "iterations": 1,
    "training_noises": 8, "heldout_noises": 4, "batch_size": 4,
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


def smooth_flow() -> Problem:
    """A flow model whose samples never jump: few wide components in two dimensions."""
    model = flow_model(mixture_denoiser(*mixture_2d()), sigma_min=0.001)
    model.batch_size = BATCH
    return Problem(model, (2,), sampling_of(model))


def mean_teacher(given: Problem, steps: int) -> Any:
    """dpmpp_2m at the mean of karras and beta."""
    levels = standard_schedules(given.sampling, steps)
    sigmas = mean_sigmas(levels["karras"], levels["beta"], given.model.coordinate)
    return sampler_of(given.model, "dpmpp_2m").discretization(sigmas)


def candidates_of(given: Problem, steps: int = STEPS) -> dict[str, Candidate]:
    """Auto's candidates for a flow model."""
    karras = scheduled(given.model, "dpmpp_2m", steps)
    return {KARRAS_BETA: Candidate(mean_teacher(given, steps)), "karras": Candidate(karras)}


def noises(given: Problem, seed: int, count: int = 16) -> tuple[Tensor, Tensor]:
    noise = torch.randn(count, *given.shape, generator=torch.Generator().manual_seed(seed))
    return noise, torch.zeros_like(noise)


def checked(given: Problem, seed: int) -> TeacherCheck:
    candidates, reference = candidates_of(given), mean_teacher(given, 2 * STEPS)
    rounds = rounds_of(*noises(given, seed), 8)
    return check_teachers(given.model, candidates, reference, rounds)


def test_auto_never_chooses_karras_for_a_flow_model_whose_samples_jump() -> None:
    """gmm16: karras is better on most noises and leads some into another mode."""
    given = problem("flow")
    for seed in range(10):
        assert checked(given, seed).best == KARRAS_BETA


def test_a_teacher_clearly_worse_than_another_is_named() -> None:
    check = checked(problem("flow"), 2)
    assert check.better_than("karras") == KARRAS_BETA and check.better_than(KARRAS_BETA) is None


def test_auto_chooses_karras_for_a_flow_model_whose_samples_never_jump() -> None:
    given = smooth_flow()
    found = [checked(given, seed).best for seed in range(10)]
    assert found.count("karras") >= 9


def test_a_difference_too_small_to_matter_is_not_reported() -> None:
    check = TeacherCheck({"karras": 0.009, "beta": 0.001}, 1.0, 40, 0)
    assert check.best == "beta" and check.better_than("karras") is None
    assert replace(check, deviation=0.5).better_than("karras") == "beta"


ROUND = 8 * 2 * STEPS + 3 * 2 * STEPS  # two candidates and the reference


def test_a_check_makes_the_calls_it_plans_and_repeats_itself_bit_for_bit() -> None:
    given = smooth_flow()
    rounds = rounds_of(*noises(given, 3), 8)
    planned = planned_calls(candidates_of(given), mean_teacher(given, 2 * STEPS), rounds)
    first = checked(given, 3)
    assert first.calls == planned == 2 * ROUND
    assert checked(given, 3) == first


def test_only_a_candidate_better_than_the_first_needs_a_second_round() -> None:
    assert checked(problem("flow"), 3).calls == ROUND
    assert checked(smooth_flow(), 3).calls == 2 * ROUND


def test_rounds_are_complete_and_two_at_most() -> None:
    noise = torch.zeros(20, 2)
    assert [len(part) for part, _ in rounds_of(noise, noise, 8)] == [8, 8]
    assert [len(part) for part, _ in rounds_of(noise[:12], noise[:12], 8)] == [8]


def test_the_reference_samples_the_noise_that_jumps() -> None:
    given = problem("flow")
    noise, latent = noises(given, 0, 32)
    candidates, reference = candidates_of(given), mean_teacher(given, 2 * STEPS)
    seen: list[Tensor] = []
    scale = given.model.scale_noise

    def scale_noise(batch: Tensor, latent: Tensor, sigma: float) -> Tensor:
        seen.append(batch)
        return scale(batch, latent, sigma)

    given.model.scale_noise = scale_noise
    check_teachers(given.model, candidates, reference, [(noise, latent)])
    results = [given.model.sample(c.solver, noise, latent)[0] for c in candidates.values()]
    worst = int((results[0] - results[1]).norm(dim=1).argmax())
    judged = seen[2]
    assert len(judged) == 3 and (judged == noise[worst]).all(1).any()


def test_a_candidate_with_undefined_samples_loses_and_a_check_without_samples_keeps_the_first() -> (
    None
):
    given = problem("flow")
    candidates, exact = candidates_of(given), given.model.denoise
    bad = float(candidates["karras"].solver.sigmas[1])

    def gap(x: Tensor, sigma: Tensor) -> Tensor:
        return exact(x, sigma) * (torch.nan if float(sigma[0]) == bad else 1.0)

    given.model.denoise = gap
    check = checked(given, 0)
    assert check.errors["karras"] is None and check.best == KARRAS_BETA
    assert check.better_than("karras") == KARRAS_BETA
    given.model.denoise = lambda x, sigma: x * torch.nan
    check = checked(given, 0)
    assert check.best == KARRAS_BETA and check.deviation is None
    assert check.better_than(KARRAS_BETA) is None


@pytest.mark.parametrize(
    ("training", "batch", "expected"),
    [(32, 4, 8), (32, 3, 9), (32, 1, 8), (32, 16, 16), (64, 32, 8), (4, 4, 4)],
)
def test_whole_batches_of_training_noises_are_tested(
    training: int, batch: int, expected: int
) -> None:
    assert checked_noises(training, batch) == expected


def test_the_mean_of_two_schedules_lies_halfway_in_the_coordinate() -> None:
    sigmas, others = torch.tensor([1.0, 0.9, 0.2, 0.0]), torch.tensor([1.0, 0.5, 0.1, 0.0])
    mean = mean_sigmas(sigmas, others, LOGIT_SIGMA)
    between = (sigmas[1:-1].logit() + others[1:-1].logit()) / 2
    torch.testing.assert_close(mean[1:-1].logit(), between)
    assert float(mean[0]) == 1 and float(mean[-1]) == 0 and mean.dtype == torch.float32
    shorter = torch.tensor([80.0, 1.0, 0.0])
    longer = torch.tensor([80.0, 40.0, 10.0, 1.0, 0.0])
    mean = mean_sigmas(longer, torch.tensor([80.0, 10.0, 0.1, 0.0]), LOG_SIGMA)
    check_sigmas(mean)
    assert len(mean) == len(longer)
    assert len(mean_sigmas(shorter, longer, LOG_SIGMA)) == len(shorter)


@pytest.fixture(scope="module")
def train(pack_nodes: dict[str, type], demo_inputs: dict[str, Any], ld3_folder: Any) -> Any:
    """LD3 Train Schedule with small settings; keywords replace some."""

    def run(**changes: Any) -> Any:
        node = pack_nodes["LD3TrainSchedule"]
        return node.execute(**(demo_inputs | TINY | changes))[2].info

    return run


def test_auto_is_the_default_and_every_scheduler_stays_valid(pack_nodes: dict[str, type]) -> None:
    import comfy.samplers

    inputs = {part.id: part for part in pack_nodes["LD3TrainSchedule"].GET_SCHEMA().inputs}
    widget = inputs["teacher_scheduler"]
    assert widget.default == AUTO
    assert widget.options == [AUTO, *comfy.samplers.SCHEDULER_NAMES]


@pytest.mark.parametrize(
    ("flow", "known"),
    [(False, ["exponential", "karras"]), (True, [KARRAS_BETA, "karras"])],
    ids=["eps", "flow"],
)
def test_a_schedule_names_the_teacher_it_chose_and_counts_its_check(
    flow: bool, known: list[str], train: Any, demo_inputs: dict[str, Any], flow_model: Any
) -> None:
    model = flow_model(demo_inputs["model"], 3.0) if flow else demo_inputs["model"]
    info = train(model=model)
    teacher, steps = info.teacher, TINY["teacher_steps"]
    assert info.prediction_type == ("flow" if flow else "eps")
    assert teacher["requested"] == AUTO and teacher["scheduler"] in known
    check = TeacherCheck(**teacher["check"])
    assert list(check.errors) == known and check.best == teacher["scheduler"]
    assert check.calls == 8 * 2 * steps + 3 * 2 * steps
    # the chosen teacher's samples of the tested noises are not made again
    # the four validation noises and one call that shows that first calls repeat are added
    assert info.report["teacher_calls"] == check.calls + 4 * steps + 1
    assert check.reference_steps == 2 * steps == 12
    # equal settings find the saved file
    assert train(model=model) == info


def test_a_chosen_scheduler_is_used_whatever_the_check_says(train: Any) -> None:
    info = train(teacher_scheduler="normal")
    assert info.teacher["scheduler"] == info.teacher["requested"] == "normal"
    assert list(info.teacher["check"]["errors"]) == ["normal", "exponential"]


def test_below_denoise_1_auto_takes_a_scheduler_without_comparing(train: Any) -> None:
    info = train(denoise=0.5)
    assert info.teacher["scheduler"] == "karras" and info.teacher["check"] is None


def test_progress_counts_the_check_and_never_runs_backwards(
    demo_inputs: dict[str, Any], ld3_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ld3.comfy import training_job, training_run
    from ld3.comfy.job import GraphInputs
    from ld3.comfy.requests import TrainingRequest
    from ld3.training.report import Progress

    events: list[Progress] = []
    monkeypatch.setattr(training_run, "LiveProgress", lambda *_: events.append)
    parts = ("model", "positive", "negative", "latent_image")
    widgets = {key: value for key, value in TINY.items() if key not in ("name", "retrain")}
    request = TrainingRequest(**widgets | {"seed": 77})
    inputs = GraphInputs(*(demo_inputs[part] for part in parts))
    result = training_job.train_schedule(inputs, request, "progress")
    calls = [event.calls for event in events]
    assert events[0].stage.startswith("checking the teacher") and calls == sorted(calls)
    assert all(event.calls <= event.planned_calls for event in events)
    report = result.report
    assert calls[-1] == report.teacher_calls + report.training_calls + report.report_calls
    reused = 8 * TINY["teacher_steps"]
    # some planned calls are not needed, such as first calls that are the teacher's
    assert calls[-1] + reused <= events[-1].planned_calls <= 1.2 * (calls[-1] + reused)


@pytest.mark.parametrize(
    ("batch_size", "cache_gb", "used"),
    [(8, 4.0, True), (8, 0.0, False), (32, 4.0, False)],
    ids=["kept", "not kept", "other batches"],
)
def test_a_budget_counts_what_the_training_cannot_use_of_a_check(
    batch_size: int,
    cache_gb: float,
    used: bool,
    demo_inputs: dict[str, Any],
    ld3_folder: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ld3.comfy import training_job, training_run
    from ld3.comfy.job import GraphInputs
    from ld3.comfy.requests import TrainingRequest

    class Known(Exception):
        pass

    budgets: list[int] = []

    def recorded(problem: Any, settings: Any, calls: int) -> Any:
        budgets.append(calls)
        if len(budgets) == 2:
            raise Known
        return within_budget(problem, settings, calls)

    monkeypatch.setattr(training_run, "within_budget", recorded)
    kept = {key: value for key, value in TINY.items() if key not in ("name", "retrain")}
    automatic = {"iterations": 0, "training_noises": 0, "heldout_noises": 0, "quality": "normal"}
    changes = {"batch_size": batch_size, "teacher_steps": 20, "learn": "time steps"}
    request = TrainingRequest(**kept | automatic | changes)
    parts = ("model", "positive", "negative", "latent_image")
    inputs = GraphInputs(*(demo_inputs[part] for part in parts))
    with pytest.raises(Known):
        training_job.train_schedule(inputs, request, "budget", True, cache_gb)
    made = ROUNDS * (2 * LEAST_NOISES * 20 + JUDGED_NOISES * 40)
    assert budgets[0] - budgets[1] == made - used * ROUNDS * LEAST_NOISES * 20
