"""Learning from one prompt or from a list of eight: errors on prompts that are in neither.

Every row is a training at the defaults of LD3 Train Schedule. The list has eight prompts, of which
LD3 Prompt List keeps two for the test; the one prompt is its first. Another seed has other noises
and other prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.comparison import geometric_mean
from benchmarks.problems import demo_use
from benchmarks.problems.demo_use import DemoUse

TITLE = "One prompt or a list: mean RMSE to the ODE's solution on new prompts, and without a prompt"
KEYS = ("model", "cfg", "sampler", "steps", "learned_from", "seed")
COLUMNS = {
    "model": 5,
    "cfg": 4,
    "sampler": 9,
    "steps": 5,
    "learned_from": 12,
    "seed": 4,
    "error_new": 9,
    "error_empty": 11,
    "standard_new": 12,
    "standard_empty": 14,
    "calls": 6,
}
LISTS = (
    ("grinning face", "red apple", "cat face", "airplane", "full moon", "green book", "pizza",
     "blue heart"),
    ("red heart", "dog face", "tulip", "bus", "smiling face with open mouth", "key", "hamburger",
     "purple heart"),
    ("crying face", "banana", "panda face", "rocket", "cloud", "closed umbrella", "birthday cake",
     "orange book"),
)  # fmt: skip
NEW = ("winking face", "green apple", "frog face", "automobile", "crescent moon", "light bulb",
       "doughnut", "yellow heart")  # fmt: skip
EMPTY = ("",)
SIZE, STEPS, SEEDS = 32, 4, len(LISTS)
ONE, LIST = "one prompt", "list of 8"


def cells() -> Iterator[dict[str, Any]]:
    """Every combination measured."""
    for cfg in (1.0, 4.0):
        for sampler in ("dpmpp_2m", "euler"):
            for model in ("flow", "eps"):
                for seed in range(SEEDS):
                    for learned_from in (ONE, LIST):
                        key = (model, cfg, sampler, STEPS, learned_from, seed)
                        yield dict(zip(KEYS, key, strict=True))


def row(
    model: str, cfg: float, sampler: str, steps: int, learned_from: str, seed: int
) -> dict[str, Any]:
    """Train once, and test with new prompts and without a prompt.

    Args:
        learned_from: `ONE` or `LIST`.
    """
    texts = LISTS[seed] if learned_from == LIST else LISTS[seed][:1]
    new, empty = DemoUse(model, cfg, NEW, SIZE), DemoUse(model, cfg, EMPTY, SIZE, noises=16)
    solver, calls = demo_use.learned(DemoUse(model, cfg, texts, SIZE), sampler, steps, seed)
    return {
        **dict(zip(KEYS, (model, cfg, sampler, steps, learned_from, seed), strict=True)),
        "error_new": demo_use.error(new, solver),
        "error_empty": demo_use.error(empty, solver),
        "standard_new": demo_use.best_standard(new, sampler, steps)[1],
        "standard_empty": demo_use.best_standard(empty, sampler, steps)[1],
        "calls": calls,
    }


def summary(rows: list[dict[str, Any]]) -> str:
    """Per model, cfg and sampler: errors over the best standard's, and the list's over one's."""
    lines = []
    for group in sorted({(r["model"], r["cfg"], r["sampler"]) for r in rows}):
        mine = [r for r in rows if (r["model"], r["cfg"], r["sampler"]) == group]
        by_kind = {
            kind: {r["seed"]: r for r in mine if r["learned_from"] == kind} for kind in (ONE, LIST)
        }
        parts = [
            f"{kind}: new prompts {_over(found, 'new'):.3f}, no prompt {_over(found, 'empty'):.3f}"
            for kind, found in ((kind, list(by_kind[kind].values())) for kind in (ONE, LIST))
            if found
        ]
        seeds = sorted(set(by_kind[ONE]) & set(by_kind[LIST]))
        ratios = [
            by_kind[LIST][seed]["error_new"] / by_kind[ONE][seed]["error_new"] for seed in seeds
        ]
        if ratios:
            listed = ", ".join(f"{ratio:.3f}" for ratio in ratios)
            parts.append(f"list / one on new prompts {geometric_mean(ratios):.3f} ({listed})")
        model, cfg, sampler = group
        lines.append(f"{model}, cfg {cfg:g}, {sampler}: {'; '.join(parts)}")
    return "\n".join(lines)


def _over(rows: list[dict[str, Any]], prompts: str) -> float:
    return geometric_mean(r[f"error_{prompts}"] / r[f"standard_{prompts}"] for r in rows)
