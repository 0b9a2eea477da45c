"""The command line of the benchmarks, and what it expects of every suite."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import __main__ as command

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def suite(name: str) -> Any:
    return importlib.import_module(f"benchmarks.suites.{name}")


@pytest.mark.parametrize("name", command.names())
def test_every_suite_has_what_the_command_line_uses(name: str) -> None:
    module = suite(name)
    cells = list(module.cells())
    assert cells and all(set(module.KEYS) <= set(cell) for cell in cells)
    assert set(module.KEYS) <= set(module.COLUMNS) and module.TITLE
    assert callable(module.row) and callable(module.summary)


OTHER_RESULTS = ("support", "reliability")  # of scripts with tests of their own
ROWS = sorted(file for file in RESULTS.glob("*.json") if file.stem not in OTHER_RESULTS)


@pytest.mark.parametrize("file", ROWS, ids=lambda file: file.stem)
def test_published_rows_are_cells_of_their_suite_and_can_be_summarised(file: Path) -> None:
    module, rows = suite(file.stem), json.loads(file.read_text())
    cells = {tuple(cell[name] for name in module.KEYS) for cell in module.cells()}
    assert {tuple(row[name] for name in module.KEYS) for row in rows} <= cells
    assert all(set(module.COLUMNS) <= set(row) for row in rows)
    assert module.summary(rows)


def test_an_unknown_name_is_answered_with_all_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "speed", "--comfyui", ".", "--json", "a.json"])
    with pytest.raises(SystemExit):
        command.main()
    message = capsys.readouterr().err
    assert "'speed'" in message and all(name in message for name in command.names())


def test_a_run_keeps_finished_rows_and_adds_the_missing_ones(tmp_path: Path) -> None:
    computed: list[int] = []

    def row(n: int) -> dict[str, Any]:
        computed.append(n)
        return {"n": n, "square": n * n}

    squares = SimpleNamespace(
        TITLE="squares",
        KEYS=("n",),
        COLUMNS={"n": 2, "square": 6},
        cells=lambda: ({"n": n} for n in (1, 2, 12)),
        row=row,
        summary=lambda rows: f"{len(rows)} rows",
    )
    file = tmp_path / "squares.json"
    file.write_text(json.dumps([{"n": 1, "square": 1}]))
    assert [r["n"] for r in command._run(squares, file, only=["2", "1"])] == [2, 12, 1]
    assert computed == [2, 12]
    kept = [{"n": n, "square": n * n} for n in (1, 2, 12)]
    assert json.loads(file.read_text()) == kept
