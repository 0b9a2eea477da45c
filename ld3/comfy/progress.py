"""Progress on the node: a bar over model calls and a live picture."""

from __future__ import annotations

import time

import comfy.model_management
import comfy.utils
from PIL import Image

from ..plots import report_picture
from ..training.report import Progress

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
            pixels = report_picture(progress.report, progress.stage)
            picture = ("JPEG", Image.fromarray(pixels), PICTURE_SIZE)
            self._drawn = time.monotonic()
        self._bar.update_absolute(progress.calls, progress.planned_calls, picture)


def show_text(node_id: str, text: str) -> None:
    """Write a line on a node, where a server is running."""
    from server import PromptServer  # absent outside a server

    if getattr(PromptServer, "instance", None) is not None:
        PromptServer.instance.send_progress_text(text, node_id)
