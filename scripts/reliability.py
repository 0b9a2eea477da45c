"""Rows of docs/results/reliability.json: what was tried, how often, and what was lost."""

from __future__ import annotations

import json
from pathlib import Path


def write_row(file: Path, case: str, count: int, lost: int, command: str) -> None:
    """Write the row of a case, instead of an earlier one; the others are kept."""
    rows = json.loads(file.read_text()) if file.is_file() else []
    kept = [row for row in rows if row["case"] != case]
    kept.append({"case": case, "count": count, "lost": lost, "command": command})
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(sorted(kept, key=lambda row: row["case"]), indent=1) + "\n")
