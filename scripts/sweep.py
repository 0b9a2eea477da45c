"""Learn a grid of schedules on several ComfyUI servers.

    python scripts/sweep.py GRID.yaml --server http://one:8188 --server http://two:8188
    python scripts/sweep.py GRID.yaml --start 2 --comfyui DIR          # servers of this machine
    python scripts/sweep.py GRID.yaml --ray 8 --comfyui DIR            # of a Ray cluster

GRID.yaml is explained in scripts/sweeping/grid.py, an example is docs/examples/demo_sweep.yaml.
Writes output/sweep/NAME/: the schedules, index.json, and index.html with errors, steps saved and
pictures. The same command again goes on where it was; finished cells are not trained again. Exit
status: 0 if all cells are done, 1 otherwise.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts import comfyui_source  # noqa: E402
from scripts.comfyui_client import ComfyClient  # noqa: E402
from scripts.comfyui_messages import ComfyServerError  # noqa: E402
from scripts.comfyui_server import CPU, PACK, ComfyServer  # noqa: E402
from scripts.sweeping.cells import Cell, cells_of  # noqa: E402
from scripts.sweeping.grid import GridError, read_grid  # noqa: E402
from scripts.sweeping.index import write_index  # noqa: E402
from scripts.sweeping.pool import Pool  # noqa: E402
from scripts.sweeping.results import Outcome, Results  # noqa: E402
from scripts.sweeping.workers import RemoteServer, StartedServer, Worker  # noqa: E402

INDEX_SECONDS = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sweep; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("grid", type=Path, help="what to train")
    parser.add_argument("--output", type=Path, help="folder; by default output/sweep/NAME")
    parser.add_argument("--server", action="append", default=[], help="URL of a running server")
    parser.add_argument("--start", type=int, default=0, help="servers to start on this machine")
    parser.add_argument("--ray", type=int, default=0, help="servers to start in a Ray cluster")
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's source folder, to start servers")
    parser.add_argument(
        "--base",
        type=Path,
        help="ComfyUI folder with models and this pack, which all started servers use; by default "
        "each has an empty one of its own, in which only the demo models exist",
    )
    parser.add_argument("--gpu", action="store_true", help="a GPU for each started server")
    parser.add_argument("--list", action="store_true", help="print the cells and end")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Started servers inherit it: threads that wait actively make small networks slow.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        grid = read_grid(options.grid)
        cells = cells_of(grid)
        if options.list:
            for cell in cells:
                print(cell.name)
            return 0
        output = options.output or ROOT / "output" / "sweep" / grid.name
        return sweep(grid.name, cells, _workers(options, output), Results(output))
    except (GridError, comfyui_source.SourceError, ComfyServerError, OSError) as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 1


def sweep(title: str, cells: Sequence[Cell], workers: Sequence[Worker], results: Results) -> int:
    """Do all cells, and write the index now and then; returns the exit status."""
    finished = sum(results.done(cell) for cell in cells)
    print(f"{len(cells)} cells, {finished} of them done; {len(workers)} workers", flush=True)

    def show(outcome: Outcome) -> None:
        labels = ", ".join(f"{name} {value}" for name, value in outcome.labels.items())
        said = [f"{row['steps']} steps: {_result(row)}" for row in outcome.schedules]
        what = outcome.error or "; ".join(said)
        print(f"{labels} ({outcome.worker}, {outcome.seconds:.0f} s): {what}", flush=True)
        nonlocal written
        if time.monotonic() - written > INDEX_SECONDS:
            write_index(results, title, cells, {})
            written = time.monotonic()

    written = -INDEX_SECONDS
    pool = Pool(workers, results, show)
    try:
        run = pool.run(cells)
    except KeyboardInterrupt:
        write_index(results, title, cells, {})
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    times = os.times()
    run["server_cpu_seconds"] = round(times.children_user + times.children_system, 1)
    write_index(results, title, cells, run)
    done = sum(results.done(cell) for cell in cells)
    print(f"{done} of {len(cells)} cells are done; see {results.folder / 'index.html'}")
    if run["left"]:
        print(f"sweep: no server was left for {run['left']} cells", file=sys.stderr)
    return 0 if done == len(cells) else 1


def _result(row: dict[str, Any]) -> str:
    if row["chosen"] == row["best_standard"]:
        return f"{row['chosen']} is better and was returned"
    return "ratio unknown" if row["ratio"] is None else f"ratio {row['ratio']:.2f}"


def _workers(options: argparse.Namespace, output: Path) -> list[Worker]:
    """The workers that the options name; GridError if there is none."""
    workers: list[Worker] = [RemoteServer(ComfyClient(url)) for url in options.server]
    if options.start or options.ray:
        if options.comfyui is None:
            raise GridError("--start and --ray need --comfyui DIR, ComfyUI's source folder")
        comfyui_source.require_checkout(options.comfyui)
    for i in range(options.start):
        server = ComfyServer(
            options.comfyui,
            options.base or output / "servers" / str(i),
            pack=None if options.base else PACK,
            device=("--cuda-device", str(i)) if options.gpu else CPU,
            log_file=_log_file(output, i),
        )
        workers.append(StartedServer(server, f"server {i}"))
    if options.ray:
        from scripts.sweeping.ray_workers import ray_workers  # only there is Ray needed

        workers += ray_workers(options.ray, options.comfyui, options.base, options.gpu)
    if not workers:
        raise GridError("no server: use --server URL, --start N or --ray N")
    return workers


def _log_file(output: Path, i: int) -> Path:
    folder = output / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"server-{i}.log"


if __name__ == "__main__":
    # as Ctrl+C: the servers it started end with it
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
