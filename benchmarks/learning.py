"""Learned schedules against published ways to choose steps, at counted model calls.

Three models: digits and gmm16, whose denoisers are exact, and the demo model (cfg 1). A row is one
method at one (model, sampler, steps) with one seed of three, which draws its training noises (on
the demo model, the costliest methods have one seed):

- `scheduler:<name>`: ComfyUI's nine; `scheduler:karras` is the default. `ays`, `gits`: the tables
  in core, on the demo model only, since they begin at Stable Diffusion's sigma of 14.6.
- `dmn`, `gits-dp`: `benchmarks.baselines`; `ld3-official`: `benchmarks.official`.
- `gradient`, `gauss-newton`, each also `+decoupled`, and `gauss-newton+solver+mix`, the node's full
  solver: this pack, 32 training and 32 validation noises.
- `teacher`: dpmpp_2m with 20 karras steps, from which all methods learn.

`heldout_error` is the mean RMSE over noises nobody trained on (512; demo 64) to one reference, Heun
with 60 karras steps. `frechet` compares `frechet_samples` samples with the data: raw pixels and the
exact moments on digits and gmm16, 64 principal components on the demo model, whose samples are
costly: 512, and only for seed 0. `model_calls` are network evaluations of one sample that
learning took, a backward pass counted as two, a repeated forward pass as one, screening and
validation included; `teacher_calls` are the teacher's. `sample_calls` is what a sample then costs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from . import subjects
from .methods import Made, make
from .plots import error_against_calls as plot  # noqa: F401
from .subjects import Stage

TITLE = "Learning: error to a common reference and Frechet distance to the data, at counted calls"
KEYS = ("model", "sampler", "steps", "method", "seed")
COLUMNS = {
    "model": 6,
    "sampler": 9,
    "steps": 5,
    "method": 26,
    "seed": 4,
    "heldout_error": 13,
    "frechet": 9,
    "frechet_samples": 15,
    "model_calls": 11,
    "teacher_calls": 13,
    "sample_calls": 12,
    "seconds": 8,
}
SCHEDULERS = (
    "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal",
    "linear_quadratic", "kl_optimal",
)  # fmt: skip
OURS = (
    "gradient", "gradient+decoupled", "gauss-newton", "gauss-newton+decoupled",
    "gauss-newton+solver+mix",
)  # fmt: skip
SAMPLERS = {
    "digits": ("dpmpp_2m", "ipndm", "euler", "uni_pc"),
    "gmm16": ("dpmpp_2m", "ipndm", "euler", "uni_pc"),
    "demo": ("dpmpp_2m", "ipndm"),
}
STEPS = {"digits": (4, 6, 8), "gmm16": (4, 6, 8), "demo": (4, 6)}
SEEDS = (0, 1, 2)
DEMO_ONCE = ("ld3-official", "gradient", "gradient+decoupled", "gauss-newton+solver+mix")


def cells() -> Iterator[dict[str, Any]]:
    """Every row, model by model."""
    for model, samplers in SAMPLERS.items():
        for sampler in samplers:
            for steps in STEPS[model]:
                for method, seed in _methods(model):
                    yield {
                        "model": model,
                        "sampler": sampler,
                        "steps": steps,
                        "method": method,
                        "seed": seed,
                    }


def _methods(model: str) -> Iterator[tuple[str, int]]:
    yield "teacher", 0
    for name in SCHEDULERS:
        yield f"scheduler:{name}", 0
    yield from [("ays", 0), ("gits", 0)] if model == "demo" else []
    yield "dmn", 0
    for method in ("gits-dp", "ld3-official", *OURS):
        once = model == "demo" and method in DEMO_ONCE
        for seed in SEEDS[:1] if once else SEEDS:
            yield method, seed


def row(model: str, sampler: str, steps: int, method: str, seed: int) -> dict[str, Any]:
    """Find one schedule and measure it."""
    torch.set_num_threads(1)  # more make small tensors slower
    subject, started = subjects.load(model), time.monotonic()

    def task(stage: Stage) -> tuple[Made, float]:
        made = make(subject, stage, sampler, steps, method, seed)
        return made, subject.error(stage, made.plan)

    made, error = subject.run(task)
    if method == "teacher":  # the same in every cell
        distance, samples = subject.once("teacher", lambda: subject.frechet(made.plan, seed))
    else:
        distance, samples = subject.frechet(made.plan, seed)
    return {
        "model": model,
        "sampler": sampler,
        "steps": steps,
        "method": method,
        "seed": seed,
        "heldout_error": error,
        "frechet": distance,
        "frechet_samples": samples,
        "model_calls": made.model_calls,
        "teacher_calls": made.teacher_calls,
        "sample_calls": made.plan.table.model_calls,
        "sigmas": made.plan.sigmas.tolist(),
        "eval_sigmas": made.plan.table.eval_sigmas.tolist(),
        "seconds": time.monotonic() - started,
    }


class Comparison(NamedTuple):
    """What is aimed at for a method against another: ratios of errors and of all calls, if any."""

    method: str
    against: str
    error: float = math.inf
    calls: float = math.inf


COMPARISONS = (
    Comparison("gauss-newton+decoupled", "ld3-official", 0.60, 1 / 6),
    Comparison("gauss-newton", "ld3-official", 0.96, 1 / 10),
    Comparison("gradient+decoupled", "ld3-official", 1.0),
    Comparison("gauss-newton+solver+mix", "ld3-official"),
)
FIDELITY_CELL, FIDELITY = ("digits", "ipndm", 4), 3.5


def summary(rows: list[dict[str, Any]]) -> str:
    """Geometric means over cells of ratios of seeds' means, and the fidelity to the paper."""
    lines = ["geometric means over cells (mean of seeds in each):"]
    for wanted in COMPARISONS:
        for models in (tuple(SAMPLERS), *((name,) for name in SAMPLERS)):
            lines += compared([row for row in rows if row["model"] in models], wanted, models)
    return "\n".join(lines + fidelity(rows))


class Ratios(NamedTuple):
    """A method's error and calls over another's: geometric means over the cells that have both."""

    cells: int
    wins: int
    error: float
    calls: float


def ratios(rows: list[dict[str, Any]], wanted: Comparison) -> Ratios | None:
    """None where no cell has both methods."""
    ours, theirs = cell_means(rows, wanted.method), cell_means(rows, wanted.against)
    both = [cell for cell in ours if cell in theirs]
    if not both:
        return None
    error, calls = (
        math.exp(sum(math.log(ours[c][i] / theirs[c][i]) for c in both) / len(both)) for i in (0, 1)
    )
    wins = sum(ours[cell][0] <= theirs[cell][0] for cell in both)
    return Ratios(len(both), wins, error, calls)


def compared(rows: list[dict[str, Any]], wanted: Comparison, models: tuple[str, ...]) -> list[str]:
    """One line, or none where no cell has both methods; aims are for all models together."""
    found = ratios(rows, wanted)
    if found is None:
        return []
    text = f"  {described(found, wanted, models)}"
    judged = len(models) > 1 and math.isfinite(wanted.error)
    return [f"{text} ({verdict(found, wanted)})" if judged else text]


def described(found: Ratios, wanted: Comparison, models: tuple[str, ...]) -> str:
    """The ratios in words."""
    calls = f"{found.calls:.3f}" + (f" = 1/{1 / found.calls:.1f}" if found.calls < 1 else "")
    return (
        f"{wanted.method} / {wanted.against}, {'+'.join(models)} ({found.cells} cells): error "
        f"{found.error:.3f}, calls {calls}, better in {found.wins}"
    )


def verdict(found: Ratios, wanted: Comparison) -> str:
    """What was aimed at, and whether it is reached."""
    aim = f"error <= {wanted.error:g}"
    if math.isfinite(wanted.calls):
        aim += f", calls <= 1/{1 / wanted.calls:g}"
    reached = found.error <= wanted.error and found.calls <= wanted.calls
    return f"aim: {aim}; {'reached' if reached else 'MISSED'}"


def cell_means(
    rows: list[dict[str, Any]], method: str
) -> dict[tuple[str, str, int], tuple[float, float]]:
    """(model, sampler, steps) -> mean error and mean model and teacher calls over seeds."""
    found: dict[tuple[str, str, int], list[tuple[float, int]]] = {}
    for r in rows:
        if r["method"] == method:
            calls = r["model_calls"] + r["teacher_calls"]
            cell = (r["model"], r["sampler"], r["steps"])
            found.setdefault(cell, []).append((r["heldout_error"], calls))
    return {
        cell: (sum(e for e, _ in seeds) / len(seeds), sum(c for _, c in seeds) / len(seeds))
        for cell, seeds in found.items()
    }


def fidelity(rows: list[dict[str, Any]]) -> list[str]:
    """(F(karras) - F(teacher)) / (F(learned) - F(teacher)) on digits with ipndm in 4 steps.

    F is the Frechet distance to the data, learned the mean over seeds. Infinite where the learned
    schedule's distance is no larger than the teacher's.
    """
    cell = [row for row in rows if (row["model"], row["sampler"], row["steps"]) == FIDELITY_CELL]
    means = {}
    for method in dict.fromkeys(row["method"] for row in cell):
        found = [row["frechet"] for row in cell if row["method"] == method]
        means[method] = sum(found) / len(found)
    if not {"teacher", "scheduler:karras"} <= set(means):
        return []
    default, teacher = means["scheduler:karras"], means["teacher"]
    lines = [
        f"Frechet distance on {' '.join(map(str, FIDELITY_CELL))} steps, net of the teacher's "
        f"{teacher:.4f}: scheduler:karras {default - teacher:.4f}; it falls by a factor (aim: "
        f"{FIDELITY:g})"
    ]
    for method in (*OURS, "ld3-official"):
        if method in means:
            net = means[method] - teacher
            factor = (default - teacher) / net if net > 0 else math.inf
            lines.append(f"  {method}: {net:.4f}, factor {factor:.2f}")
    return lines
