"""Progress on the node: a bar over model calls and a live picture."""

from __future__ import annotations

import logging
import time

import comfy.model_management
import comfy.utils
from PIL import Image

from ..plots import report_picture
from ..training.report import Progress

logger = logging.getLogger(__name__)
PICTURE_SECONDS = 2.0  # a picture costs about a quarter of a second
PICTURE_SIZE = 1024


class LiveProgress:
    """Shows the events of `ld3.training.train`; also notices an interrupt between model calls."""

    def __init__(self) -> None:
        self._bar = comfy.utils.ProgressBar(1)
        self._drawn = 0.0

    def __call__(self, progress: Progress) -> None:
        """Show progress; raises ComfyUI's interrupt."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        picture = None
        if progress.report.baselines and time.monotonic() - self._drawn > PICTURE_SECONDS:
            picture = _picture(progress)
            self._drawn = time.monotonic()
        self._bar.update_absolute(progress.calls, progress.planned_calls, picture)


def _picture(progress: Progress) -> tuple[str, Image.Image, int] | None:
    """The live picture as ComfyUI sends it; None if it cannot be drawn, no more."""
    try:
        pixels = report_picture(progress.report, progress.stage)
    except Exception as error:
        logger.warning("LD3: the live picture could not be drawn: %s", error)
        return None
    return ("JPEG", Image.fromarray(pixels), PICTURE_SIZE)


def show_text(node_id: str, text: str) -> None:
    """Write a line on a node, where a server is running."""
    from server import PromptServer  # absent outside a server

    if getattr(PromptServer, "instance", None) is not None:
        PromptServer.instance.send_progress_text(text, node_id)
