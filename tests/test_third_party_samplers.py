"""Samplers of other packs: read, refused with a clear reason, learned for and sampled."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import comfy.sample
import comfy.samplers
import pytest
import torch
from torch import Tensor

from demo.demo_model import encode_prompt, load_demo_model
from ld3 import tracing
from ld3.comfy import core_samplers
from ld3.comfy.guided_run import GuidedRun, run
from ld3.comfy.guiders import cfg_guider
from ld3.comfy.job import GraphInputs
from ld3.comfy.requests import TrainingRequest
from ld3.comfy.sampling import prepared_sampling
from ld3.comfy.training_job import train_schedule
from ld3.tracing import TracedSampler, UnsupportedSampler

from . import sampler_pack
from .test_nodes import TINY

pytestmark = pytest.mark.usefixtures("one_thread", "pack_of_samplers")
SIGMAS = torch.tensor([14.6, 3.0, 0.8, 0.2, 0.0])
SHAPE = (2, 3, 8, 8)


@pytest.fixture(scope="module", autouse=True)
def pack_of_samplers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        sampler_pack.install(patch)
        yield


@pytest.fixture(scope="module")
def model() -> Any:
    return load_demo_model()


def guided(model: Any, task: Any) -> Any:
    apple, nothing = (encode_prompt(text)[0] for text in ("red apple", ""))
    return run(cfg_guider(model, apple, nothing, 3.0), torch.zeros(SHAPE), SIGMAS, task)


def read(model: Any, name: str, sigmas: Tensor = SIGMAS) -> Any:
    """The table of a sampler, as a node reads it."""
    return guided(
        model,
        lambda run: core_samplers.widget_sampler(
            "sampler_name", name, sigmas, run.model_wrap
        ).table(sigmas),
    )


@pytest.mark.parametrize(("name", "calls"), [("six_stages_ode", 6), ("float32_only", 1)])
def test_a_float32_sampler_replays_as_core_runs_it(name: str, calls: int, model: Any) -> None:
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))

    def task(guided: GuidedRun) -> Tensor:
        sampler = core_samplers.widget_sampler("sampler", name, SIGMAS, guided.model_wrap)
        solver = sampler.discretization(SIGMAS)
        assert solver.table.model_calls == calls * (len(SIGMAS) - 1)
        sample = guided.model.sample(solver, noise, torch.zeros(SHAPE))[0]
        return guided.model_wrap.inner_model.process_latent_out(sample)

    found = guided(model, task)
    apple, nothing = (encode_prompt(text)[0] for text in ("red apple", ""))
    core = comfy.sample.sample_custom(
        model, noise, 3.0, core_samplers.sampler_object(name), SIGMAS, apple, nothing,
        torch.zeros(SHAPE), disable_pbar=True, seed=0,
    )  # fmt: skip
    assert (found - core).abs().max() <= 2e-5 * core.abs().max()


def test_options_of_a_sampler_are_read_and_make_a_stochastic_one_deterministic(
    model: Any,
) -> None:
    sampling = model.get_model_object("model_sampling")
    guider = core_samplers.stand_in_guider(model)

    def table(**options: float) -> Any:
        sampler = comfy.samplers.KSAMPLER(sampler_pack.six_stages, options)
        return core_samplers.traced_sampler(sampler, sampling, guider).table(SIGMAS)

    assert table(eta=0.0).distance(table(eta=0.0, weight=0.9)) > 1e-3
    with pytest.raises(UnsupportedSampler, match="stochastic"):
        table(eta=0.5)
    quiet = comfy.samplers.ksampler("euler_ancestral", {"eta": 0.0})
    euler = core_samplers.traced_sampler(comfy.samplers.ksampler("euler"), sampling, guider)
    found = core_samplers.traced_sampler(quiet, sampling, guider).table(SIGMAS)
    assert found.distance(euler.table(SIGMAS)) < 1e-12


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("six_stages", "stochastic.*such as 'six_stages_ode'"),
        ("failing", "failed .*AttributeError: .*setting_of_another_pack"),
        ("growing", "adaptive"),
        ("half", "calls the model in torch.bfloat16"),
    ],
)
def test_a_refusal_names_widget_sampler_reason_and_the_deterministic_twin(
    name: str, reason: str, model: Any
) -> None:
    with pytest.raises(ValueError, match=f"^sampler_name: .*'{name}'.*({reason})") as caught:
        read(model, name)
    assert "such as" in str(caught.value)


def test_errors_of_later_schedules_name_the_sampler_too() -> None:
    sampler = TracedSampler(sampler_pack.failing, SimpleNamespace(), name="failing")
    with pytest.raises(UnsupportedSampler, match="'failing': it failed") as caught:
        sampler.table(SIGMAS)
    assert isinstance(caught.value.__cause__, AttributeError)


def test_another_thread_never_sees_another_default_dtype() -> None:
    running, checked = threading.Event(), threading.Event()
    seen: list[torch.dtype] = []

    def watch() -> None:
        assert running.wait(60)
        seen.extend((torch.get_default_dtype(), torch.tensor(1.0).dtype, torch.ones(2).dtype))
        checked.set()

    def euler(model: Any, x: Tensor, sigmas: Tensor, **keywords: Any) -> Tensor:
        running.set()
        assert checked.wait(60)
        assert torch.tensor(0.1).dtype == torch.linspace(0, 1, 3).dtype == torch.float64
        assert torch.tensor(1).dtype == torch.int64
        assert torch.zeros(2, dtype=torch.float32).dtype == torch.float32
        for i in range(len(sigmas) - 1):
            denoised = model(x, sigmas[i] * x.new_ones(len(x)))
            x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
        return x

    other = threading.Thread(target=watch)
    other.start()
    TracedSampler(euler).table(SIGMAS)
    other.join()
    assert seen == [torch.float32] * 3
    assert torch.tensor(0.1).dtype == torch.float32


def test_a_schedule_is_read_once_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Tensor] = []

    def euler(model: Any, x: Tensor, sigmas: Tensor, **keywords: Any) -> Tensor:
        runs.append(sigmas)
        for i in range(len(sigmas) - 1):
            denoised = model(x, sigmas[i] * x.new_ones(len(x)))
            x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
        return x

    monkeypatch.setattr(tracing, "KEPT_TRACES", 3)
    sampler = TracedSampler(euler)
    table = sampler.table(SIGMAS)
    others = [SIGMAS * (1 + 0.01 * k) for k in range(1, 4)]
    known = len(runs)
    for sigmas in others[:2]:
        sampler.table(sigmas)
    assert len(runs) == known + 2
    assert torch.equal(sampler.table(SIGMAS).weights, table.weights)
    for sigmas in others:
        sampler.table(sigmas)
    assert len(sampler._traces) == 3


@pytest.mark.slow
def test_a_schedule_is_learned_for_a_third_party_sampler_and_sampled_as_core_does(
    model: Any, ld3_folder: Any
) -> None:
    names = ("name", "retrain")
    request = {key: value for key, value in TINY.items() if key not in names}
    request |= {"sampler_name": "six_stages_ode", "steps": 2, "learn": "time steps"}
    apple, nothing = (encode_prompt(text)[0] for text in ("red apple", ""))
    latent = {"samples": torch.zeros(1, 3, 8, 8)}
    inputs = GraphInputs(model, apple, nothing, latent)
    result = train_schedule(inputs, TrainingRequest(**request), "six")
    assert result.schedule.info.model_calls == 12
    prepared = prepared_sampling(result.schedule, model, request["cfg"])
    assert prepared.sampler.sampler_function is sampler_pack.six_stages_ode
    assert torch.equal(prepared.sigmas, result.schedule.sigmas)
