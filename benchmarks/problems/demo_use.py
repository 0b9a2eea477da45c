"""The demo models with chosen prompts and sizes: learned for as LD3 Train Schedule does it."""

from __future__ import annotations

import functools
import shutil
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ld3.metrics import rmse
from ld3.table import Discretization

from .demo_model import guided
from .live_model import LiveModel, Recipe
from .problem import HELDOUT_SEED

REFERENCES = {"flow": Recipe("dpmpp_2m", "beta", 40), "eps": Recipe("dpmpp_2m", "karras", 40)}
TRAINING_BATCH = 16


class DemoUse(NamedTuple):
    """A demo model as somebody samples it.

    Attributes:
        model: "flow" or "eps". cfg: strength of guidance, against the empty prompt.
        texts: prompts. size: of the images in pixels; the models were trained with 32.
        noises: per prompt, of a test.
    """

    model: str
    cfg: float
    texts: tuple[str, ...]
    size: int
    noises: int = 3

    @property
    def conditionings(self) -> list[Any]:
        """Of each prompt."""
        from demo import demo_model as demo

        return [demo.encode_prompt(text)[0] for text in self.texts]


def trained(inputs: Any, sampler: str, steps: int, cfg: float, **changes: Any) -> Any:
    """The result of LD3 Train Schedule at its defaults; the teacher samples anew.

    Args:
        inputs: `GraphInputs`. changes: other fields of `TrainingRequest`.
    """
    from ld3.comfy import folders
    from ld3.comfy.requests import AUTO, TrainingRequest
    from ld3.comfy.training_job import train_schedule

    folders.register()
    shutil.rmtree(folders.target_folder(), ignore_errors=True)  # every training counts its teacher
    fields: dict[str, Any] = {
        "sampler_name": sampler, "steps": steps, "cfg": cfg, "denoise": 1.0, "seed": 0,
        "teacher_sampler": "dpmpp_2m", "teacher_scheduler": AUTO, "teacher_steps": 20,
        "distance": "pseudo-huber", "iterations": 0, "training_noises": 0, "heldout_noises": 0,
        "batch_size": TRAINING_BATCH,
    }  # fmt: skip
    return train_schedule(inputs, TrainingRequest(**fields | changes), "bench", retrain=True)


def learned(use: DemoUse, sampler: str, steps: int, seed: int) -> tuple[Discretization, int]:
    """What LD3 Train Schedule learns at its defaults, and the model calls it made.

    From several prompts it learns as from LD3 Prompt List.
    """
    from demo import demo_model as demo
    from ld3.comfy.job import GraphInputs
    from ld3.comfy.prompts import prompt_list

    prompts = use.conditionings
    positive = prompts[0] if len(prompts) == 1 else prompt_list(prompts)
    latent = {"samples": torch.zeros(1, 3, use.size, use.size)}
    negative = demo.encode_prompt("")[0]
    inputs = GraphInputs(demo.load_demo_model(use.model), positive, negative, latent)
    schedule = trained(inputs, sampler, steps, use.cfg, seed=1000 * seed).schedule
    report = schedule.info.report
    calls = report["teacher_calls"] + report["training_calls"] + report["report_calls"]
    return Discretization(schedule.sigmas, schedule.table), calls


def error(use: DemoUse, solver: Discretization) -> float:
    """Mean RMSE to the ODE's solution over the test noises of every prompt."""
    noise, reference = _reference(use)
    samples = _guided(use, lambda live: live.samples(solver, noise))
    return float(rmse(samples - reference).mean())


@functools.cache
def best_standard(use: DemoUse, sampler: str, steps: int) -> tuple[str, float]:
    """The scheduler with the smallest error on the very noises, and that error."""
    solvers = _guided(
        use,
        lambda live: {
            name: live.discretization(sampler, sigmas)
            for name, sigmas in live.schedules(sampler, steps).items()
            if len(sigmas) == steps + 1
        },
    )
    errors = {name: error(use, solver) for name, solver in solvers.items()}
    name = min(errors, key=errors.__getitem__)
    return name, errors[name]


@functools.cache
def _reference(use: DemoUse) -> tuple[Tensor, Tensor]:
    """Test noises (n, 3, size, size), and the ODE's solutions from them."""
    shape = (len(use.texts) * use.noises, 3, use.size, use.size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(HELDOUT_SEED))
    recipe = REFERENCES[use.model]
    return noise, _guided(use, lambda live: live.samples(live.standard(*recipe), noise))


def _guided(use: DemoUse, task: Any) -> Any:
    """`task`'s result; sample i of its batches has prompt i / noises."""
    from demo import demo_model as demo

    texts = torch.cat([cond[0][0] for cond in use.conditionings])
    prompts = [[texts.repeat_interleave(use.noises, 0), {"pooled_output": None}]]
    latents = torch.zeros(len(prompts[0][0]), 3, use.size, use.size)
    negative, model = demo.encode_prompt("")[0], demo.load_demo_model(use.model)

    def in_one_batch(live: LiveModel) -> Any:
        live.model.batch_size = len(latents)
        return task(live)

    return guided(model, prompts, latents, in_one_batch, negative, use.cfg)
