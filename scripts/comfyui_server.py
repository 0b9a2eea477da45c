"""Run a real ComfyUI server with this pack in its custom_nodes.

    with ComfyServer(comfyui_folder) as server:
        outputs = server.run(api_prompt)  # and all else of `ComfyClient`

No network and no GPU are needed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from scripts.comfyui_client import ComfyClient
from scripts.comfyui_messages import ComfyServerError

PACK = Path(__file__).resolve().parents[1]
PACK_FOLDER = "ld3-schedules"
CPU = ("--cpu", "--use-pytorch-cross-attention")


class ComfyServer(ComfyClient):
    """A real ComfyUI server in a subprocess, as a context manager.

    Args:
        comfyui: ComfyUI's source folder.
        base: base directory for models, input, output and custom_nodes. By default a temporary
            one that is deleted at the end; a given one is created if needed and kept.
        pack: the folder to link into custom_nodes (a copy where links are not allowed), or None
            to leave custom_nodes unchanged.
        port: by default a free one.
        device: options of main.py that choose it.
        log_file: by default comfyui.log in the base directory.
        extra_args: additional command-line options for ComfyUI's main.py.
        start_timeout: seconds to wait for the server to answer.
        python: the interpreter to run ComfyUI with.

    Attributes:
        port, base, log_file: the server's port, base directory and log file.
        output: the folder that Save nodes write to.
        process: None while it does not run.
    """

    def __init__(
        self,
        comfyui: str | Path,
        base: str | Path | None = None,
        *,
        pack: Path | None = PACK,
        port: int | None = None,
        device: Sequence[str] = CPU,
        log_file: Path | None = None,
        extra_args: Sequence[str] = (),
        start_timeout: float = 600.0,
        python: str = sys.executable,
    ) -> None:
        self.port = port or _free_port()
        super().__init__(f"http://127.0.0.1:{self.port}")
        self.comfyui = Path(comfyui).resolve()
        self._temporary = base is None
        self.base = Path(base or tempfile.mkdtemp(prefix="ld3-comfyui-")).resolve()
        self.output = self.base / "output"
        self.log_file = log_file or self.base / "comfyui.log"
        self._pack = pack
        self._extra_args = [*device, *extra_args]
        self._start_timeout = start_timeout
        self._python = python
        self.process: subprocess.Popen[bytes] | None = None

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
        command += ["--disable-auto-launch"]
        command += ["--listen", "127.0.0.1", "--port", str(self.port)]
        command += ["--base-directory", str(self.base)]
        # By default the database is in ComfyUI's own folder, where two servers share it.
        command += ["--database-url", "sqlite:///:memory:"]
        # Only the nodes of paid services would use the network.
        command += ["--disable-api-nodes", *self._extra_args]
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
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
                self.get("/system_stats", timeout=5.0)
                return
            self.check_alive()
            if time.monotonic() > end:
                raise ComfyServerError(
                    f"ComfyUI did not answer in {self._start_timeout:g} s; its log ends:\n"
                    + self._log_tail()
                )
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop the server (terminate, then kill) and delete a temporary base directory."""
        process, self.process = self.process, None
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._temporary:
            shutil.rmtree(self.base, ignore_errors=True)

    def pack_nodes(self) -> set[str]:
        """The ids of the pack's nodes that the running server has registered."""
        module = f"custom_nodes.{PACK_FOLDER}"
        return {k for k, v in self.object_info().items() if v["python_module"] == module}

    def memory(self) -> float:
        """Megabytes of memory that the server holds now."""
        self.check_alive()
        assert self.process is not None
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    def log_text(self) -> str:
        """Everything the server has logged so far."""
        if not self.log_file.is_file():
            return ""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def check_alive(self) -> None:
        """Raise ComfyServerError if the process ended."""
        if self.process is None:
            raise ComfyServerError("the server was not started")
        if self.process.poll() is not None:
            raise ComfyServerError(
                f"ComfyUI exited with status {self.process.returncode}; its log ends:\n"
                + self._log_tail()
            )

    def _log_tail(self) -> str:
        return "\n".join(self.log_text().splitlines()[-40:])


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
