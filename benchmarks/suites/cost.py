"""What a learned schedule costs, in model calls of all kinds, and what it gains.

Every row is one training with a quality of LD3 Train Schedule: the teacher's calls, the search's
and the report's together; the test of the teacher, 280 calls, is taken from the budget. `thorough`
is the same learner on the sets and iterations of version 0.1's default, about 12,000 to 20,000
calls with the full solver.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.comparison import clustered_mean, geometric_mean

TITLE = "Calls and error by quality: mean RMSE to the ODE's solution on held-out noises"
KEYS = ("model", "sampler", "steps", "learn", "quality", "seed")
COLUMNS = {
    "model": 13,
    "sampler": 13,
    "steps": 5,
    "learn": 6,
    "quality": 8,
    "seed": 4,
    "error": 8,
    "best_standard": 13,
    "error_best_standard": 19,
    "calls": 6,
    "teacher_calls": 13,
    "report_calls": 12,
}
TUNED, KEPT_ASIDE = ("digits", "gmm16"), ("patches", "moons-flow", "patches-flow")
"""Problems that constants were chosen on (with other seeds), and others."""
NETWORKS = ("demo", "demo-flow")
LEARN: dict[str, dict[str, Any]] = {
    "steps": {},
    "full": {"decoupled": True, "order": 1, "output_mix": True},
}
THOROUGH: dict[str, dict[str, Any]] = {
    "steps": {"descents": 3, "iterations": 12},
    "full": {"descents": 6, "iterations": 20},
}
SEEDS = 3


def cells() -> Iterator[dict[str, Any]]:
    """Every combination measured; `thorough` and networks with fewer seeds, for their cost."""
    for seed in range(SEEDS):
        for model in (*NETWORKS, *TUNED, *KEPT_ASIDE):
            for sampler in ("dpmpp_2m", "ipndm", "euler", "res_multistep"):
                for steps in (4, 6):
                    for learn in LEARN:
                        for quality in ("fast", "normal", "thorough"):
                            if seed and (quality == "thorough" or model in NETWORKS):
                                continue
                            yield {
                                "model": model,
                                "sampler": sampler,
                                "steps": steps,
                                "learn": learn,
                                "quality": quality,
                                "seed": seed,
                            }


def row(
    model: str, sampler: str, steps: int, learn: str, quality: str, seed: int
) -> dict[str, Any]:
    """Train once."""
    from benchmarks.methods import ours
    from benchmarks.methods.trial import Trial
    from benchmarks.problems import registry
    from ld3.training.gauss_newton import GaussNewtonSettings

    problem = registry.load(model)

    def measured(live: Any) -> dict[str, Any]:
        trial = Trial(problem, live, sampler, steps, seed)
        changes: dict[str, Any] = dict(LEARN[learn])
        if quality == "thorough":
            changes |= {"training_noises": 32, "validation_noises": 32, "test_noises": 64}
            changes |= {**THOROUGH[learn], "gauss_newton": GaussNewtonSettings(noises=8)}
            learned = ours.learn(trial, **changes)
        else:
            learned = ours.learn(trial, quality=quality, compared=quality != "fast", **changes)
        report = learned.report
        schedules = live.schedules(sampler, steps)
        errors = {
            name: problem.cached(
                f"{sampler} {steps} {name}",
                lambda sigmas=sigmas: problem.error(live, live.discretization(sampler, sigmas)),
            )
            for name, sigmas in schedules.items()
            if len(sigmas) == steps + 1
        }
        best = min(errors, key=errors.__getitem__)
        return {
            "error": problem.error(live, learned.solver),
            "best_standard": best,
            "error_best_standard": errors[best],
            "chosen": report.chosen,
            "calls": report.teacher_calls + report.training_calls + report.report_calls,
            "teacher_calls": report.teacher_calls,
            "report_calls": report.report_calls,
        }

    key = (model, sampler, steps, learn, quality, seed)
    return dict(zip(KEYS, key, strict=True)) | problem.run(measured)


def summary(rows: list[dict[str, Any]]) -> str:
    """Error over that of the best standard schedule, and calls, by model, quality and learn."""
    lines = []
    groups = sorted({(r["learn"], r["quality"], r["model"]) for r in rows})
    for learn, quality, model in groups:
        mine = [
            r for r in rows if (r["learn"], r["quality"], r["model"]) == (learn, quality, model)
        ]
        ratios: dict[str, list[float]] = {}
        for r in mine:
            ratios.setdefault(r["sampler"], []).append(r["error"] / r["error_best_standard"])
        calls = geometric_mean([r["calls"] for r in mine])
        worst = max(max(found) for found in ratios.values())
        lost = sum(ratio > 1 for found in ratios.values() for ratio in found)
        lines.append(
            f"{learn} {quality} {model}: {clustered_mean(ratios)}, worst {worst:.2f}, "
            f"{lost} of {len(mine)} lose to the best standard, {calls:.0f} calls"
        )
    return "\n".join(lines)
