"""The environments of noxfile.py: built once, kept up to date, honest when they fail."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import noxfile

ROOT = Path(__file__).resolve().parents[1]
BY_FILE = ["--dist", "loadfile", "--no-loadscope-reorder"]

NOXFILE = """
import sys
from pathlib import Path
import nox
sys.path.insert(0, str(Path(__file__).parent))
import noxfile

@nox.session(venv_backend="none")
def small(session):
    environment = noxfile.Environment(session, "small")
    environment.install(session.posargs)
    session.run(environment.python, "-c", "import small_package", external=True)
"""

LAYERED = """
import subprocess, sys
from pathlib import Path
import nox
sys.path.insert(0, str(Path(__file__).parent))
import noxfile

@nox.session(venv_backend="none")
def layered(session):
    base = noxfile.Environment(session, "base")
    base.install(["small-package==1.0"])
    above = noxfile.Environment(session, "above", base)

    def version(environment):
        code = "import small_package; print(small_package.version)"
        return subprocess.check_output([environment.python, "-c", code], text=True).strip()

    for wanted in ("1.0", "2.0"):
        above.install([f"small-package=={wanted}"])
        session.log(f"base {version(base)}, layered {version(above)}")
"""


def make_wheel(folder: Path, version: str) -> None:
    info = f"small_package-{version}.dist-info"
    with zipfile.ZipFile(folder / f"small_package-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("small_package.py", f"version = {version!r}\n")
        metadata = f"Metadata-Version: 2.1\nName: small-package\nVersion: {version}\n"
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the noxfile with a session whose environment holds one tiny package."""
    shutil.copy(ROOT / "noxfile.py", tmp_path)
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "small.py").write_text(NOXFILE)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for version in ("1.0", "2.0"):
        make_wheel(wheels, version)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return tmp_path


def nox(project: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "nox", *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_environment_is_reused_until_its_requirements_change(project: Path) -> None:
    def install(requirement: str) -> bool:
        status, printed = nox(project, "-f", "small.py", "-s", "small", "--", requirement)
        assert status == 0, printed
        return "installing into" in printed

    assert install("small-package==1.0")
    assert not install("small-package==1.0")
    assert install("small-package==2.0")
    assert list((project / ".nox" / "small").rglob("small_package-2.0.dist-info"))


@pytest.mark.slow
def test_failed_installation_is_one_line_and_is_resumed(project: Path) -> None:
    for _ in range(2):
        status, printed = nox(project, "-f", "small.py", "-s", "small", "--", "small-package==3.0")
        assert status != 0
        (line,) = [line for line in printed.splitlines() if "aborted" in line]
        assert "small-package==3.0" in line and "network" in line
        assert "Traceback" not in printed
    status, printed = nox(project, "-f", "small.py", "-s", "small", "--", "small-package==2.0")
    assert status == 0 and "installing into" in printed, printed


@pytest.mark.parametrize("arguments", [[], ["-m", "not slow"], ["tests/test_table.py"]])
def test_all_tests_use_every_core_and_named_files_one(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    named = "tests/test_table.py" in arguments
    assert noxfile.workers(arguments) == ([] if named else ["-n", "2", *BY_FILE])


def test_the_tests_of_other_versions_exist() -> None:
    for name in noxfile.COMPATIBILITY_TESTS:
        file, _, function = name.partition("::")
        assert f"def {function}" in (ROOT / "tests" / file).read_text(encoding="utf-8"), name


@pytest.mark.slow
def test_an_environment_has_the_packages_of_its_base_except_those_of_its_own(
    project: Path,
) -> None:
    (project / "layered.py").write_text(LAYERED)
    status, printed = nox(project, "-f", "layered.py", "-s", "layered")
    assert status == 0, printed
    assert "base 1.0, layered 1.0" in printed and "base 1.0, layered 2.0" in printed


def test_the_tests_that_compat_runs_exist() -> None:
    spec = importlib.util.spec_from_file_location("noxfile", ROOT / "noxfile.py")
    assert spec is not None and spec.loader is not None
    noxfile = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(noxfile)
    for name in (*noxfile.COMPATIBILITY_TESTS, *noxfile.FRONTEND_TESTS):
        file, _, test = name.partition("::")
        assert f"def {test}(" in (ROOT / "tests" / file).read_text("utf-8") or not test, name


@pytest.mark.parametrize("session", ["tests", "demo", "bench", "lint"])
def test_wrong_comfyui_folder_is_one_line(session: str, project: Path) -> None:
    status, printed = nox(project, "-s", session, "--", "--comfyui", str(project))
    assert status != 0
    assert "is not a ComfyUI folder (it has no main.py)" in printed
    assert len(printed.splitlines()) <= 4, printed


@pytest.mark.slow
def test_missing_network_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "cache"))
    status, printed = nox(project, "-s", "tests")
    assert status != 0
    assert "check the network" in printed and "--comfyui DIR" in printed
    assert len(printed.splitlines()) <= 4, printed
