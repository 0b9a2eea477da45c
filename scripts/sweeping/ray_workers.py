"""Workers in a Ray cluster: one actor per server, started where the cluster has room for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from scripts.comfyui_server import CPU, PACK, ComfyServer
from scripts.sweeping.cells import Cell
from scripts.sweeping.workers import (
    MOST_RESTARTS,
    CellFailed,
    StartedServer,
    Trained,
    WorkerLost,
)

START_SECONDS = 600.0  # in which a node starts an actor with its server


class ServerActor:
    """A ComfyUI server on a node of the cluster.

    Args:
        comfyui: its source folder, on that node.
        base: ComfyUI folder with models and this pack there; None for an empty temporary one.
        gpu: whether the server has the GPU that Ray gives the actor.
    """

    def __init__(self, comfyui: str, base: str | None, gpu: bool) -> None:
        device = () if gpu else CPU
        server = ComfyServer(comfyui, base, pack=None if base else PACK, device=device)
        self.worker = StartedServer(server, server.url)

    def start(self) -> str:
        """Start the server; what is wrong, or nothing."""
        try:
            self.worker.start()
        except WorkerLost as error:
            return str(error) or "it did not start"
        return ""

    def run(self, cell: Cell) -> Trained | tuple[bool, str]:
        """Train a cell; or whether the cell itself failed, and why."""
        try:
            return self.worker.run(cell)
        except CellFailed as error:
            return True, str(error)
        except WorkerLost as error:
            return False, str(error)

    def close(self) -> None:
        """Stop the server."""
        self.worker.close()


class RayWorker:
    """A worker of this process that has its actor do the work.

    Args:
        name: as the index shows it.
        make: makes an actor.

    Attributes:
        actor: None while there is none; busy: whether it trains.
    """

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        self.name, self._make = name, make
        self.actor: Any = None
        self._restarts, self.busy = 0, False

    def start(self) -> None:
        """Make an actor and start its server."""
        self.actor = self._make()
        problem = self._ask(self.actor.start.remote(), START_SECONDS)
        if problem:
            raise WorkerLost(f"{self.name}: {problem}")

    def run(self, cell: Cell) -> Trained:
        """Train a cell; CellFailed, or WorkerLost."""
        self.busy = True
        try:
            found = self._ask(self.actor.run.remote(cell))
        finally:
            self.busy = False
        if isinstance(found, Trained):
            return found
        own, text = found
        raise CellFailed(text) if own else WorkerLost(text)

    def revive(self, wanted: Callable[[], bool]) -> bool:
        """Make another actor, where the cluster has room."""
        while wanted() and self._restarts < MOST_RESTARTS:
            self._restarts += 1
            self.close()
            try:
                self.start()
                return True
            except WorkerLost:
                continue
        return False

    def close(self) -> None:
        """End the actor and its server."""
        actor, self.actor = self.actor, None
        if actor is None:
            return
        try:
            ray.get(actor.close.remote(), timeout=15)
        except RayError:
            pass
        ray.kill(actor)

    def _ask(self, answer: Any, timeout: float | None = None) -> Any:
        try:
            return ray.get(answer, timeout=timeout)
        except RayError as error:
            raise WorkerLost(f"{self.name}: {error}") from error


def ray_workers(count: int, comfyui: Path, base: Path | None, gpu: bool) -> list[RayWorker]:
    """Workers of the cluster that RAY_ADDRESS names, else of one on this machine."""
    path = os.pathsep.join(filter(None, [str(PACK), os.environ.get("PYTHONPATH", "")]))
    variables = {"PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE"}
    ray.init(runtime_env={"env_vars": variables}, log_to_driver=False, include_dashboard=False)
    # a cell runs for long: `close` must not wait for it
    actor = ray.remote(ServerActor).options(num_cpus=1, num_gpus=1 if gpu else 0, max_concurrency=2)
    arguments = str(comfyui.resolve()), None if base is None else str(base.resolve()), gpu
    return [RayWorker(f"ray {i}", lambda: actor.remote(*arguments)) for i in range(count)]
