"""Receive what a ComfyUI server sends over its websocket; used by `ComfyServer.listen()`."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection, connect


class ComfyServerError(RuntimeError):
    """The server did not start, ended, did not answer in time, or refused a request."""


class Message(NamedTuple):
    """One message: `kind` is ComfyUI's type; a "preview" carries an encoded image's bytes."""

    kind: str
    data: Any


class Messages:
    """The messages of one connection, in order; `seen` holds those read so far."""

    def __init__(self, connection: ClientConnection) -> None:
        self.seen: list[Message] = []
        self._connection = connection

    def next(self, timeout: float = 60.0) -> Message:
        """Return the next message.

        Raises:
            ComfyServerError: none arrived within `timeout` seconds, or the connection is closed.
        """
        try:
            return self._read(timeout)
        except TimeoutError:
            raise ComfyServerError(f"no message from the server in {timeout:g} s") from None

    def wait_for(self, kind: str, timeout: float = 60.0) -> Message:
        """Return the next message of one kind ("progress", "preview", "executed", ...).

        Raises:
            ComfyServerError: none arrived within `timeout` seconds, or the connection is closed.
        """
        end = time.monotonic() + timeout
        try:
            while (message := self._read(end - time.monotonic())).kind != kind:
                pass
        except TimeoutError:
            raise ComfyServerError(f"no {kind!r} message in {timeout:g} s") from None
        return message

    def drain(self) -> list[Message]:
        """Read everything that has arrived, without waiting, and return `seen`."""
        with contextlib.suppress(TimeoutError, ComfyServerError):
            while True:
                self._read(0)
        return self.seen

    def _read(self, timeout: float) -> Message:
        try:
            message = _parse(self._connection.recv(timeout))
        except ConnectionClosed as error:
            raise ComfyServerError(f"the server closed the websocket: {error}") from error
        self.seen.append(message)
        return message


@contextlib.contextmanager
def listen(address: str) -> Iterator[Messages]:
    """Connect to a websocket and collect its messages until the block ends.

    Raises:
        ComfyServerError: no connection.
    """
    # No proxy: the server runs on this machine. No limits and no pings: previews are large, and a
    # busy server answers late.
    options = {"proxy": None, "max_size": None, "max_queue": None, "ping_interval": None}
    try:
        connection = connect(address, open_timeout=30, **options)
    except (OSError, WebSocketException) as error:
        raise ComfyServerError(f"no websocket connection to {address}: {error}") from error
    with connection:
        yield Messages(connection)


def _parse(received: str | bytes) -> Message:
    if isinstance(received, str):
        content = json.loads(received)
        return Message(content["type"], content.get("data"))
    # ComfyUI 0.30.0, protocol.py: four bytes name the event; 1 is an image, whose format takes
    # four more.
    if int.from_bytes(received[:4], "big") == 1:
        return Message("preview", received[8:])
    return Message("binary", received)
