"""Talk to a running ComfyUI server over HTTP and its websocket.

    client = ComfyClient("http://127.0.0.1:8188")
    outputs = client.run(api_prompt)                        # {node id: {"images": [...], ...}}
    image = client.fetch_image(outputs["9"]["images"][0])

    with client.listen() as messages:                       # progress, previews, interrupting
        prompt_id = client.queue(api_prompt)
        messages.wait_for("progress", timeout=120)
        client.interrupt()
        entry = client.wait(prompt_id)                      # entry["status"]["status_str"] "error"

`api_prompt` is a workflow in API format: {node id: {"class_type": ..., "inputs": {...}}}.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any

from PIL import Image

from scripts.comfyui_messages import ComfyServerError, Messages, listen

# Servers are on this machine or in its network, so a proxy from the environment must not be used.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class PromptRefusedError(ComfyServerError):
    """The server's validation refused a prompt.

    Attributes:
        node_errors: the server's errors by node id.
    """

    def __init__(self, message: str, node_errors: dict[str, Any]) -> None:
        super().__init__(message)
        self.node_errors = node_errors


class ComfyRunError(ComfyServerError):
    """A node raised an error, or the run was interrupted.

    Attributes:
        exception_message: the node's own message ("interrupted" for an interruption).
        exception_type: name of the exception's class.
        node_id: the node, as a string.
        node_type: its class_type.
        interrupted: whether this was an interruption.
    """

    def __init__(self, event: str, details: dict[str, Any]) -> None:
        self.interrupted = event == "execution_interrupted"
        self.exception_message = (
            "interrupted" if self.interrupted else str(details.get("exception_message", "")).strip()
        )
        self.exception_type = str(details.get("exception_type", ""))
        self.node_id = str(details.get("node_id", ""))
        self.node_type = str(details.get("node_type", ""))
        super().__init__(f"node {self.node_id} ({self.node_type}): {self.exception_message}")


class ComfyClient:
    """A running server.

    Args:
        url: its address, such as http://127.0.0.1:8188.

    Attributes:
        url, client_id: the address, and how the server calls this client.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.client_id = uuid.uuid4().hex

    def get(self, path: str, timeout: float = 60.0) -> Any:
        """The JSON at a path; OSError without an answer."""
        with _open(self.url + path, timeout=timeout) as answer:
            return json.load(answer)

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """Describe all nodes by id, or one: `object_info("LD3KSampler")` is that node's entry."""
        if node is None:
            return self.get("/object_info")
        found = self.get(f"/object_info/{urllib.parse.quote(node, safe='')}")
        if node not in found:
            raise ComfyServerError(f"the server has no node {node!r}")
        return found[node]

    def queue(self, api_prompt: dict[str, Any]) -> str:
        """Queue a prompt and return its id.

        Raises:
            PromptRefusedError: validation failed; the message lists every node error.
        """
        status, answer = self._post(
            "/prompt", {"prompt": api_prompt, "client_id": self.client_id}, accept=(200, 400)
        )
        node_errors = answer.get("node_errors") or {}
        # Core queues the valid outputs of a prompt and drops the others; here that is an error.
        if status != 200 or node_errors:
            if "prompt_id" in answer:
                self._post("/queue", {"delete": [answer["prompt_id"]]})
                self.interrupt(answer["prompt_id"])
            raise PromptRefusedError(_refusal_text(answer, node_errors), node_errors)
        return answer["prompt_id"]

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The history entry of a finished prompt; None while it is queued or running."""
        return self.get(f"/history/{prompt_id}").get(prompt_id)

    def knows(self, prompt_id: str) -> bool:
        """Whether a prompt is queued or running."""
        queue = self.get("/queue")
        waiting = [*queue["queue_running"], *queue["queue_pending"]]
        return any(prompt[1] == prompt_id for prompt in waiting)

    def wait(self, prompt_id: str, timeout: float = 600.0) -> dict[str, Any]:
        """Wait for a prompt to succeed or fail, and return its history entry.

        Raises:
            ComfyServerError: the server exited, or the prompt did not finish in `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            self.check_alive()
            entry = self.history(prompt_id)
            if entry is not None:
                return entry
            time.sleep(0.1)
        log = self._log_tail()
        raise ComfyServerError(
            f"the prompt did not finish in {timeout:g} s"
            + (f"; the log ends:\n{log}" if log else "")
        )

    def run(self, api_prompt: dict[str, Any], timeout: float = 600.0) -> dict[str, Any]:
        """Run a prompt until it finishes and return its outputs by node id.

        Raises:
            PromptRefusedError: validation failed.
            ComfyRunError: a node raised, or the run was interrupted.
        """
        entry = self.wait(self.queue(api_prompt), timeout)
        raise_for_status(entry)
        return entry["outputs"]

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Interrupt the running prompt, or only the given one."""
        self._post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    def clear_history(self) -> None:
        """Forget finished prompts, of which the server keeps 10,000."""
        self._post("/history", {"clear": True})

    def fetch_image(self, record: dict[str, str]) -> Image.Image:
        """Download an image that a node reported, e.g. `outputs["9"]["images"][0]`."""
        query = urllib.parse.urlencode(
            {key: record.get(key, "") for key in ("filename", "subfolder", "type")}
        )
        with _open(f"{self.url}/view?{query}", timeout=60) as answer:
            image = Image.open(io.BytesIO(answer.read()))
            image.load()
            return image

    @contextlib.contextmanager
    def listen(self) -> Iterator[Messages]:
        """Collect the websocket's messages in this block; enter it *before* queueing a prompt."""
        address = self.url.replace("http", "ws", 1)
        with listen(f"{address}/ws?clientId={self.client_id}") as messages:
            yield messages

    def _post(
        self, path: str, body: dict[str, Any], accept: tuple[int, ...] = (200,)
    ) -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(
            self.url + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with _open(request, timeout=60) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        if status not in accept:
            raise ComfyServerError(f"POST {path}: status {status}: {content[:500]!r}")
        return status, json.loads(content) if content else {}

    def check_alive(self) -> None:
        """Raise ComfyServerError where it is known that the server ended."""

    def _log_tail(self) -> str:
        """The last lines of the server's log, where it is known."""
        return ""


def raise_for_status(entry: dict[str, Any]) -> None:
    """Raise `ComfyRunError` if a history entry records an error or an interruption."""
    for event, details in entry["status"]["messages"]:
        if event in ("execution_error", "execution_interrupted"):
            raise ComfyRunError(event, details)
    if entry["status"]["status_str"] != "success":
        raise ComfyServerError(f"the prompt ended with {entry['status']}")


def _refusal_text(answer: dict[str, Any], node_errors: dict[str, Any]) -> str:
    error = answer.get("error") or {}
    lines = [f"{error.get('message', 'refused')} {error.get('details', '')}".strip()]
    for node_id, found in node_errors.items():
        for item in found["errors"]:
            lines.append(
                f"node {node_id} ({found['class_type']}): {item['message']}: {item['details']}"
            )
    return "\n".join(lines)
