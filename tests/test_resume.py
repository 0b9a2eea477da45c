"""An interrupted training goes on where it was, to the same bits."""

from __future__ import annotations

import logging
import math
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.model_management
import pytest
import torch
from torch import Tensor

from ld3 import schedule_file
from ld3.journal import Journal, best_schedule

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = {
    "sampler_name": "euler", "steps": 3, "cfg": 1.0, "name": "resumed", "seed": 0,
    "teacher_sampler": "euler", "teacher_scheduler": "auto", "teacher_steps": 6,
    "retrain": False, "denoise": 1.0, "distance": "pseudo-huber", "iterations": 4,
    "training_noises": 6, "heldout_noises": 4, "batch_size": 4, "quality": "normal",
    "learn": "time steps + full solver", "cache_gb": 1.0,
}  # fmt: skip
OVERHEAD = 16  # model calls of every run: does it keep state, how fast is it, do first calls repeat
MOST_ANSWER = 24  # model calls, each of a batch, of an iteration
Interrupted = comfy.model_management.InterruptProcessingException


class Stop(BaseException):
    """The process ends here, as far as the training can tell."""


ENDS = (Interrupted, Stop, torch.OutOfMemoryError)
UNLOADED_BYTES = 100_000


class Counter:
    """A MODEL whose network calls are counted, and end at a chosen one.

    Every so many calls something else needs memory, and part of the model is unloaded.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.calls, self.last, self.unloads = model.clone(), 0, math.inf, math.inf
        self.end: type[BaseException] = Interrupted
        self.model.set_model_unet_function_wrapper(self._call)

    def _call(self, network: Any, given: dict[str, Any]) -> Tensor:
        if self.calls >= self.last:
            raise self.end
        self.calls += 1
        if self.calls % self.unloads == 0:
            assert self.model.partially_unload(torch.device("cpu"), UNLOADED_BYTES) > 0
        return network(given["input"], given["timestep"], **given["c"])


@pytest.fixture
def train(
    pack_nodes: Any, demo_inputs: Any, ld3_folder: Path, monkeypatch: Any, tmp_path: Path
) -> Any:
    """`train(counter, **changes)`: LD3 Train Schedule, in folders of this test's own."""
    import folder_paths

    known = folder_paths.folder_names_and_paths
    monkeypatch.setitem(known, "ld3", ([str(tmp_path / "ld3")], {".safetensors", ".partial"}))
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path / "user"))

    def run(model: Any, **changes: Any) -> Any:
        node = pack_nodes["LD3TrainSchedule"]
        return node.execute(**(demo_inputs | SETTINGS | {"model": model} | changes))

    run.folder = tmp_path / "ld3"  # type: ignore[attr-defined]
    return run


@pytest.fixture
def counted(demo_inputs: Any, pack: ModuleType, monkeypatch: Any) -> Counter:
    """The demo model; what is patched on it is not part of the settings."""
    counter = Counter(demo_inputs["model"])
    fingerprint = sys.modules[f"{pack.__name__}.ld3.comfy.fingerprint"]
    monkeypatch.setattr(fingerprint, "patches_of", lambda model: [])
    return counter


def same(schedule: Any, other: Any) -> None:
    """The bits of two schedules and their reports are equal."""
    assert torch.equal(schedule.sigmas, other.sigmas)
    for name in ("weights", "state_sigmas", "eval_sigmas", "callback_calls"):
        assert torch.equal(getattr(schedule.table, name), getattr(other.table, name)), name
    unequal = {"created": "", "report": {}}
    assert replace(schedule.info, **unequal) == replace(other.info, **unequal)
    assert schedule.info.report == other.info.report


def forget(train: Any) -> None:
    """Remove all that was saved, the teacher's samples too."""
    for path in (train.folder.parent).rglob("*.s*"):
        if path.is_file():
            path.unlink()


@pytest.mark.slow
def test_a_training_interrupted_again_and_again_comes_to_the_same_bits(
    train: Any, counted: Counter, caplog: Any
) -> None:
    """By Cancel, by errors that nothing can catch, and by memory that is missing for any batch.

    Always a little further, while the model is unloaded part by part.
    """
    caplog.set_level(logging.INFO)
    whole = train(counted.model, name="whole")[2]
    calls, attempts, continued = counted.calls, 0, None
    forget(train)
    counted.unloads = calls // 5
    while continued is None and attempts < 30:
        counted.calls, counted.last = 0, MOST_ANSWER + OVERHEAD + attempts
        counted.end = ENDS[attempts % len(ENDS)]
        attempts += 1
        try:
            continued = train(counted.model)[2]
        except ENDS:
            assert [path.name for path in train.folder.iterdir()] == ["resumed.partial"]
    assert calls // (MOST_ANSWER + OVERHEAD + attempts) < attempts < 30
    assert "goes on after" in caplog.text and "before an interruption" in caplog.text
    same(continued, whole)
    assert [path.name for path in train.folder.iterdir()] == ["resumed.safetensors"]


def test_what_is_lost_by_an_interruption_is_the_work_of_one_answer(
    train: Any, counted: Counter
) -> None:
    train(counted.model, name="whole", seed=1)
    calls = counted.calls
    forget(train)
    counted.calls, counted.last = 0, calls * 2 // 3
    with pytest.raises(Interrupted):
        train(counted.model, seed=1)
    counted.calls, counted.last = 0, math.inf
    train(counted.model, seed=1)
    again = counted.calls - (calls - calls * 2 // 3)
    assert 0 <= again <= MOST_ANSWER + OVERHEAD


def test_the_best_so_far_of_an_interrupted_training_can_be_loaded(
    train: Any, counted: Counter, pack_nodes: Any
) -> None:
    whole = train(counted.model, name="whole", seed=2)[2]
    calls = counted.calls
    forget(train)
    counted.calls, counted.last = 0, calls // 2
    with pytest.raises(Interrupted):
        train(counted.model, seed=2)
    load = pack_nodes["LD3LoadSchedule"]
    assert load.validate_inputs(name="resumed.partial") is True
    assert len(load.fingerprint_inputs(name="resumed.partial")) == 64
    sigmas, _, schedule, *_ = load.execute(name="resumed.partial")
    assert len(sigmas) == SETTINGS["steps"] + 1 and bool((sigmas.diff() < 0).all())
    assert schedule.info.settings_hash == whole.info.settings_hash


def test_other_settings_and_damaged_files_begin_anew(
    train: Any, counted: Counter, caplog: Any
) -> None:
    caplog.set_level(logging.INFO)
    quick = {"quality": "fast", "teacher_scheduler": "karras", "seed": 3, "cache_gb": 0.0}
    whole = train(counted.model, name="whole", **quick)[2]
    calls = counted.calls
    forget(train)
    file = train.folder / "resumed.partial"
    counted.calls, counted.last = 0, calls // 2
    with pytest.raises(Interrupted):
        train(counted.model, **quick)
    good = file.read_bytes()
    counted.calls, counted.last = 0, math.inf
    for damaged in (good[:-1], good[:40] + b"\1" + good[41:]):
        file.write_bytes(damaged)
        caplog.clear()
        same(train(counted.model, **quick)[2], whole)
        assert "cannot be continued" in caplog.text and "goes on after" not in caplog.text
        (train.folder / "resumed.safetensors").unlink()
    file.write_bytes(good)
    caplog.clear()
    counted.calls, counted.last = 0, calls // 10
    with pytest.raises(Interrupted):
        train(counted.model, **quick | {"seed": 4})
    assert "goes on after" not in caplog.text


def test_a_journal_that_cannot_be_written_costs_only_the_continuation(
    tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    def failing(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", failing)
    journal = Journal(tmp_path / "a.partial", "key")
    model = Counted()
    (found,) = journal.recall(model, ["question"], lambda: (torch.ones(2),))
    assert torch.equal(found, torch.ones(2)) and "could not be written" in caplog.text
    assert not list(tmp_path.iterdir())


class Counted:
    """What a journal needs to know of a model."""

    calls = 0

    def compute(self, calls: int, value: Tensor) -> tuple[Tensor]:
        self.calls += calls
        return (value,)


@pytest.mark.parametrize("damaged", [b"", b"\0" * 100])
def test_a_journal_without_readable_contents_is_empty(
    damaged: bytes, tmp_path: Path, caplog: Any
) -> None:
    path, model = tmp_path / "a.partial", Counted()
    path.write_bytes(damaged)
    journal = Journal(path, "key")
    assert journal.calls == 0 and "cannot be continued" in caplog.text
    journal.recall(model, ["question"], partial(model.compute, 1, torch.ones(1)))
    assert model.calls == 1


def test_a_journal_gives_the_same_answers_and_calls_again(tmp_path: Path) -> None:
    path, value = tmp_path / "a.partial", torch.rand(3, dtype=torch.float64)
    value[1] = math.inf
    for run in range(2):
        model, journal = Counted(), Journal(path, "key")
        assert journal.calls == (0 if run == 0 else 9)
        for asked, calls in ((["a", torch.ones(2)], 4), (["a", torch.zeros(2)], 3)):
            compute = partial(model.compute, calls, value)
            assert torch.equal(journal.recall(model, asked, compute)[0], value)
        assert model.calls == 7
        before = model.calls
        model.calls += 2 if run == 0 else 0  # samples that are kept elsewhere need no calls
        journal.count(model, ["teacher"], before)
        assert model.calls == 9
    assert Journal(path, "another").calls == 0
    journal.keep_best(b"a schedule")
    assert best_schedule(path) == b"a schedule"
    journal.remove()
    with pytest.raises(schedule_file.ScheduleFileError, match="does not exist"):
        schedule_file.load(path)
