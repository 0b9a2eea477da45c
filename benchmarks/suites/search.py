"""A longer search on the demo model: how close is the default training to the best schedule?

Like the benchmark `demo`, with 36 iterations instead of 12, and 64 training and 64 validation
noises instead of 32: about five times the model calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import demo

TITLE = "Demo model, longer search: error on 64 test noises, learned vs best of nine schedulers"
KEYS = demo.KEYS
COLUMNS = demo.COLUMNS
summary = demo.summary


def cells() -> Iterator[dict[str, Any]]:
    """The cells of `demo` in which the default training improves least."""
    for sampler, steps, cfg in (
        ("euler", 4, 1.0),
        ("euler", 6, 1.0),
        ("euler", 4, 4.0),
        ("dpmpp_2m", 4, 4.0),
    ):
        yield {"sampler": sampler, "steps": steps, "cfg": cfg}


def row(sampler: str, steps: int, cfg: float) -> dict[str, Any]:
    """Search one cell."""
    return demo.row(sampler, steps, cfg, iterations=36, training_noises=64)
