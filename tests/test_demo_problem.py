"""The demo models as benchmark problems: noise levels, guidance, prompts, teacher, reference."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from benchmarks.methods import dispatch, ours
from benchmarks.methods.trial import Trial
from benchmarks.problems import demo_model, registry
from benchmarks.problems.demo_model import DemoProblem
from benchmarks.problems.live_model import LiveModel
from benchmarks.suites import caches
from demo import emoji
from ld3.metrics import rmse
from ld3.training.budget import calls_of

pytestmark = pytest.mark.usefixtures("one_thread", "few_noises")
FLOWS = [name for name in registry.DEMOS if "flow" in name]


@pytest.fixture
def few_noises(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Demo problems measured on few noises and made-up data (the font may not be installed)."""
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    monkeypatch.setattr(emoji, "load_emoji", lambda size: (images, ["red heart"] * 8))
    monkeypatch.setattr(demo_model, "EMOJI_COMPONENTS", 4)
    monkeypatch.setattr(ours, "NOISES", 4)
    monkeypatch.setattr(DemoProblem, "heldout_noises", 4)
    monkeypatch.setattr(DemoProblem, "frechet_noises", 4)
    kept = registry.load, demo_model.emoji_data
    for cached in kept:
        cached.cache_clear()
    yield
    for cached in kept:
        cached.cache_clear()


def samples(problem: DemoProblem) -> torch.Tensor:
    noise = problem.noises(2, 0)
    scheduler = problem.teacher[1]
    return problem.run(lambda live: live.samples(live.standard("euler", scheduler, 3), noise))


def test_unknown_problems_are_refused_with_all_names() -> None:
    with pytest.raises(ValueError, match="no problem is called 'emoji'.*demo-flow.*digits"):
        registry.load("emoji")


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.DEMOS)
def test_teacher_is_closer_to_the_reference_than_few_steps(name: str) -> None:
    problem = registry.load(name)

    def errors(live: LiveModel) -> list[float]:
        teacher = live.teacher
        assert torch.equal(teacher.sigmas, live.standard(*problem.teacher).sigmas)
        few = live.standard(*problem.teacher[:2], 4)
        return [problem.error(live, solver) for solver in (teacher, few)]

    teacher, few = problem.run(errors)
    assert 0 < teacher < 0.5 * few


@pytest.mark.parametrize("name", registry.DEMOS)
def test_flows_start_at_noise_level_1_and_eps_at_stable_diffusions(name: str) -> None:
    problem = registry.load(name)
    start = problem.run(lambda live: float(live.teacher.sigmas[0]))
    assert start == pytest.approx(1.0 if name in FLOWS else 14.615, rel=1e-3)
    assert problem.variance_preserving == (name not in FLOWS)


def test_eps_and_flow_have_their_own_teacher_and_reference() -> None:
    eps, flow = registry.load("demo"), registry.load("demo-flow")
    assert (eps.teacher, eps.reference) == (("dpmpp_2m", "karras", 20), ("heun", "karras", 60))
    assert "karras" not in (flow.teacher[1], flow.reference[1])


@pytest.mark.parametrize("model", ["eps", "flow"])
def test_guidance_and_prompt_change_the_samples(model: str) -> None:
    plain = samples(DemoProblem("plain", model))
    guided = samples(DemoProblem("guided", model, cfg=4.0))
    apple = samples(DemoProblem("apple", model, prompt="red apple"))
    assert torch.equal(plain, samples(DemoProblem("again", model)))
    assert (rmse(guided - plain) > 0.01).all() and (rmse(apple - plain) > 0.01).all()


@pytest.mark.slow
def test_learning_reduces_the_error_of_a_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "calls_of", lambda _, steps: calls_of("fast", steps))
    problem = registry.load("demo-flow")

    def errors(live: LiveModel) -> tuple[float, float]:
        trial = Trial(problem, live, "dpmpp_2m", 3, 0)
        learned = dispatch.run("gauss-newton", trial)
        assert learned.model_calls > 0 and learned.teacher_calls > 0
        worst = live.standard("dpmpp_2m", "karras", 3)
        return problem.error(live, learned.solver), problem.error(live, worst)

    learned, karras = problem.run(errors)
    assert learned < karras


@pytest.mark.parametrize("name", ["demo", "demo-flow-cfg4"])
def test_frechet_distance_is_finite_and_for_the_first_seed_only(name: str) -> None:
    problem = registry.load(name)
    solver = problem.run(lambda live: live.standard("euler", "simple", 2))
    distance, count = problem.frechet(solver, 0)
    assert distance > 0 and count == 4
    assert problem.frechet(solver, 1) == (None, 0)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["easycache", "lazycache"])
def test_caches_save_network_calls_and_without_skipping_change_nothing(method: str) -> None:
    problem = DemoProblem("demo-flow", "flow")
    noise = problem.noises(2, 0)

    def sampled(live: LiveModel) -> tuple[torch.Tensor, torch.Tensor]:
        solver = live.standard("euler", "simple", 8)
        return solver.sigmas.float(), live.samples(solver, noise)

    sigmas, expected = problem.run(sampled)
    made: dict[float, int] = {}
    found = {}
    for threshold in (0.0, 3.0):
        model, calls = caches.cached_model(problem.patcher, method, threshold, (0.0, 1.0)), []
        found[threshold] = problem.sampled_by_core(
            model, "euler", sigmas, noise, lambda calls=calls: calls.append(1)
        )
        made[threshold] = len(calls)
    assert made[0.0] == 8 and 2 <= made[3.0] < 8
    assert torch.allclose(found[0.0], expected, atol=1e-5)
    assert not torch.allclose(found[3.0], expected, atol=1e-2)
