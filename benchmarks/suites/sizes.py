"""Learning at one size for use at another: errors at all of them.

Every row is a training at the defaults of LD3 Train Schedule for images of one size. The demo
models were trained with 32x32 pixels; at other sizes their images are worse, but their equations
are as real.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.comparison import geometric_mean
from benchmarks.problems import demo_use
from benchmarks.problems.demo_model import PROMPT
from benchmarks.problems.demo_use import DemoUse

TITLE = "Learned at one size, used at others: mean RMSE to the ODE's solution on test noises"
KEYS = ("model", "sampler", "steps", "learned_at", "seed")
SIZES = (16, 24, 32)
COLUMNS = {"model": 5, "sampler": 9, "steps": 5, "learned_at": 10, "seed": 4, "calls": 6}
COLUMNS |= {f"{what}_at_{size}": 14 for size in SIZES for what in ("error", "standard")}
STEPS, SEEDS, NOISES = 4, 3, 32


def cells() -> Iterator[dict[str, Any]]:
    """Every combination measured."""
    for sampler in ("dpmpp_2m", "euler"):
        for model in ("flow", "eps"):
            for seed in range(SEEDS):
                for size in SIZES:
                    key = (model, sampler, STEPS, size, seed)
                    yield dict(zip(KEYS, key, strict=True))


def row(model: str, sampler: str, steps: int, learned_at: int, seed: int) -> dict[str, Any]:
    """Train once, and test at every size beside the best standard schedule there."""
    uses = {size: DemoUse(model, 1.0, (PROMPT,), size, NOISES) for size in SIZES}
    solver, calls = demo_use.learned(uses[learned_at], sampler, steps, seed)
    found = dict(zip(KEYS, (model, sampler, steps, learned_at, seed), strict=True))
    found["calls"] = calls
    for size, use in uses.items():
        found[f"error_at_{size}"] = demo_use.error(use, solver)
        found[f"standard_at_{size}"] = demo_use.best_standard(use, sampler, steps)[1]
    return found


def summary(rows: list[dict[str, Any]]) -> str:
    """Errors over the best standard schedule's, by model, sampler, size learned and size used."""
    lines = []
    for group in sorted({(r["model"], r["sampler"], r["learned_at"]) for r in rows}):
        mine = [r for r in rows if (r["model"], r["sampler"], r["learned_at"]) == group]
        over = [
            f"at {size} "
            f"{geometric_mean(r[f'error_at_{size}'] / r[f'standard_at_{size}'] for r in mine):.3f}"
            for size in SIZES
        ]
        model, sampler, learned_at = group
        lines.append(f"{model}, {sampler}, learned at {learned_at}: {', '.join(over)}")
    return "\n".join(lines)
