"""CFG++ samplers, which also use the unconditional output: read, learned for and sampled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.sample
import comfy.samplers
import pytest
import torch
from torch import Tensor

from demo.demo_model import encode_prompt, load_demo_model
from ld3.comfy import core_samplers, rivals, training_run
from ld3.comfy.executor import TableSampler
from ld3.comfy.guided_run import GuidedRun, run
from ld3.comfy.guiders import cfg_guider
from ld3.comfy.job import GraphInputs
from ld3.comfy.requests import TrainingRequest
from ld3.comfy.sampling import prepared_sampling, sample
from ld3.comfy.training_job import TrainingResult, train_schedule
from ld3.schedule_file import load
from ld3.table import Discretization, SolverTable
from ld3.training.report import Progress

from .test_nodes import TINY

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("euler_cfg_pp", "dpmpp_2m_cfg_pp", "res_multistep_cfg_pp", "gradient_estimation_cfg_pp")
SIGMAS = torch.tensor([14.0, 3.0, 0.8, 0.2, 0.0])
SHAPE = (2, 3, 8, 8)
CFG = 1.4
CFG_PP = {"sampler_name": "euler_cfg_pp", "teacher_sampler": "euler_cfg_pp", "cfg": CFG}


@pytest.fixture(scope="module")
def inputs() -> GraphInputs:
    prompts = (encode_prompt(text)[0] for text in ("red apple", ""))
    return GraphInputs(load_demo_model(), *prompts, {"samples": torch.zeros(1, 3, 8, 8)})


@pytest.fixture(scope="module")
def learn(inputs: GraphInputs, ld3_folder: Any) -> Callable[..., TrainingResult]:
    """LD3 Train Schedule with small settings; keywords replace some."""

    def learned(**changes: Any) -> TrainingResult:
        widgets = {k: v for k, v in TINY.items() if k not in ("name", "retrain")}
        request = TrainingRequest(**widgets | CFG_PP | changes)
        return train_schedule(inputs, request, "cfg pp", retrain=True)

    return learned


@pytest.mark.parametrize("cfg", [1.0, CFG])
@pytest.mark.parametrize("name", NAMES)
def test_a_table_samples_as_the_cfg_pp_sampler_of_core(
    name: str, cfg: float, inputs: GraphInputs
) -> None:
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    guider = cfg_guider(inputs.model, inputs.positive, inputs.negative, cfg)

    def task(guided: GuidedRun) -> Tensor:
        sampler = core_samplers.widget_sampler("sampler", name, SIGMAS, guided.model_wrap)
        solver = sampler.discretization(SIGMAS)
        found = guided.model.sample(solver, noise, torch.zeros(SHAPE))[0]
        assert guided.model.calls == SHAPE[0] * (len(SIGMAS) - 1)
        return guided.model_wrap.inner_model.process_latent_out(found)

    found = run(guider, torch.zeros(SHAPE), SIGMAS, task)
    core = comfy.sample.sample_custom(
        inputs.model, noise, cfg, core_samplers.sampler_object(name), SIGMAS, inputs.positive,
        inputs.negative, torch.zeros(SHAPE), disable_pbar=True, seed=0,
    )  # fmt: skip
    assert (found - core).abs().max() <= 2e-5 * core.abs().max()


@pytest.mark.slow
def test_steps_are_learned_sampled_by_core_and_no_worse_than_the_standard(
    learn: Any, monkeypatch: pytest.MonkeyPatch, inputs: GraphInputs
) -> None:
    events: list[Progress] = []
    monkeypatch.setattr(training_run, "LiveProgress", lambda *_: events.append)
    result = learn(learn="time steps")
    report, schedule = result.report, result.schedule
    best = report.best_baseline()
    assert best is not None and report.test_error is not None
    standard = report.baselines[best].test_error
    assert standard is not None and report.test_error <= standard
    calls = report.teacher_calls + report.training_calls + report.report_calls
    assert calls == events[-1].calls <= events[-1].planned_calls
    assert load(result.path).table.distance(schedule.table) == 0
    assert schedule.table.outputs == 2 and schedule.info.teacher["check"] is None
    prepared = prepared_sampling(schedule, inputs.model, CFG)
    core = core_samplers.sampler_object("euler_cfg_pp")
    assert prepared.sampler.sampler_function is core.sampler_function and not prepared.warnings


@pytest.mark.slow
def test_a_full_solver_is_executed_as_it_was_learned(learn: Any, inputs: GraphInputs) -> None:
    """LD3 KSampler's sampler, and the table of the plain sampler where that is not installed."""
    schedule = learn(learn="time steps + full solver").schedule
    assert isinstance(prepared_sampling(schedule, inputs.model, CFG).sampler, TableSampler) == bool(
        schedule.info.extras
    )
    table = schedule.table
    change = torch.zeros_like(table.weights)
    change[-1, table.denoised] += torch.tensor([0.1, -0.05, -0.05], dtype=torch.float64)
    changed = SolverTable(
        table.state_sigmas, 0.9 * table.eval_sigmas, table.weights + change, table.callback_calls
    )
    schedule = replace(
        schedule, table=changed, info=replace(schedule.info, extras=["decoupled times"])
    )
    prepared = prepared_sampling(schedule, inputs.model, CFG)
    found = sample(inputs, prepared, seed=3)["samples"]

    def task(guided: GuidedRun) -> Tensor:
        noise = comfy.sample.prepare_noise(torch.zeros(1, 3, 8, 8), 3)
        solver = Discretization(schedule.sigmas, changed)
        expected = guided.model.sample(solver, noise, torch.zeros(1, 3, 8, 8))[0]
        return guided.model_wrap.inner_model.process_latent_out(expected)

    guider = cfg_guider(inputs.model, inputs.positive, inputs.negative, CFG)
    expected = run(guider, torch.zeros(1, 3, 8, 8), schedule.sigmas, task)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_cfg_pp_sampler_is_compared_with_itself_and_with_no_other(learn: Any) -> None:
    """Auto would take euler for a flow model."""
    model = load_demo_model("flow")
    request = TrainingRequest(
        **{k: v for k, v in TINY.items() if k not in ("name", "retrain")} | CFG_PP
    )
    wrap = core_samplers.stand_in_guider(model)
    found = rivals.own(model, wrap, request, outputs=2)
    assert found is not None and found.name == "euler_cfg_pp + simple"
    assert found.solver(3).table.outputs == 2
    plain = rivals.own(model, wrap, replace(request, sampler_name="dpmpp_2m"))
    assert plain is not None and plain.name == "euler + simple"
    for sampler, outputs in (("euler", 2), ("euler_cfg_pp", 1)):
        with pytest.raises(ValueError, match="compare_sampler is .* a CFG.* sampler"):
            rivals.own(model, wrap, replace(request, compare_sampler=sampler), outputs=outputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_sampler": "dpmpp_2m"}, "'euler_cfg_pp' is a CFG.* teacher_sampler is not"),
        ({"sampler_name": "euler"}, "teacher_sampler is a CFG\\+\\+ .* 'euler' is not"),
        ({"optimizer": "gradient (LD3 paper)", "learn": "time steps"}, "optimizer is gradient"),
        ({"learn": "time steps + D-ODE"}, "learn is time steps \\+ D-ODE.*guides more strongly"),
    ],
)
def test_what_fits_only_other_samplers_is_refused(
    changes: dict[str, str], message: str, learn: Any
) -> None:
    with pytest.raises(ValueError, match=message):
        learn(**changes)
