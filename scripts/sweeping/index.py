"""The index of a sweep: index.json, and index.html with all pictures in it."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.sweeping.cells import Cell
from scripts.sweeping.results import DONE, Outcome, Results

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem;
  color: #222; background: #fff }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .3rem .7rem;
  border-bottom: 1px solid #ddd; vertical-align: top } td.number { text-align: right;
  font-variant-numeric: tabular-nums } .failed { color: #a00 } .waiting { color: #666 }
.better { color: #060 } section { border-top: 1px solid #ddd; margin-top: 2rem }
img { max-width: 100%; height: auto; margin: .5rem 1rem .5rem 0 } a { color: #05a }
"""
MOST_EMBEDDED = 300  # cells whose pictures are in the page itself; those of more stay beside it
COLUMNS = ("steps", "error", "best standard", "its error", "ratio", "steps saved", "calls")


def write_index(results: Results, title: str, cells: Sequence[Cell], run: dict[str, Any]) -> None:
    """Write both files for the cells of a grid, whatever became of them.

    Args:
        run: what the sweep itself says: workers, seconds and so on.
    """
    outcomes = [(cell, results.of(cell)) for cell in cells]
    listed = [
        {"name": cell.name} | (asdict(outcome) if outcome else _waiting(cell))
        for cell, outcome in outcomes
    ]
    found = {"title": title, "run": run, "cells": listed}
    results.write_text("index.json", json.dumps(found, indent=1) + "\n")
    results.write_text("index.html", page(results.folder, title, outcomes))


def _waiting(cell: Cell) -> dict[str, Any]:
    return {"key": cell.key, "labels": cell.labels, "teacher": cell.teacher, "status": "waiting"}


def page(folder: Path, title: str, outcomes: Sequence[tuple[Cell, Outcome | None]]) -> str:
    """index.html: a table of all schedules, then the pictures of every cell."""
    axes = list(dict.fromkeys(name for cell, _ in outcomes for name in cell.labels))
    # the column of the learned number of steps says the same
    axes = [name for name in axes if name != "steps"]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in (*axes, *COLUMNS))
    rows = [row for cell, outcome in outcomes for row in _rows(cell, outcome, axes)]
    done = sum(outcome is not None and outcome.status == DONE for _, outcome in outcomes)
    within = folder if len(outcomes) <= MOST_EMBEDDED else None
    sections = [_section(within, cell, outcome) for cell, outcome in outcomes if outcome]
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}'
        f"</title>\n<style>{STYLE}</style>\n<h1>{html.escape(title)}</h1>\n"
        f"<p>{done} of {len(outcomes)} trainings are done. Errors are those to the teacher on "
        "noises of the test alone; the ratio is that to the best standard schedule's, 1 where that "
        "has won and is what the file contains.</p>\n"
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody></table>\n"
        f"{''.join(sections)}</html>\n"
    )


def _rows(cell: Cell, outcome: Outcome | None, axes: Sequence[str]) -> list[str]:
    """The table's rows of a cell, one for each number of steps."""
    place = [_cell(str(cell.labels.get(name, ""))) for name in axes]
    if place:
        text = html.escape(str(cell.labels.get(axes[0], "")))
        place[0] = f'<td><a href="#{cell.key}">{text}</a></td>'
    if outcome is None or outcome.status != DONE:
        text, kind = ("waiting", "waiting") if outcome is None else (outcome.error, "failed")
        steps = ", ".join(map(str, cell.steps))
        more = f'<td class="{kind}" colspan="{len(COLUMNS) - 1}">{html.escape(text)}</td>'
        return [f"<tr>{''.join(place)}<td>{steps}</td>{more}</tr>\n"]
    return [f"<tr>{''.join(place)}{_numbers(row)}</tr>\n" for row in outcome.schedules]


def _numbers(row: dict[str, Any]) -> str:
    ratio = row["ratio"]
    kind = "number better" if ratio is not None and ratio < 1 else "number"
    saved = "; ".join(
        f"{found['steps']}{'+' if found['or_more'] else ''} of {found['with']}"
        for found in row["steps_saved"]
    )
    return "".join(
        [
            _cell(str(row["steps"]), "number"),
            _cell(_decimal(row["error"]), "number"),
            _cell(row["best_standard"] or ""),
            _cell(_decimal(row["best_standard_error"]), "number"),
            _cell(_decimal(ratio, 2), kind),
            _cell(saved),
            _cell(f"{row['calls']:,}", "number"),
        ]
    )


def _cell(text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f"<td{attribute}>{html.escape(text)}</td>"


def _decimal(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _section(folder: Path | None, cell: Cell, outcome: Outcome) -> str:
    """A cell's words and pictures, which are read from the folder or else linked to."""
    labels = ", ".join(f"{name} {value}" for name, value in cell.labels.items())
    lines = [f'<section id="{cell.key}"><h2>{html.escape(labels or cell.name)}</h2>\n']
    if outcome.file:
        lines.append(f"<p><code>{html.escape(outcome.file)}</code></p>\n")
    lines += [f"<p>{html.escape(row['verdict'])}</p>\n" for row in outcome.schedules]
    if outcome.error:
        lines.append(f'<p class="failed">{html.escape(outcome.error)}</p>\n')
    for name in outcome.pictures:
        source = name if folder is None else _embedded(folder / name)
        lines.append(f'<img loading="lazy" alt="{html.escape(labels)}" src="{source}">\n')
    return "".join(lines) + "</section>\n"


def _embedded(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError:  # removed by hand: the page is no less useful
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
