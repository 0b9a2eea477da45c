"""Other numbers of steps from one training, beside a training of each number for itself.

One training learns 4 steps, also 3, 6, 8 and 10, and thereby 5, 7 and 9, between which is
interpolated. Each row compares one number of steps with a training of it alone, of quality normal.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from benchmarks.comparison import clustered_mean, geometric_mean

from .finite_difference import LEARN

TITLE = "Several numbers of steps from one training: mean RMSE to the ODE's solution"
KEYS = ("model", "sampler", "seed", "steps")
COLUMNS = {
    "model": 13,
    "sampler": 9,
    "seed": 4,
    "steps": 5,
    "how": 12,
    "error": 8,
    "error_alone": 11,
    "best_standard": 13,
    "error_best_standard": 19,
    "calls": 6,
    "calls_alone": 11,
}
FIRST, ALSO = 4, (3, 6, 8, 10)
TUNED, KEPT_ASIDE = ("digits", "gmm16"), ("patches", "moons-flow", "patches-flow")
"""Problems that constants were chosen on (with other seeds), and others."""
NETWORKS = ("demo-flow",)
SEEDS = 2


def cells() -> Iterator[dict[str, Any]]:
    """Every number of steps of every training; networks with one sampler and seed."""
    for model in (*TUNED, *KEPT_ASIDE, *NETWORKS):
        for sampler in ("dpmpp_2m", "euler"):
            for seed in range(SEEDS):
                if model in NETWORKS and (seed or sampler != "dpmpp_2m"):
                    continue
                for steps in sorted({FIRST, *ALSO, 5, 7, 9}):
                    yield {"model": model, "sampler": sampler, "seed": seed, "steps": steps}


@lru_cache(maxsize=1)
def _family(model: str, sampler: str, seed: int) -> Any:
    """The training that all rows of a model, sampler and seed share."""
    from benchmarks.methods import ours
    from benchmarks.methods.trial import Trial
    from benchmarks.problems import registry

    problem = registry.load(model)

    def learned(live: Any) -> Any:
        trial = Trial(problem, live, sampler, FIRST, seed)
        return ours.learn(trial, also_steps=ALSO, **LEARN["full"])

    return problem.run(learned)


def row(model: str, sampler: str, seed: int, steps: int) -> dict[str, Any]:
    """One number of steps, and a training of it alone."""
    from benchmarks.methods import ours
    from benchmarks.methods.trial import Trial
    from benchmarks.problems import registry

    family = _family(model, sampler, seed)
    solver, report = (family if steps == FIRST else family.others[steps])[:2]
    problem = registry.load(model)

    def measured(live: Any) -> dict[str, Any]:
        alone = ours.learn(Trial(problem, live, sampler, steps, seed), **LEARN["full"])
        best, error = problem.best_standard(live, sampler, steps)
        how = report.chosen if steps in (FIRST, *ALSO) else "interpolated"
        return {
            "how": how,
            "error": problem.error(live, solver),
            "error_alone": problem.error(live, alone.solver),
            "best_standard": best,
            "error_best_standard": error,
            "calls": _calls(report),
            "calls_alone": _calls(alone.report),
        }

    return dict(zip(KEYS, (model, sampler, seed, steps), strict=True)) | problem.run(measured)


def _calls(report: Any) -> int:
    return report.teacher_calls + report.training_calls + report.report_calls


def summary(rows: list[dict[str, Any]]) -> str:
    """Errors over those of trainings alone and of the best standard schedule, and calls."""
    lines = []
    for model in dict.fromkeys(r["model"] for r in rows):
        for kind, between in (("learned as well", False), ("interpolated", True)):
            mine = [
                r
                for r in rows
                if r["model"] == model
                and r["steps"] != FIRST
                and (r["how"] == "interpolated") == between
            ]
            if not mine:
                continue
            alone: dict[str, list[float]] = {}
            for r in mine:
                alone.setdefault(r["sampler"], []).append(r["error"] / r["error_alone"])
            standard = [r["error"] / r["error_best_standard"] for r in mine]
            calls = geometric_mean([max(r["calls"], 1) for r in mine]) if not between else 0
            lines.append(
                f"{model}, {kind}: {clustered_mean(alone)} of a training alone, "
                f"{geometric_mean(standard):.2f} (worst {max(standard):.2f}) of the best standard "
                f"schedule, {calls:.0f} calls"
            )
    for steps in sorted({r["steps"] for r in rows}):
        mine = [r for r in rows if r["steps"] == steps]
        over = {
            name: [r[name] / r["error_best_standard"] for r in mine]
            for name in ("error", "error_alone")
        }
        listed = (
            f"{geometric_mean(found):.2f} (worst {max(found):.2f})" for found in over.values()
        )
        lines.append(f"{steps} steps, of the best standard schedule: {', alone '.join(listed)}")
    return "\n".join(lines)
