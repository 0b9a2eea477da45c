"""Listen to what a ComfyUI server says over its websocket; used by `ComfyServer.listen()`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple


class ComfyServerError(RuntimeError):
    """The server did not start, ended, did not answer in time, or refused a request."""


class Message(NamedTuple):
    """One message: `kind` is ComfyUI's type; a "preview" carries an encoded image's bytes."""

    kind: str
    data: Any


class Messages:
    """What the server sent, in order; `seen` holds what was read so far."""

    def __init__(self) -> None:
        self.seen: list[Message] = []
        self._queue: queue.Queue[Message] = queue.Queue()

    def put(self, message: Message) -> None:
        """Append one message (called by the listening thread)."""
        self._queue.put(message)

    def next(self, timeout: float = 60.0) -> Message:
        """Return the next message.

        Raises:
            ComfyServerError: none came within `timeout` seconds.
        """
        try:
            message = self._queue.get(timeout=timeout)
        except queue.Empty:
            raise ComfyServerError(f"no message from the server in {timeout:g} s") from None
        self.seen.append(message)
        return message

    def wait_for(self, kind: str, timeout: float = 60.0) -> Message:
        """Return the next message of one kind ("progress", "preview", "executed", ...).

        Raises:
            ComfyServerError: none came within `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise ComfyServerError(f"no {kind!r} message from the server in {timeout:g} s")
            message = self.next(left)
            if message.kind == kind:
                return message

    def drain(self) -> list[Message]:
        """Read everything that has arrived, without waiting, and return `seen`."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.seen.append(self._queue.get_nowait())
        return self.seen


@contextlib.contextmanager
def listen(address: str) -> Iterator[Messages]:
    """Collect the messages of a websocket, in a thread, until the block ends."""
    messages = Messages()
    connected = threading.Event()
    stop = threading.Event()
    thread = threading.Thread(
        target=lambda: asyncio.run(_receive(address, messages, connected, stop)), daemon=True
    )
    thread.start()
    try:
        if not connected.wait(30):
            raise ComfyServerError(f"no websocket connection to {address} in 30 s")
        yield messages
    finally:
        stop.set()
        thread.join(10)


async def _receive(
    address: str, messages: Messages, connected: threading.Event, stop: threading.Event
) -> None:
    import aiohttp  # a requirement of ComfyUI; only listening needs it

    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(address, max_msg_size=0) as socket,
    ):
        connected.set()
        while not stop.is_set():
            try:
                received = await socket.receive(timeout=0.2)
            except asyncio.TimeoutError:  # noqa: UP041  (another class before Python 3.11)
                continue
            if received.type == aiohttp.WSMsgType.TEXT:
                content = json.loads(received.data)
                messages.put(Message(content["type"], content.get("data")))
            elif received.type == aiohttp.WSMsgType.BINARY:
                messages.put(_binary_message(received.data))
            else:
                return


def _binary_message(data: bytes) -> Message:
    # ComfyUI 0.30.0, protocol.py: four bytes name the event; 1 is an image, whose format takes
    # four more.
    if int.from_bytes(data[:4], "big") == 1:
        return Message("preview", data[8:])
    return Message("binary", data)
