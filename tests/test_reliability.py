"""The recorded attempts to lose something: enough of them, and nothing lost."""

from __future__ import annotations

import json
from pathlib import Path

from scripts.reliability import write_row

ROOT = Path(__file__).resolve().parents[1]
ROWS = json.loads((ROOT / "docs" / "results" / "reliability.json").read_text(encoding="utf-8"))
LEAST = {"fuzz": 1_000_000, "fuzz by coverage": 1_000_000, "kill": 50, "interrupt": 50, "disk": 50}
LEAST |= {"resume": 10, "training": 200, "sampling": 2_000}


def test_enough_was_tried_and_nothing_was_lost() -> None:
    for kind, least in LEAST.items():
        counts = [row["count"] for row in ROWS if row["case"].split(":")[0] == kind]
        assert sum(counts) >= least, kind
    assert {row["lost"] for row in ROWS} == {0}


def test_every_row_names_a_command_and_is_in_the_document() -> None:
    document = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    for row in ROWS:
        assert (ROOT / row["command"]).is_file() and row["command"] in document
        assert f"| {row['case']} | {row['count']:,} | {row['lost']} |" in document


def test_a_row_replaces_the_one_of_its_case_and_keeps_others(tmp_path: Path) -> None:
    file = tmp_path / "results" / "rows.json"
    for case, count in (("b", 1), ("a", 2), ("b", 3)):
        write_row(file, case, count, 0, "scripts/fuzz.py")
    assert [(row["case"], row["count"]) for row in json.loads(file.read_text())] == [
        ("a", 2),
        ("b", 3),
    ]
