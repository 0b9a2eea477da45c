"""What each choice of the method is worth: one is changed at a time, the rest stays the default.

- soft radius: soft teacher forcing by gradient, r in per cent of sqrt(d), the length of a typical
  start noise; "paper" is the published default 0.001 d / NFE^2, 0 is hard.
- distance: latent distances, with Gauss-Newton; on the demo model also LPIPS, by a network trained
  here on its data (`perceptual_network`), not by LPIPS' own.
- extras: both optimisers, with and without decoupled times.
- noises: Gauss-Newton's training noises (as many again, but at least 16, validate); "+d" with
  decoupled times, "+s" the full solver.
- states: held to the teacher's on the way, as by default, or free; "+d", "+s" as above.
- teacher steps: dpmpp_2m karras teachers of n+1, 2n, 4n and 10n steps for a student of n.
- yardstick: the best of ComfyUI's nine schedulers on the held-out noises themselves, and the
  default teacher (dpmpp_2m, 20 karras steps).

`heldout_error` is the mean RMSE to Heun with 60 karras steps at the same cfg, over noises that
nobody trained on: 512 on digits and gmm16, whose denoisers are exact, 32 on the demo model.
`heldout_lpips` is the same network's mean LPIPS there, for the rows that compare distances and
their yardsticks, and None for others.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from ld3.training.gauss_newton import GaussNewtonSettings
from ld3.training.gradient import ADAM

from . import ablation_demo, runs, toys
from .ablation_demo import LPIPS, Measured
from .methods import EXTRAS as LEARNED
from .methods import made
from .plot_ablation import plot  # noqa: F401
from .subjects import TEACHER, Stage, Subject

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
PROBLEMS = (("digits", "dpmpp_2m", 4), ("digits", "ipndm", 4), ("gmm16", "dpmpp_2m", 6))
RADII = ("0 %", "0.1 %", "0.3 %", "1 %", "3 %", "10 %", "paper")
DISTANCES = ("pseudo-huber", "l2", "l1")
EXTRAS = ("gauss-newton", "gauss-newton+decoupled", "gradient", "gradient+decoupled")
NOISES_EXTRAS = {"": LEARNED[""], "d": LEARNED["decoupled"], "s": LEARNED["solver+mix"]}
NOISES = ("4", "8", "16", "32", "64", "128")
STATES = ("free", "held")
TEACHERS = ("n+1", "2n", "4n", "10n")
CFGS, DISTANCES_CFG = (1.0, 4.0, 7.0), 1.0  # of the demo model
YARDSTICKS = ("scheduler:best", "teacher")
ABLATIONS: dict[str, tuple[str, ...]] = {
    "soft radius": RADII,
    "distance": DISTANCES,
    "extras": EXTRAS,
    "noises": tuple(f"{n}+{extra}".rstrip("+") for extra in NOISES_EXTRAS for n in NOISES),
    "states": tuple(f"{s}+{extra}".rstrip("+") for extra in NOISES_EXTRAS for s in STATES),
    "teacher steps": TEACHERS,
}


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
        sampler, steps = ablation_demo.SAMPLER, ablation_demo.STEPS
        fixed = {"model": "demo", "sampler": sampler, "steps": steps, "cfg": cfg, "seed": 0}
        for setting in YARDSTICKS:
            yield {"ablation": "yardstick", "setting": setting, **fixed}
        for setting in (*DISTANCES, LPIPS) if cfg == DISTANCES_CFG else ():
            yield {"ablation": "distance", "setting": setting, **fixed}
        for setting in TEACHERS:
            yield {"ablation": "teacher steps", "setting": setting, **fixed}


def row(**cell: Any) -> dict[str, Any]:
    """Learn with one setting and measure."""
    torch.set_num_threads(1)  # more make small tensors slower
    started = time.monotonic()
    if cell["model"] == "demo":
        found = _demo(cell)
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
        # never fewer than 16 judge, as in the node
        noises = {"training_noises": int(count), "validation_noises": max(16, int(count))}
        return noises | NOISES_EXTRAS[extra]
    if ablation == "states":
        states, _, extra = setting.partition("+")
        free = {"gauss_newton": GaussNewtonSettings(held=0.0)} if states == "free" else {}
        return free | NOISES_EXTRAS[extra]
    return {}


def radius_of(setting: str, dimension: int, calls: int) -> float:
    """r of a setting of "soft radius"."""
    if setting == "paper":
        return 0.001 * dimension / calls**2
    return float(setting.removesuffix(" %")) / 100 * math.sqrt(dimension)


def teacher_steps(setting: str, steps: int) -> int:
    """The number of steps of a setting of "teacher steps"."""
    return steps + 1 if setting == "n+1" else int(setting.removesuffix("n")) * steps


def _demo(cell: dict[str, Any]) -> Measured:
    ablation, setting, cfg = cell["ablation"], cell["setting"], cell["cfg"]
    lpips = cfg == DISTANCES_CFG and ablation in ("yardstick", "distance")
    if ablation == "yardstick":
        return ablation_demo.yardstick(setting, cfg, lpips)
    if ablation == "distance":
        return ablation_demo.learn(cfg, TEACHER[2], setting, lpips)
    return ablation_demo.learn(cfg, teacher_steps(setting, cell["steps"]), "pseudo-huber", lpips)


def summary(rows: list[dict[str, Any]]) -> str:
    """Mean over seeds of each setting, problem by problem; LPIPS in a line of its own."""
    lines = []
    for measure in ("heldout_error", "heldout_lpips"):
        means: dict[tuple[Any, ...], list[float]] = {}
        for r in rows:
            group = (r["ablation"], r["model"], r["sampler"], r["steps"], f"cfg {r['cfg']:g}")
            if r[measure] is not None:
                means.setdefault((*group, r["setting"]), []).append(r[measure])
        for group in dict.fromkeys(key[:-1] for key in means):
            values = [
                f"{k[-1]}: {sum(v) / len(v):.4g}" for k, v in means.items() if k[:-1] == group
            ]
            lines.append(f"{measure}: {' '.join(map(str, group))}   {', '.join(values)}")
    return "\n".join(lines)
