"""The benchmark `learning`: its rows, its measures and its summary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.methods import dispatch, official, ours
from benchmarks.methods.trial import Trial
from benchmarks.problems import mixtures, registry
from benchmarks.problems.live_model import BATCH, LiveModel
from benchmarks.problems.problem import Problem
from benchmarks.suites import learning
from benchmarks.suites.learning import run
from benchmarks.suites.learning.plot import method_points
from ld3.training.budget import QUALITIES

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def few_noises(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Problems that are measured on few noises, and do not stay cached for other tests."""
    monkeypatch.setattr(Problem, "heldout_noises", 16)
    monkeypatch.setattr(Problem, "frechet_noises", 32)
    monkeypatch.setattr(ours, "NOISES", 8)
    monkeypatch.setattr(dispatch, "GITS_NOISES", 8)
    registry.load.cache_clear()
    yield
    registry.load.cache_clear()


def synthetic(method: str, error: float, calls: int, seed: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "model": "digits",
        "sampler": "ipndm",
        "steps": 4,
        "method": method,
        "seed": seed,
        "heldout_error": error,
        "frechet": error,
        "frechet_samples": 16,
        "model_calls": calls,
        "teacher_calls": 0,
        "sample_calls": 4,
    } | more


def test_every_cell_is_unique_and_every_method_is_there() -> None:
    cells = list(learning.cells())
    keys = [tuple(cell[name] for name in learning.KEYS) for cell in cells]
    assert len(keys) == len(set(keys))
    assert {cell["method"] for cell in cells if ":" not in cell["method"]} == {
        "teacher", "ays", "gits", "dmn", *run.GITS, *dispatch.OFFICIAL, *run.OURS,
    }  # fmt: skip
    for model in run.SAMPLERS:
        of_model = [cell for cell in cells if cell["model"] == model]
        groups = {(cell["sampler"], cell["steps"]) for cell in of_model}
        teachers = [cell for cell in of_model if cell["method"] == "teacher"]
        assert {(cell["sampler"], cell["steps"]) for cell in teachers} == groups
    flow = {cell["method"] for cell in cells if "flow" in cell["model"]}
    assert flow.isdisjoint({"dmn", *dispatch.OFFICIAL})
    assert flow > {*run.GITS, *run.QUALITY_NORMAL}
    tables = [cell for cell in cells if cell["method"] in ("ays", "gits")]
    assert {cell["model"] for cell in tables} == {"demo"}


@pytest.mark.parametrize("model", ["digits", "gmm16"])
def test_moments_of_a_mixture_are_those_of_its_samples(model: str) -> None:
    means, stds, log_weights = getattr(mixtures, f"{model}_components")()
    mean, covariance = mixtures.mixture_moments(means, stds, log_weights)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.multinomial(log_weights.exp(), 200_000, replacement=True, generator=generator)
    noise = torch.randn(len(chosen), means.shape[1], generator=generator)
    samples = (means[chosen] + stds[chosen, None] * noise).double()
    assert torch.allclose(samples.mean(0), mean, atol=0.02)
    scale = float(covariance.diagonal().mean())
    assert torch.allclose(samples.T.cov(), covariance, atol=0.03 * scale)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["teacher", "scheduler:karras", "dmn", "gits-dp", "gauss-newton+decoupled"]
)
def test_a_row_has_the_keys_and_counts_calls(method: str, few_noises: None) -> None:
    row = learning.row("gmm16", "dpmpp_2m", 4, method, 0)
    assert set(learning.KEYS) | set(learning.COLUMNS) <= set(row)
    assert row["heldout_error"] > 0 and row["frechet"] > 0
    if method == "gauss-newton+decoupled":
        assert row["model_calls"] > 0 and row["teacher_calls"] % 20 == 1  # does its call repeat?
        assert row["model_calls"] + row["teacher_calls"] <= QUALITIES["normal"]
        assert len(row["eval_sigmas"]) == 4
    elif method == "gits-dp":
        assert (row["model_calls"], row["teacher_calls"]) == (0, 8 * 20)
    else:
        assert (row["model_calls"], row["teacher_calls"]) == (0, 0)
    assert row["sample_calls"] == (20 if method == "teacher" else 4)


@pytest.mark.parametrize("model", ["moons", "moons-flow"])
def test_a_baseline_that_is_often_chosen_is_the_same_in_every_cell(
    model: str, few_noises: None
) -> None:
    first, second = (
        learning.row(model, sampler, 4, "standard:res_multistep:simple", 0)
        for sampler in ("euler", "ipndm")
    )
    names = ("heldout_error", "frechet", "sigmas", "sample_calls")
    assert [first[name] for name in names] == [second[name] for name in names]
    assert first["sampler"] == "euler" and first["sample_calls"] == 4
    plain = learning.row(model, "res_multistep", 4, "scheduler:simple", 0)
    assert plain["heldout_error"] == first["heldout_error"]


@pytest.mark.parametrize("model", ["moons", "moons-flow"])
def test_gits_of_euler_chooses_levels_of_its_60_steps(model: str, few_noises: None) -> None:
    row = learning.row(model, "ipndm", 4, "gits-dp-euler60", 0)
    assert (row["model_calls"], row["teacher_calls"]) == (0, 8 * 60)

    def levels(live: LiveModel) -> list[float]:
        return live.schedules("euler", 60)[live.recipe.scheduler].tolist()

    assert set(row["sigmas"]) <= set(registry.load(model).run(levels))


def test_a_variant_of_the_published_method_differs_only_in_its_setting(
    few_noises: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = official.OfficialSettings
    shorter = {"training_pairs": 6, "validation_pairs": 4, "steps_rounds": 1, "decoupled_rounds": 1}
    monkeypatch.setattr(dispatch, "OfficialSettings", lambda **changes: small(**shorter, **changes))
    plain, uncounted, faster = (
        learning.row("moons", "euler", 3, method, 0) for method in dispatch.OFFICIAL
    )
    assert plain["sigmas"] == uncounted["sigmas"]
    assert plain["eval_sigmas"] == uncounted["eval_sigmas"] != faster["eval_sigmas"]
    # two rounds: forward, backward and the check of x' of all pairs
    assert uncounted["model_calls"] == 2 * 4 * 10 * 3 < plain["model_calls"]


def test_only_learning_uses_the_training_batch() -> None:
    problem = registry.load("gmm16")

    def task(live: LiveModel) -> list[int]:
        model, trial = live.model, Trial(problem, live, "euler", 3, 0)
        sizes = [model.batch_size]
        with pytest.raises(KeyboardInterrupt), trial.training_batches():
            sizes.append(model.batch_size)
            raise KeyboardInterrupt
        return [*sizes, model.batch_size]

    assert problem.run(task) == [BATCH, problem.training_batch, BATCH]


def test_summary_compares_means_over_seeds_and_judges_the_aims() -> None:
    rows = [
        synthetic("ld3-official", 0.2, 9000),
        synthetic("ld3-official", 0.4, 9000, seed=1),
        synthetic("gauss-newton+decoupled", 0.1, 1000),
        synthetic("gauss-newton+decoupled", 0.2, 1000, seed=1),
        synthetic("gauss-newton", 0.3, 600),
        synthetic("scheduler:karras", 1.05, 0),
        synthetic("teacher", 0.05, 0),
    ]
    text = learning.summary(rows)
    assert "error 0.500, calls 0.111 = 1/9.0, better in 1 (aim: error <= 0.6" in text
    assert text.count("reached") == 1 and text.count("MISSED") == 1
    assert "gauss-newton+decoupled: 0.1000, factor 10.00" in text


def test_points_of_the_figure_are_relative_to_karras() -> None:
    rows = [
        synthetic("scheduler:karras", 0.4, 0),
        synthetic("scheduler:beta", 0.3, 0),
        synthetic("scheduler:simple", 0.1, 0, sample_calls=5),
        synthetic("gauss-newton", 0.1, 500),
        synthetic("gauss-newton", 0.3, 700, seed=1),
    ]
    points = method_points(rows)
    assert points["gauss-newton"] == pytest.approx((600, 0.5))
    assert points["scheduler:best"][1] == pytest.approx(0.75)
    assert learning.plot(rows).axes
