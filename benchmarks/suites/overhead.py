"""What sampling with a learned table costs, and what a training costs beyond its model calls.

Case `table`: wall time of whole sampling runs of the demo model (batch 4, cfg 1) through
`comfy.sample`, with core's sampler and with the SAMPLER of a schedule whose table contains every
extra: decoupled times, corrected coefficients and an output mix, so that it has all the nonzero
entries of a learned table.
Both receive the same noise and sigmas. They alternate as A B B A, so that a machine that becomes
slower or faster favours neither; `ratio` is the median over such blocks of B's time over A's, and
`ms_per_call` the median difference per model call. The cost of the sampler itself does not grow
with the model: on a larger one the ratio is closer to 1.

Cases `demo` and `sd15`: a training as the node makes it, with the demo model and with one of Stable
Diffusion 1.5's size and random weights. `ratio` is its processor time over that of as many calls in
plain sampling, `ms_per_call` the difference per call; the rows also have the peaks of the process's
memory after plain sampling and after the training. Small latents (sd15: 8x8) make the calls short
and the ratio large: on usual ones it is closer to 1.
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
from benchmarks.measures.training_overhead import CountedModel, measured, random_sd15
from ld3.schedule import Schedule, ScheduleInfo
from ld3.table import SolverTable

TITLE = "Overhead: time of a learned table, and of a training, over that of plain sampling"
KEYS = ("case", "sampler", "steps")
COLUMNS = {
    "case": 5,
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
TABLE, DEMO, SD15 = "table", "demo", "sd15"
TRAINED = ("dpmpp_2m", 3)
TEACHER_STEPS = {DEMO: 20, SD15: 6}
NUMBERS = {DEMO: (4, 8, 4), SD15: (1, 2, 2)}  # iterations, training and test noises
SD15_LATENT = (4, 8, 8)
AIM = 1.03
Work = Callable[[], Any]


def cells() -> Iterator[dict[str, Any]]:
    """Every combination measured."""
    for sampler in SAMPLERS:
        for steps in BLOCKS:
            yield {"case": TABLE, "sampler": sampler, "steps": steps}
    for case in (DEMO, SD15):
        yield {"case": case, "sampler": TRAINED[0], "steps": TRAINED[1]}


def row(case: str, sampler: str, steps: int) -> dict[str, Any]:
    """Sample many times with both, or train."""
    if case == TABLE:
        return table_row(sampler, steps)
    return training_row(case, sampler, steps)


def training_row(case: str, sampler: str, steps: int) -> dict[str, Any]:
    """Plain sampling, a training, and plain sampling again."""
    import comfy.sample

    from ld3.comfy import folders
    from ld3.comfy.job import GraphInputs
    from ld3.comfy.requests import TrainingRequest
    from ld3.comfy.training_job import train_schedule

    torch.set_num_threads(1)
    folders.register()
    model, prompt, latent, batch = _inputs(case)
    iterations, training, test = NUMBERS[case]
    request = TrainingRequest(
        sampler_name=sampler, steps=steps, cfg=1.0, denoise=1.0, seed=0, distance="pseudo-huber",
        teacher_sampler="dpmpp_2m", teacher_scheduler="karras", teacher_steps=TEACHER_STEPS[case],
        iterations=iterations, training_noises=training, heldout_noises=test, batch_size=batch,
        quality="fast", learn="time steps",
    )  # fmt: skip
    counted = CountedModel(model)
    samples = latent["samples"].repeat(batch, 1, 1, 1)
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(0))

    def plain() -> None:
        comfy.sample.sample(
            counted.model, noise, TEACHER_STEPS[case], 1.0, "dpmpp_2m", "karras", prompt, prompt,
            samples, disable_pbar=True,
        )  # fmt: skip

    inputs = GraphInputs(counted.model, prompt, prompt, latent)
    with torch.inference_mode():  # as ComfyUI runs its nodes
        plain()  # loads the model
        first = measured(counted, plain)
        trained = measured(
            counted, lambda: train_schedule(inputs, request, "overhead", True, cache_gb=0)
        )
        last = measured(counted, plain)
    per_call = (first["seconds"] + last["seconds"]) / (first["calls"] + last["calls"])
    bare = per_call * trained["calls"]
    return {
        "case": case,
        "sampler": sampler,
        "steps": steps,
        "model_calls": trained["calls"],
        "blocks": 1,
        "core_seconds": bare,
        "table_seconds": trained["seconds"],
        "ratio": trained["seconds"] / bare,
        "ms_per_call": 1000 * (trained["seconds"] - bare) / trained["calls"],
        "ms_in_network": 1000 * trained["network_seconds"] / trained["calls"],
        "ms_of_a_plain_call": 1000 * per_call,
        "batch": batch,
        "peak_gb_sampling": first["peak_gb"],
        "peak_gb_training": trained["peak_gb"],
    }


def _inputs(case: str) -> tuple[Any, Any, dict[str, Any], int]:
    """MODEL, CONDITIONING, LATENT and batch size of a case."""
    from demo import demo_model as demo

    if case == DEMO:
        return demo.load_demo_model(), demo.encode_prompt(PROMPT)[0], demo.empty_latent(), BATCH
    generator = torch.Generator().manual_seed(1)
    prompt = [[torch.randn(1, 77, 768, generator=generator), {}]]
    return random_sd15(), prompt, {"samples": torch.zeros(1, *SD15_LATENT)}, 1


def table_row(sampler: str, steps: int) -> dict[str, Any]:
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
        "case": TABLE,
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
    """The median over tables and the worst one, and every training."""
    lines = []
    ratios = {(row["sampler"], row["steps"]): row["ratio"] for row in rows if row["case"] == TABLE}
    if ratios:
        worst = max(ratios, key=lambda cell: ratios[cell])
        lines.append(
            f"tables: median ratio {statistics.median(ratios.values()):.4f}, worst "
            f"{ratios[worst]:.4f} ({worst[0]} in {worst[1]} steps; aim: <= {AIM:g}; "
            f"{reached(ratios[worst] <= AIM)})"
        )
    for row in rows:
        if row["case"] != TABLE:
            memory = row["peak_gb_training"] / row["peak_gb_sampling"]
            aim = f"; aim: <= {AIM:g}; {reached(row['ratio'] <= AIM)}" * (row["case"] == SD15)
            lines.append(
                f"training of {row['case']}: ratio {row['ratio']:.4f} ({row['ms_per_call']:.1f} ms "
                f"more per call of {row['ms_of_a_plain_call']:.1f} ms{aim}), peak of memory "
                f"{memory:.3f} x that of sampling"
            )
    return "\n".join(lines)
