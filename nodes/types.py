"""Shared by the nodes: the LD3_SCHEDULE type, and how errors, warnings and results are shown."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from comfy_api.v0_0_2 import io

from ..ld3.comfy.progress import show_text
from ..ld3.shown_text import shown

LD3Schedule = io.Custom("LD3_SCHEDULE")
CATEGORY = "LD3"
MOST_SEED = 0xFFFFFFFFFFFFFFFF
MOST_MESSAGE = 4000  # characters

logger = logging.getLogger(__name__)


@contextmanager
def errors_of(node: str) -> Iterator[None]:
    """Put the node's display name before the message of a ValueError, made harmless to show."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{node}: {shown(str(error), MOST_MESSAGE)}") from error


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


def announce(node: type[io.ComfyNode], name: str, summary: str, warnings: list[str]) -> None:
    """Show a result with its warnings on the node, and log them with its display name."""
    logger.info("%s: %s", name, shown(summary, MOST_MESSAGE))
    warn(node, name, warnings)
    show(node, "\n".join([summary, *warnings]))
