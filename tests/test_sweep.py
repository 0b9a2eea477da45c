"""A sweep on real servers, one of which is killed on the way."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ld3.schedule_file import load
from scripts.comfyui_client import ComfyClient
from scripts.comfyui_messages import ComfyServerError
from scripts.comfyui_server import ComfyServer
from scripts.sweep import sweep
from scripts.sweeping import workers as sweeping_workers
from scripts.sweeping.cells import cells_of
from scripts.sweeping.grid import read_grid
from scripts.sweeping.results import Results
from scripts.sweeping.workers import RemoteServer, WorkerLost

from .sweep_grids import grid_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
AXES = {"cfg": [1, 2], "sampler_name": ["euler", "ipndm"]}


@pytest.fixture(scope="module")
def second(comfyui_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """Another server, to be killed."""
    with ComfyServer(comfyui_root, tmp_path_factory.mktemp("second")) as running:
        yield running


def kill_when_it_trains(server: ComfyServer) -> threading.Thread:
    """As a machine that fails: without a word, in the middle of a cell."""

    def wait() -> None:
        while not server.get("/queue")["queue_running"]:
            time.sleep(0.05)
        assert server.process is not None
        server.process.kill()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def saved(server: ComfyServer) -> list[str]:
    """The schedules of the grid that the server has, by name."""
    return sorted(path.stem for path in (server.base / "models" / "ld3").glob("grid *.safetensors"))


def test_every_cell_is_done_once_though_a_server_is_killed_on_the_way(
    server: ComfyServer, second: ComfyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping_workers, "PATIENCE", 0.5)
    cells = cells_of(read_grid(grid_file(tmp_path, axes=AXES)))
    results = Results(tmp_path / "sweep")
    servers = [RemoteServer(ComfyClient(found.url)) for found in (server, second)]
    killing = kill_when_it_trains(second)
    assert sweep("grid", cells, servers, results) == 0
    killing.join(timeout=5)

    index = json.loads((results.folder / "index.json").read_text("utf-8"))
    assert [cell["key"] for cell in index["cells"]] == [cell.key for cell in cells]
    assert len(cells) == 4 and {cell["status"] for cell in index["cells"]} == {"done"}
    assert {cell["worker"] for cell in index["cells"]} == {server.url}
    assert sorted(cell["attempts"] for cell in index["cells"]) == [1, 1, 1, 2]
    # a cell that is trained twice would have a second file, with a number
    assert saved(server) == sorted(cell.name for cell in cells)
    for cell in index["cells"]:
        schedule = load(results.folder / cell["file"])
        assert schedule.info.cfg == cell["labels"]["cfg"]
        assert schedule.info.sampler == cell["labels"]["sampler_name"]
        (row,) = cell["schedules"]
        assert row["steps"] == schedule.info.steps == 3
        assert row["error"] > 0 and row["ratio"] > 0
        assert len(cell["pictures"]) == 1
    # of each teacher, whoever is first samples it for both
    calls = [sum(row["teacher_calls"] for row in c["schedules"]) for c in index["cells"]]
    assert calls[0] > calls[1] and calls[2] > calls[3]

    # begun again, and with a record lost: nothing is trained, the server has it
    (results.folder / "cells" / f"{cells[2].key}.json").unlink()
    assert sweep("grid", cells, servers[:1], Results(results.folder)) == 0
    assert saved(server) == sorted(cell.name for cell in cells)


def test_what_is_no_server_of_the_pack_is_not_used(
    server: ComfyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_pack(node: str) -> None:
        raise ComfyServerError(f"the server has no node {node!r}")

    RemoteServer(server).start()
    absent, other = ComfyClient("http://127.0.0.1:9"), ComfyClient(server.url)
    monkeypatch.setattr(other, "object_info", without_pack)
    for client in (absent, other):
        with pytest.raises(WorkerLost, match="no ComfyUI server with this pack"):
            RemoteServer(client).start()
