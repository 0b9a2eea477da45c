"""The benchmark `solvers`: its rows, its measures and its summary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.methods import gs, ours
from benchmarks.problems import registry
from benchmarks.problems.live_model import LiveModel
from benchmarks.problems.problem import Problem
from benchmarks.suites import solvers
from benchmarks.suites.solvers import run
from benchmarks.suites.solvers.summary import error_ratios
from ld3.comfy.requests import LEARN, TrainingOptions
from ld3.training.dode import with_lambdas
from ld3.training.settings import TrainingSettings

pytestmark = pytest.mark.usefixtures("one_thread")
CALLS = 900


@pytest.fixture
def few_noises(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Problems that are measured on few noises, and do not stay cached for other tests."""
    monkeypatch.setattr(Problem, "heldout_noises", 32)
    monkeypatch.setattr(Problem, "frechet_noises", 32)
    monkeypatch.setattr(run, "calls_of", lambda quality, steps: CALLS)
    registry.load.cache_clear()
    yield
    registry.load.cache_clear()


def synthetic(extras: str, error: float, calls: int, **more: Any) -> dict[str, Any]:
    return {
        "model": "digits",
        "sampler": "ipndm",
        "steps": 4,
        "seed": 0,
        "schedule": "learned",
        "extras": extras,
        "heldout_error": error,
        "frechet": error,
        "frechet_samples": 16,
        "model_calls": calls,
        "teacher_calls": 0,
        "sample_calls": 4,
        "trajectory_distance": None,
        "sigmas": [3.0, 2.0, 1.0, 0.5, 0.0],
    } | more


def test_every_cell_is_unique_and_the_demo_model_comes_last() -> None:
    cells = list(solvers.cells())
    keys = [tuple(cell[name] for name in solvers.KEYS) for cell in cells]
    assert len(keys) == len(set(keys))
    models = [cell["model"] for cell in cells]
    assert set(models[models.index("demo") :]) == {"demo"}
    assert cells[-1]["schedule"] == "learned"
    standard = [cell for cell in cells if cell["schedule"] != "learned"]
    assert all(cell["seed"] == 0 for cell in standard if cell["extras"] == "none")
    assert {cell["extras"] for cell in standard} == {"none", "d-ode"}


def test_every_standard_schedule_is_available_and_no_two_are_the_same() -> None:
    def differ(live: LiveModel) -> bool:
        schedules = live.schedules("heun", 4)
        chosen = [tuple(schedules[name].tolist()) for name in run.SCHEDULERS]
        # which is why the exact problems leave out `normal`
        assert torch.allclose(schedules["normal"], schedules["exponential"], rtol=1e-4)
        return len(set(chosen)) == len(run.SCHEDULERS)

    assert registry.load("gmm16").run(differ)


def test_the_full_solver_is_what_the_node_learns() -> None:
    assert run.LEARNED["solver+mix"] == LEARN["time steps + full solver"]
    assert run.LEARNED["d-ode"] == LEARN["time steps + D-ODE"]
    for settings in run.LEARNED.values():
        TrainingSettings(steps=4, **settings)


def test_the_gradient_learns_from_as_many_noises_as_in_the_node() -> None:
    names = ("iterations", "training_noises", "heldout_noises", "batch_size")
    chosen = dict.fromkeys(names, 0) | {"optimizer": "gradient (Adam, thorough)"}
    node = TrainingOptions(steps=4, seed=0, distance="l2", soft_radius=0.0, **chosen).settings()
    assert node.gradient == replace(ours.THOROUGH, radius=0.0)
    assert {name: getattr(node, name) for name in ours.GRADIENT_NOISES} == ours.GRADIENT_NOISES


@pytest.mark.parametrize("sampler", ["heun", "ipndm"])
@pytest.mark.parametrize("extras", ["none", "d-ode"])
def test_a_row_of_a_standard_schedule_counts_distilling(
    sampler: str, extras: str, few_noises: None
) -> None:
    row = solvers.row(
        model="gmm16", sampler=sampler, steps=4, seed=0, schedule="standard:beta", extras=extras
    )
    assert set(solvers.KEYS) | set(solvers.COLUMNS) <= set(row)
    calls = 7 if sampler == "heun" else 4
    assert row["sample_calls"] == len(row["trajectory_distance"]) == calls
    assert row["heldout_error"] > 0 and row["frechet"] > 0 and row["teacher_calls"] == 0
    if extras == "none":
        assert row["model_calls"] == 0
    else:
        assert 11 * 4 * 32 <= row["model_calls"] <= 12 * calls * 32


def test_a_row_of_a_learned_schedule_counts_its_teacher_separately(few_noises: None) -> None:
    row = solvers.row(
        model="gmm16", sampler="euler", steps=3, seed=1, schedule="learned", extras="solver+mix"
    )
    sampled = row["teacher_calls"] - ours.CHECK_CALLS - 1
    assert sampled > 0 and sampled % 20 == 0
    assert 0.8 * CALLS < row["model_calls"] + row["teacher_calls"] <= CALLS
    assert row["trajectory_distance"] is None and len(row["eval_sigmas"]) == 3


def test_gs_is_trained_once_and_counts_its_teacher(
    few_noises: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = gs.GsSettings(training_pairs=8, updates=2)
    monkeypatch.setitem(run.GS, "gs-published", settings)
    cell = {"model": "gmm16", "steps": 3, "seed": 0, "schedule": "learned"}
    first, second = (
        solvers.row(sampler=name, extras="gs-published", **cell) for name in ("euler", "ipndm")
    )
    assert first | {"sampler": "ipndm"} == second
    assert (first["model_calls"], first["teacher_calls"]) == (2 * 4 * 3 * 3, 8 * 20)
    assert first["sample_calls"] == 3


def test_trajectory_distances_are_to_states_at_the_same_level(few_noises: None) -> None:
    """A student with many steps stays close to the teacher; D-ODE cannot change the first state."""
    problem = registry.load("gmm16")

    def task(live: LiveModel) -> None:
        fine = live.standard("dpmpp_2m", "karras", 40)
        coarse = live.standard("dpmpp_2m", "karras", 4)
        before = live.model.calls
        near, far = (run.trajectory_distance(problem, live, solver) for solver in (fine, coarse))
        assert live.model.calls == before
        assert len(near) == 40 and len(far) == 4
        assert max(near) < 0.2 * max(far)
        lambdas = torch.full((4,), 0.3, dtype=torch.float64)
        changed = replace(coarse, table=with_lambdas(coarse.table, lambdas))
        moved = run.trajectory_distance(problem, live, changed)
        assert moved[0] == far[0] and all(a != b for a, b in zip(moved[1:], far[1:], strict=True))

    problem.run(task)


def test_summary_compares_means_over_seeds_and_judges_the_aims() -> None:
    standard = {"schedule": "standard:beta"}
    rows = [
        synthetic("none", 0.4, 0, trajectory_distance=[1.0, 2.0, 2.0, 2.0], **standard),
        synthetic("d-ode", 0.2, 1472, trajectory_distance=[1.0, 1.0, 3.0, 1.0], **standard),
        synthetic("d-ode", 0.4, 1472, seed=1, **standard),
        synthetic("none", 0.4, 0, sampler="euler", **standard),
        synthetic("d-ode", 0.5, 1600, sampler="euler", **standard),
        synthetic("none", 0.3, 4000),
        synthetic("none", 0.3, 4000, seed=1),
        synthetic("solver", 0.1, 6000),
        synthetic("solver", 0.3, 6000, seed=1),
        synthetic("solver+mix", 0.15, 6000),
        synthetic("gs-published", 0.1, 60000),
        synthetic("solver+mix", 0.9, 6000, steps=8),
        synthetic("none", 0.3, 0, sampler="res_multistep", schedule="standard:simple"),
    ]
    text = solvers.summary(rows)
    assert "digits (2 cells): better in 50.0%" in text and "aim: better in 90%; MISSED" in text
    assert "at most 12.50 model calls" in text and "aim: <= 12; MISSED" in text
    assert "solver / none, digits (1 cells): error 0.667, calls 1.500" in text
    assert "solver+mix / none, digits (1 cells): error 0.500" in text
    assert "aim: error <= 0.55; reached" in text
    assert "error 1.500, calls 0.100 = 1/10.0, better in 0 (aim: error <= 1, calls <= 1/5" in text
    assert "solver+mix / res_multistep:simple, digits (1 cells): error 0.500, calls -" in text
    assert "66.7% of 3 (farther: 33.3%)" in text


def test_the_figure_shows_ratios_to_no_extras() -> None:
    standard = {"schedule": "standard:beta"}
    rows = [
        synthetic("none", 0.4, 0, trajectory_distance=[1.0, 2.0], **standard),
        synthetic("d-ode", 0.2, 1472, trajectory_distance=[1.0, 1.0], **standard),
        synthetic("none", 0.4, 4000),
        synthetic("solver", 0.1, 6000),
        synthetic("solver", 0.3, 6000, seed=1),
    ]
    found = error_ratios(rows, "solver", lambda row: row["schedule"])
    assert found == {"learned": pytest.approx(0.5)}
    assert len(solvers.plot(rows).axes) == 3
