"""What each choice of the method is worth: one is changed at a time, the rest stays the default.

- soft radius: soft teacher forcing by gradient, r in per cent of sqrt(d), the length of a typical
  start noise; "paper" is the published default 0.001 d / NFE^2, 0 is hard.
- distance: latent distances, with Gauss-Newton.
- extras: both optimisers, with and without decoupled times.
- noises: Gauss-Newton's training noises (as many again validate); "+d" with decoupled times.
- teacher steps: dpmpp_2m karras teachers of n+1, 2n, 4n and 10n steps for a student of n.
- yardstick: the best of ComfyUI's nine schedulers on the held-out noises themselves, and the
  default teacher (dpmpp_2m, 20 karras steps).

`heldout_error` is the mean RMSE to Heun with 60 karras steps at the same cfg, over noises that
nobody trained on: 512 on digits and gmm16, whose denoisers are exact, 32 on the demo model.
"""

from __future__ import annotations

import functools
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ld3.training.gradient import ADAM

from . import runs, toys
from .methods import made
from .plot_ablation import plot  # noqa: F401
from .subjects import REFERENCE, TEACHER, Stage, Subject

TITLE = "Ablation: held-out error to a common reference, one choice changed at a time"
KEYS = ("ablation", "setting", "model", "sampler", "steps", "cfg", "seed")
COLUMNS = {
    "ablation": 13,
    "setting": 22,
    "model": 6,
    "sampler": 8,
    "steps": 5,
    "cfg": 4,
    "seed": 4,
    "heldout_error": 13,
    "model_calls": 11,
    "teacher_calls": 13,
    "seconds": 8,
}
SEEDS = (0, 1, 2)
PROBLEMS = (("digits", "dpmpp_2m", 4), ("digits", "ipndm", 4), ("gmm16", "dpmpp_2m", 6))
RADII = ("0 %", "0.1 %", "0.3 %", "1 %", "3 %", "10 %", "paper")
DISTANCES = ("pseudo-huber", "l2", "l1")
EXTRAS = ("gauss-newton", "gauss-newton+decoupled", "gradient", "gradient+decoupled")
NOISES = ("4", "8", "16", "32", "64", "128")
TEACHERS = ("n+1", "2n", "4n", "10n")
DEMO_SAMPLER, DEMO_STEPS, DEMO_NOISES, DEMO_SEED = "dpmpp_2m", 4, 32, 900_000
CFGS = (1.0, 4.0, 7.0)
YARDSTICKS = ("scheduler:best", "teacher")
ABLATIONS: dict[str, tuple[str, ...]] = {
    "soft radius": RADII,
    "distance": DISTANCES,
    "extras": EXTRAS,
    "noises": (*NOISES, *(f"{count}+d" for count in NOISES)),
    "teacher steps": TEACHERS,
}


class Measured(NamedTuple):
    """A held-out error, and the calls that were spent on it."""

    heldout_error: float
    model_calls: int = 0
    teacher_calls: int = 0


def cells() -> Iterator[dict[str, Any]]:
    """Every combination measured, the demo model last."""
    for model, sampler, steps in PROBLEMS:
        fixed = {"model": model, "sampler": sampler, "steps": steps, "cfg": 1.0}
        for setting in YARDSTICKS:
            yield {"ablation": "yardstick", "setting": setting, **fixed, "seed": 0}
        for ablation, settings in ABLATIONS.items():
            for setting in settings:
                for seed in SEEDS:
                    yield {"ablation": ablation, "setting": setting, **fixed, "seed": seed}
    for cfg in CFGS:
        fixed = {"model": "demo", "sampler": DEMO_SAMPLER, "steps": DEMO_STEPS, "cfg": cfg}
        for setting in YARDSTICKS:
            yield {"ablation": "yardstick", "setting": setting, **fixed, "seed": 0}
        for setting in TEACHERS:
            yield {"ablation": "teacher steps", "setting": setting, **fixed, "seed": 0}


def row(**cell: Any) -> dict[str, Any]:
    """Learn with one setting and measure."""
    torch.set_num_threads(1)  # more make small tensors slower
    started = time.monotonic()
    if cell["model"] == "demo":
        found = _demo(cell["ablation"], cell["setting"], cell["cfg"])
    else:
        subject = toys.load(cell["model"])
        found = subject.run(functools.partial(_exact, cell, subject))
    return {**cell, **found._asdict(), "seconds": time.monotonic() - started}


def _exact(cell: dict[str, Any], subject: Subject, stage: Stage) -> Measured:
    ablation, setting, seed = cell["ablation"], cell["setting"], cell["seed"]
    sampler, steps = cell["sampler"], cell["steps"]
    if ablation == "yardstick":
        best = setting == "scheduler:best"
        plan = runs.best_standard(subject, stage, sampler, steps)[1] if best else stage.teacher
        return Measured(subject.error(stage, plan))
    teacher = stage.teacher
    if ablation == "teacher steps":
        teacher = stage.standard(*TEACHER[:2], teacher_steps(setting, steps))
    changes = changed_settings(ablation, setting, math.prod(subject.shape), steps)
    learned = runs.learn(subject, stage, sampler, steps, seed, teacher, **changes)
    found = made(learned, teacher)
    return Measured(subject.error(stage, found.plan), found.model_calls, found.teacher_calls)


def changed_settings(ablation: str, setting: str, dimension: int, steps: int) -> dict[str, Any]:
    """The fields of `TrainingSettings` that a setting changes."""
    if ablation == "soft radius":
        return {"gradient": replace(ADAM, radius=radius_of(setting, dimension, steps))}
    if ablation == "distance":
        return {"distance": setting}
    if ablation == "extras":
        optimizer, _, extra = setting.partition("+")
        gradient = replace(ADAM, radius=0.0) if optimizer == "gradient" else None
        return {"gradient": gradient, "decoupled": bool(extra)}
    if ablation == "noises":
        count, _, extra = setting.partition("+")
        noises = {"training_noises": int(count), "validation_noises": int(count)}
        return {**noises, "decoupled": bool(extra)}
    return {}


def radius_of(setting: str, dimension: int, calls: int) -> float:
    """r of a setting of "soft radius"."""
    if setting == "paper":
        return 0.001 * dimension / calls**2
    return float(setting.removesuffix(" %")) / 100 * math.sqrt(dimension)


def teacher_steps(setting: str, steps: int) -> int:
    """The number of steps of a setting of "teacher steps"."""
    return steps + 1 if setting == "n+1" else int(setting.removesuffix("n")) * steps


def _demo(ablation: str, setting: str, cfg: float) -> Measured:
    if ablation == "yardstick":
        if setting == "teacher":
            return Measured(_demo_error(_standard(*TEACHER), cfg, TEACHER[0]))
        from ld3.comfy import samplers

        schedules = samplers.standard_schedules(_demo_model(), DEMO_SAMPLER, DEMO_STEPS, 1.0)
        fair = [sigmas for sigmas in schedules.values() if len(sigmas) <= DEMO_STEPS + 1]
        return Measured(min(_demo_error(sigmas, cfg, DEMO_SAMPLER) for sigmas in fair))
    from demo import model as demo
    from ld3.comfy import folders, training
    from ld3.comfy.request import TrainingRequest

    folders.register()
    shutil.rmtree(folders.target_folder(), ignore_errors=True)
    request = TrainingRequest(
        sampler_name=DEMO_SAMPLER,
        steps=DEMO_STEPS,
        cfg=cfg,
        denoise=1.0,
        seed=0,
        teacher_sampler=TEACHER[0],
        teacher_scheduler=TEACHER[1],
        teacher_steps=teacher_steps(setting, DEMO_STEPS),
        distance="pseudo-huber",
        iterations=runs.ITERATIONS,
        training_noises=16,
        heldout_noises=2,  # the report's own, not used here
        batch_size=16,
    )
    result = training.train_schedule(
        _demo_model(), *_prompts(), demo.empty_latent(), request, "ablation", retrain=True
    )
    report = result.report
    error = _demo_error(result.schedule.sigmas.float(), cfg, DEMO_SAMPLER)
    return Measured(error, report["training_calls"], report["teacher_calls"])


@functools.cache
def _demo_model() -> Any:
    from demo import model as demo

    return demo.load_demo_model()


@functools.cache
def _prompts() -> tuple[Any, Any]:
    from demo import model as demo

    positive, negative = (demo.encode_prompt(text)[0] for text in ("grinning face", ""))
    return positive, negative


def _standard(sampler: str, scheduler: str, steps: int) -> Tensor:
    from ld3.comfy import samplers

    return samplers.scheduler_sigmas(_demo_model(), sampler, scheduler, steps, 1.0)


def _demo_error(sigmas: Tensor, cfg: float, sampler: str) -> float:
    from ld3.metrics import rmse

    return float(rmse(_demo_samples(sigmas, cfg, sampler) - _demo_reference(cfg)).mean())


@functools.cache
def _demo_reference(cfg: float) -> Tensor:
    return _demo_samples(_standard(*REFERENCE), cfg, REFERENCE[0])


def _demo_samples(sigmas: Tensor, cfg: float, sampler: str) -> Tensor:
    """Core's own sampling of the noises that KSampler draws for seeds 900,000 and on."""
    import comfy.sample

    from demo import model as demo
    from ld3.comfy import samplers
    from ld3.comfy.latents import training_noises

    noise, latent = training_noises(demo.empty_latent(1)["samples"], DEMO_SEED, DEMO_NOISES)
    core = samplers.sampler_object(sampler)
    return comfy.sample.sample_custom(
        _demo_model(), noise, cfg, core, sigmas, *_prompts(), latent, disable_pbar=True
    )


def summary(rows: list[dict[str, Any]]) -> str:
    """Mean over seeds of each setting, problem by problem."""
    means: dict[tuple[Any, ...], list[float]] = {}
    for r in rows:
        group = (r["ablation"], r["model"], r["sampler"], r["steps"], f"cfg {r['cfg']:g}")
        means.setdefault((*group, r["setting"]), []).append(r["heldout_error"])
    lines = []
    for group in dict.fromkeys(key[:-1] for key in means):
        values = [f"{k[-1]}: {sum(v) / len(v):.4f}" for k, v in means.items() if k[:-1] == group]
        lines.append(f"{' '.join(map(str, group))}   {', '.join(values)}")
    return "\n".join(lines)
