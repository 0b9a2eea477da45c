"""Shared by the nodes: the LD3_SCHEDULE type, and how errors, warnings and results are shown."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from comfy_api.v0_0_2 import io

from ..ld3.comfy.progress import Interrupted, show_text
from ..ld3.comfy.requests import check_cfg
from ..ld3.shown_text import shown

LD3Schedule = io.Custom("LD3_SCHEDULE")
TrainingOptionsType = io.Custom("LD3_TRAINING_OPTIONS")
CATEGORY = "LD3"
LEAST_CFG = -100.0  # of the widget, which would make a smaller one 0 silently; refused below 0
MOST_SEED = 0xFFFFFFFFFFFFFFFF
MOST_MESSAGE = 4000  # characters

FILE_KEY = "ld3_file"  # of what a node shows: the schedule it saved, for the frontend
NOTHING_SAVED = "cancelled, nothing saved"
CONTINUED_LATER = "cancelled; run the workflow again to continue"
CLEARED = " "  # the frontend ignores an empty text

logger = logging.getLogger(__name__)


@contextmanager
def reporting(node: type[io.ComfyNode], cancelled: str = "cancelled") -> Iterator[None]:
    """Clear the node's text, and write there why the work ends without a result.

    ComfyUI shows errors far from the node, and interruptions not at all. The message of a
    ValueError, which may quote a file, is made harmless to show.
    """
    show(node, CLEARED)
    try:
        yield
    except Interrupted:
        show(node, cancelled)
        raise
    except ValueError as error:
        message = shown(str(error), MOST_MESSAGE)
        show(node, message)
        raise ValueError(message) from error
    except Exception as error:
        show(node, str(error) or type(error).__name__)
        raise


def check_widgets(node: type[io.ComfyNode], check: Callable[[], object]) -> None:
    """Run a check of widgets before the graph runs; what is wrong is also written on the node."""
    try:
        check()
    except ValueError as error:
        message = shown(str(error), MOST_MESSAGE)
        show(node, message)
        raise ValueError(message) from error


def check_cfg_widget(node: type[io.ComfyNode], cfg: float | None) -> bool:
    """Check a cfg widget before the graph runs; None, where it is connected, is right."""
    if cfg is not None:
        check_widgets(node, lambda: check_cfg(cfg))
    return True


def show(node: type[io.ComfyNode], message: str) -> None:
    """Show a line of text on the node while it runs in a server."""
    if node.hidden is not None and node.hidden.unique_id is not None:
        # the browser shows it as HTML, and it may quote files
        show_text(node.hidden.unique_id, shown(message, MOST_MESSAGE))


def warn(node: type[io.ComfyNode], name: str, messages: list[str]) -> None:
    """Show warnings on the node, and log them with its display name."""
    for message in messages:
        logger.warning("%s: %s", name, shown(message, MOST_MESSAGE))
    if messages:
        show(node, "\n".join(messages))


def announce(node: type[io.ComfyNode], name: str, summary: str, warnings: list[str]) -> str:
    """Show a result with its warnings on the node, log them, and return the text."""
    logger.info("%s: %s", name, shown(summary, MOST_MESSAGE))
    warn(node, name, warnings)
    said = "\n".join([summary, *(f"Warning: {warning}." for warning in warnings)])
    show(node, said)
    return shown(said, MOST_MESSAGE)
