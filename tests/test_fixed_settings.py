"""Fixed settings learn the same schedule, bit for bit, whatever becomes of the code.

`tests/data/fixed_settings.json` holds what the nodes learned when the file was written. To write it
anew, after a change that is meant to learn other schedules: delete it and run this module twice.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

FILE = Path(__file__).parent / "data" / "fixed_settings.json"
COMMON = {
    "seed": 0,
    "teacher_sampler": "dpmpp_2m",
    "teacher_scheduler": "karras",
    "teacher_steps": 12,
    "retrain": True,
    "denoise": 1.0,
    "distance": "pseudo-huber",
    "iterations": 4,
    "training_noises": 8,
    "heldout_noises": 4,
    "batch_size": 8,
}
SETTINGS = {
    "steps alone": {
        "sampler_name": "dpmpp_2m", "steps": 4, "cfg": 1.0, "learn": "time steps",
    },
    "full solver": {
        "sampler_name": "ipndm", "steps": 3, "cfg": 2.0, "learn": "time steps + full solver",
    },
    "gradient": {
        "sampler_name": "euler", "steps": 3, "cfg": 1.0, "iterations": 2,
        "learn": "time steps + decoupled times", "optimizer": "gradient (Adam, thorough)",
    },
}  # fmt: skip
REPORTED = ("start", "chosen", "heldout_error", "teacher_calls", "training_calls", "report_calls")

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


@pytest.fixture(scope="module")
def learned(
    pack_nodes: dict[str, type], demo_inputs: dict[str, Any], ld3_folder: Path
) -> dict[str, dict[str, Any]]:
    """What every setting learns on this machine, and D-ODE's lambdas for the first."""
    inputs = demo_inputs | {"name": "fixed"}
    schedules = {
        name: pack_nodes["LD3TrainSchedule"].execute(**inputs, **{**COMMON, **settings})[2]
        for name, settings in SETTINGS.items()
    }
    schedules["distilled"] = pack_nodes["LD3DistillSolver"].execute(
        **inputs, cfg=1.0, seed=0, teacher_sampler="dpmpp_2m", training_noises=4, batch_size=4,
        schedule=schedules["steps alone"],
    )[2]  # fmt: skip
    return {name: numbers(schedule) for name, schedule in schedules.items()}


def numbers(schedule: Any) -> dict[str, Any]:
    """All that sampling depends on, and what the training said of itself."""
    info = schedule.info
    return {
        "sigmas": schedule.sigmas.tolist(),
        "eval_sigmas": schedule.table.eval_sigmas.tolist(),
        "weights": schedule.table.weights.tolist(),
        "extras": list(info.extras),
        "report": {key: info.report[key] for key in REPORTED if key in info.report},
    }


def arithmetic() -> str:
    """A hash of what this processor and this torch make of the operations a training consists of.

    Processors round differently; bits can be compared only where these bits are the same.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 64, 8, 8, generator=generator)
    convolved = torch.nn.functional.conv2d(x, torch.randn(64, 64, 3, 3, generator=generator))
    made = torch.nn.functional.group_norm(torch.nn.functional.silu(convolved), 8)
    flat = made.flatten(1)
    product = flat @ torch.randn(flat.shape[1], 32, generator=generator)
    q = made.flatten(2).transpose(1, 2)
    attended = torch.nn.functional.scaled_dot_product_attention(q, q, q)
    small = torch.linspace(-3, 3, 97, dtype=torch.float64)
    square = product[:8, :8].double() + 100 * torch.eye(8, dtype=torch.float64)
    parts = [made, product, attended, small.exp(), small.exp().log(), small.tanh()]
    parts += [torch.linalg.solve(square, product[:8, 0].double()), product.bfloat16().float()]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("name", [*SETTINGS, "distilled"])
def test_fixed_settings_learn_the_same_schedule_bit_for_bit(
    name: str, learned: dict[str, dict[str, Any]]
) -> None:
    if not FILE.is_file():
        FILE.write_text(json.dumps({"arithmetic": arithmetic(), **learned}, indent=1) + "\n")
        pytest.fail(f"{FILE.name} was missing and is written now: run the test again")
    expected = json.loads(FILE.read_text())
    found, wanted = learned[name], expected[name]
    if expected["arithmetic"] == arithmetic():
        assert found == wanted
        return
    # another processor or torch rounds differently, and a descent carries that on
    for key in ("sigmas", "eval_sigmas", "weights"):
        assert torch.allclose(torch.tensor(found[key]), torch.tensor(wanted[key]), rtol=0.02)
    assert found["extras"] == wanted["extras"]
