"""A sweep in a Ray cluster of this machine, one of whose actors is killed; `nox -s sweep_ray`."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from ld3.schedule_file import load
from scripts.sweep import sweep
from scripts.sweeping.cells import cells_of
from scripts.sweeping.grid import read_grid
from scripts.sweeping.results import Results

from .sweep_grids import grid_file

ray = pytest.importorskip("ray", reason="needs Ray: nox -s sweep_ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_cells_of_an_actor_that_is_killed_are_done(comfyui_root: Path, tmp_path: Path) -> None:
    from scripts.sweeping.ray_workers import ray_workers

    axes = {"cfg": [1, 2], "sampler_name": ["euler", "ipndm"]}
    cells = cells_of(read_grid(grid_file(tmp_path, axes=axes)))
    workers = ray_workers(2, comfyui_root, None, gpu=False)
    first = workers[0]

    def kill() -> None:
        while not first.busy:
            time.sleep(0.05)
        ray.kill(first.actor)

    killing = threading.Thread(target=kill, daemon=True)
    killing.start()
    results = Results(tmp_path / "sweep")
    try:
        assert sweep("grid", cells, workers, results) == 0
    finally:
        ray.shutdown()
    found = [results.of(cell) for cell in cells]
    assert all(outcome is not None and outcome.status == "done" for outcome in found)
    assert sum(outcome.attempts for outcome in found if outcome) == 5
    for outcome in found:
        assert outcome is not None and load(results.folder / outcome.file).info.steps == 3
