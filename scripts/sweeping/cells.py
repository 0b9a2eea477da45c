"""The cells of a grid: what is trained, one workflow each."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scripts.sweeping.grid import ALSO, STEPS, Grid, GridError, Prompt, Value

MOST_CELLS = 10_000
MOST_NAME = 100  # characters
STUDENT = {
    "sampler_name", "steps", "also_steps", "learn", "optimizer", "soft_radius", "iterations",
    "distance", "quality", "minutes", "training_noises", "heldout_noises", "compare_sampler",
    "compare_scheduler", "name", "retrain", "cache_gb",
}  # fmt: skip
"""Inputs of a node that trains on which its teacher's samples do not depend."""


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        labels: what varies, by axis.
        steps: numbers of steps it learns, the first with most calls; empty where nothing says.
        prompt: the workflow in API format.
        training: id of the node that trains.
        name: of the schedule.
        key: hash of all that decides the result.
        teacher: hash of all that decides the teacher's samples, which cells can share.
    """

    labels: dict[str, Value]
    steps: tuple[int, ...]
    prompt: Prompt
    training: str
    name: str
    key: str
    teacher: str


def cells_of(grid: Grid) -> list[Cell]:
    """Every combination but those left out, those with equal teachers one after another.

    Raises:
        GridError: there is none, or there are too many.
    """
    found = list(_cells(grid))
    if not 0 < len(found) <= MOST_CELLS:
        raise GridError(f"the grid has {len(found)} cells; it must have 1 to {MOST_CELLS}")
    names: dict[str, int] = {}
    for cell in found:
        names.setdefault(cell.teacher, len(names))
    return sorted(found, key=lambda cell: names[cell.teacher])


def _cells(grid: Grid) -> Iterator[Cell]:
    together = [axis for axis in grid.axes if grid.also_steps and axis.name == STEPS]
    apart = [axis for axis in grid.axes if axis not in together]
    for places in itertools.product(*(range(len(axis.values)) for axis in apart)):
        prompt = copy.deepcopy(grid.prompt)
        labels = {axis.name: axis.labels[i] for axis, i in zip(apart, places, strict=True)}
        for axis, i in zip(apart, places, strict=True):
            for (node, name), value in zip(axis.inputs, axis.values[i], strict=True):
                prompt[node]["inputs"][name] = value
        widgets = prompt[grid.training]["inputs"]
        known = [widgets[STEPS]] if isinstance(widgets.get(STEPS), int) else []
        if together:
            known = [row[0] for row in together[0].values]
            known = [n for n in known if not _skipped(grid, labels | {STEPS: n})]
        if not together and _skipped(grid, labels) or together and not known:
            continue
        if together:
            widgets[STEPS], others = known[0], known[1:]
            widgets[ALSO] = ", ".join(map(str, others))
        yield _cell(grid, labels, tuple(known), prompt)


def _cell(grid: Grid, labels: dict[str, Value], steps: tuple[int, ...], prompt: Prompt) -> Cell:
    widgets = prompt[grid.training]["inputs"]
    widgets["retrain"] = False
    key = _hash(_without(prompt, grid.training, {"name", "cache_gb"}))
    upstream = {k: prompt[k] for k in _upstream(prompt, grid.training)}
    teacher = _hash(_without(upstream, grid.training, STUDENT))
    described = " ".join(f"{name} {value}" for name, value in labels.items())
    safe = re.sub(r"[^A-Za-z0-9._ -]+", "-", f"{grid.name} {described}")[:MOST_NAME].rstrip(" .")
    widgets["name"] = f"{safe} {key[:8]}"
    return Cell(labels, steps, prompt, grid.training, widgets["name"], key, teacher)


def _skipped(grid: Grid, labels: dict[str, Value]) -> bool:
    return any(all(labels.get(name) == v for name, v in part.items()) for part in grid.skip)


def _without(prompt: Prompt, node: str, names: set[str]) -> Prompt:
    """The workflow without some inputs of a node."""
    inputs = {k: v for k, v in prompt[node]["inputs"].items() if k not in names}
    return prompt | {node: prompt[node] | {"inputs": inputs}}


def _upstream(prompt: Prompt, node: str) -> list[str]:
    """A node and all it depends on, sorted."""
    found, open_nodes = set(), [node]
    while open_nodes:
        current = open_nodes.pop()
        if current in found or current not in prompt:
            continue
        found.add(current)
        links = prompt[current]["inputs"].values()
        open_nodes += [str(link[0]) for link in links if isinstance(link, list) and link]
    return sorted(found)


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
