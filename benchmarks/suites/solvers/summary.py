"""Conclusions from the rows of the benchmark `solvers`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.comparison import Comparison, clustered_mean, compared, reached

from .run import DISTILL_NOISES, LEARNED_SAMPLERS, OFTEN_CHOSEN

SUMMARY_STEPS = {"standard": (4, 6, 8), "learned": (4, 6)}
JUDGED = ("digits", "demo")  # the modes of gmm16 are a different difficulty
IMPROVED, CALLS_PER_SAMPLE_CALL = 0.90, 12.0
COMPARISONS = (
    Comparison("solver", "none", 0.55),
    Comparison("solver+mix", "none", 0.55),
    Comparison("solver+mix", "gs-published", 1.0, 1 / 5),
    Comparison("solver+mix", "gs-edm"),
    Comparison("solver+mix", "gs-long"),
    Comparison("decoupled", "none"),
    Comparison("d-ode", "none"),
    *(Comparison("solver+mix", ":".join(chosen)) for chosen in OFTEN_CHOSEN),
)
"""Those without aims are only reported."""


def summary(rows: list[dict[str, Any]]) -> str:
    """D-ODE on standard schedules, learned solvers, and states against the teacher's."""
    standard = [row for row in rows if row["schedule"] != "learned"]
    learned = [row for row in rows if row["schedule"] == "learned"]
    return "\n".join(
        [
            *improvements([r for r in standard if r["steps"] in SUMMARY_STEPS["standard"]]),
            *learned_ratios([r for r in rows if r["steps"] in SUMMARY_STEPS["learned"]]),
            *closer_states(standard, "standard schedules"),
            *closer_states(learned, "learned schedules"),
            *learned_offsets(learned),
        ]
    )


def learned_offsets(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Mean log(evaluated level / state's level) of each call, where decoupled times are learned."""
    found: dict[tuple[str, int], list[list[float]]] = {}
    for row in (r for r in rows if r["extras"] == "decoupled" and r.get("eval_sigmas")):
        levels, evaluated = row["sigmas"][:-1], row["eval_sigmas"]
        if len(levels) == len(evaluated):
            offsets = [math.log(e / s) for e, s in zip(evaluated, levels, strict=True)]
            found.setdefault((row["model"], row["steps"]), []).append(offsets)
    for (model, steps), offsets in sorted(found.items()):
        means = [sum(column) / len(offsets) for column in zip(*offsets, strict=True)]
        listed = " ".join(f"{mean:.2f}" for mean in means)
        yield f"offsets of decoupled times, {model}, {steps} steps, {len(offsets)} runs: {listed}"


def error_ratios(
    rows: list[dict[str, Any]], extras: str, cell: Callable[[dict[str, Any]], Any]
) -> dict[Any, float]:
    """Mean error over seeds with an extra, over that without, for each cell that has both."""
    means = []
    for name in (extras, "none"):
        found: dict[Any, list[float]] = {}
        for row in rows:
            if row["extras"] == name:
                found.setdefault(cell(row), []).append(row["heldout_error"])
        means.append({key: sum(errors) / len(errors) for key, errors in found.items()})
    ours, plain = means
    return {key: error / plain[key] for key, error in ours.items() if key in plain}


def cell_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """(model, sampler, steps, schedule)."""
    return row["model"], row["sampler"], row["steps"], row["schedule"]


def improvements(rows: list[dict[str, Any]]) -> Iterator[str]:
    """How often D-ODE lowers the error of a standard schedule, and its cost."""
    ratios_of = error_ratios(rows, "d-ode", cell_of)
    models = list(dict.fromkeys(cell[0] for cell in ratios_of))
    if not models:
        return
    yield "D-ODE on standard schedules of 4, 6 and 8 steps (mean of seeds in each cell):"
    together = tuple(model for model in JUDGED if model in models)
    for group in ([together] if together else []) + [(model,) for model in models]:
        clusters: dict[Any, list[float]] = {}
        for cell, ratio in ratios_of.items():
            if cell[0] in group:
                clusters.setdefault(cell[:2], []).append(ratio)
        found = [ratio for ratios in clusters.values() for ratio in ratios]
        share = sum(ratio < 1 for ratio in found) / len(found)
        text = f"  {'+'.join(group)} ({len(found)} cells): better in {share:.1%}, error "
        text += f"x{clustered_mean(clusters)}, worst x{max(found):.3f}"
        if group == together:
            text += f" (aim: better in {IMPROVED:.0%}; {reached(share >= IMPROVED)})"
        yield text
    most = max(
        r["model_calls"] / (r["sample_calls"] * 2 * DISTILL_NOISES)
        for r in rows
        if r["extras"] == "d-ode"
    )
    aim = f"aim: <= {CALLS_PER_SAMPLE_CALL:g}; {reached(most <= CALLS_PER_SAMPLE_CALL)}"
    yield f"  at most {most:.2f} model calls per noise and call of a sample ({aim})"


def learned_ratios(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Errors and calls of learned solvers over others', for all models and for each."""
    learned = [row for row in rows if row["schedule"] == "learned"]
    models = tuple(dict.fromkeys(row["model"] for row in learned))
    if not models:
        return
    yield "learned, 4 and 6 steps, geometric means over cells (mean of seeds in each) [95 %]:"
    methods = [*({**row, "method": row["extras"]} for row in learned), *often_chosen(rows)]
    for comparison in COMPARISONS:
        for group in dict.fromkeys([models, *((model,) for model in models)]):
            yield from compared(methods, comparison, group, with_aims=True)


def often_chosen(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of `OFTEN_CHOSEN` as methods "sampler:scheduler", repeated for every learned sampler."""
    for row in rows:
        chosen = row["sampler"], row["schedule"].removeprefix("standard:")
        if chosen in OFTEN_CHOSEN and row["extras"] == "none":
            for sampler in LEARNED_SAMPLERS:
                yield {**row, "sampler": sampler, "method": ":".join(chosen)}


def closer_states(rows: list[dict[str, Any]], name: str) -> Iterator[str]:
    """How many states D-ODE brings closer to its teacher's, of those it can change.

    The state after the first call is left out, since its lambda is 0; so are learned schedules that
    differ between the runs with and without D-ODE.
    """
    plain, distilled = (_states(rows, extras) for extras in ("none", "d-ode"))
    closer = farther = total = 0
    for key, (sigmas, distances) in distilled.items():
        # without any extra a standard schedule has one seed
        own = plain.get(key) or plain.get((*key[:-1], 0))
        if own is None or own[0] != sigmas:
            continue
        for before, after in zip(own[1][1:], distances[1:], strict=True):
            closer += after < before
            farther += after > before
            total += 1
    if total:
        yield (
            f"states closer to the teacher with D-ODE, {name}: {closer / total:.1%} of {total} "
            f"(farther: {farther / total:.1%})"
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
