"""The whole pack on the demo model: learned schedules against the best of ComfyUI's schedulers.

Every cell is what LD3 Train Schedule does with its defaults: the test noises are new, used neither
by the descent nor for the choice of a schedule.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.comparison import clustered_mean
from benchmarks.problems.demo_model import PROMPT

TITLE = "Demo model: mean RMSE to the teacher on 64 test noises, learned vs best of nine schedulers"
KEYS = ("sampler", "steps", "cfg")
COLUMNS = {
    "sampler": 9,
    "steps": 5,
    "cfg": 4,
    "error_learned": 13,
    "error_best_baseline": 19,
    "best_baseline": 16,
    "ratio": 6,
    "training_calls": 14,
    "teacher_calls": 13,
    "seconds": 8,
}


def cells() -> Iterator[dict[str, Any]]:
    """Every combination measured."""
    for cfg in (1.0, 4.0):
        for sampler in ("dpmpp_2m", "ipndm", "euler"):
            for steps in (4, 6):
                yield {"sampler": sampler, "steps": steps, "cfg": cfg}


def row(
    sampler: str, steps: int, cfg: float, iterations: int = 12, training_noises: int = 32
) -> dict[str, Any]:
    """Train one schedule, with the node's defaults except a batch size that suits the model."""
    from demo import demo_model as demo
    from ld3.comfy import folders
    from ld3.comfy.job import GraphInputs
    from ld3.comfy.requests import TrainingRequest
    from ld3.comfy.training_job import train_schedule

    folders.register()
    shutil.rmtree(folders.target_folder(), ignore_errors=True)  # every cell counts its teacher
    request = TrainingRequest(
        sampler_name=sampler,
        steps=steps,
        cfg=cfg,
        denoise=1.0,
        seed=0,
        teacher_sampler="dpmpp_2m",
        teacher_scheduler="karras",
        teacher_steps=20,
        distance="pseudo-huber",
        iterations=iterations,
        training_noises=training_noises,
        heldout_noises=64,
        batch_size=16,
    )
    positive, negative = (demo.encode_prompt(text)[0] for text in (PROMPT, ""))
    started = time.monotonic()
    inputs = GraphInputs(demo.load_demo_model(), positive, negative, demo.empty_latent())
    report = train_schedule(inputs, request, "bench", retrain=True).report
    best = report.best_baseline()
    baseline = report.baselines[best].test_error
    return {
        "sampler": sampler,
        "steps": steps,
        "cfg": cfg,
        "error_learned": report.test_error,
        "error_best_baseline": baseline,
        "best_baseline": best,
        "ratio": report.test_error / baseline,
        "training_calls": report.training_calls,
        "teacher_calls": report.teacher_calls,
        "seconds": time.monotonic() - started,
    }


def summary(rows: list[dict[str, Any]]) -> str:
    """Geometric mean ratio per guidance scale."""
    lines = []
    for cfg in sorted({row["cfg"] for row in rows}):
        clusters: dict[str, list[float]] = {}
        for row in rows:
            if row["cfg"] == cfg:
                clusters.setdefault(row["sampler"], []).append(row["ratio"])
        worst = max(max(ratios) for ratios in clusters.values())
        mean = clustered_mean(clusters)
        lines.append(f"cfg {cfg:g}: geometric mean ratio {mean}, worst {worst:.3f}")
    return "\n".join(lines)
