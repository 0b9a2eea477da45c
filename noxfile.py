"""Development commands: `nox -s tests`, `browser`, `demo`, `bench -- NAME`, `soak`, `lint`, ...

They share one environment (torch alone is several GB) and one ComfyUI. After `--`, `--comfyui DIR`
uses your own ComfyUI folder and `--comfyui-version V` another pinned version; everything else is
passed to pytest, `scripts/demo.py` or `python -m benchmarks`. `nox -s compat` has an environment
for each ComfyUI version, which contains only the packages that differ from the shared one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from scripts import comfyui_source  # noqa: E402

nox.options.sessions = ["tests"]
COMPATIBLE = ["0.24.1", "0.27.0", "0.30.0"]
FRONTEND = "comfyui-frontend-package"
PINNED, NEWEST = "pinned", "newest"  # ComfyUI's frontend: as its requirements say, or PyPI's newest
COMBINATIONS = [nox.param(version, PINNED, id=version) for version in COMPATIBLE]
COMBINATIONS += [nox.param(COMPATIBLE[-1], NEWEST, id=f"{COMPATIBLE[-1]}, newest frontend")]
COMPATIBILITY_TESTS = [
    "test_nodes.py::test_inputs_and_outputs_of_nodes_are_those_that_saved_workflows_have",
    "test_tracing.py",
    "test_cfg_pp.py",
    "test_server.py::test_demo_workflow_shows_the_ways_side_by_side_in_one_picture",
]
FRONTEND_TESTS = [
    "test_server.py::test_demo_workflow_shows_the_ways_side_by_side_in_one_picture",
    "browser/test_workflows.py",
]

# The newest torch does not fit the newest torchaudio, hence a matched set.
TORCH = ["torch==2.14.1", "torchvision==0.29.1", "torchaudio==2.11.0"]
# The extra brings Node.js as a wheel: pyright needs nothing else to be installed or downloaded.
LINT_TOOLS = ["ruff==0.17.5", "pyright[nodejs]==1.1.414", "comfy-cli==1.23.0"]
LINT_TOOLS += ["bandit==1.9.4"]
RAY = ["ray==2.60.0"]
PIP_AUDIT = "pip-audit==2.10.1"
TEST_TOOLS = [
    "pytest==9.2.0",
    "pytest-timeout==2.4.0",
    "pytest-xdist==3.8.0",
    "hypothesis==6.170.15",
    "scipy==1.17.1",
    "scikit-learn==1.9.1",
    "matplotlib==3.11.2",
    "playwright==1.65.2",
    "nox==2026.10.20",
    "websockets==17.4",
]


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run the tests, against a real ComfyUI server where they need one."""
    comfyui, environment, arguments = comfyui_session(session)
    arguments = [*workers(arguments), *arguments]
    run(session, environment, "pytest", *arguments, LD3_COMFYUI=str(comfyui))


@nox.session(venv_backend="none")
def browser(session: nox.Session) -> None:
    """Run the tests in ComfyUI's frontend, in Chromium; pictures go to output/browser/.

    `-- --frontend VERSION` runs them in another version of the frontend than ComfyUI pins.
    """
    comfyui, environment, arguments = comfyui_session(session)
    if "--frontend" in arguments:
        i = arguments.index("--frontend")
        version = arguments[i + 1 : i + 2] or session.error("--frontend needs a version")
        folder = environment.frontend(*version)
        arguments[i : i + 2] = ["--front-end-root", str(folder)]
    if not any("tests" in argument for argument in arguments):
        arguments.append("tests/browser")
    run(session, environment, "pytest", *arguments, LD3_COMFYUI=str(comfyui))


@nox.session(venv_backend="none")
def demo(session: nox.Session) -> None:
    """Learn a schedule for the bundled model inside a real ComfyUI; write output/demo/."""
    comfyui, environment, arguments = comfyui_session(session)
    script = str(ROOT / "scripts" / "demo.py")
    session.run(environment.python, script, "--comfyui", str(comfyui), *arguments, external=True)


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """Run one benchmark: nox -s bench -- NAME --json FILE."""
    comfyui, environment, arguments = comfyui_session(session)
    # On a busy machine, threads that wait actively make small networks several times slower.
    arguments = ["--comfyui", str(comfyui), *arguments]
    run(session, environment, "benchmarks", *arguments, OMP_WAIT_POLICY="PASSIVE")


@nox.session(venv_backend="none")
def support(session: nox.Session) -> None:
    """Train for a tiny model of every family; write docs/support.md and its JSON."""
    comfyui, environment, arguments = comfyui_session(session)
    script = str(ROOT / "scripts" / "support.py")
    session.run(environment.python, script, "--comfyui", str(comfyui), *arguments, external=True)


@nox.session(venv_backend="none")
@nox.parametrize("version,frontend", COMBINATIONS)
def compat(session: nox.Session, version: str, frontend: str) -> None:
    """Run the node contract, trace parity and the demo workflow on supported ComfyUI versions."""
    _, shared, arguments = comfyui_session(session)
    environment = Environment(session, f"comfyui-{version}", shared)
    comfyui = fetched(session, version, environment)
    session.log(f"ComfyUI {comfyui_source.version_of(comfyui)} in {comfyui}")
    environment.install([], [comfyui / "requirements.txt", ROOT / "requirements.txt"])
    tests = COMPATIBILITY_TESTS
    if frontend == NEWEST:
        newest = environment.newest(FRONTEND)
        session.log(f"{FRONTEND} {newest}")
        arguments += ["--front-end-root", str(environment.frontend(newest))]
        tests = FRONTEND_TESTS  # needs Chromium
    tests = [f"tests/{name}" for name in tests]
    run(session, environment, "pytest", *tests, *arguments, LD3_COMFYUI=str(comfyui))


@nox.session(venv_backend="none")
def sweep(session: nox.Session) -> None:
    """Learn a grid of schedules on several servers: nox -s sweep -- GRID.yaml --start 2."""
    comfyui, environment, arguments = comfyui_session(session)
    run_sweep(session, environment, comfyui, arguments)


@nox.session(venv_backend="none")
def sweep_ray(session: nox.Session) -> None:
    """The same in a Ray cluster (-- GRID.yaml --ray 8); without arguments, test that."""
    comfyui, shared, arguments = comfyui_session(session)
    environment = Environment(session, "comfyui-ray", shared)
    environment.install(RAY)
    if arguments:
        run_sweep(session, environment, comfyui, arguments)
    else:
        run(session, environment, "pytest", "tests/test_sweep_ray.py", LD3_COMFYUI=str(comfyui))


@nox.session(venv_backend="none")
def soak(session: nox.Session) -> None:
    """Train, sample, interrupt and misuse one server, at most 30 minutes; see docs/reliability."""
    comfyui, environment, arguments = comfyui_session(session)
    command = [str(ROOT / "scripts" / "soak.py"), "--comfyui", str(comfyui), *arguments]
    # pictures of 16x16 pixels are too small to be shared by threads
    session.run(environment.python, *command, env={"OMP_NUM_THREADS": "1"}, external=True)


@nox.session(venv_backend="none")
def audit(session: nox.Session) -> None:
    """Look up known weaknesses of all installed packages; needs PyPI's vulnerability service."""
    _, environment, arguments = comfyui_session(session)
    tool = Environment(session, "audit")
    tool.install([PIP_AUDIT])
    shown = [environment.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(shown, capture_output=True, check=True, text=True).stdout.strip()
    # strict: a package that the service does not know is not a package without weaknesses
    run(session, tool, "pip_audit", "--strict", "--path", packages, *arguments)


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Check style, formatting, types and what the Comfy registry requires of a pack."""
    comfyui, environment, _ = comfyui_session(session)
    run(session, environment, "ruff", "check", ".")
    run(session, environment, "ruff", "format", "--check", ".")
    # B101 is assert, which only tells types here
    shipped = ["__init__.py", "ld3", "nodes", "demo"]
    run(session, environment, "bandit", "-q", "-r", "--skip", "B101", *shipped)
    # comfy-cli asks for consent to tracking when it is first started in a terminal.
    run(session, environment, "comfy_cli", "node", "validate", DO_NOT_TRACK="1")
    # pyright finds ComfyUI's modules on the path; without the second variable it looks up its
    # newest version on every run.
    found = ["--pythonpath", environment.python]
    variables = {"PYTHONPATH": str(comfyui), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    run(session, environment, "pyright", *found, **variables)


def workers(arguments: list[str]) -> list[str]:
    """pytest's options for a process per core, or none if test files are named: one starts sooner.

    A file's tests stay in one process, which trains once for all of them. Each needs 1 to 2 GB.
    """
    if any(".py" in argument for argument in arguments):
        return []
    cores = min(4, os.cpu_count() or 1)
    return ["-n", str(cores), "--dist", "loadfile", "--no-loadscope-reorder"]


def run_sweep(
    session: nox.Session, environment: Environment, comfyui: Path, arguments: list[str]
) -> None:
    """Run scripts/sweep.py."""
    command = [str(ROOT / "scripts" / "sweep.py"), *arguments, "--comfyui", str(comfyui)]
    session.run(environment.python, *command, external=True)


def run(session: nox.Session, environment: Environment, module: str, *args: str, **env: str):
    """Run `python -m module` with the environment's interpreter."""
    session.run(environment.python, "-m", module, *args, env=env, external=True)


def comfyui_session(session: nox.Session) -> tuple[Path, Environment, list[str]]:
    """Return the ComfyUI to use, the ready environment, and the arguments that are left."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--comfyui")
    parser.add_argument("--comfyui-version", default=comfyui_source.DEFAULT_VERSION)
    parser.error = session.error  # type: ignore[method-assign]
    options, arguments = parser.parse_known_args(session.posargs)

    environment = Environment(session, "comfyui")
    if options.comfyui:
        try:
            comfyui = comfyui_source.require_checkout(options.comfyui)
        except comfyui_source.SourceError as error:
            session.error(str(error))
    else:
        comfyui = fetched(session, options.comfyui_version, environment)
    session.log(f"ComfyUI {comfyui_source.version_of(comfyui)} in {comfyui}")
    # the Manager, with which a test installs the pack
    names = ["requirements.txt", "manager_requirements.txt"]
    files = [comfyui / name for name in names if (comfyui / name).is_file()]
    requirement_files = [*files, ROOT / "requirements.txt"]
    environment.install([*TORCH, *TEST_TOOLS, *LINT_TOOLS], requirement_files)
    return comfyui, environment, arguments


def fetched(session: nox.Session, version: str, environment: Environment) -> Path:
    """The folder of a ComfyUI version, downloaded by the environment's pip if it is new."""
    environment.create()
    try:
        return comfyui_source.fetch(version, python=environment.python)
    except comfyui_source.SourceError as error:
        session.error(str(error))


class Environment:
    """A virtual environment below .nox/ that is reused until its requirements change.

    nox itself makes one environment per session; all sessions share this one.

    Args:
        base: a ready environment whose packages this one has too, without copies; a package that is
            required in another version is installed here, and found first.
    """

    def __init__(self, session: nox.Session, name: str, base: Environment | None = None) -> None:
        self.session, self.base = session, base
        self.folder = ROOT / ".nox" / name
        scripts = "Scripts/python.exe" if os.name == "nt" else "bin/python"
        self.python = str(self.folder / scripts)
        self.stamp = self.folder / "installed.json"
        self.log = ROOT / ".nox" / f"{name}-install.log"

    def create(self) -> None:
        """Make the environment, and make it again if another Python made it."""
        if sys.version_info < (3, 11):
            self.session.error(
                f"Python 3.11 or newer is needed, but nox runs on {sys.version.split()[0]}: "
                "install nox with a newer Python"
            )
        made_by = self.folder / "made_by.txt"
        if made_by.is_file() and made_by.read_text() == sys.version and Path(self.python).exists():
            return
        self.folder.parent.mkdir(exist_ok=True)
        self.log.unlink(missing_ok=True)
        self._logged([sys.executable, "-m", "virtualenv", "--clear", str(self.folder)])
        if self.base is not None:
            (self.packages / "base.pth").write_text(f"{self.base.packages}\n")
        made_by.write_text(sys.version)

    @property
    def packages(self) -> Path:
        """The folder of installed packages."""
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        asked = subprocess.run([self.python, "-c", code], capture_output=True, text=True)
        return Path(asked.stdout.strip())

    def install(self, requirements: list[str], files: list[Path] | None = None) -> None:
        """Install exactly these requirements, unless that was done before."""
        self.create()
        texts = [file.read_text(encoding="utf-8") for file in files or []]
        wanted = json.dumps([requirements, texts])
        digest = hashlib.sha256(wanted.encode()).hexdigest()
        if self.stamp.is_file() and self.stamp.read_text() == digest:
            return
        self.stamp.unlink(missing_ok=True)
        self.session.log(f"installing into {self.folder} (the first time: minutes); log {self.log}")
        command = [self.python, "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
        command += requirements
        for file in files or []:
            command += ["--requirement", str(file)]
        self._logged(command)
        # Written last, so that an interrupted installation is resumed.
        self.stamp.write_text(digest)

    def newest(self, package: str) -> str:
        """The newest version of a package on the package index."""
        command = [self.python, "-m", "pip", "index", "versions", package]
        asked = subprocess.run(command, capture_output=True, text=True)
        found = re.match(rf"{package} \((.+?)\)", asked.stdout)
        if not found:
            self.session.error(f"cannot look up {package}: check the network and run again")
        return found[1]

    def frontend(self, version: str) -> Path:
        """A version of ComfyUI's frontend, in a folder of its own."""
        folder = ROOT / ".nox" / f"frontend-{version}"
        if not folder.is_dir():
            package = f"{FRONTEND}=={version}"
            command = [self.python, "-m", "pip", "install", "--no-input", "--no-deps"]
            self._logged([*command, "--target", str(folder), package])
        return folder / "comfyui_frontend_package" / "static"

    def _logged(self, command: list[str]) -> None:
        """Run a command quietly; a failure is one line, the rest is in the log."""
        last = ""
        with (
            self.log.open("a", encoding="utf-8") as log,
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            ) as process,
        ):
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    log.write(line)
                    line = line.strip()
                    if line.startswith("Downloading ") and line.endswith("MB)"):
                        self.session.log(line)
                    if line.startswith(("ERROR", "error")) or not last.startswith("ERROR"):
                        last = line or last
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            self.session.error(
                f"cannot set up {self.folder} ({last[:200]}): check the network and the free disk "
                f"space, then run the same command again; log {self.log}"
            )
