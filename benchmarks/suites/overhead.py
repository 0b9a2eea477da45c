"""The cost of executing a learned table compared with the core sampler, at equal model calls.

Wall time of whole sampling runs of the demo model (batch 4, cfg 1) through `comfy.sample`, with
core's sampler and with the SAMPLER of a schedule whose table contains every extra: decoupled times,
corrected coefficients and an output mix, so that it has all the nonzero entries of a learned table.
Both receive the same noise and sigmas. They alternate as A B B A, so that a machine that becomes
slower or faster favours neither; `ratio` is the median over such blocks of B's time over A's, and
`ms_per_call` the median difference per model call. The cost of the sampler itself does not grow
with the model: on a larger one the ratio is closer to 1.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.comparison import reached
from ld3.schedule import Schedule, ScheduleInfo
from ld3.table import SolverTable

TITLE = "Overhead: wall time of a learned table over the core sampler's, demo model, batch 4"
KEYS = ("sampler", "steps")
COLUMNS = {
    "sampler": 9,
    "steps": 5,
    "model_calls": 11,
    "blocks": 6,
    "core_seconds": 12,
    "table_seconds": 13,
    "ratio": 6,
    "ms_per_call": 9,
}
SAMPLERS, BLOCKS = ("dpmpp_2m", "ipndm", "euler"), {4: 12, 8: 8}
BATCH, PROMPT = 4, "grinning face"
AIM = 1.03
Work = Callable[[], Any]


def cells() -> Iterator[dict[str, Any]]:
    """Every combination measured."""
    for sampler in SAMPLERS:
        for steps in BLOCKS:
            yield {"sampler": sampler, "steps": steps}


def row(sampler: str, steps: int) -> dict[str, Any]:
    """Sample many times with both."""
    import comfy.sample

    from demo import demo_model as demo
    from ld3.comfy import core_samplers
    from ld3.comfy.executor import TableSampler

    model, (prompt, _) = demo.load_demo_model(), demo.encode_prompt(PROMPT)
    latent = demo.empty_latent(BATCH)["samples"]
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    sigmas = core_samplers.scheduler_sigmas(model, sampler, "karras", steps, denoise=1.0)
    core = core_samplers.sampler_object(sampler)
    sampling = model.get_model_object("model_sampling")
    table = core_samplers.traced_sampler(core, sampling).table(sigmas)
    learned = TableSampler(schedule_of(sampler, sigmas, with_extras(table)))

    def sampling(with_sampler: Any) -> Work:
        return lambda: comfy.sample.sample_custom(
            model, noise, 1.0, with_sampler, sigmas, prompt, prompt, latent, disable_pbar=True
        )

    blocks = alternated(sampling(core), sampling(learned), BLOCKS[steps])
    return {
        "sampler": sampler,
        "steps": steps,
        "model_calls": table.model_calls,
        "blocks": len(blocks),
        "core_seconds": statistics.median(a for a, _ in blocks),
        "table_seconds": statistics.median(b for _, b in blocks),
        "ratio": statistics.median(b / a for a, b in blocks),
        "ms_per_call": 1000 * statistics.median(b - a for a, b in blocks) / table.model_calls,
        "ratios": [b / a for a, b in blocks],
    }


def with_extras(table: SolverTable) -> SolverTable:
    """The table with some of every extra; the quality of its samples does not matter here."""
    calls, latest = table.model_calls, table.weights.diagonal()[1:]
    weights = table.weights.clone()
    for m in range(2, calls + 1):
        weights[m, m] += 0.1 * latest[m - 1]
        weights[m, m - 1] -= 0.1 * latest[m - 1]
    weights[-1, 1:-1] += 0.01
    weights[-1, -1] -= 0.01 * (calls - 1)
    offsets = torch.linspace(0, 0.1, calls, dtype=torch.float64)
    return replace(table, weights=weights, eval_sigmas=table.eval_sigmas * offsets.neg().exp())


def schedule_of(sampler: str, sigmas: Tensor, table: SolverTable) -> Schedule:
    """A schedule that was not learned."""
    info = ScheduleInfo(
        sampler=sampler,
        steps=len(sigmas) - 1,
        model_calls=table.model_calls,
        cfg=1.0,
        denoise=1.0,
        latent_shape=[],
        prediction_type="eps",
        sigma_max=float(sigmas[0]),
        model_fingerprint="",
        teacher={},
        method="",
        settings={},
        settings_hash="",
        report={},
        extras=["decoupled times", "solver corrections", "output mix"],
    )
    return Schedule(sigmas, table, info)


def alternated(a: Work, b: Work, blocks: int) -> list[tuple[float, float]]:
    """Mean seconds of a and of b in each of `blocks` blocks A B B A, after one run of each."""
    a(), b()  # loading and compiling are not the sampler's cost
    found = []
    for _ in range(blocks):
        first, second, third, fourth = (_seconds(work) for work in (a, b, b, a))
        found.append(((first + fourth) / 2, (second + third) / 2))
    return found


def _seconds(work: Work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def summary(rows: list[dict[str, Any]]) -> str:
    """The median over cells, and the worst one."""
    ratios = {(row["sampler"], row["steps"]): row["ratio"] for row in rows}
    worst = max(ratios, key=lambda cell: ratios[cell])
    middle = statistics.median(ratios.values())
    return (
        f"median ratio {middle:.4f}, worst {ratios[worst]:.4f} ({worst[0]} in {worst[1]} steps; "
        f"aim: <= {AIM:g}; {reached(ratios[worst] <= AIM)})"
    )
