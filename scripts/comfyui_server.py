"""Run a real ComfyUI server with this pack in its custom_nodes, and control it over HTTP.

    from scripts.comfyui_server import ComfyRunError, ComfyServer

    with ComfyServer(comfyui_folder) as server:
        outputs = server.run(api_prompt)                    # {node id: {"images": [...], ...}}
        image = server.fetch_image(outputs["9"]["images"][0])

        with server.listen() as messages:                   # progress, previews, interrupting
            prompt_id = server.queue(api_prompt)
            messages.wait_for("progress", timeout=120)
            server.interrupt()
            entry = server.wait(prompt_id)                  # entry["status"]["status_str"] "error"

`api_prompt` is a workflow in API format: {node id: {"class_type": ..., "inputs": {...}}}.
No network and no GPU are needed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from scripts.comfyui_messages import ComfyServerError, Messages, listen

PACK = Path(__file__).resolve().parents[1]
PACK_FOLDER = "ld3-schedules"

# The server runs on this machine, so a proxy from the environment must not be used.
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


class ComfyServer:
    """A real ComfyUI server in a subprocess, as a context manager.

    Args:
        comfyui: ComfyUI's source folder.
        base: base directory for models, input, output and custom_nodes. By default a temporary
            one that is deleted at the end; a given one is created if needed and kept.
        pack: the folder to link into custom_nodes (a copy where links are not allowed), or None
            to leave custom_nodes unchanged.
        port: by default a free one.
        extra_args: additional command-line options for ComfyUI's main.py.
        start_timeout: seconds to wait for the server to answer.
        python: the interpreter to run ComfyUI with.

    Attributes:
        url, port, base, log_file: the server's address, port, base directory and log file.
        output: the folder that Save nodes write to.
    """

    def __init__(
        self,
        comfyui: str | Path,
        base: str | Path | None = None,
        *,
        pack: Path | None = PACK,
        port: int | None = None,
        extra_args: Sequence[str] = (),
        start_timeout: float = 600.0,
        python: str = sys.executable,
    ) -> None:
        self.comfyui = Path(comfyui).resolve()
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client_id = uuid.uuid4().hex
        self._temporary = base is None
        self.base = Path(base or tempfile.mkdtemp(prefix="ld3-comfyui-")).resolve()
        self.output = self.base / "output"
        self.log_file = self.base / "comfyui.log"
        self._pack = pack
        self._extra_args = list(extra_args)
        self._start_timeout = start_timeout
        self._python = python
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ComfyServer:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Prepare the base directory, start the server and wait until it answers.

        Raises:
            ComfyServerError: it exited or did not answer; the message ends with its log.
        """
        for name in ("custom_nodes", "input", "output", "models", "user"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        if self._pack is not None:
            _link(self._pack.resolve(), self.base / "custom_nodes" / PACK_FOLDER)
        command = [self._python, "-u", str(self.comfyui / "main.py")]
        command += ["--cpu", "--use-pytorch-cross-attention", "--disable-auto-launch"]
        command += ["--listen", "127.0.0.1", "--port", str(self.port)]
        command += ["--base-directory", str(self.base)]
        # By default the database is in ComfyUI's own folder, where two servers share it.
        command += ["--database-url", "sqlite:///:memory:"]
        # Only the nodes of paid services would use the network.
        command += ["--disable-api-nodes", *self._extra_args]
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.comfyui,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            )
        end = time.monotonic() + self._start_timeout
        while True:
            with contextlib.suppress(OSError, ComfyServerError):
                self._get("/system_stats", timeout=5.0)
                return
            self._require_alive()
            if time.monotonic() > end:
                raise ComfyServerError(
                    f"ComfyUI did not answer in {self._start_timeout:g} s; its log ends:\n"
                    + self._log_tail()
                )
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop the server (terminate, then kill) and delete a temporary base directory."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._temporary:
            shutil.rmtree(self.base, ignore_errors=True)

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """Describe all nodes by id, or one: `object_info("LD3KSampler")` is that node's entry."""
        if node is None:
            return self._get("/object_info")
        found = self._get(f"/object_info/{urllib.parse.quote(node, safe='')}")
        if node not in found:
            raise ComfyServerError(f"the server has no node {node!r}")
        return found[node]

    def pack_nodes(self) -> set[str]:
        """The ids of the pack's nodes that the running server has registered."""
        module = f"custom_nodes.{PACK_FOLDER}"
        return {k for k, v in self.object_info().items() if v["python_module"] == module}

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
        return self._get(f"/history/{prompt_id}").get(prompt_id)

    def wait(self, prompt_id: str, timeout: float = 600.0) -> dict[str, Any]:
        """Wait for a prompt to succeed or fail, and return its history entry.

        Raises:
            ComfyServerError: the server exited, or the prompt did not finish in `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            self._require_alive()
            entry = self.history(prompt_id)
            if entry is not None:
                return entry
            time.sleep(0.1)
        raise ComfyServerError(
            f"the prompt did not finish in {timeout:g} s; the log ends:\n{self._log_tail()}"
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

    def fetch_image(self, record: dict[str, str]) -> Image.Image:
        """Download an image that a node reported, e.g. `outputs["9"]["images"][0]`."""
        query = urllib.parse.urlencode(
            {key: record.get(key, "") for key in ("filename", "subfolder", "type")}
        )
        with _open(f"{self.url}/view?{query}", timeout=60) as answer:
            image = Image.open(io.BytesIO(answer.read()))
            image.load()
            return image

    def log_text(self) -> str:
        """Everything the server has logged so far."""
        if not self.log_file.is_file():
            return ""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    @contextlib.contextmanager
    def listen(self) -> Iterator[Messages]:
        """Collect the websocket's messages in this block; enter it *before* queueing a prompt."""
        with listen(f"ws://127.0.0.1:{self.port}/ws?clientId={self.client_id}") as messages:
            yield messages

    def _get(self, path: str, timeout: float = 60.0) -> Any:
        with _open(self.url + path, timeout=timeout) as answer:
            return json.load(answer)

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

    def _require_alive(self) -> None:
        if self._process is None:
            raise ComfyServerError("the server was not started")
        if self._process.poll() is not None:
            raise ComfyServerError(
                f"ComfyUI exited with status {self._process.returncode}; its log ends:\n"
                + self._log_tail()
            )

    def _log_tail(self) -> str:
        return "\n".join(self.log_text().splitlines()[-40:])


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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _link(source: Path, target: Path) -> None:
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        shutil.rmtree(target)
    try:
        target.symlink_to(source, target_is_directory=True)
    except OSError:
        # Windows needs a privilege for links.
        ignore = shutil.ignore_patterns(".git", ".nox", ".venv*", "output", "__pycache__")
        shutil.copytree(source, target, ignore=ignore)
