"""The effect of each choice of the method: one is changed at a time, the others keep the default.

- soft radius: soft teacher forcing by gradient, r in percent of sqrt(d), the length of a typical
  start noise; "paper" is the published default 0.001 d / NFE^2, 0 is hard.
- extras: both optimizers, with and without learned extras.

The others are of Gauss-Newton, with time steps alone, " +d" with decoupled times or " +s" with the
full solver, as the demo model always; where nothing else is said with quality normal:

- distance: latent distances; on the demo model also LPIPS, with a network trained here on its data
  (`measures.caption_network`), not with LPIPS' own.
- noises: number of training noises; a third as many validate, at least 4, and there are 12
  iterations from three starts, so that calls differ.
- states: matched to the teacher trajectory ("held", the default) or unconstrained ("free").
- teacher steps: dpmpp_2m karras teachers of n+1, 2n, 4n and 10n steps for a student of n. Calls are
  the same: a teacher of more steps leaves fewer noises.
- yardstick: the best of ComfyUI's nine schedulers on the held-out noises themselves, and the
  default teacher (dpmpp_2m, 20 karras steps).

`heldout_error` is the mean RMSE to Heun with 60 karras steps at the same cfg, over noises that no
method was trained on: 512 on digits and gmm16, whose denoisers are exact, 32 on the demo model.
`heldout_lpips` is the mean LPIPS there, with the same network, for the rows that compare distances
and their yardsticks, and None for others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from benchmarks.methods import baselines, ours
from benchmarks.methods.trial import Trial
from benchmarks.problems import registry
from benchmarks.problems.live_model import TEACHER, LiveModel
from ld3.training.gauss_newton import GaussNewtonSettings

from . import demo_cells
from .demo_cells import LPIPS, Measured

TITLE = "Ablation: held-out error to a common reference, one choice changed at a time"
KEYS = ("ablation", "setting", "model", "sampler", "steps", "cfg", "seed")
COLUMNS = {
    "ablation": 13,
    "setting": 29,
    "model": 6,
    "sampler": 8,
    "steps": 5,
    "cfg": 4,
    "seed": 4,
    "heldout_error": 13,
    "heldout_lpips": 13,
    "model_calls": 11,
    "teacher_calls": 13,
    "seconds": 8,
}
SEEDS = (0, 1, 2)
STUDENTS = (("digits", "dpmpp_2m", 4), ("digits", "ipndm", 4), ("gmm16", "dpmpp_2m", 6))
RADII = ("0 %", "0.1 %", "0.3 %", "1 %", "3 %", "10 %", "paper")
DISTANCES = ("pseudo-huber", "l2", "l1")
EXTRAS = (
    "gauss-newton", "gauss-newton+decoupled", "gauss-newton+solver+mix", "gradient",
    "gradient+decoupled",
)  # fmt: skip
LEARNED = {"": "", "d": "decoupled", "s": "solver+mix"}  # suffix -> name in `ours.EXTRAS`
NOISES = ("4", "8", "16", "32", "64", "128")
STATES = ("free", "held")
TEACHERS = ("n+1", "2n", "4n", "10n")
CFGS, DISTANCES_CFG = (1.0, 4.0, 7.0), 1.0  # of the demo model
YARDSTICKS = ("scheduler:best", "teacher")


def with_extra(setting: str, suffix: str) -> str:
    """The name of a setting where something of `LEARNED` is learned."""
    return f"{setting} +{suffix}" if suffix else setting


def _with_extras(settings: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(with_extra(setting, suffix) for suffix in LEARNED for setting in settings)


ABLATIONS: dict[str, tuple[str, ...]] = {
    "soft radius": RADII,
    "distance": _with_extras(DISTANCES),
    "extras": EXTRAS,
    "noises": _with_extras(NOISES),
    "states": _with_extras(STATES),
    "teacher steps": _with_extras(TEACHERS),
}


def cells() -> Iterator[dict[str, Any]]:
    """Every combination measured, the demo model last."""
    for model, sampler, steps in STUDENTS:
        fixed = {"model": model, "sampler": sampler, "steps": steps, "cfg": 1.0}
        for setting in YARDSTICKS:
            yield {"ablation": "yardstick", "setting": setting, **fixed, "seed": 0}
        for ablation, settings in ABLATIONS.items():
            for setting in settings:
                for seed in SEEDS:
                    yield {"ablation": ablation, "setting": setting, **fixed, "seed": seed}
    for cfg in CFGS:
        sampler, steps = demo_cells.SAMPLER, demo_cells.STEPS
        fixed = {"model": "demo", "sampler": sampler, "steps": steps, "cfg": cfg, "seed": 0}
        for setting in YARDSTICKS:
            yield {"ablation": "yardstick", "setting": setting, **fixed}
        for setting in (*DISTANCES, LPIPS) if cfg == DISTANCES_CFG else ():
            yield {"ablation": "distance", "setting": with_extra(setting, "s"), **fixed}
        for setting in TEACHERS:
            yield {"ablation": "teacher steps", "setting": with_extra(setting, "s"), **fixed}


def row(**cell: Any) -> dict[str, Any]:
    """Learn with one setting and measure."""
    torch.set_num_threads(1)  # more make small tensors slower
    started = time.monotonic()
    if cell["model"] == "demo":
        found = _demo(cell)
    else:
        problem = registry.load(cell["model"])

        def task(live: LiveModel) -> Measured:
            trial = Trial(problem, live, cell["sampler"], cell["steps"], cell["seed"])
            return _exact(cell["ablation"], cell["setting"], trial)

        found = problem.run(task)
    return {**cell, **found._asdict(), "seconds": time.monotonic() - started}


def _exact(ablation: str, setting: str, trial: Trial) -> Measured:
    problem, live, steps = trial.problem, trial.live, trial.steps
    if ablation == "yardstick":
        best = setting == "scheduler:best"
        solver = baselines.best_scheduler(trial)[1] if best else live.teacher
        return Measured(problem.error(live, solver))
    setting, _, suffix = setting.partition(" +")
    teacher = live.teacher
    if ablation == "teacher steps":
        teacher = live.standard(*problem.teacher[:2], teacher_steps(setting, steps))
    changes = changed_settings(ablation, setting, math.prod(problem.shape), steps)
    result = ours.result(trial, teacher, **ours.EXTRAS[LEARNED[suffix]] | changes)
    return Measured(problem.error(live, result.solver), result.model_calls, result.teacher_calls)


def changed_settings(ablation: str, setting: str, dimension: int, steps: int) -> dict[str, Any]:
    """The fields of `TrainingSettings` that a setting changes."""
    if ablation == "soft radius":
        return {"gradient": replace(ours.THOROUGH, radius=radius_of(setting, dimension, steps))}
    if ablation == "distance":
        return {"distance": setting}
    if ablation == "extras":
        optimizer, _, extra = setting.partition("+")
        gradient = replace(ours.THOROUGH, radius=0.0) if optimizer == "gradient" else None
        return {"gradient": gradient, **ours.EXTRAS[extra]}
    if ablation == "noises":
        count = int(setting)
        return {"training_noises": count, "validation_noises": max(4, count // 3)}
    if ablation == "states":
        weight = 0.0 if setting == "free" else GaussNewtonSettings.trajectory_weight
        return {"gauss_newton": GaussNewtonSettings(trajectory_weight=weight)}
    return {}


def radius_of(setting: str, dimension: int, calls: int) -> float:
    """r for a setting of "soft radius"."""
    if setting == "paper":
        return 0.001 * dimension / calls**2
    return float(setting.removesuffix(" %")) / 100 * math.sqrt(dimension)


def teacher_steps(setting: str, steps: int) -> int:
    """The teacher's number of steps for a setting of "teacher steps"."""
    return steps + 1 if setting == "n+1" else int(setting.removesuffix("n")) * steps


def _demo(cell: dict[str, Any]) -> Measured:
    ablation, cfg = cell["ablation"], cell["cfg"]
    setting = cell["setting"].removesuffix(" +s")
    lpips = cfg == DISTANCES_CFG and ablation in ("yardstick", "distance")
    if ablation == "yardstick":
        return demo_cells.yardstick(setting, cfg, lpips)
    if ablation == "distance":
        return demo_cells.learn(cfg, TEACHER[2], setting, lpips)
    return demo_cells.learn(cfg, teacher_steps(setting, cell["steps"]), "pseudo-huber", lpips)
