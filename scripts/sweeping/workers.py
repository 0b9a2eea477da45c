"""Workers: ComfyUI servers that train one cell at a time."""

from __future__ import annotations

import contextlib
import io
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Protocol

from scripts.comfyui_client import ComfyClient, ComfyRunError, PromptRefusedError, raise_for_status
from scripts.comfyui_messages import ComfyServerError
from scripts.comfyui_server import ComfyServer
from scripts.sweeping.cells import Cell

PATIENCE = 30.0  # seconds without an answer after which a server is given up
POLL = 0.5  # seconds between two questions for a cell's state
RETURN = 600.0  # seconds in which a server that ended elsewhere may come back
MOST_RESTARTS = 5
PICTURE_SIZE = 1000  # pixels of the longer side
NO_ANSWER = (OSError, ValueError, KeyError, HTTPException, ComfyServerError)
FILE_KEY = "ld3_file"  # of a training node's outputs (nodes/types.py)


@dataclass(frozen=True)
class Trained:
    """What a worker made of a cell.

    Attributes:
        line: the schedule as `ld3.schedule_text` writes it.
        pictures: JPEGs, that of the node that trains first.
        text: what the node says.
        seconds: from queueing to the end.
    """

    line: str
    pictures: tuple[bytes, ...]
    text: str
    seconds: float


class CellFailed(Exception):
    """The cell itself cannot be trained; another worker would fail too."""


class WorkerLost(Exception):
    """The worker ended or does not answer; its cell is not done."""


class Worker(Protocol):
    """What trains cells. `name` is its own in a sweep."""

    name: str

    def start(self) -> None:
        """Make it ready; WorkerLost if that is not possible."""

    def run(self, cell: Cell) -> Trained:
        """Train a cell; CellFailed, or WorkerLost."""

    def revive(self, wanted: Callable[[], bool]) -> bool:
        """After a loss: whether it is ready again; may take long while it is `wanted`."""

    def close(self) -> None:
        """End it, and what it does."""


class RemoteServer:
    """A server that runs already, here or on another machine.

    Args:
        client: for its address.
    """

    def __init__(self, client: ComfyClient) -> None:
        self.client, self.name = client, client.url
        self._prompt_id = ""

    def start(self) -> None:
        """Check that it answers and has the pack."""
        try:
            self.client.object_info("LD3TrainSchedule")
        except NO_ANSWER as error:
            raise WorkerLost(f"{self.name} is no ComfyUI server with this pack: {error}") from error

    def run(self, cell: Cell) -> Trained:
        """Train a cell; CellFailed, or WorkerLost."""
        started = time.monotonic()
        try:
            self._prompt_id = self.client.queue(cell.prompt)
            entry = self._finished(self._prompt_id)
            raise_for_status(entry)
            return self._trained(entry["outputs"], cell, time.monotonic() - started)
        except PromptRefusedError as error:
            raise CellFailed(f"the server refuses the workflow: {error}") from error
        except ComfyRunError as error:
            raise CellFailed(str(error)) from error
        except NO_ANSWER as error:
            raise WorkerLost(f"{self.name}: {error}") from error
        finally:
            self._prompt_id = ""

    def revive(self, wanted: Callable[[], bool]) -> bool:
        """Wait until it answers again."""
        end = time.monotonic() + RETURN
        while wanted() and time.monotonic() < end:
            with contextlib.suppress(WorkerLost):
                self.start()
                return True
            time.sleep(POLL)
        return False

    def close(self) -> None:
        """Interrupt what it does for this sweep; a training goes on from there another time."""
        if self._prompt_id:
            with contextlib.suppress(*NO_ANSWER):
                self.client.interrupt(self._prompt_id)

    def _finished(self, prompt_id: str) -> dict[str, Any]:
        """The prompt's history entry; ComfyServerError if the server has lost the prompt."""
        answered, missing = time.monotonic(), 0
        while True:
            try:
                entry = self.client.history(prompt_id)
                if entry is not None:
                    return entry
                missing = 0 if self.client.knows(prompt_id) else missing + 1
                answered = time.monotonic()
            except NO_ANSWER as error:
                self.check_alive()
                if time.monotonic() - answered > PATIENCE:
                    raise ComfyServerError(f"no answer for {PATIENCE:g} s: {error}") from error
            if missing > 1:  # the prompt may finish between the two questions, but only once
                raise ComfyServerError("the server has begun anew and lost the prompt")
            time.sleep(POLL)

    def check_alive(self) -> None:
        """Raise ComfyServerError where it is known that the server ended."""

    def _trained(self, outputs: dict[str, Any], cell: Cell, seconds: float) -> Trained:
        own = outputs.get(cell.training, {})
        if FILE_KEY not in own:
            raise ComfyServerError("the node that trains has named no file")
        name = urllib.parse.quote(own[FILE_KEY][0], safe="")
        found = self.client.get(f"/ld3/schedule?name={name}")
        records = list(own.get("images", []))
        for key, output in outputs.items():
            records += output.get("images", []) if key != cell.training else []
        pictures = tuple(self._picture(record) for record in records)
        return Trained(found["line"], pictures, "\n".join(own.get("text", [])), seconds)

    def _picture(self, record: dict[str, str]) -> bytes:
        image, file = self.client.fetch_image(record).convert("RGB"), io.BytesIO()
        image.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
        image.save(file, "JPEG", quality=80)
        return file.getvalue()


class StartedServer(RemoteServer):
    """A server of this machine that the sweep starts, and starts again when it ends.

    Args:
        server: not started yet.
        name: as the index shows it.
    """

    def __init__(self, server: ComfyServer, name: str) -> None:
        super().__init__(server)
        self.server, self.name, self._restarts = server, name, 0

    def start(self) -> None:
        """Start it."""
        try:
            self.server.start()
        except (OSError, ComfyServerError) as error:
            raise WorkerLost(f"{self.name}: {error}") from error
        super().start()

    def check_alive(self) -> None:
        """Raise ComfyServerError if the process ended."""
        self.server.check_alive()

    def revive(self, wanted: Callable[[], bool]) -> bool:
        """Start it again, a few times."""
        while wanted() and self._restarts < MOST_RESTARTS:
            self._restarts += 1
            self.server.stop()
            with contextlib.suppress(WorkerLost):
                self.start()
                return True
        return False

    def close(self) -> None:
        """Stop the server."""
        self.server.stop()
