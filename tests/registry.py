"""A registry of one pack on this machine, and the pack as ComfyUI's Manager installs it from it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from .source_code import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def working_files() -> list[str]:
    """Every file of the working tree that git does not ignore, as in the next commit."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def comfy_cli(*arguments: str, folder: Path) -> str:
    """Run the real comfy-cli, without telemetry, and return what it prints."""
    environment = {**os.environ, "DO_NOT_TRACK": "1", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "comfy_cli", "--no-json", *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def packed(folder: Path) -> Path:
    """The archive that `comfy node pack` makes of the working tree as it would be committed."""
    for name in working_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run(["git", "add", "--all"], cwd=folder, check=True)
    comfy_cli("node", "pack", folder=folder)
    return folder / "node.zip"


def install(archive: Path, comfyui: Path, base: Path) -> None:
    """Install an archive into a base directory with the Manager that ComfyUI pins.

    Only the registry's address is changed, to that of this process.
    """
    (base / "custom_nodes").mkdir(parents=True)
    script = [sys.executable, ROOT / "tests" / "manager_install.py", comfyui, base]
    with _Registry(archive).running() as url:
        done = subprocess.run(
            [*script, url, PROJECT["name"], PROJECT["version"]],
            capture_output=True, text=True, timeout=500,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


class _Registry(ThreadingHTTPServer):
    """Answers as the Comfy registry where the Manager asks it for an installation."""

    def __init__(self, archive: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.archive = archive
        self.url = f"http://127.0.0.1:{self.server_port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Answer in a thread; the address."""
        thread = threading.Thread(target=self.serve_forever, daemon=True)
        thread.start()
        try:
            yield self.url
        finally:
            self.shutdown()
            self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: the Manager ends connections early, and what fails is in its own output."""


class _Answers(BaseHTTPRequestHandler):
    """The version to install, then its archive."""

    server: _Registry

    def do_GET(self) -> None:
        body = self.server.archive.read_bytes()
        if not self.path.endswith(".zip"):
            answer = {"id": PROJECT["name"], "version": PROJECT["version"]}
            answer["downloadUrl"] = f"{self.server.url}/node.zip"
            body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""
