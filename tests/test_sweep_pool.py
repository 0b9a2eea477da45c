"""The laws of a sweep's pool, with workers that train nothing: no cell is lost or done twice."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ld3.schedule_text import as_line
from ld3.training.report import Baseline, Report
from scripts.sweeping.cells import Cell, cells_of
from scripts.sweeping.grid import read_grid
from scripts.sweeping.index import write_index
from scripts.sweeping.pool import Pool
from scripts.sweeping.results import Results
from scripts.sweeping.work import MOST_ATTEMPTS, Work
from scripts.sweeping.workers import CellFailed, Trained, WorkerLost

from .sweep_grids import grid_file
from .test_schedule import schedule

AXES = {"cfg": [1, 2, 3, 4], "sampler_name": ["euler", "ipndm", "deis"]}


@pytest.fixture
def cells(tmp_path: Path) -> list[Cell]:
    """Twelve, with four teachers."""
    return cells_of(read_grid(grid_file(tmp_path, axes=AXES)))


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "sweep")


class Fake:
    """A worker that says it has trained; `behave` may raise.

    Attributes:
        ran: keys of the cells it was given.
    """

    def __init__(self, name: str, behave: Callable[[Cell], None] = lambda cell: None) -> None:
        self.name, self.behave, self.ran, self.revivals = name, behave, [], 99
        self.closed = False

    def start(self) -> None:
        pass

    def run(self, cell: Cell) -> Trained:
        self.ran.append(cell)
        time.sleep(0.001)
        self.behave(cell)
        return Trained(LINE, (b"picture",), "text", 0.1)

    def revive(self, wanted: Callable[[], bool]) -> bool:
        self.revivals -= 1
        return self.revivals >= 0 and wanted()

    def close(self) -> None:
        self.closed = True


LINE = as_line(schedule())


def dies(share: float, seed: int = 0) -> Callable[[Cell], None]:
    drawn = random.Random(seed)

    def behave(cell: Cell) -> None:
        if drawn.random() < share:
            raise WorkerLost("gone")

    return behave


def statuses(results: Results, cells: list[Cell]) -> Counter[str]:
    found = [results.of(cell) for cell in cells]
    return Counter(outcome.status if outcome else "waiting" for outcome in found)


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_every_cell_is_done_once(cells: list[Cell], results: Results, count: int) -> None:
    workers = [Fake(f"w{i}") for i in range(count)]
    run = Pool(workers, results).run(cells)
    given = [cell.key for worker in workers for cell in worker.ran]
    assert sorted(given) == sorted(cell.key for cell in cells)
    assert statuses(results, cells) == {"done": 12} and run["left"] == 0
    assert sum(w["cells"] for w in run["workers"].values()) == 12
    assert all(worker.closed for worker in workers)


def test_workers_keep_to_their_teacher_and_help_each_other_at_the_end(cells: list[Cell]) -> None:
    """Two workers in turn, four teachers with three cells each: each samples two teachers."""
    work, sampled = Work(cells), {"a": [], "b": []}
    for turn in range(12):
        worker = "ab"[turn % 2]
        cell = work.take(worker)
        assert cell is not None
        sampled[worker].append(cell.teacher)
        work.done(worker)
    assert all(len(set(teachers)) == 2 for teachers in sampled.values())
    assert not set(sampled["a"]) & set(sampled["b"])
    alone = Work(cells[:3])
    for worker in "abc":  # one teacher: better sampled again than waited for
        assert alone.take(worker) is not None


@pytest.mark.parametrize("seed", range(5))
def test_cells_of_workers_that_die_are_done_by_others(
    cells: list[Cell], results: Results, seed: int
) -> None:
    workers = [Fake(f"w{i}", dies(0.3, 10 * seed + i)) for i in range(3)]
    workers.append(Fake("steady"))
    run = Pool(workers, results).run(cells)
    found = statuses(results, cells)
    assert found["done"] + found["failed"] == 12 and run["left"] == 0
    begun = Counter(cell.key for worker in workers for cell in worker.ran)
    for cell in cells:
        outcome = results.of(cell)
        assert outcome is not None and outcome.attempts == begun[cell.key] <= MOST_ATTEMPTS
        assert outcome.status == "done" or begun[cell.key] == MOST_ATTEMPTS


def test_a_worker_that_does_not_come_back_costs_no_cell(
    cells: list[Cell], results: Results
) -> None:
    lost = Fake("lost", dies(1.0))
    lost.revivals = 0
    Pool([lost, Fake("other")], results).run(cells)
    assert len(lost.ran) <= 1 and statuses(results, cells) == {"done": 12}


def test_without_any_worker_the_cells_wait_for_the_next_run(
    cells: list[Cell], results: Results
) -> None:
    lost = Fake("lost", dies(1.0))
    lost.revivals = 0
    run = Pool([lost], results).run(cells)
    assert run["left"] == 12 and statuses(results, cells) == {"waiting": 12}
    Pool([Fake("next")], results).run(cells)
    assert statuses(results, cells) == {"done": 12}


def test_a_cell_that_ends_every_worker_is_given_up(cells: list[Cell], results: Results) -> None:
    def behave(cell: Cell) -> None:
        if cell is cells[4]:
            raise WorkerLost("killed for memory")

    workers = [Fake("a", behave), Fake("b", behave)]
    Pool(workers, results).run(cells)
    outcome = results.of(cells[4])
    assert outcome is not None and outcome.status == "failed"
    assert "3 times" in outcome.error and "killed for memory" in outcome.error
    assert statuses(results, cells) == {"done": 11, "failed": 1}


def test_a_cell_that_fails_of_itself_is_tried_once_a_run(
    cells: list[Cell], results: Results
) -> None:
    def behave(cell: Cell) -> None:
        if cell is cells[0]:
            raise CellFailed("cfg is 9:\n  too much")

    worker = Fake("a", behave)
    Pool([worker], results).run(cells)
    outcome = results.of(cells[0])
    assert outcome is not None and (outcome.status, outcome.attempts) == ("failed", 1)
    assert outcome.error == "cfg is 9: too much"
    again = Fake("b")
    Pool([again], results).run(cells)
    assert [cell.key for cell in again.ran] == [cells[0].key]
    assert statuses(results, cells) == {"done": 12}


def test_a_result_that_is_no_schedule_fails_its_cell(cells: list[Cell], results: Results) -> None:
    worker = Fake("a")
    worker.run = lambda cell: Trained("ld3:1:damaged", (), "", 0.1)  # type: ignore[method-assign]
    Pool([worker], results).run(cells[:1])
    outcome = results.of(cells[0])
    assert outcome is not None and outcome.status == "failed" and "damaged" in outcome.error


@pytest.mark.parametrize("damage", ["record", "schedule", "truncated"])
def test_what_a_crash_left_incomplete_is_done_again(
    cells: list[Cell], results: Results, damage: str
) -> None:
    Pool([Fake("a")], results).run(cells)
    record = results.folder / "cells" / f"{cells[3].key}.json"
    if damage == "record":
        record.unlink()
    elif damage == "schedule":
        (results.folder / json.loads(record.read_text())["file"]).unlink()
    else:
        record.write_text(record.read_text()[:40])
    again = Fake("b")
    Pool([again], Results(results.folder)).run(cells)
    assert [cell.key for cell in again.ran] == [cells[3].key]


def test_an_error_of_the_sweep_itself_ends_it(
    cells: list[Cell], results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(results, "keep", full)
    started = threading.active_count()
    with pytest.raises(OSError, match="no space"):
        Pool([Fake("a"), Fake("b")], results).run(cells)
    assert threading.active_count() == started
    assert statuses(results, cells) == {"waiting": 12}


def test_a_row_is_of_what_the_file_contains(cells: list[Cell], results: Results) -> None:
    """A standard schedule is returned where it wins: its error, not that of what was learned."""
    made = schedule()
    simple = Baseline([1.0], 4, comparable=True, test_error=0.02)
    report = replace(Report.from_json({}), test_error=0.03, baselines={"simple": simple})
    for chosen, error, ratio in (("learned", 0.03, 1.5), ("simple", 0.02, 1.0)):
        info = replace(made.info, report=replace(report, chosen=chosen).as_json())
        trained = Trained(as_line(replace(made, info=info)), (), "text", 0.1)
        (row,) = results.keep(cells[0], trained, "a", 1).schedules
        assert (row["chosen"], row["error"], row["ratio"]) == (chosen, error, ratio)


def test_the_index_lists_every_cell_and_contains_all_it_shows(
    cells: list[Cell], results: Results
) -> None:
    labels = {"cfg": 1, "sampler_name": "<script>alert(1)</script>"}
    shown = [replace(cells[0], labels=labels), *cells[1:]]
    workers = [Fake("a", lambda cell: (_ for _ in ()).throw(CellFailed("<b>bad</b>")))]
    Pool([Fake("a")], results).run(shown[:10])
    Pool(workers, results).run(shown[10:11])
    write_index(results, "grid", shown, {"seconds": 1.0})
    listed = json.loads((results.folder / "index.json").read_text("utf-8"))
    assert Counter(c["status"] for c in listed["cells"]) == {"done": 10, "failed": 1, "waiting": 1}
    assert listed["run"] == {"seconds": 1.0} and listed["cells"][0]["labels"] == labels
    for cell in listed["cells"][:10]:
        assert (results.folder / cell["file"]).is_file() and len(cell["schedules"]) == 1
    page = (results.folder / "index.html").read_text("utf-8")
    assert "<script>" not in page and "&lt;script&gt;" in page and "&lt;b&gt;bad" in page
    assert page.count("data:image/jpeg;base64,") == 10 and 'src="pictures' not in page
    assert "10 of 12 trainings" in page and "http" not in page
