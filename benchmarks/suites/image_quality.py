"""More than RMSE on the flow demo model: LPIPS to the solution, and the Frechet distance to data.

`error` and `lpips` compare 64 held-out noises of the prompt that was learned for with Heun in 60
steps: latents, and images by the network of `measures.caption_network`. `frechet` is over captions:
64 principal components of 512 samples with captions of the data, one each, against all the data. So
a solver that was learned for one prompt is judged on hundreds of others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.comparison import geometric_mean

TITLE = "Flow demo model: RMSE and LPIPS to the solution, Frechet distance to the data"
KEYS = ("model", "steps", "method")
COLUMNS = {
    "model": 9, "steps": 5, "method": 12, "solver": 22, "error": 8, "lpips": 9, "frechet": 9,
    "frechet_samples": 15,
}  # fmt: skip
MODEL, SAMPLER, STEPS, OWN = "demo-flow", "dpmpp_2m", (3, 4), ("euler", "simple")
METHODS, MANY = ("learned", "standard", "euler+simple"), (12, 20)
"""Of few steps; euler and simple are measured in many, too."""
Row = dict[str, Any]


def cells() -> Iterator[Row]:
    """Every row."""
    for steps in STEPS:
        for method in METHODS:
            yield {"model": MODEL, "steps": steps, "method": method}
    for steps in MANY:
        yield {"model": MODEL, "steps": steps, "method": "euler+simple"}
    yield {"model": MODEL, "steps": 20, "method": "teacher"}


def row(model: str, steps: int, method: str) -> Row:
    """Sample and measure."""
    import torch

    from benchmarks.measures import caption_network
    from benchmarks.problems import registry
    from demo import demo_model as demo

    problem, vae = registry.load(model), demo.load_demo_vae()

    def sampled(live: Any) -> tuple[str, Any, Any, Any]:
        name, solver = _solver(problem, live, steps, method)
        return (
            name,
            solver,
            live.samples(solver, problem.test_noise),
            problem.reference_samples(live),
        )

    name, solver, samples, reference = problem.run(sampled)
    error = problem.run(lambda live: problem.distance(live, samples))
    features = caption_network.features()
    with torch.no_grad():
        found, exact = (
            features(vae.decode(latents).movedim(-1, 1)) for latents in (samples, reference)
        )
    frechet, count = problem.frechet(solver, 0)
    return {
        "model": model,
        "steps": steps,
        "method": method,
        "solver": name,
        "error": error,
        "lpips": float((found - exact).pow(2).sum(1).mean()),
        "frechet": frechet,
        "frechet_samples": count,
    }


def _solver(problem: Any, live: Any, steps: int, method: str) -> tuple[str, Any]:
    """What is measured, with its name."""
    from benchmarks.methods import ours
    from benchmarks.methods.trial import Trial

    from .finite_difference import LEARN

    if method == "teacher":
        return " + ".join(map(str, live.recipe)), live.teacher
    if method == "euler+simple":
        return " + ".join(OWN), live.standard(*OWN, steps)
    if method == "standard":
        scheduler, _ = problem.best_standard(live, SAMPLER, steps)
        return f"{SAMPLER} + {scheduler}", live.standard(SAMPLER, scheduler, steps)
    learned = ours.learn(Trial(problem, live, SAMPLER, steps, 0), compared=True, **LEARN["full"])
    return f"full solver, {SAMPLER}", learned.solver


def summary(rows: list[Row]) -> str:
    """The learned solvers over the others in the same steps."""
    lines = []
    measured = {(r["steps"], r["method"]): r for r in rows}
    for method in METHODS[1:]:
        pairs = [
            (measured[n, "learned"], measured[n, method])
            for n in STEPS
            if (n, "learned") in measured and (n, method) in measured
        ]
        if pairs:
            ratios = (
                f"{name} {geometric_mean([a[name] / b[name] for a, b in pairs]):.2f}"
                for name in ("error", "lpips", "frechet")
            )
            lines.append(f"learned / {method}: {', '.join(ratios)}")
    return "\n".join(lines) or f"{len(rows)} rows"
