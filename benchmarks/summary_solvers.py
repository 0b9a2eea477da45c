"""What the rows of the benchmark `solvers` come to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from .learning import Comparison, described, ratios, verdict
from .plot_solvers import SUMMARY_STEPS, cell_of, error_ratios, geometric_mean

JUDGED = ("digits", "demo")  # gmm16's modes are a task of their own
DISTILL_NOISES = 16  # to train, and as many to validate
IMPROVED, CALLS_A_CALL = 0.90, 12.0
COMPARISONS = (
    Comparison("solver", "none", 0.55),
    Comparison("solver+mix", "none", 0.55),
    Comparison("solver+mix", "gs-published", 1.0, 1 / 5),
    Comparison("solver+mix", "gs-long"),
    Comparison("decoupled", "none"),
    Comparison("d-ode", "none"),
)
"""Those without aims are only told."""


def summary(rows: list[dict[str, Any]]) -> str:
    """D-ODE on standard schedules, learned solvers, and states against the teacher's."""
    standard = [row for row in rows if row["schedule"] != "learned"]
    learned = [row for row in rows if row["schedule"] == "learned"]
    return "\n".join(
        [
            *improvements([r for r in standard if r["steps"] in SUMMARY_STEPS["standard"]]),
            *learned_ratios([r for r in learned if r["steps"] in SUMMARY_STEPS["learned"]]),
            *nearer_states(standard, "standard schedules"),
            *nearer_states(learned, "learned schedules"),
        ]
    )


def improvements(rows: list[dict[str, Any]]) -> Iterator[str]:
    """How often D-ODE lowers the error of a standard schedule, and what it costs."""
    ratios_of = error_ratios(rows, "d-ode", cell_of)
    models = list(dict.fromkeys(cell[0] for cell in ratios_of))
    if not models:
        return
    yield "D-ODE on standard schedules of 4, 6 and 8 steps (mean of seeds in each cell):"
    together = tuple(model for model in JUDGED if model in models)
    for group in ([together] if together else []) + [(model,) for model in models]:
        found = [ratio for cell, ratio in ratios_of.items() if cell[0] in group]
        share = sum(ratio < 1 for ratio in found) / len(found)
        text = f"  {'+'.join(group)} ({len(found)} cells): better in {share:.1%}, error "
        text += f"x{geometric_mean(found):.3f}, worst x{max(found):.3f}"
        if group == together:
            text += f" (aim: better in {IMPROVED:.0%}; {_reached(share >= IMPROVED)})"
        yield text
    most = max(
        r["model_calls"] / (r["sample_calls"] * 2 * DISTILL_NOISES)
        for r in rows
        if r["extras"] == "d-ode"
    )
    aim = f"aim: <= {CALLS_A_CALL:g}; {_reached(most <= CALLS_A_CALL)}"
    yield f"  at most {most:.2f} model calls a call of a sample and noise ({aim})"


def learned_ratios(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Errors and calls of learned solvers over others', for all models and for each."""
    models = tuple(dict.fromkeys(row["model"] for row in rows))
    if not models:
        return
    yield "learned, 4 and 6 steps, geometric means over cells (mean of seeds in each):"
    methods = [{**row, "method": row["extras"]} for row in rows]
    for wanted in COMPARISONS:
        for group in dict.fromkeys([models, *((model,) for model in models)]):
            found = ratios([row for row in methods if row["model"] in group], wanted)
            if found is not None:
                text = f"  {described(found, wanted, group)}"
                judged = math.isfinite(wanted.error)
                yield f"{text} ({verdict(found, wanted)})" if judged else text


def nearer_states(rows: list[dict[str, Any]], name: str) -> Iterator[str]:
    """How many states D-ODE brings nearer to its teacher's, of those it can move.

    The state after the first call is left out, since its lambda is 0; so are learned schedules that
    D-ODE's run and the other do not share.
    """
    plain, distilled = (_states(rows, extras) for extras in ("none", "d-ode"))
    nearer = further = total = 0
    for key, (sigmas, distances) in distilled.items():
        # without any extra a standard schedule has one seed
        own = plain.get(key) or plain.get((*key[:-1], 0))
        if own is None or own[0] != sigmas:
            continue
        for before, after in zip(own[1][1:], distances[1:], strict=True):
            nearer, further, total = (
                nearer + (after < before),
                further + (after > before),
                total + 1,
            )
    if total:
        yield (
            f"states nearer to the teacher with D-ODE, {name}: {nearer / total:.1%} of {total} "
            f"(further: {further / total:.1%})"
        )


def _states(
    rows: list[dict[str, Any]], extras: str
) -> dict[tuple[Any, ...], tuple[list[float], list[float]]]:
    names = ("model", "sampler", "steps", "schedule", "seed")
    return {
        tuple(row[name] for name in names): (row["sigmas"], row["trajectory_distance"])
        for row in rows
        if row["extras"] == extras and row["trajectory_distance"] is not None
    }


def _reached(reached: bool) -> str:
    return "reached" if reached else "MISSED"
