"""What a sweep has finished, in a folder: begun again, it goes on from there.

cells/KEY.json       what became of a cell; written last, so that what it names is complete
schedules/NAME.safetensors
pictures/KEY-0.jpg, ..
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ld3.schedule import Schedule
from ld3.schedule_file import EXTENSION, encoded
from ld3.schedule_text import from_line
from ld3.training.report import Report
from ld3.training.verdict import verdict
from scripts.sweeping.cells import Cell
from scripts.sweeping.workers import Trained

DONE, FAILED = "done", "failed"


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Attributes:
        status: "done" or "failed"; error: why it failed.
        schedules: a row for each number of steps, see `_row`.
        file, pictures: paths inside the folder.
        worker, attempts, seconds: who did it, how often it was begun, and how long it took.
    """

    key: str
    labels: dict[str, Any]
    teacher: str
    status: str
    worker: str
    attempts: int
    error: str = ""
    file: str = ""
    pictures: tuple[str, ...] = ()
    schedules: tuple[dict[str, Any], ...] = ()
    seconds: float = 0.0


class Results:
    """The folder.

    Args:
        folder: created if needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("cells", "schedules", "pictures"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def of(self, cell: Cell) -> Outcome | None:
        """What became of a cell; None if it is to be done, or its files are gone or damaged."""
        try:
            found = json.loads((self.folder / "cells" / f"{cell.key}.json").read_text("utf-8"))
            outcome = Outcome(
                **found | {name: tuple(found[name]) for name in ("pictures", "schedules")}
            )
        except (OSError, ValueError, TypeError, KeyError):
            return None
        if outcome.status == DONE and not (self.folder / outcome.file).is_file():
            return None
        return outcome

    def done(self, cell: Cell) -> bool:
        """Whether nothing is left to do; failed cells are tried again."""
        outcome = self.of(cell)
        return outcome is not None and outcome.status == DONE

    def keep(self, cell: Cell, trained: Trained, worker: str, attempts: int) -> Outcome:
        """Write a cell's schedule and pictures, and that it is done.

        ValueError for a schedule that cannot be used.
        """
        schedule = from_line(trained.line, cell.name)
        file = f"schedules/{cell.name}{EXTENSION}"
        self._write(file, encoded(schedule))
        pictures = tuple(f"pictures/{cell.key}-{i}.jpg" for i in range(len(trained.pictures)))
        for path, picture in zip(pictures, trained.pictures, strict=True):
            self._write(path, picture)
        every = sorted((schedule, *schedule.others), key=lambda found: found.info.steps)
        wanted = [found for found in every if found.info.steps in cell.steps] or every
        try:
            rows = tuple(map(_row, wanted))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the schedule's report lacks {error}") from error
        outcome = Outcome(
            cell.key, cell.labels, cell.teacher, DONE, worker, attempts, file=file,
            pictures=pictures, schedules=rows, seconds=round(trained.seconds, 2),
        )  # fmt: skip
        self._keep(outcome)
        return outcome

    def failed(self, cell: Cell, error: str, worker: str, attempts: int) -> Outcome:
        """Write why a cell cannot be done."""
        outcome = Outcome(cell.key, cell.labels, cell.teacher, FAILED, worker, attempts, error)
        self._keep(outcome)
        return outcome

    def write_text(self, name: str, text: str) -> None:
        """Write a file whole."""
        self._write(name, text.encode())

    def _keep(self, outcome: Outcome) -> None:
        self.write_text(f"cells/{outcome.key}.json", json.dumps(asdict(outcome), indent=1))

    def _write(self, name: str, data: bytes) -> None:
        """The file appears whole or not at all."""
        path = self.folder / name
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_bytes(data)
        partial.replace(path)


def _row(schedule: Schedule) -> dict[str, Any]:
    """Error, steps saved and calls of a schedule; errors are on its training's test noises.

    The error is that of what the file contains, which is a standard schedule if that has won.
    """
    info = schedule.info
    report = Report.from_json(info.report)
    best = report.best_baseline()
    error = report.baselines[best].test_error if best else None
    returned = report.returned_error
    return {
        "steps": info.steps,
        "sampler": info.sampler,
        "chosen": report.chosen,
        "error": returned,
        "best_standard": best,
        "best_standard_error": error,
        "ratio": returned / error if error and returned is not None else None,
        "ratio_interval": None if report.chosen in report.baselines else report.gain,
        "steps_saved": [
            {"with": curve.name, "steps": steps, "or_more": more}
            for curve in report.compared
            for steps, more in [curve.equal_steps()]
        ],
        "verdict": verdict(info.steps, info.sampler, info.teacher["steps"], report),
        "teacher_calls": report.teacher_calls,
        "calls": report.teacher_calls + report.training_calls + report.report_calls,
    }
