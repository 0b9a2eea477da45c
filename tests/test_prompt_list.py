"""Several prompts in one training: every noise keeps its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.samplers
import pytest
import torch
from torch import Tensor

from demo import demo_model
from ld3.comfy import core_samplers
from ld3.comfy.guided_run import GuidedRun, run
from ld3.comfy.guiders import cfg_guider
from ld3.comfy.prompts import assigned, prompt_list, separated

pytestmark = pytest.mark.usefixtures("one_thread")
SIGMAS = torch.tensor([14.0, 3.0, 0.8, 0.0])
TEXTS = ("red apple", "heart", "cat face", "hamburger")
TINY = {
    "sampler_name": "dpmpp_2m", "steps": 3, "cfg": 2.0, "name": "prompts", "seed": 0,
    "teacher_sampler": "dpmpp_2m", "teacher_scheduler": "karras", "teacher_steps": 6,
    "retrain": False, "denoise": 1.0, "distance": "pseudo-huber", "iterations": 1,
    "training_noises": 4, "heldout_noises": 3, "batch_size": 3, "learn": "time steps",
    "quality": "fast",
}  # fmt: skip


def noise_of(count: int) -> Tensor:
    return torch.randn((count, 3, 8, 8), generator=torch.Generator().manual_seed(0))


def encoded(text: str, tokens: int = 12) -> list[Any]:
    tensor, options = demo_model.encode_prompt(text)[0][0]
    return [[tensor[:, :tokens], dict(options)]]


def sampled(guider: Any, noise: Tensor) -> Tensor:
    euler = comfy.samplers.sampler_object("euler")
    return guider.sample(noise, 0 * noise, euler, SIGMAS, disable_pbar=True, seed=0)


@pytest.mark.parametrize("kind", ["list", "batch", "different lengths"])
@pytest.mark.parametrize("sampler", ["euler", "euler_cfg_pp"])
def test_each_noise_is_sampled_with_its_own_prompt(kind: str, sampler: str) -> None:
    model, negative = demo_model.load_demo_model(), encoded("")
    lengths = (12, 3, 5, 12) if kind == "different lengths" else (12,) * 4
    single = [encoded(text, n) for text, n in zip(TEXTS, lengths, strict=True)]
    positive = prompt_list(single)
    if kind == "batch":
        positive = [[torch.cat([cond[0][0] for cond in single]), dict(single[0][0][1])]]
    guider, prompts = separated(cfg_guider(model, positive, negative, 2.0))
    assert prompts == 4
    noise, order = noise_of(6), [3, 0, 5, 1]

    def task(guided: GuidedRun) -> Tensor:
        guided.prompts.know(noise, torch.arange(6) % 4)
        core = comfy.samplers.sampler_object(sampler)
        traced = core_samplers.widget_sampler("sampler", core, SIGMAS, guided.model_wrap)
        solver = traced.discretization(SIGMAS)
        return guided.model.sample(solver, noise[order], 0 * noise[order])[0]

    found = run(guider, torch.zeros(4, 3, 8, 8), SIGMAS, task)
    for row, i in enumerate(order):
        core = comfy.samplers.sampler_object(sampler)
        alone = cfg_guider(model, single[i % 4], negative, 2.0)
        one = noise[i : i + 1]
        wanted = alone.sample(one, 0 * one, core, SIGMAS, disable_pbar=True, seed=0)
        torch.testing.assert_close(found[row], wanted[0], rtol=1e-4, atol=1e-4)


def test_one_prompt_needs_no_other_guider_and_the_given_one_is_not_changed() -> None:
    model, two = object(), torch.zeros(2, 3, 4)

    class Guider:
        model_patcher = model
        original_conds = {"positive": [{"cross_attn": two, "model_conds": {}}]}

    guider = Guider()
    split, count = separated(guider)
    assert count == 2 and len(split.original_conds["positive"]) == 2
    assert guider.original_conds["positive"][0]["cross_attn"] is two
    guider.original_conds = {"positive": [{"cross_attn": two[:1]}]}
    assert separated(guider) == (guider, 1)


def test_one_prompt_in_four_is_only_tested_with() -> None:
    found = assigned(12, 4, tests_from=8).tolist()
    assert found == [0, 1, 2, 0, 1, 2, 0, 1, 3, 3, 3, 3]
    assert assigned(5, 3, tests_from=3).tolist() == [0, 1, 2, 0, 1]
    # until the sizes of the sets are known, noises of the first set have the same prompts
    assert assigned(8, 4, None).tolist() == found[:8]


@pytest.fixture(scope="module")
def train(pack_nodes: dict[str, type], demo_inputs: dict[str, Any], ld3_folder: Path) -> Any:
    def execute(**changes: Any) -> Any:
        return pack_nodes["LD3TrainSchedule"].execute(**(demo_inputs | TINY | changes))

    return execute


def test_the_error_of_the_report_is_that_on_new_prompts(
    train: Any, pack_nodes: dict[str, type], demo_inputs: dict[str, Any]
) -> None:
    clip = pack_nodes["LD3DemoModel"].execute(batch_size=1)[3]
    prompts = pack_nodes["LD3PromptList"].execute(clip=clip, text="\n".join(TEXTS) + "\n\n")[0]
    sigmas, sampler, schedule, *_ = train(positive=prompts)
    assert schedule.info.settings["prompts"] == 4 and schedule.info.settings["new_prompts"] == 1
    model, report, errors = demo_inputs["model"], schedule.info.report, []
    teacher = core_samplers.scheduler_sigmas(model, "dpmpp_2m", "karras", 6, 1.0)
    guider = cfg_guider(model, encoded(TEXTS[3]), demo_inputs["negative"], 2.0)
    for seed in range(8, 11):
        noise = torch.randn((1, 3, 8, 8), generator=torch.manual_seed(seed))
        pair = [
            guider.sample(noise, 0 * noise, sampler, levels, disable_pbar=True, seed=seed)
            for levels in (sigmas, teacher)
        ]
        errors.append(float((pair[0] - pair[1]).pow(2).mean().sqrt()))
    error = report["heldout_error"]
    if report["chosen"] != "learned":
        error = report["baselines"][report["chosen"]]["heldout_error"]
    assert sum(errors) / 3 == pytest.approx(error, rel=1e-3)


def test_an_empty_list_is_refused(pack_nodes: dict[str, type]) -> None:
    with pytest.raises(ValueError, match="text has no prompt.*one prompt per line"):
        pack_nodes["LD3PromptList"].execute(clip=demo_model.DemoClip(), text=" \n ")
