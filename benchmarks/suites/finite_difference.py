"""The former learner's default on the cells of `cost`: its error on the same noises, and its calls.

To be run at the last commit before the present learner, 0f2ccb1, to which this file is copied (see
docs/benchmarks.md, "Cost"). It learned from 32 noises, chose with 32 and reported on 64, with 12
iterations, six descents with the full solver, and nothing typical to begin with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

TITLE = "The former learner's default: mean RMSE to the ODE's solution on held-out noises"
KEYS = ("model", "sampler", "steps", "cfg", "learn", "seed")
COLUMNS = {
    "model": 13, "sampler": 13, "steps": 5, "cfg": 4, "learn": 6, "seed": 4, "error": 8,
    "calls": 6, "teacher_calls": 13, "report_calls": 12,
}  # fmt: skip
LEARN: dict[str, dict[str, Any]] = {
    "steps": {},
    "full": {"decoupled": True, "order": 1, "output_mix": True},
}
SAMPLERS = ("dpmpp_2m", "euler", "ipndm", "res_multistep")
NETWORKS = {"demo": (1.0, 4.0), "demo-flow": (1.0,)}
SEEDS, ITERATIONS, NOISES, TEST_NOISES, MEASURED = 3, 12, 32, 64, 4
"""A result does not depend on the test noises: few are sampled, and 64 counted."""


def cells() -> Iterator[dict[str, Any]]:
    """Every combination measured; networks, which are slow, with seed 0."""
    for seed in range(SEEDS):
        for sampler in SAMPLERS:
            for steps in (4, 6):
                for learn in LEARN:
                    for model in ("digits", "gmm16"):
                        yield _cell(model, sampler, steps, 1.0, learn, seed)
    for sampler in SAMPLERS:
        for steps in (4, 6):
            for learn in LEARN:
                for model, scales in NETWORKS.items():
                    for cfg in scales:
                        yield _cell(model, sampler, steps, cfg, learn, 0)


def _cell(*values: Any) -> dict[str, Any]:
    return dict(zip(KEYS, values, strict=True))


def row(model: str, sampler: str, steps: int, cfg: float, learn: str, seed: int) -> dict[str, Any]:
    """Train once."""
    import torch

    from benchmarks.methods import ours
    from benchmarks.methods.trial import Trial
    from ld3.training.settings import TrainingSettings

    if "descents" in TrainingSettings.__dataclass_fields__:
        raise ValueError("this is not the former learner: run finite_difference at 0f2ccb1")
    torch.set_num_threads(1)  # more make small tensors slower
    problem = _problem(model, cfg)

    def measured(live: Any) -> dict[str, Any]:
        trial = Trial(problem, live, sampler, steps, seed)
        sets = {"training_noises": NOISES, "validation_noises": NOISES, "test_noises": MEASURED}
        learned = ours.learn(trial, iterations=ITERATIONS, **sets, **LEARN[learn])
        report, uncounted = learned.report, TEST_NOISES - MEASURED
        teacher = uncounted * live.teacher.table.model_calls
        tested = (report.report_calls - NOISES * learned.solver.table.model_calls) // MEASURED
        return {
            "error": problem.error(live, learned.solver),
            "calls": report.teacher_calls
            + report.training_calls
            + report.report_calls
            + teacher
            + uncounted * tested,
            "teacher_calls": report.teacher_calls + teacher,
            "report_calls": report.report_calls + uncounted * tested,
        }

    return _cell(model, sampler, steps, cfg, learn, seed) | problem.run(measured)


def _problem(model: str, cfg: float) -> Any:
    from benchmarks.problems import registry
    from benchmarks.problems.demo_model import DemoProblem
    from benchmarks.problems.live_model import Recipe

    if model not in NETWORKS:
        return registry.load(model)
    key = f"{model} {cfg}"
    if key not in _NETWORKS:
        problem = DemoProblem(model, "flow" if model == "demo-flow" else "eps", cfg)
        problem.teacher = Recipe(*problem.teacher)
        _NETWORKS[key] = problem
    return _NETWORKS[key]


_NETWORKS: dict[str, Any] = {}


def summary(rows: list[dict[str, Any]]) -> str:
    """How many."""
    return f"{len(rows)} trainings"
