"""Models with state between calls: found, named, refused, or learned for without sharing calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from torch import Tensor

from demo.demo_model import encode_prompt, load_demo_model
from ld3.comfy import core_samplers, training_run
from ld3.comfy.guided_run import GuidedRun, run, seconds_per_call
from ld3.comfy.guiders import cfg_guider
from ld3.comfy.job import GraphInputs
from ld3.comfy.model_state import keeps_state
from ld3.comfy.requests import TrainingRequest
from ld3.comfy.training_job import train_schedule
from ld3.training.report import Progress

from .test_nodes import TINY

pytestmark = pytest.mark.usefixtures("one_thread")
SIGMAS = torch.tensor([14.0, 3.0, 0.8, 0.0])
SHAPE = (2, 3, 16, 16)
PROMPTS = [encode_prompt(text)[0] for text in ("red apple", "")]
PROBE_CALLS = 15


def noise(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def guided(model: Any, task: Callable[[GuidedRun], Any], cfg: float = 3.0) -> Any:
    return run(cfg_guider(model, *PROMPTS, cfg), torch.zeros(SHAPE), SIGMAS, task)


def probed(model: Any, cfg: float = 3.0) -> bool:
    def task(run: GuidedRun) -> bool:
        found = keeps_state(run, noise(), torch.zeros(SHAPE))
        assert run.model.calls == PROBE_CALLS
        return found

    return guided(model, task, cfg)


def caching(name: str, node: Any) -> Any:
    model = load_demo_model(name)
    return node.execute(model, reuse_threshold=0.2, start_percent=0.15, end_percent=0.95,
                        verbose=False)[0]  # fmt: skip


def momentum(value: float = -0.5, name: str = "eps") -> Any:
    return APG.execute(load_demo_model(name), eta=1.0, norm_threshold=5.0, momentum=value)[0]


@pytest.mark.parametrize("name", ["eps", "flow"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_model_without_state_is_accepted(cfg: float, name: str) -> None:
    assert not probed(load_demo_model(name), cfg)
    assert not probed(momentum(0.0, name), cfg)


@pytest.mark.parametrize("change", [0.05, -0.2])
def test_state_that_never_begins_anew_is_refused_and_its_patch_named(change: float) -> None:
    model, calls = load_demo_model(), 0

    def drifting(call: Callable[..., Tensor], arguments: dict[str, Any]) -> Tensor:
        nonlocal calls
        calls += 1
        output = call(arguments["input"], arguments["timestep"], **arguments["c"])
        return output * (1 + change * calls)

    model.set_model_unet_function_wrapper(drifting)
    with pytest.raises(ValueError, match="keeps state between samplings.*EasyCache") as caught:
        probed(model)
    assert "model_function_wrapper" in str(caught.value)


@pytest.mark.parametrize("name", ["eps", "flow"])
@pytest.mark.parametrize(
    ("node", "patch"), [(EasyCacheNode, "EasyCache"), (LazyCacheNode, "LazyCache")]
)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_caching_nodes_of_core_are_refused_by_name(
    cfg: float, node: Any, patch: str, name: str
) -> None:
    with pytest.raises(ValueError, match=f"state between.*Patched on it: .*{patch}"):
        probed(caching(name, node), cfg)


def test_an_error_of_a_model_without_patches_is_not_changed() -> None:
    model = load_demo_model()

    def task(run: GuidedRun) -> None:
        run.model.denoise = lambda x, sigma: [][0]
        keeps_state(run, noise(), torch.zeros(SHAPE))

    with pytest.raises(IndexError):
        guided(model, task)


@pytest.mark.parametrize("name", ["eps", "flow"])
def test_momentum_is_found_and_named(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert probed(momentum(name=name))
    assert "APG (sampler_pre_cfg_function)" in caplog.text


def test_rollouts_with_momentum_are_those_of_core_whatever_came_before() -> None:
    model, sampler = momentum(), comfy.samplers.sampler_object("euler")

    def task(run: GuidedRun) -> Tensor:
        run.model.stateless = not keeps_state(run, noise(), torch.zeros(SHAPE))
        seconds_per_call(run, noise(), torch.zeros(SHAPE))
        found = core_samplers.widget_sampler("sampler", sampler, SIGMAS, run.model_wrap)
        solver = found.discretization(SIGMAS)
        for seed in (1, 0):
            sample = run.model.sample(solver, noise(seed), torch.zeros(SHAPE))[0]
        return run.model_wrap.inner_model.process_latent_out(sample)

    core = comfy.sample.sample_custom(
        momentum(), noise(), 3.0, sampler, SIGMAS, *PROMPTS, torch.zeros(SHAPE), disable_pbar=True,
        seed=0,
    )  # fmt: skip
    torch.testing.assert_close(guided(model, task), core, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_schedule_is_learned_with_momentum_and_no_call_is_shared(
    ld3_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Progress] = []
    monkeypatch.setattr(training_run, "LiveProgress", lambda *_: events.append)
    widgets = {k: v for k, v in TINY.items() if k not in ("name", "retrain")}
    request = TrainingRequest(**widgets | {"cfg": 3.0, "learn": "time steps"})
    latent = {"samples": torch.zeros(1, 3, 8, 8)}
    made = {}
    for kind, model in (("plain", load_demo_model()), ("momentum", momentum())):
        report = train_schedule(GraphInputs(model, *PROMPTS, latent), request, kind).report
        made[kind] = report.teacher_calls + report.training_calls + report.report_calls
        assert made[kind] == events[-1].calls <= events[-1].planned_calls
    assert made["momentum"] > made["plain"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "gradient (LD3 paper)"}, "optimizer .* without state.*APG"),
        ({"learn": "time steps + D-ODE"}, "learn .* without state.*APG"),
    ],
)
def test_what_shares_calls_is_refused_with_momentum(
    changes: dict[str, Any], message: str, ld3_folder: Any
) -> None:
    widgets = {k: v for k, v in TINY.items() if k not in ("name", "retrain")}
    inputs = GraphInputs(momentum(), *PROMPTS, {"samples": torch.zeros(1, 3, 8, 8)})
    with pytest.raises(ValueError, match=message):
        train_schedule(inputs, TrainingRequest(**widgets | {"cfg": 3.0} | changes), "refused")
