"""Messages of a websocket: order, kinds, waiting, and the errors of a silent or closed one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest
from websockets.sync.server import ServerConnection, serve

from scripts.comfyui_messages import ComfyServerError, Message, listen

SENT = [
    json.dumps({"type": "status", "data": {"queue": 0}}),
    bytes([0, 0, 0, 1, 0, 0, 0, 1]) + b"JPEG",
    bytes([0, 0, 0, 3]) + b"text",
    json.dumps({"type": "executed"}),
]
RECEIVED = [
    Message("status", {"queue": 0}),
    Message("preview", b"JPEG"),
    Message("binary", SENT[2]),
    Message("executed", None),
]


@pytest.fixture
def end() -> threading.Event:
    """Set it to make the server close the connection."""
    return threading.Event()


@pytest.fixture
def address(end: threading.Event) -> Iterator[str]:
    """A server that sends `SENT` to whoever connects."""

    def handle(connection: ServerConnection) -> None:
        for message in SENT:
            connection.send(message)
        end.wait()

    with serve(handle, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever).start()
        yield "ws://127.0.0.1:{1}".format(*server.socket.getsockname())
        end.set()
        server.shutdown()


def test_messages_are_read_in_order_and_kept(address: str) -> None:
    with listen(address) as messages:
        assert messages.next() == RECEIVED[0]
        assert messages.wait_for("executed") == RECEIVED[-1]
        assert messages.drain() == messages.seen == RECEIVED


def test_waiting_ends_with_an_error(address: str, end: threading.Event) -> None:
    with listen(address) as messages:
        with pytest.raises(ComfyServerError, match="no 'progress' message in 0.1 s"):
            messages.wait_for("progress", timeout=0.1)
        assert messages.seen == RECEIVED
        end.set()
        with pytest.raises(ComfyServerError, match="closed the websocket"):
            messages.next()
        assert messages.drain() == RECEIVED


def test_a_server_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ComfyServerError, match="no websocket connection to ws://127.0.0.1:1"):
        with listen("ws://127.0.0.1:1"):
            pass
