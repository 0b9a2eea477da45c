"""Run cells on workers until every cell is done, has failed, or no worker is left."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from scripts.sweeping.cells import Cell
from scripts.sweeping.results import Outcome, Results
from scripts.sweeping.work import MOST_ATTEMPTS, Work
from scripts.sweeping.workers import CellFailed, Worker, WorkerLost

logger = logging.getLogger(__name__)
MOST_TEXT = 1000  # characters of an error in the index


class Pool:
    """Workers, each in a thread of its own.

    Args:
        workers: not started yet.
        results: where finished cells are kept.
        on_outcome: called after every cell, by one thread at a time.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        results: Results,
        on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        self.workers, self.results, self._on_outcome = workers, results, on_outcome
        self._lock = threading.Lock()
        self._busy: dict[str, float] = defaultdict(float)
        self._trained: dict[str, int] = defaultdict(int)
        self._error: BaseException | None = None

    def run(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """Do all cells that are not done yet.

        Returns:
            What happened: seconds, workers, and the cells that nobody was left to do.

        Raises:
            OSError: the results' folder cannot be written.
        """
        work = Work([cell for cell in cells if not self.results.done(cell)])
        started = time.monotonic()
        threads = [
            threading.Thread(
                target=self._thread, args=(worker, work), name=worker.name, daemon=True
            )
            for worker in self.workers
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            work.stop()
            for worker in self.workers:
                worker.close()
        if self._error is not None:
            raise self._error
        return {
            "seconds": round(time.monotonic() - started, 1),
            "left": work.left,
            "workers": {
                worker.name: {
                    "cells": self._trained[worker.name],
                    "busy_seconds": round(self._busy[worker.name], 1),
                }
                for worker in self.workers
            },
        }

    def _thread(self, worker: Worker, work: Work) -> None:
        """A worker's thread: an error of ours ends the sweep."""
        try:
            self._serve(worker, work)
        except BaseException as error:
            self._error = error
            work.stop()

    def _serve(self, worker: Worker, work: Work) -> None:
        """Cell after cell, as long as the worker can be used."""
        try:
            worker.start()
        except WorkerLost as error:
            logger.warning("%s cannot be used yet: %s", worker.name, error)
            if not worker.revive(work.unfinished):
                return
        while (cell := work.take(worker.name)) is not None:
            try:
                self._do(cell, worker, work)
            except WorkerLost as error:
                logger.warning("%s is lost: %s", worker.name, error)
                if not work.give_back(worker.name) and not work.stopped:
                    text = f"it ended its worker {MOST_ATTEMPTS} times, the last time: {error}"
                    self._failed(cell, text, worker, work)
                if not worker.revive(work.unfinished):
                    logger.warning("%s does not come back", worker.name)
                    return

    def _do(self, cell: Cell, worker: Worker, work: Work) -> None:
        """Train a cell and keep what comes of it; WorkerLost."""
        started = time.monotonic()
        try:
            trained = worker.run(cell)
            attempts = work.attempts(cell)
            with self._lock:
                outcome = self.results.keep(cell, trained, worker.name, attempts)
                self._trained[worker.name] += 1
                self._on_outcome(outcome)
        except (CellFailed, ValueError) as error:
            if not work.stopped:  # an interrupted cell has not failed
                self._failed(cell, str(error), worker, work)
        finally:
            self._busy[worker.name] += time.monotonic() - started
        work.done(worker.name)

    def _failed(self, cell: Cell, error: str, worker: Worker, work: Work) -> None:
        text, attempts = " ".join(error.split())[:MOST_TEXT], work.attempts(cell)
        with self._lock:
            self._on_outcome(self.results.failed(cell, text, worker.name, attempts))
