"""Run one benchmark: `python -m benchmarks NAME --comfyui DIR --json FILE`.

NAME is a module of `benchmarks.suites`. Its rows are flat dicts, saved one by one. A run whose file
exists continues it: rows whose `KEYS` are already there are kept. Delete the file to start again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import tempfile
from pathlib import Path
from typing import Any

from scripts import comfyui_import

from . import suites


def names() -> list[str]:
    """The names of all benchmarks; none is imported."""
    return sorted(module.name for module in pkgutil.iter_modules(suites.__path__))


def main() -> None:
    """Parse the command line and run the benchmark it names."""
    parser = argparse.ArgumentParser(prog="nox -s bench --", description=__doc__.splitlines()[0])
    listed = ", ".join(names())
    parser.add_argument("name", metavar="NAME", help=f"which benchmark: {listed}")
    parser.add_argument(
        "--comfyui", metavar="DIR", type=Path, required=True, help="ComfyUI's source folder"
    )
    parser.add_argument(
        "--json", metavar="FILE", type=Path, required=True, help="file of rows, new or to continue"
    )
    parser.add_argument(
        "--only",
        metavar="TEXT",
        nargs="+",
        default=[""],
        help="run only cells whose key contains one of these texts, in the order of the texts",
    )
    parser.add_argument(
        "--plot", metavar="FILE", type=Path, help="also save the benchmark's figure in this file"
    )
    arguments = parser.parse_args()
    if arguments.name not in names():
        parser.error(f"no benchmark is called {arguments.name!r}; choose one of {listed}")
    with tempfile.TemporaryDirectory() as base:
        comfyui_import.prepare(arguments.comfyui, "--base-directory", base)
        suite = importlib.import_module(f"{suites.__name__}.{arguments.name}")
        if arguments.plot and not hasattr(suite, "plot"):
            parser.error(f"{arguments.name} has no figure; leave out --plot")
        rows = _run(suite, arguments.json, arguments.only)
        if arguments.plot:
            arguments.plot.parent.mkdir(parents=True, exist_ok=True)
            suite.plot(rows).savefig(arguments.plot)


def _run(suite: Any, file: Path, only: list[str]) -> list[dict[str, Any]]:
    saved = json.loads(file.read_text()) if file.is_file() else []
    done = {_key(suite, row): row for row in saved}
    rows = []
    print(suite.TITLE)
    print("  ".join(f"{name:>{width}}" for name, width in suite.COLUMNS.items()), flush=True)
    for cell in _chosen(suite, only):
        key = _key(suite, cell)
        row = done.get(key) or suite.row(**cell)
        rows.append(row)
        done[key] = row
        print("  ".join(f"{_text(row[n]):>{w}}" for n, w in suite.COLUMNS.items()), flush=True)
        _save(file, list(done.values()))
    print(suite.summary(rows))
    return rows


def _chosen(suite: Any, only: list[str]) -> list[dict[str, Any]]:
    """The cells whose key contains one of these texts, text by text, each once."""
    named = {" ".join(str(part) for part in _key(suite, cell)): cell for cell in suite.cells()}
    return list(
        {name: cell for text in only for name, cell in named.items() if text in name}.values()
    )


def _key(suite: Any, row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in suite.KEYS)


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _save(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".part")
    temporary.write_text(json.dumps(rows, indent=1) + "\n")
    os.replace(temporary, file)


if __name__ == "__main__":
    main()
