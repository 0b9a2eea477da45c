"""Servers that share a folder, whatever their clocks say, lose nothing of each other's."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ld3 import schedule_file
from ld3.journal import Journal, best_schedule
from ld3.schedule_file import decoded
from scripts import fuzz

TURNS = 40


class Asking:
    """A training as its journal sees it: questions, and how many needed the model."""

    def __init__(self, path: Path, key: str) -> None:
        self.calls, self.journal, self.key = 0, Journal(path, key), key

    def ask(self, number: int) -> Tensor:
        def compute() -> tuple[Tensor]:
            self.calls += 1
            return (torch.full((3,), float(number) + len(self.key)),)

        return self.journal.recall(self, [number], compute)[0]


@pytest.mark.parametrize("keys", [("a", "bc"), ("a", "a")], ids=["other settings", "the same"])
def test_two_servers_that_train_under_one_name_get_their_own_answers(
    keys: tuple[str, str], tmp_path: Path
) -> None:
    path, wrong = tmp_path / "shared.partial", []

    def train(training: Asking) -> None:
        for number in range(TURNS):
            if not torch.equal(training.ask(number), torch.full((3,), number + len(training.key))):
                wrong.append(number)
            training.journal.keep_best(b"best of " + training.key.encode())

    both = [Asking(path, key) for key in keys]
    threads = [threading.Thread(target=train, args=(training,)) for training in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and [training.calls for training in both] == [TURNS, TURNS]
    # whoever wrote last: the file is complete, and one of them goes on from it
    assert best_schedule(path) in {b"best of " + key.encode() for key in keys}
    again = [Asking(path, key) for key in set(keys)]
    assert sorted(training.journal.calls for training in again)[-1] >= TURNS - 1
    for training in both:
        training.journal.remove()
    assert not list(tmp_path.iterdir())


def test_two_servers_that_save_under_one_name_keep_both_schedules(tmp_path: Path) -> None:
    schedule, saved = decoded(fuzz.valid_schedule(), "shared"), []

    def save() -> None:
        for _ in range(10):
            saved.append(schedule_file.save(schedule, tmp_path, "shared"))

    threads = [threading.Thread(target=save) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(saved)) == 20 == len(list(tmp_path.iterdir()))
    assert all(schedule_file.load(path).info == schedule.info for path in saved)


@pytest.mark.parametrize("days", [-400, 400], ids=["backwards", "forwards"])
def test_a_clock_that_jumps_loses_no_file_and_leaves_no_remains(
    days: int, tmp_path: Path, monkeypatch: Any
) -> None:
    schedule = decoded(fuzz.valid_schedule(), "clock")
    first = schedule_file.save(schedule, tmp_path, "clock")
    remains = tmp_path / ".ld3-0.tmp"
    remains.write_bytes(b"of a crash")
    os.utime(remains)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + days * 86_400)
    second = schedule_file.save(schedule, tmp_path, "clock")
    assert first.name == "clock.safetensors" and second.name == "clock_2.safetensors"
    assert {path for path in tmp_path.iterdir()} == {first, second}
    journal = Asking(tmp_path / "clock.partial", "key")
    journal.ask(1)
    assert Asking(tmp_path / "clock.partial", "key").journal.calls == 1
