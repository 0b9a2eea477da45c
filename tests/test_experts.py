"""Two models in one sampling: tables of both parts, what is learned of them, and their files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ld3 import schedule_file
from ld3.comfy.core_samplers import sampler_object, traced_sampler
from ld3.experts import ExpertSampler, check_boundary, high_steps, parts
from ld3.model import Model
from ld3.parameters import LOGIT_SIGMA, StepParameters
from ld3.schedule import FORMAT_VERSION, Schedule, ScheduleInfo
from ld3.solver_parameters import SolverParameters
from ld3.table import SolverTable, rollout
from ld3.training.problem import TrainingProblem
from ld3.training.settings import TrainingSettings
from ld3.training.train import train

from .exact_problems import gmm16, noises, problem, sampling_of, standard_schedules

BOUNDARY = 0.7
SIGMAS = torch.tensor([1.0, 0.9, 0.75, 0.6, 0.3, 0.1, 0.0])  # three steps each


def two_models() -> Model:
    """A mixture of Gaussians at high noise; at low noise one that is a tenth smaller."""
    high = gmm16(flow=True)
    return replace(
        high, batch_size=64, boundary=BOUNDARY, low_noise=lambda x, s: 0.9 * high.denoise(x, s)
    )


def sampler_of(name: str, boundary: float = BOUNDARY) -> Any:
    return traced_sampler(
        sampler_object(name), sampling_of(two_models()), name=name, boundary=boundary
    )


def run(name: str, denoise: Any, x: Tensor, sigmas: Tensor) -> Tensor:
    """The real sampler."""
    found = sampler_of(name, 0.0)
    return found.function(
        _Wrapped(found.model, denoise), x, sigmas.double(), extra_args={}, disable=True
    )


class _Wrapped:
    def __init__(self, model: Any, denoise: Any) -> None:
        self._model, self._denoise = model, denoise

    def __call__(self, x: Tensor, sigma: Tensor, **more: Any) -> Tensor:
        return self._denoise(x, sigma)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "heun", "res_multistep", "ipndm"])
def test_the_table_is_the_sampler_run_with_one_model_after_the_other(name: str) -> None:
    model, x = two_models(), torch.randn(3, 16, generator=torch.Generator().manual_seed(1)).double()
    table = sampler_of(name).table(SIGMAS)
    result, _ = rollout(table, model, [x])
    assert model.low_noise is not None
    between = run(name, model.denoise, x, SIGMAS[:4])
    direct = run(name, model.low_noise, between, SIGMAS[3:])
    torch.testing.assert_close(result, direct, rtol=1e-9, atol=1e-9)
    high, low = parts(table)
    torch.testing.assert_close(rollout(high, model.denoise, [x])[0], between, rtol=1e-9, atol=1e-9)
    again = rollout(low, model.low_noise, [between])[0]
    torch.testing.assert_close(again, direct, rtol=1e-9, atol=1e-9)
    assert (high.model_calls, low.model_calls) == (table.split, table.model_calls - table.split)


def test_a_multistep_sampler_begins_anew_at_the_split_and_euler_has_nothing_to_begin() -> None:
    whole = {name: sampler_of(name, 0.0).table(SIGMAS) for name in ("euler", "dpmpp_2m")}
    split = {name: sampler_of(name).table(SIGMAS) for name in whole}
    assert split["euler"].distance(whole["euler"]) < 1e-12
    assert split["dpmpp_2m"].distance(whole["dpmpp_2m"]) > 0.05
    with pytest.raises(ValueError, match="uses outputs of the high-noise part"):
        parts(replace(whole["dpmpp_2m"], split=3))


def test_a_step_that_starts_at_the_boundary_is_the_high_noise_models() -> None:
    levels = torch.tensor([1.0, 0.9, 0.5, 0.0])
    assert [high_steps(levels, b) for b in (0.95, 0.9, 0.89, 0.5, 0.4)] == [1, 2, 2, 3, 3]


@pytest.mark.parametrize(("boundary", "idle"), [(1.5, "high-noise"), (0.05, "low-noise")])
def test_a_boundary_that_leaves_a_model_no_step_is_refused(boundary: float, idle: str) -> None:
    with pytest.raises(ValueError, match=f"boundary is {boundary}.*{idle} model none.*Wan"):
        check_boundary(SIGMAS, boundary)
    with pytest.raises(ValueError, match=idle):
        sampler_of("euler", boundary).table(SIGMAS)


def test_calls_after_the_first_of_two_splits_are_not_shared() -> None:
    early, late = (
        sampler_of("euler").table(torch.tensor([1.0, 0.9, level, 0.3, 0.0]))
        for level in (0.69, 0.7)
    )
    assert (early.split, late.split) == (2, 3)
    assert early.first_change(replace(early, split=3)) == 2
    assert early.first_change(late) == 2 and early.first_change(early) == 4


def levels(end: float = 0.0) -> StepParameters:
    return StepParameters(LOGIT_SIGMA, 1.0, 0.001, end, BOUNDARY)


def test_the_last_step_always_starts_below_the_boundary_and_others_may_cross_it() -> None:
    free = levels()
    for u in (torch.full((4,), 5.0), torch.full((4,), -6.0)):
        assert high_steps(free.sigmas(free.separated(u)), BOUNDARY) in (1, 4)
    low = free.separated(torch.tensor([0.0, -0.5, -1.0, -2.0]))
    moved = free.stepped(low, torch.full((4,), 9.0))
    assert high_steps(free.sigmas(low), BOUNDARY) == 1
    assert 1 < high_steps(free.sigmas(moved), BOUNDARY) < 5


def test_finite_differences_do_not_cross_the_boundary() -> None:
    free = levels()
    wall = float(LOGIT_SIGMA.from_sigma(torch.tensor(BOUNDARY)))
    for offset in (-0.03, -0.001, 0.001, 0.03):
        u = torch.tensor([2.0, wall + offset, -1.0], dtype=torch.float64)
        h = free.perturbation(u, 1, 0.05)
        assert h and (u[1] + h >= wall) == (offset > 0)


def test_extras_keep_each_model_to_its_levels_and_outputs() -> None:
    sampler, model = sampler_of("dpmpp_2m"), two_models()
    free = SolverParameters.of_steps(sampler, levels(), model.sigma_max, 6)
    free = replace(free, decoupled=True, order=2)
    theta = free.extended(free.levels.from_sigmas(SIGMAS))
    theta[free.free_levels : free.free_levels + free.times] = 1.0
    for extras in (1.0, -1.0):
        theta[free.free_levels :] = extras
        table = free.discretization(theta).table
        high, low = parts(table)
        assert (high.eval_sigmas >= BOUNDARY).all() and (low.eval_sigmas <= BOUNDARY).all()
    plain = parts(sampler.table(SIGMAS))
    assert high.distance(plain[0]) > 0.1 and low.distance(plain[1]) > 0.1


def test_streams_and_direct_calls_use_the_model_of_the_noise_level() -> None:
    model, x = two_models(), torch.ones(2, 16)
    for level in (0.9, BOUNDARY, 0.69, 0.1):
        expected = model.denoise(x, x.new_full((2,), level))
        expected = expected if level >= BOUNDARY else 0.9 * expected
        torch.testing.assert_close(model(x, x.new_full((2,), level)), expected)


SETTINGS = TrainingSettings(
    steps=4, training_noises=16, validation_noises=16, test_noises=32, iterations=4,
    decoupled=True, order=1, output_mix=True,
)  # fmt: skip


def learned(name: str = "euler") -> Any:
    model = two_models()
    sampling = sampling_of(model)
    teacher = standard_schedules(sampling, 24)["beta"]
    task = TrainingProblem(
        model,
        sampler_of(name),
        sampler_of("dpmpp_2m").discretization(teacher),
        float(sampling.sigma_max),
        standard_schedules(sampling, SETTINGS.steps),
    )
    return train(task, SETTINGS, *noises(problem("flow"), SETTINGS))


@pytest.mark.slow
def test_what_is_learned_for_two_models_beats_the_best_standard_schedule() -> None:
    found = learned()
    report = found.report
    best = report.baselines[report.best_baseline()].test_error
    assert report.chosen == "learned" and report.test_error < 0.9 * best
    high, low = parts(found.solver.table)
    assert high.model_calls == high_steps(found.solver.sigmas, BOUNDARY) and low.model_calls


def schedule(**changes: Any) -> Schedule:
    table = sampler_of("dpmpp_2m").table(SIGMAS)
    info = ScheduleInfo(
        sampler="dpmpp_2m", steps=6, model_calls=6, cfg=1.0, denoise=1.0, latent_shape=[16],
        prediction_type="flow", sigma_max=1.0, model_fingerprint="a", teacher={}, method="m",
        settings={}, settings_hash="h", report={}, boundary=BOUNDARY, high_steps=3, high_calls=3,
        low_model_fingerprint="b", format_version=FORMAT_VERSION,
    )  # fmt: skip
    return Schedule(SIGMAS, table, replace(info, **changes))


def test_a_file_keeps_the_boundary_the_index_and_both_parts(tmp_path: Path) -> None:
    saved = schedule()
    loaded = schedule_file.load(schedule_file.save(saved, tmp_path, "two"))
    assert loaded.info == saved.info and loaded.table.split == 3
    assert loaded.own_parts is not None and loaded.plain_parts is not None
    for solver, sigmas in zip(loaded.own_parts, (SIGMAS[:4], SIGMAS[3:]), strict=True):
        assert torch.equal(solver.sigmas, sigmas) and isinstance(solver.table, SolverTable)
    assert [part.tolist() for part in loaded.plain_parts] == [
        SIGMAS[:4].tolist(),
        SIGMAS[3:].tolist(),
    ]


@pytest.mark.parametrize(
    "changes",
    [{"high_steps": 2}, {"high_calls": 4}, {"boundary": 0.0}, {"boundary": 0.95},
     {"steps_sigmas": [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.0]}],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_a_file_whose_index_does_not_follow_from_its_levels_is_refused(
    changes: dict[str, Any],
) -> None:
    with pytest.raises(ValueError):
        schedule(**changes)


def test_the_sampler_of_two_models_names_itself_in_errors() -> None:
    def failing(*args: Any, **more: Any) -> Tensor:
        raise RuntimeError("broken")

    with pytest.raises(ValueError, match="'mine'.*broken"):
        ExpertSampler(failing, name="mine", boundary=BOUNDARY).table(SIGMAS)
