"""Laws of the package: what ships, how it is written, and that a clean ComfyUI takes it."""

from __future__ import annotations

import ast
import re
import shutil
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.comfyui_server import ComfyServer
from scripts.locales import ENGLISH, LANGUAGES, read

from .registry import PROJECT, comfy_cli, install, packed, working_files
from .source_code import ROOT, imports, name_of, shipped_modules

FLAGGED_MODULES = {"pickle", "subprocess", "socket", "requests", "urllib", "http", "aiohttp"}
FLAGGED_MODULES |= {"marshal", "shelve", "ctypes", "multiprocessing"}
needs_git = pytest.mark.skipif(
    not shutil.which("git") or not (ROOT / ".git").exists(), reason="needs git and a git checkout"
)


def declared_nodes() -> dict[str, Path]:
    """node_id -> file, from the source text, as ComfyUI-Manager's scanner reads it."""
    found: dict[str, Path] = {}
    for path in (ROOT / "nodes").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not ast.unparse(call.func).endswith("Schema"):
                continue
            for keyword in call.keywords:
                if keyword.arg == "node_id":
                    assert isinstance(keyword.value, ast.Constant), f"{name_of(path)}: node_id"
                    found[keyword.value.value] = path
    return found


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive that `comfy node pack` makes of the working tree as it would be committed."""
    return packed(tmp_path_factory.mktemp("pack"))


def test_comfy_node_validate_is_clean() -> None:
    printed = comfy_cli("node", "validate", folder=ROOT)
    assert "All validation checks passed" in printed
    assert "warning" not in printed.lower()


@needs_git
def test_archive_holds_what_users_need_and_nothing_else(archive: Path) -> None:
    names = zipfile.ZipFile(archive).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {"__init__.py", "nodes", "ld3", "demo", "LICENSE", "README.md"} <= tops
    assert {"pyproject.toml", "requirements.txt", "workflows"} <= tops
    allowed = {"web", "locales", "subgraphs", "schedules", "CHANGELOG.md", "CITATION.cff"}
    extra = tops - allowed - {"__init__.py", "nodes", "ld3", "demo", "LICENSE", "README.md"}
    assert extra == {"pyproject.toml", "requirements.txt", "workflows"}
    assert archive.stat().st_size < 30e6


@pytest.fixture(scope="module")
def installed(
    archive: Path, comfyui_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyServer]:
    """A server whose clean base directory has the pack as ComfyUI's Manager installed it."""
    base = tmp_path_factory.mktemp("installed")
    install(archive, comfyui_root, base)
    with ComfyServer(comfyui_root, base, pack=None) as server:
        yield server


@pytest.mark.slow
@needs_git
def test_the_manager_installs_the_archive_and_comfyui_finds_all_nodes(
    installed: ComfyServer,
) -> None:
    assert (installed.base / "custom_nodes" / PROJECT["name"] / ".tracking").is_file()
    assert installed.pack_nodes() == set(declared_nodes()), installed.log_text()


@pytest.mark.slow
@needs_git
def test_an_installed_pack_offers_translations_blueprints_templates_and_help(
    installed: ComfyServer,
) -> None:
    translations = installed.get("/i18n")
    for language in (ENGLISH, *LANGUAGES):
        assert translations[language]["nodeDefs"] == read(language)
    blueprints = installed.get("/global_subgraphs").values()
    ours = f"custom_nodes.{PROJECT['name']}"
    found = {entry["name"] for entry in blueprints if entry["info"]["node_pack"] == ours}
    assert found == {path.stem for path in (ROOT / "subgraphs").glob("*.json")}
    workflows = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert set(installed.get("/workflow_templates")[PROJECT["name"]]) == workflows


def test_declared_nodes_are_the_ones_the_pack_offers(pack_nodes: dict[str, type]) -> None:
    assert set(pack_nodes) == set(declared_nodes())
    assert {"LD3TrainSchedule", "LD3LoadSchedule", "LD3KSampler"} <= set(pack_nodes)
    assert {"LD3DemoModel", "LD3DemoPrompt"} <= set(pack_nodes)


def test_every_input_and_output_has_a_tooltip(pack_nodes: dict[str, type]) -> None:
    for node_id, node in pack_nodes.items():
        schema = node.GET_SCHEMA()
        assert schema.description, f"{node_id} has no description"
        for part in [*schema.inputs, *schema.outputs]:
            assert part.tooltip and len(part.tooltip) > 15, f"{node_id}: {part.id} has no tooltip"


def test_nodes_subclass_comfynode_directly_with_literal_ids() -> None:
    """ComfyUI-Manager finds V3 nodes by reading the source, never by running it."""
    for path in (ROOT / "nodes").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef):
                continue
            has_schema = any(
                isinstance(part, ast.FunctionDef) and part.name == "define_schema"
                for part in node.body
            )
            bases = [ast.unparse(base) for base in node.bases]
            assert has_schema == (bases == ["io.ComfyNode"]), f"{name_of(path)}: {node.name}"
    assert declared_nodes(), "no class with a literal node_id below nodes/"


@needs_git
def test_python_files_are_ascii() -> None:
    for name in working_files():
        if name.endswith(".py"):
            content = (ROOT / name).read_bytes()
            assert content.isascii(), f"{name}: write sigma, ->, ... in ASCII"


def test_root_init_is_at_most_15_lines() -> None:
    assert len((ROOT / "__init__.py").read_text().splitlines()) <= 15


def test_modules_stay_small() -> None:
    for path in [*shipped_modules(), *(ROOT / "scripts").glob("*.py")]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 380, f"{name_of(path)} has {lines} lines: one topic a module"


def test_no_scanner_flagged_calls() -> None:
    """What the registry's security scanner and the ecosystem's checker flag in shipped code."""
    for path in shipped_modules():
        for module in imports(path):
            flagged = module.split(".")[0] in FLAGGED_MODULES
            # ComfyUI's server is aiohttp's: its routes are written with it
            routes = name_of(path) == "ld3/comfy/routes.py" and module.startswith("aiohttp")
            text_only = module.startswith("urllib.parse")  # no network
            assert not flagged or routes or text_only, f"{name_of(path)}: {module}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "compile", "__import__", "print"}, where
                assert called not in {"os.system", "os.popen", "os.getenv", "torch.load"}, where
                assert called not in {"torch.autocast", "nn.Linear", "nn.Conv2d"}, where
                assert not called.endswith(".cuda"), where
            elif isinstance(node, ast.Attribute):
                assert ast.unparse(node) != "os.environ", where


def test_requirements_agree_with_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = [line for line in lines if line and not line.startswith("#")]
    assert project["dependencies"] == required
    assert "comfyui" not in project["name"].lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])


def test_requirements_hold_only_what_comfyui_does_not_bring(comfyui_root: Path) -> None:
    def names(path: Path) -> set[str]:
        found = (re.match(r"[A-Za-z0-9_.-]+", line) for line in path.read_text().splitlines())
        return {match.group().lower().replace("_", "-") for match in found if match}

    assert not names(ROOT / "requirements.txt") & names(comfyui_root / "requirements.txt")


def test_every_node_has_a_help_page(pack_nodes: dict[str, type]) -> None:
    for node_id in pack_nodes:
        page = ROOT / "web" / "docs" / f"{node_id}.md"
        assert page.is_file() and len(page.read_text(encoding="utf-8")) > 200, page.name


@needs_git
def test_workflows_is_the_only_folder_that_comfyui_takes_templates_from() -> None:
    """It serves the first that exists, and lists the files of all (ComfyUI 0.30.0)."""
    taken = ["example_workflows", "example", "examples", "workflow", "workflows"]
    assert [name for name in taken if (ROOT / name).exists()] == ["workflows"]


def test_repository_holds_no_large_or_generated_files() -> None:
    for name in working_files():
        assert (ROOT / name).stat().st_size <= 12e6, name
        assert not name.startswith("output/") and "__pycache__" not in name, name
