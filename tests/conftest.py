"""Shared set-up: ComfyUI on the path, the pack as ComfyUI loads it, and a running server.

Tests import the method as `ld3...` and `demo...`; nodes come from the `pack_nodes` fixture, because
`import nodes` would find ComfyUI's module of that name. The pack's modules are loaded under the
pack's own name there, so its classes are not the ones that `import ld3` gives.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# Before torch is loaded, and for the servers: on a busy machine, threads that wait actively make
# small networks several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# More threads do not make the small test models faster, and `nox -s tests` uses every core already.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from scripts import comfyui_import, comfyui_source  # noqa: E402
from scripts.comfyui_server import ComfyServer  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser

COMFYUI = pytest.StashKey[Path]()
BROWSER_TESTS = ROOT / "tests" / "browser"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--comfyui",
        metavar="DIR",
        help="ComfyUI's source folder (write --comfyui=DIR); by default the environment variable "
        "LD3_COMFYUI, or else a fetched ComfyUI " + comfyui_source.DEFAULT_VERSION,
    )

    parser.addoption(
        "--front-end-root",
        metavar="DIR",
        help="another frontend than ComfyUI's own, for tests/browser: a folder with its index.html",
    )


def pytest_configure(config: pytest.Config) -> None:
    folder = config.getoption("--comfyui") or os.environ.get("LD3_COMFYUI")
    try:
        comfyui = comfyui_source.require_checkout(folder) if folder else comfyui_source.fetch()
    except comfyui_source.SourceError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[COMFYUI] = comfyui
    comfyui_import.prepare(comfyui)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out tests/browser unless it is named, as `nox -s browser` does: it takes minutes."""
    named = any("browser" in argument for argument in config.invocation_params.args)
    return True if collection_path == BROWSER_TESTS and not named else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with many slow tests come first, so that no process is alone with one at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_report_header(config: pytest.Config) -> str:
    comfyui = config.stash[COMFYUI]
    return f"ComfyUI {comfyui_source.version_of(comfyui)} in {comfyui}"


@pytest.fixture(scope="session")
def comfyui_root(pytestconfig: pytest.Config) -> Path:
    """The folder of ComfyUI's source."""
    return pytestconfig.stash[COMFYUI]


@pytest.fixture(scope="session")
def pack() -> ModuleType:
    """The pack, loaded the way ComfyUI 0.30.0 does (nodes.py, load_custom_node)."""
    name = str(ROOT).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(
        name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def pack_nodes(pack: ModuleType) -> dict[str, type]:
    """The pack's node classes by node_id."""

    async def node_list() -> list[type]:
        extension = await pack.comfy_entrypoint()
        await extension.on_load()  # as core does, first
        return await extension.get_node_list()

    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(node_list())}


@pytest.fixture(scope="module")
def ld3_folder(
    pack_nodes: dict[str, type], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """models/ld3; it and ComfyUI's temporary and user folders are replaced by empty ones."""
    import folder_paths

    known, folder = folder_paths.folder_names_and_paths, tmp_path_factory.mktemp("ld3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "temp_directory", str(tmp_path_factory.mktemp("temp")))
        patch.setattr(folder_paths, "user_directory", str(tmp_path_factory.mktemp("user")))
        patch.setitem(known, "ld3", ([str(folder)], {".safetensors"}))
        yield folder


@pytest.fixture(scope="session")
def empty_latent() -> Callable[..., dict[str, Any]]:
    """`empty_latent(batch, channels, size)`: a LATENT for the demo model, which works at any
    multiple of 8 pixels; small ones keep the tests quick."""
    import torch

    def latent(batch: int = 1, channels: int = 3, size: int = 8) -> dict[str, Any]:
        samples = torch.zeros((batch, channels, size, size))
        return {"samples": samples, "downscale_ratio_spacial": 1}

    return latent


@pytest.fixture(scope="module")
def demo_inputs(
    pack_nodes: dict[str, type], empty_latent: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    """The demo model with prompts and a small latent: the inputs of every node that samples."""
    prompt = pack_nodes["LD3DemoPrompt"]
    return {
        "model": pack_nodes["LD3DemoModel"].execute(batch_size=1)[0],
        "positive": prompt.execute(text="grinning face")[0],
        "negative": prompt.execute(text="")[0],
        "latent_image": empty_latent(),
    }


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads make small tensors slower, on a busy machine twenty times."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def small_search(pack_nodes: dict[str, type], pack: ModuleType) -> Iterator[None]:
    """Nodes try 72 instead of 488 schedules on the teacher's trajectories.

    For tests of all but what is learned: that is a third of a training with the smallest settings.
    """
    candidates = sys.modules[f"{pack.__name__}.ld3.training.candidates"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "POPULATION", 24)
        patch.setattr(candidates, "ROUNDS", 1)
        yield


@pytest.fixture(scope="session")
def flow_model() -> Callable[[Any, float], Any]:
    """`flow_model(model, shift)`: a MODEL with flow's noise levels, as core's nodes patch them."""

    def patched(model: Any, shift: float) -> Any:
        import comfy.model_sampling as sampling

        class Flow(sampling.ModelSamplingDiscreteFlow, sampling.CONST):
            pass

        levels = Flow(model.model.model_config)
        levels.set_parameters(shift=shift, multiplier=1000)
        clone = model.clone()
        clone.add_object_patch("model_sampling", levels)
        return clone

    return patched


@pytest.fixture(scope="session")
def server(
    comfyui_root: Path, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[ComfyServer]:
    """A real ComfyUI server that has this working tree in custom_nodes."""
    frontend = pytestconfig.getoption("--front-end-root")
    extra = ["--front-end-root", frontend] if frontend else []
    base = tmp_path_factory.mktemp("comfyui")
    with ComfyServer(comfyui_root, base, extra_args=extra) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium without a window; tests that need it are skipped where it is absent.

    Not for the whole session: while Playwright runs, asyncio.run() fails in other tests.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium refuses its sandbox to root, which containers and CI often are.
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()
