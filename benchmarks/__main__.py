"""Run one benchmark: `python -m benchmarks NAME --comfyui DIR --json FILE`.

Each benchmark is a module here with `cells()`, `row(**cell)`, `summary(rows)` and perhaps
`plot(rows)`; rows are flat dicts. They are saved as they come, and a run that finds its file goes
on where it stopped: rows whose `KEYS` are there already are kept. Delete the file to start anew.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from scripts import comfyui_import

NAMES = (
    "demo", "search", "descent", "teachers", "learning", "memory", "theory", "ablation", "solvers",
    "overhead",
)  # fmt: skip


def main() -> None:
    """Parse the command line and run the benchmark it names."""
    parser = argparse.ArgumentParser(prog="nox -s bench --", description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=NAMES, help="which benchmark")
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's source folder")
    parser.add_argument("--json", type=Path, required=True, help="file of the rows, continued")
    parser.add_argument("--only", default="", help="run only cells whose key contains this text")
    parser.add_argument("--plot", type=Path, help="also save the benchmark's picture here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        comfyui_import.prepare(arguments.comfyui, "--base-directory", base)
        benchmark = importlib.import_module(f"benchmarks.{arguments.name}")
        if arguments.plot and not hasattr(benchmark, "plot"):
            parser.error(f"{arguments.name} has no picture; leave out --plot")
        rows = _run(benchmark, arguments.json, arguments.only)
        if arguments.plot:
            arguments.plot.parent.mkdir(parents=True, exist_ok=True)
            benchmark.plot(rows).savefig(arguments.plot)


def _run(benchmark: Any, file: Path, only: str) -> list[dict[str, Any]]:
    saved = json.loads(file.read_text()) if file.is_file() else []
    done = {_key(benchmark, row): row for row in saved}
    rows = []
    print(benchmark.TITLE)
    print("  ".join(f"{name:>{width}}" for name, width in benchmark.COLUMNS.items()), flush=True)
    for cell in benchmark.cells():
        key = _key(benchmark, cell)
        if only not in " ".join(str(part) for part in key):
            continue
        row = done.get(key) or benchmark.row(**cell)
        rows.append(row)
        done[key] = row
        print("  ".join(f"{_text(row[n]):>{w}}" for n, w in benchmark.COLUMNS.items()), flush=True)
        _save(file, list(done.values()))
    print(benchmark.summary(rows))
    return rows


def _key(benchmark: Any, row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in benchmark.KEYS)


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _save(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".part")
    temporary.write_text(json.dumps(rows, indent=1) + "\n")
    os.replace(temporary, file)


if __name__ == "__main__":
    main()
