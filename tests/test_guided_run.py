"""A task in a guided run: its value, its errors, its model, and what it leaves behind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import BasicGuider, DualCFGGuider
from torch import Tensor

from demo.demo_model import encode_prompt, load_demo_model
from ld3.comfy import core_samplers
from ld3.comfy.guided_run import GuidedRun, run
from ld3.comfy.guiders import cfg_guider

pytestmark = pytest.mark.usefixtures("one_thread")
GUIDERS = ("cfg", "basic", "dual cfg")
SIGMAS = torch.tensor([14.0, 3.0, 0.8, 0.0])
SHAPE = (2, 3, 8, 8)


@pytest.fixture
def model() -> Iterator[Any]:
    """The demo model with an option of its own, and a latent format that scales and shifts."""
    patcher = load_demo_model()
    patcher.model_options["transformer_options"]["mark"] = [1]
    own = patcher.model.latent_format

    class Shifted(type(own)):
        def process_in(self, latent: Tensor) -> Tensor:
            return (latent - 0.3) * 0.5

        def process_out(self, latent: Tensor) -> Tensor:
            return latent / 0.5 + 0.3

    patcher.model.latent_format = Shifted()
    yield patcher
    comfy.model_management.unload_all_models()


def guider_of(kind: str, model: Any) -> Any:
    """Core's guiders, all with guidance but the basic one."""
    apple, heart, nothing = (encode_prompt(text)[0] for text in ("red apple", "heart", ""))
    if kind == "cfg":
        return cfg_guider(model, apple, nothing, 3.0)
    if kind == "basic":
        return BasicGuider.execute(model, apple)[0]
    return DualCFGGuider.execute(model, apple, heart, nothing, 2.0, 1.5, "regular")[0]


def random_tensor(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def sampled_by_core(guider: Any, latent: Tensor) -> Tensor:
    """Core's Euler steps."""
    euler = comfy.samplers.sampler_object("euler")
    return guider.sample(random_tensor(), latent, euler, SIGMAS, disable_pbar=True, seed=0)


def state_of(guider: Any) -> list[Any]:
    """All of a guider and its MODEL that a run could change; objects by identity."""
    model = guider.model_patcher
    options = [copy.deepcopy(model.model_options), copy.deepcopy(guider.model_options)]
    patches = [model.patches_uuid, dict(model.patches), dict(model.object_patches)]
    conds = {
        name: [(cond["uuid"], sorted(cond), cond["cross_attn"].tolist()) for cond in conds]
        for name, conds in guider.original_conds.items()
    }
    weights = {name: id(weight) for name, weight in model.model.named_parameters()}
    bits = [float(weight.double().sum()) for weight in model.model.parameters()]
    same = [id(model), id(model.model_options), id(guider.model_options), model.hook_mode]
    return [options, patches, conds, weights, bits, same]


@pytest.mark.parametrize("kind", GUIDERS)
def test_run_returns_the_value_of_its_task(kind: str, model: Any) -> None:
    guider, value, seen = guider_of(kind, model), object(), {}

    def task(guided: GuidedRun) -> object:
        seen.update(guided=guided, gradients=torch.is_grad_enabled(), options=guided.options)
        seen.update(levels=guided.options["transformer_options"]["sample_sigmas"])
        seen.update(sampling=guided.sampling)
        return value

    assert run(guider, torch.zeros(SHAPE), SIGMAS, task, seed=7) is value
    guided = seen["guided"]
    assert guided.model_wrap is guider and guided.extra_args["seed"] == 7
    assert guided.model.batch_size == SHAPE[0] and guided.model.calls == 0
    assert not seen["gradients"] and torch.is_grad_enabled()
    assert torch.equal(seen["levels"], SIGMAS)
    assert seen["options"]["transformer_options"]["mark"] == [1]
    assert seen["sampling"] is model.get_model_object("model_sampling")


@pytest.mark.parametrize("kind", GUIDERS)
@pytest.mark.parametrize("latent", ["empty", "picture"])
def test_the_model_of_a_run_samples_as_core_does(kind: str, latent: str, model: Any) -> None:
    """A latent is scaled and shifted as by core, an empty one is not shifted."""
    latents = torch.zeros(SHAPE) if latent == "empty" else 0.5 * random_tensor(1)
    guider = guider_of(kind, model)

    def task(guided: GuidedRun) -> Tensor:
        euler = comfy.samplers.sampler_object("euler")
        solver = core_samplers.widget_sampler(
            "sampler", euler, SIGMAS, guided.model_wrap
        ).discretization(SIGMAS)
        sample = guided.model.sample(solver, random_tensor(), guided.latents(latents))[0]
        assert guided.model.calls == SHAPE[0] * (len(SIGMAS) - 1)
        return guided.model_wrap.inner_model.process_latent_out(sample)

    found, core = run(guider, latents, SIGMAS, task), sampled_by_core(guider, latents)
    torch.testing.assert_close(found, core, rtol=1e-5, atol=1e-5 * float(core.abs().max()))


def test_the_cfg_guider_guides_as_core_does(model: Any) -> None:
    apple, nothing = (encode_prompt(text)[0] for text in ("red apple", ""))
    euler, latent = comfy.samplers.sampler_object("euler"), torch.zeros(SHAPE)
    core = comfy.sample.sample_custom(
        model, random_tensor(), 3.0, euler, SIGMAS, apple, nothing, latent, disable_pbar=True,
        seed=0,
    )  # fmt: skip
    assert torch.equal(sampled_by_core(guider_of("cfg", model), latent), core)


def interrupt(guided: GuidedRun) -> None:
    """Press ComfyUI's cancel button, which the next model call notices."""
    comfy.model_management.interrupt_current_processing()
    guided.model(torch.zeros(SHAPE), torch.ones(SHAPE[0]))


def failing(error: BaseException) -> Callable[[GuidedRun], None]:
    def fail(guided: GuidedRun) -> None:
        raise error

    return fail


ENDINGS: dict[str, tuple[type[BaseException] | None, Callable[[GuidedRun], None]]] = {
    "value": (None, lambda guided: None),
    "error": (ZeroDivisionError, failing(ZeroDivisionError("in the task"))),
    "keyboard": (KeyboardInterrupt, failing(KeyboardInterrupt())),
    "interrupt": (comfy.model_management.InterruptProcessingException, interrupt),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", GUIDERS)
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_task_that_ends_or_fails_leaves_guider_and_model_unchanged(
    ending: str, kind: str, model: Any
) -> None:
    guider, (error, end) = guider_of(kind, model), ENDINGS[ending]
    core = sampled_by_core(guider, torch.zeros(SHAPE))
    before = state_of(guider)

    def task(guided: GuidedRun) -> None:
        guided.model.begin_rollout(SIGMAS)
        guided.model(random_tensor(), torch.ones(SHAPE[0]))
        guided.options["transformer_options"]["left"] = True
        end(guided)

    if error is None:
        run(guider, torch.zeros(SHAPE), SIGMAS, task)
    else:
        with pytest.raises(error):
            run(guider, torch.zeros(SHAPE), SIGMAS, task)
    assert state_of(guider) == before
    assert torch.is_grad_enabled()
    assert torch.equal(sampled_by_core(guider, torch.zeros(SHAPE)), core)
