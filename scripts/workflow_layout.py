"""Nodes of workflows in three columns, and their sizes."""

from __future__ import annotations

from typing import Any

# three columns, which a window of 1600 x 950 shows at their real size
LEFT, MIDDLE, RIGHT = (20, 60), (340, 60), (680, 60)
NARROW, BETWEEN, WIDE = 280, 300, 780
HEIGHT = 930
TRAINED = 842  # height of a node that trains, with its result


def node(kind: str, at: tuple[int, int], size: tuple[int, int], title: str = "", **inputs: Any):
    """One node: API inputs (a link is [node id, output slot]; a widget has its default)."""
    return {"kind": kind, "at": at, "size": size, "title": title, "inputs": inputs}


def left(y: int, kind: str, title: str = "", tall: int = 58, **inputs: Any) -> dict[str, Any]:
    """A node of the first column."""
    return node(kind, (LEFT[0], y), (NARROW, tall), title, **inputs)


def groups(
    first: str, second: str, third: str, height: int = HEIGHT
) -> list[tuple[str, tuple[int, int, int, int]]]:
    """The three columns."""
    places = zip((LEFT, MIDDLE, RIGHT), (NARROW, BETWEEN, WIDE), strict=True)
    columns = zip((first, second, third), places, strict=True)
    return [(title, (at[0] - 20, 0, width + 40, height)) for title, (at, width) in columns]


def train_and_compare(
    connected: dict[str, Any],
    prompts: dict[str, Any],
    train: dict[str, Any],
    below: int = 60,
    **compared: Any,
) -> dict[str, Any]:
    """The nodes "5", which trains, and "9", which compares from `below` on, of every such graph."""
    compared |= connected | prompts | {"cfg": train["cfg"], "schedule": ["5", 2]}
    title, at, size = "Compare: reference | standard | learned", (RIGHT[0], below), (WIDE, 840)
    return {
        "5": node("LD3TrainSchedule", MIDDLE, (BETWEEN, TRAINED), **connected, **train),
        "9": node("LD3CompareSchedules", at, size, title, **compared),
    }


def note(text: str, y: int = 805) -> list[tuple[tuple[int, int], tuple[int, int], str]]:
    """A note below the nodes of the first column."""
    return [((LEFT[0], y), (NARROW, 115), text)]


def note_above(text: str) -> list[tuple[tuple[int, int], tuple[int, int], str]]:
    """A note at the top of the third column."""
    return [(RIGHT, (WIDE, 90), text)]
