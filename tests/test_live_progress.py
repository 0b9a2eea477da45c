"""The live picture: drawn where somebody can see it, and never for most of the time."""

from __future__ import annotations

from typing import Any

import comfy.utils
import numpy as np
import pytest

from ld3.comfy import progress
from ld3.training.report import Baseline, Progress, Report


class Clock:
    """A time that only drawing, and who asks for it, moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When pictures were begun; each takes 3 seconds."""
    clock, found = Clock(), []

    def draw(report: Report, stage: str) -> Any:
        found.append(clock.now)
        clock.now += 3.0
        return np.zeros((4, 4, 3), dtype=np.uint8)

    monkeypatch.setattr(progress, "report_picture", draw)
    monkeypatch.setattr(progress, "time", clock)
    return found


def events(count: int) -> None:
    """That many events of a training, half a second after one another."""
    live = progress.LiveProgress()
    report = Report(baselines={"beta": Baseline([1.0, 0.0], 1, True)})
    for i in range(count):
        progress.time.now += 0.5  # type: ignore[attr-defined]
        live(Progress("search", i, count, report))


def test_nothing_is_drawn_where_nobody_can_see_it(
    drawn: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", None)
    events(20)
    assert drawn == []


def test_slow_drawing_takes_a_tenth_of_the_time_at_most(
    drawn: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda *args, **kwargs: shown.append(args[2])
    )
    events(150)
    pauses = [after - before for before, after in zip(drawn, drawn[1:], strict=False)]
    assert len(drawn) == 3 and min(pauses) >= 30
    assert sum(picture is not None for picture in shown) == 3
