"""Which cell a worker does next, and what becomes of the cells of workers that died."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

from scripts.sweeping.cells import Cell

MOST_ATTEMPTS = 3  # a cell that ends its worker each time is given up


class Work:
    """Cells that wait or are being done; may be used by several threads.

    A worker gets cells with the teacher it has sampled already, then those of a teacher that no
    other worker has; only when there is none does it help another.

    Args:
        cells: those to do, in this order.

    Attributes:
        stopped: whether no more cells are handed out.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._waiting = list(cells)
        self._running: dict[str, Cell] = {}
        self._teachers: dict[str, str] = {}  # of workers, the last
        self._attempts: Counter[str] = Counter()
        self._changed, self.stopped = threading.Condition(), False

    def take(self, worker: str) -> Cell | None:
        """The next cell for a worker; waits while others' cells may come back, None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._running or self.stopped)
            if not self._waiting or self.stopped:
                return None
            cell = self._next(worker)
            self._waiting.remove(cell)
            self._running[worker], self._teachers[worker] = cell, cell.teacher
            self._attempts[cell.key] += 1
            return cell

    def done(self, worker: str) -> None:
        """The worker's cell is done, or has failed of itself."""
        with self._changed:
            del self._running[worker]
            self._changed.notify_all()

    def give_back(self, worker: str) -> bool:
        """The worker died: whether its cell will be tried again."""
        with self._changed:
            cell = self._running.pop(worker)
            self._teachers.pop(worker)
            again = self._attempts[cell.key] < MOST_ATTEMPTS
            if again:
                self._waiting.insert(0, cell)
            self._changed.notify_all()
            return again

    def stop(self) -> None:
        """Hand out no more cells."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()

    def attempts(self, cell: Cell) -> int:
        """How often a cell was begun."""
        return self._attempts[cell.key]

    @property
    def left(self) -> int:
        """Cells that nobody has begun or finished."""
        return len(self._waiting)

    def unfinished(self) -> bool:
        """Whether a worker could still be needed."""
        return not self.stopped and bool(self._waiting or self._running)

    def _next(self, worker: str) -> Cell:
        counts = Counter(cell.teacher for cell in self._waiting)
        own = self._teachers.get(worker)
        others = {teacher for name, teacher in self._teachers.items() if name != worker}
        free = [teacher for teacher in counts if teacher not in others]
        if own in counts:
            chosen = own
        else:
            chosen = max(free or counts, key=lambda teacher: counts[teacher])
        return next(cell for cell in self._waiting if cell.teacher == chosen)
