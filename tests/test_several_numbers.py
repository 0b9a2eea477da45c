"""Schedules in several numbers of steps: the widgets, the file, and sampling in each number."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from torch import Tensor

from ld3 import schedule_file
from ld3.schedule import Schedule
from ld3.schedule_file import ScheduleFileError, load, save
from ld3.training.other_steps import INTERPOLATED

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {
    "sampler_name": "dpmpp_2m", "steps": 4, "cfg": 1.0, "name": "several", "seed": 0,
    "teacher_sampler": "dpmpp_2m", "teacher_scheduler": "simple", "teacher_steps": 7,
    "retrain": False, "denoise": 1.0, "distance": "pseudo-huber", "iterations": 1,
    "training_noises": 4, "heldout_noises": 4, "batch_size": 16, "quality": "fast",
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(pack_nodes: dict[str, type], demo_inputs: dict[str, Any]) -> dict[str, Any]:
    model = pack_nodes["LD3DemoModel"].execute(batch_size=1, model="flow")[0]
    return demo_inputs | {"model": model}


@pytest.fixture(scope="module")
def train(pack_nodes: dict[str, type], inputs: dict[str, Any], ld3_folder: Path) -> Any:
    """LD3 Train Schedule with small settings; keywords replace some."""

    def run(**changes: Any) -> Any:
        return pack_nodes["LD3TrainSchedule"].execute(**(inputs | TINY | changes))

    return run


@pytest.fixture(scope="module")
def schedule(train: Any) -> Schedule:
    """4 steps, with 2 and 6 learned as well."""
    return train(also_steps="6, 2, 4")[2]


def test_a_file_contains_all_numbers_between_the_smallest_and_the_largest(
    schedule: Schedule, ld3_folder: Path
) -> None:
    found = load(ld3_folder / f"{schedule.name}.safetensors")
    assert [other.info.steps for other in found.others] == [2, 3, 5, 6]
    for saved, other in zip(schedule.others, found.others, strict=True):
        # the node's classes are those of its own package
        assert asdict(saved.info) == asdict(other.info)
        assert torch.equal(saved.sigmas, other.sigmas)
        assert saved.table.distance(other.table) == 0
        assert (other.info.method == INTERPOLATED) == (other.info.steps in (3, 5))
        assert other.info.settings_hash == found.info.settings_hash


@pytest.mark.parametrize("steps", [0, 2, 3, 5, 6])
def test_load_schedule_gives_the_sampler_and_sigmas_of_any_of_them(
    pack_nodes: dict[str, type], inputs: dict[str, Any], schedule: Schedule, steps: int
) -> None:
    node, name = pack_nodes["LD3LoadSchedule"], f"{schedule.name}.safetensors"
    assert node.validate_inputs(name=name, steps=steps) is True
    sigmas, sampler, chosen, *_ = node.execute(name=name, steps=steps).args
    assert chosen.info.steps == (steps or 4) == len(sigmas) - 1
    given = {"schedule": chosen, "seed": 5, "cfg": 1.0, "denoise": 1.0}
    ours = pack_nodes["LD3KSampler"].execute(**inputs | given)[0]["samples"]
    given = {"add_noise": True, "noise_seed": 5, "cfg": 1.0, "sampler": sampler, "sigmas": sigmas}
    custom: Tensor = SamplerCustom.execute(**inputs | given)[0]["samples"]
    assert torch.isfinite(ours).all() and torch.equal(custom, ours)


def test_other_numbers_are_refused_with_those_there_are(
    pack_nodes: dict[str, type], schedule: Schedule
) -> None:
    message = pack_nodes["LD3LoadSchedule"].validate_inputs(
        name=f"{schedule.name}.safetensors", steps=9
    )
    assert "2, 3, 4, 5, 6 steps, not 9" in message and "also_steps" in message


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"also_steps": "3; 5"}, ["also_steps is '3; 5'", "3, 6, 8"]),
        ({"also_steps": "3, 1"}, ["also_steps is '3, 1'", "from 2 to 50"]),
        ({"also_steps": "3, 7"}, ["also_steps contains 7", "7 steps (teacher_steps)"]),
        ({"also_steps": "2 3 5 6 8 9 10 11 12 13 14 15 16"}, ["13 numbers", "12 are the most"]),
        ({"also_steps": "3", "learn": "time steps + D-ODE"}, ["also_steps", "D-ODE"]),
        ({"also_steps": "3", "optimizer": "gradient (LD3 paper)"}, ["also_steps", "gauss-newton"]),
    ],
)
def test_bad_numbers_are_refused_before_any_work(
    changed: dict[str, Any], parts: list[str], train: Any
) -> None:
    with pytest.raises(ValueError) as error:
        train(**changed)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_in_steps_returns_the_schedule_itself_for_its_own_number(schedule: Schedule) -> None:
    assert schedule.in_steps(0) is schedule and schedule.in_steps(4) is schedule
    with pytest.raises(ValueError, match="not 7"):
        schedule.in_steps(7)


def info_of(data: bytes) -> dict[str, Any]:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["ld3"])


@pytest.mark.parametrize(
    "others",
    [
        5, [5], [{"steps": 3}], "repeated", "own number", "wrong calls", "more than the tensors",
        "long text",
    ],
)  # fmt: skip
def test_damaged_numbers_of_steps_are_refused(
    others: Any, schedule: Schedule, tmp_path: Path
) -> None:
    data = save(schedule, tmp_path, "valid").read_bytes()
    info, tensors = info_of(data), safetensors.torch.load(data)
    known = info["others"]
    changes: dict[str, Any] = {
        "repeated": [*known, known[0]],
        "own number": [*known, known[0] | {"steps": 4}],
        "wrong calls": [known[0] | {"model_calls": 3}],
        "more than the tensors": [*known, known[0] | {"steps": 9, "model_calls": 9}],
        "long text": [known[0] | {"method": "x" * 1000}],
    }
    info["others"] = changes.get(others, others) if isinstance(others, str) else others
    path = tmp_path / "bad.safetensors"
    path.write_bytes(safetensors.torch.save(tensors, {"ld3": json.dumps(info)}))
    with pytest.raises(ScheduleFileError, match="bad") as error:
        load(path)
    assert schedule_file.TRY_AGAIN in str(error.value)


def test_a_file_of_one_number_has_no_others(schedule: Schedule, tmp_path: Path) -> None:
    alone = load(save(replace(schedule, others=()), tmp_path, "alone"))
    assert alone.others == ()
