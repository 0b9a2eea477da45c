"""What a learned schedule costs, in model calls of all kinds, and what it gains.

Every row is one training with a quality of LD3 Train Schedule: the teacher's calls, the search's
and the report's together and, except for fast, those of the steps saved and of the node's test of
its teacher. Beside its error stand, on the same noises, those of the best standard schedule and of
the former learner (commit 0f2ccb1): of its default with 12 iterations and 9,000 to 21,000 calls
where suite `finite_difference` measured that, else with 10 iterations
(results/former/learning.json).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.comparison import Mean, clustered_mean, geometric_mean, reached

from .finite_difference import ITERATIONS, LEARN, SAMPLERS
from .finite_difference import KEYS as TRAINING

TITLE = "Calls and error by quality: mean RMSE to the ODE's solution on held-out noises"
KEYS = ("model", "sampler", "steps", "cfg", "learn", "quality", "seed")
COLUMNS = {
    "model": 13, "sampler": 13, "steps": 5, "cfg": 4, "learn": 6, "quality": 8, "seed": 4,
    "error": 8, "best_standard": 16, "error_best_standard": 19, "error_finite_difference": 23,
    "iterations_finite_difference": 28, "calls": 6, "teacher_calls": 13, "report_calls": 12,
}  # fmt: skip
TUNED, KEPT_ASIDE = ("digits", "gmm16"), ("patches", "moons-flow", "patches-flow")
"""Problems that constants were chosen on (with other seeds), and others."""
NETWORKS = {("demo", 1.0): "demo", ("demo", 4.0): "demo-cfg4", ("demo-flow", 1.0): "demo-flow"}
"""Model and guidance -> name of the problem."""
SEEDS, STEPS = 3, (4, 6)
RESULTS = Path(__file__).parents[2] / "docs" / "results"
GS = "gs-edm"
LONG, LONG_CALLS = "long", {4: 145_000, 6: 217_000}
"""No quality of the node: a twentieth of GS's calls with EDM's budget, by steps."""
FORMER = {"gauss-newton": "steps", "gauss-newton+solver+mix": "full"}
"""Methods of the former learner in its suite `learning`, and what they learn."""
FORMER_ITERATIONS = 10
QUALITIES = ("fast", "normal", "best", LONG)
LEARNED = {"full": "full solver", "steps": "time steps"}
TABLE = ("model", "cfg", "learned", "quality", "trainings", "error / best standard", "worst",
         "lost", "standard returned", "error / former", "calls", "most")  # fmt: skip
"""Titles; numbers in brackets are of the trainings that the former learner was measured on."""
Row = dict[str, Any]


def cells() -> Iterator[Row]:
    """Every combination measured; `best` and `long` only where GS was trained."""
    models = [(m, 1.0) for m in (*TUNED, *KEPT_ASIDE)] + list(NETWORKS)
    for seed in range(SEEDS):
        for model, cfg in models:
            for sampler in SAMPLERS:
                for steps in STEPS:
                    for learn in LEARN:
                        for quality in QUALITIES:
                            costly = quality in ("best", LONG)
                            if costly and (model not in TUNED or learn != "full"):
                                continue
                            values = (model, sampler, steps, cfg, learn, quality, seed)
                            yield dict(zip(KEYS, values, strict=True))


def row(**cell: Any) -> Row:
    """Train once."""
    import torch

    from benchmarks.methods import ours
    from benchmarks.methods.trial import Trial
    from benchmarks.problems import registry
    from ld3.training.budget import calls_of

    torch.set_num_threads(1)  # more make small tensors slower
    model, sampler, steps = cell["model"], cell["sampler"], cell["steps"]
    problem = registry.load(NETWORKS.get((model, cell["cfg"]), model))

    def measured(live: Any) -> Row:
        trial = Trial(problem, live, sampler, steps, cell["seed"])
        quality, changes = cell["quality"], LEARN[cell["learn"]]
        calls = LONG_CALLS[steps] if quality == LONG else calls_of(quality, steps)
        learned = ours.learn(trial, calls=calls, compared=quality != "fast", **changes)
        report = learned.report
        former = former_errors().get(tuple(cell[k] for k in TRAINING), (None, None))
        best, error = problem.best_standard(live, sampler, steps)
        return {
            "error": problem.error(live, learned.solver),
            "best_standard": best,
            "error_best_standard": error,
            "error_finite_difference": former[0],
            "iterations_finite_difference": former[1],
            "chosen": report.chosen,
            "calls": report.teacher_calls + report.training_calls + report.report_calls,
            "teacher_calls": report.teacher_calls,
            "report_calls": report.report_calls,
        }

    return cell | problem.run(measured)


@cache
def former_errors() -> dict[tuple[Any, ...], tuple[float, int]]:
    """(model, sampler, steps, cfg, learn, seed) -> the former learner's error and iterations."""
    found: dict[tuple[Any, ...], tuple[float, int]] = {}
    for r in _published("former/learning"):
        if r["method"] in FORMER:
            cell = r["model"], r["sampler"], r["steps"], 1.0, FORMER[r["method"]], r["seed"]
            found[cell] = r["heldout_error"], FORMER_ITERATIONS
    for r in _published("finite_difference"):
        found[tuple(r[k] for k in TRAINING)] = r["error"], ITERATIONS
    return found


def _published(name: str) -> list[Row]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def summary(rows: list[Row]) -> str:
    """A Markdown table by model, guidance, quality and what is learned; losses; then the aims."""
    groups = dict.fromkeys((c["learn"], c["quality"], c["model"], c["cfg"]) for c in cells())
    lines = [f"| {' | '.join(TABLE)} |\n|{'---|' * len(TABLE)}"]
    for group in sorted(groups, key=lambda g: (LEARNED[g[0]], QUALITIES.index(g[1]))):
        mine = [r for r in rows if (r["learn"], r["quality"], r["model"], r["cfg"]) == group]
        if mine:
            lines.append(f"| {' | '.join(_described(mine))} |")
    lines.append("")
    for r in _lost(rows):
        named = " ".join(f"{r[key]}" for key in KEYS)
        lines.append(f"lost: {named}: {_over_standard(r):.2f}, {r['chosen']}")
    return "\n".join([*lines, *_aims(rows)])


def _described(rows: list[Row]) -> Iterator[str]:
    """The entries of `TABLE`."""
    first = rows[0]
    former = [r for r in rows if r["error_finite_difference"]]
    ratio = _ratio(former, "error_finite_difference").rounded(2) if former else "-"
    yield from (first["model"], f"{first['cfg']:g}", LEARNED[first["learn"]], first["quality"])
    yield from (str(len(rows)), _ratio(rows, "error_best_standard").rounded(2))
    yield from (f"{max(map(_over_standard, rows)):.2f}", str(len(_lost(rows))))
    yield str(sum(r["chosen"] != "learned" for r in rows))
    yield ratio if len(former) in (0, len(rows)) else f"{ratio} ({len(former)})"
    yield f"{geometric_mean([r['calls'] for r in rows]):,.0f}"
    yield f"{max(r['calls'] for r in rows):,}"


def _over_standard(r: Row) -> float:
    return r["error"] / r["error_best_standard"]


def _lost(rows: list[Row]) -> list[Row]:
    """The trainings with more error than the best standard schedule."""
    return [r for r in rows if _over_standard(r) > 1]


def _ratio(rows: Iterable[Row], against: str) -> Mean:
    """Of errors; clusters are a model, guidance and sampler."""
    ratios: dict[tuple[Any, ...], list[float]] = {}
    for r in rows:
        cluster = r["model"], r["cfg"], r["sampler"]
        ratios.setdefault(cluster, []).append(r["error"] / r[against])
    return clustered_mean(ratios)


class _Aim:
    """An upper limit for errors over the former learner's in some rows, at a number of calls."""

    def __init__(
        self, name: str, rows: Callable[[Row], bool], error: float, calls: int, each: float | None
    ) -> None:
        self.name, self.rows, self.error, self.calls, self.each = name, rows, error, calls, each

    def judged(self, rows: list[Row]) -> Iterator[str]:
        """A line, if there are such rows."""
        mine = [r for r in rows if self.rows(r) and r["error_finite_difference"]]
        if not mine:
            return
        found, calls = _ratio(mine, "error_finite_difference"), max(r["calls"] for r in mine)
        models = {
            (r["model"], r["cfg"]): _ratio(
                [o for o in mine if (o["model"], o["cfg"]) == (r["model"], r["cfg"])],
                "error_finite_difference",
            ).value
            for r in mine
        }
        right = found.value <= self.error and calls <= self.calls
        right = right and (self.each is None or max(models.values()) <= self.each)
        listed = ", ".join(f"{m} cfg {c:g} {value:.2f}" for (m, c), value in models.items())
        limit = "" if self.each is None else f", each model <= {self.each:g}"
        yield (
            f"{self.name}: {found} of the former error ({listed}) at most {calls} calls, "
            f"{len(mine)} trainings; aim <= {self.error:g}{limit} at <= {self.calls}: "
            f"{reached(right)}"
        )


def _smooth(r: Row) -> bool:
    return (r["model"], r["cfg"]) in (("demo", 1.0), ("demo-flow", 1.0))


def _is(quality: str, learn: str) -> Callable[[Row], bool]:
    return lambda r: (r["quality"], r["learn"]) == (quality, learn)


AIMS = (
    _Aim("normal, full solver", _is("normal", "full"), 1.03, 2_500, 1.10),
    _Aim("normal, time steps", _is("normal", "steps"), 1.05, 1_700, None),
    _Aim(
        "normal, full solver, demo and demo-flow at cfg 1",
        lambda r: _smooth(r) and _is("normal", "full")(r), 1.05, 1_200, None,
    ),
    _Aim(
        "fast, full solver, demo and demo-flow at cfg 1",
        lambda r: _smooth(r) and _is("fast", "full")(r), 1.10, 700, None,
    ),
)  # fmt: skip
FLOW_AIM = 0.60  # of the best standard schedule, demo-flow, 4 steps
GS_AIM, GS_CALLS = 1.0, 1 / 20


def _aims(rows: list[Row]) -> Iterator[str]:
    for aim in AIMS:
        yield from aim.judged(rows)
    fast = [r for r in rows if r["quality"] == "fast" and not _smooth(r)]
    lost = len(_lost(fast))
    if fast:
        yield (
            f"fast elsewhere: {lost} of {len(fast)} lose to the best standard schedule; aim: none: "
            f"{reached(not lost)}"
        )
    flow = [
        r for r in rows
        if _is("normal", "full")(r) and r["model"] == "demo-flow" and r["steps"] == 4
    ]  # fmt: skip
    if flow:
        found = _ratio(flow, "error_best_standard")
        yield (
            f"demo-flow, 4 steps, full solver: {found} of the best standard schedule; aim <= "
            f"{FLOW_AIM}: {reached(found.value <= FLOW_AIM)}"
        )
    for quality in ("best", LONG):
        yield from _against_gs(quality, [r for r in rows if r["quality"] == quality])


def _against_gs(quality: str, rows: list[Row]) -> Iterator[str]:
    """The best sampler's error, mean over seeds, over GS's at the end of EDM's budget."""
    curve = [r for r in _published("gs_curve") if r["budget"] == GS]
    errors, calls = {}, []
    for model, steps in dict.fromkeys((r["model"], r["steps"]) for r in rows):
        theirs = [r for r in curve if (r["model"], r["steps"]) == (model, steps)]
        ends = {r["seed"]: r for r in sorted(theirs, key=lambda r: r["calls"])}.values()
        if not ends:
            continue
        by_sampler: dict[str, list[Row]] = {}
        for r in rows:
            if (r["model"], r["steps"]) == (model, steps):
                by_sampler.setdefault(r["sampler"], []).append(r)
        sampler, mine = min(by_sampler.items(), key=lambda item: _mean(item[1], "error"))
        error = _mean(mine, "error") / _mean(ends, "heldout_error")
        spent = _mean(mine, "calls") / _mean(ends, "calls")
        errors[model, steps] = [error]
        calls.append(spent)
        yield (
            f"{quality}, {model} in {steps} steps: {sampler} {_mean(mine, 'error'):.4f} "
            f"({len(mine)} seeds), {error:.2f} of GS at EDM's budget, 1/{1 / spent:.0f} of "
            "its calls"
        )
    if errors:
        found, spent = clustered_mean(errors), max(calls)
        right = found.value <= GS_AIM and spent <= GS_CALLS
        aim = "aim <= 1 at 1/20 of its calls"
        yield f"{quality} / GS at EDM's budget: {found}; {aim}: {reached(right)}"


def _mean(rows: Iterable[Row], name: str) -> float:
    values = [r[name] for r in rows]
    return sum(values) / len(values)
