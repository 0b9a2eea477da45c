"""Progress on the node: a bar over model calls, a line of text and a live picture."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import comfy.model_management
import comfy.utils
from comfy_execution.utils import get_executing_context
from PIL import Image

from ..comparison_picture import with_thumbnails
from ..plots import report_picture
from ..training.report import Pair, Progress

logger = logging.getLogger(__name__)
PICTURE_SECONDS = 2.0  # between pictures, which cost a quarter of a second and more
PICTURE_SHARE = 0.1  # of the time, at most, where drawing is slow
PICTURE_SIZE = 1024
TEXT_SECONDS = 0.5
COST_SECONDS = 2.0  # for which the cost stays on the node
RATE_SECONDS = 3.0  # before the first calls say how long the others take; they load the model
Thumbnails = Callable[[Pair], Sequence[Image.Image]]
Interrupted = comfy.model_management.InterruptProcessingException


class LiveProgress:
    """Shows the events of `ld3.training.train`; also notices an interrupt between model calls.

    Args:
        thumbnails: draws a pair of samples; None for no thumbnails.
    """

    def __init__(self, thumbnails: Thumbnails | None = None) -> None:
        self._thumbnails = thumbnails
        self._bar = comfy.utils.ProgressBar(1)
        self._draws_at, self._written = 0.0, time.monotonic() + COST_SECONDS - TEXT_SECONDS
        self._first: tuple[float, int] | None = None  # when the first calls were done, and how many
        context = get_executing_context()
        self._node = context.node_id if context else None

    def __call__(self, progress: Progress) -> None:
        """Show progress; raises ComfyUI's interrupt."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._write(progress)
        picture, started = None, time.monotonic()
        # without a hook, as in scripts, nobody would see it
        if self._bar.hook and progress.report.baselines and started > self._draws_at:
            picture = _picture(progress, self._thumbnails)
            drawn = time.monotonic()
            self._draws_at = drawn + max(PICTURE_SECONDS, (drawn - started) / PICTURE_SHARE)
        self._bar.update_absolute(progress.calls, progress.planned_calls, picture)

    def _write(self, progress: Progress) -> None:
        now = time.monotonic()
        if self._first is None and progress.calls:
            self._first = now, progress.calls
        if self._node is None or now - self._written < TEXT_SECONDS:
            return
        self._written = now
        since, before = self._first or (now, progress.calls)
        line = live_line(progress, now - since, progress.calls - before)
        show_text(self._node, line)


def live_line(progress: Progress, seconds: float, calls: int) -> str:
    """Stage, model calls and time left, for a node; `calls` of them took `seconds`."""
    line = f"{progress.stage}, {progress.calls:,} of {progress.planned_calls:,} calls"
    if seconds < RATE_SECONDS or not calls:
        return line
    left = (progress.planned_calls - progress.calls) * seconds / calls
    return f"{line}, about {duration(left)} left"


def duration(seconds: float) -> str:
    """A time in the largest unit that tells enough: 40 s, 4 min, 2.5 h."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _picture(
    progress: Progress, thumbnails: Thumbnails | None
) -> tuple[str, Image.Image, int] | None:
    """The live picture as ComfyUI sends it; None if it cannot be drawn, no more."""
    try:
        pixels = report_picture(progress.report, progress.stage)
        if thumbnails is not None and progress.pair is not None:
            names = "teacher", "the best so far"
            pixels = with_thumbnails(
                pixels, dict(zip(names, thumbnails(progress.pair), strict=True))
            )
    except Exception as error:
        logger.warning("LD3: the live picture could not be drawn: %s", error)
        return None
    return ("JPEG", Image.fromarray(pixels), PICTURE_SIZE)


def show_cost(steps: int, calls: int, seconds: float) -> None:
    """Say on the running node, and in the log, what a training will cost before it starts.

    Args:
        calls: model calls in all, at most.
        seconds: they take, as the first calls were timed.
    """
    text = f"learning {steps} steps: {calls:,} model calls at most, about {duration(seconds)}"
    logger.info("LD3: %s", text)
    context = get_executing_context()
    if context is not None:
        show_text(context.node_id, text)


def show_text(node_id: str, text: str) -> None:
    """Write a line on a node, where a server is running."""
    from server import PromptServer  # absent outside a server

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        # other windows have other nodes of that number; checks before a run know no window
        window = server.client_id if get_executing_context() else None
        server.send_progress_text(text, node_id, window)
