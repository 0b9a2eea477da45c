"""What may import what, and how modules and functions are cut."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from .source_code import ROOT, imports, is_own, name_of, shipped_modules

COMFYUI_MODULES = {"comfy", "comfy_extras", "comfy_execution", "folder_paths", "nodes"}
COMFYUI_MODULES |= {"node_helpers", "execution", "server", "latent_preview", "utils"}
WING = "ld3.training.gradient"
MOST_PARAMETERS = 6
FIXED_SIGNATURES = {
    "ld3/comfy/guided_run.py: sample": "ComfyUI calls a Sampler's method with these",
    "nodes/compare_schedules.py: execute": "ComfyUI passes every input of a node by its name",
    "nodes/distill_solver.py: execute": "ComfyUI passes every input of a node by its name",
    "nodes/ksampler.py: execute": "ComfyUI passes every input of a node by its name",
    "nodes/train_schedule.py: execute": "ComfyUI passes every input of a node by its name",
}


def dotted(path: Path) -> str:
    """A module's name; a package's for its __init__."""
    return name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def own_imports(path: Path) -> set[str]:
    """The pack's modules that a file imports, also inside functions and for types only."""
    return {module for module in imports(path) if is_own(module)}


def functions(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(name, parameters besides self and cls) of all functions in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
            named += [star for star in (given.vararg, given.kwarg) if star]
            names = [argument.arg for argument in named]
            yield node.name, names[names[:1] in (["self"], ["cls"]) :]


def test_only_the_comfy_layer_imports_comfy() -> None:
    """The demo model is ComfyUI's own UNet, so its loader below demo/ is exempt."""
    for path in shipped_modules():
        inside = name_of(path)
        if inside.startswith(("ld3/comfy/", "demo/")):
            continue
        allowed = {"comfy_api"} if inside.startswith("nodes/") or inside == "__init__.py" else set()
        for module in imports(path):
            top = module.split(".")[0]
            # `from . import nodes` in the root means our own folder.
            own = (ROOT / top).is_dir() and top in {"nodes", "ld3", "demo"}
            comfyui = top in COMFYUI_MODULES | {"comfy_api"} and not own
            assert not comfyui or top in allowed, f"{inside} imports {module}"


def test_imports_point_from_nodes_to_comfy_layer_to_core() -> None:
    for path in shipped_modules():
        inside = name_of(path)
        for module in imports(path):
            if inside.startswith("ld3/"):
                assert not module.startswith(("nodes", "demo")), f"{inside} imports {module}"
            if inside.startswith("ld3/") and not inside.startswith("ld3/comfy/"):
                assert not module.startswith("ld3.comfy"), f"{inside} imports {module}"
            if inside.startswith("demo/"):
                assert not module.startswith("nodes"), f"{inside} imports {module}"


@pytest.mark.slow
def test_core_imports_without_comfyui() -> None:
    """`ld3` is usable, and testable, on a machine that has no ComfyUI."""
    modules = [
        name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in (ROOT / "ld3").rglob("*.py")
        if "comfy" not in path.relative_to(ROOT).parts
    ]
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    code += "".join(f"import {module}\n" for module in modules)
    code += "assert not [m for m in sys.modules if m.split('.')[0] in ('comfy', 'comfy_api')]"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_imports_form_no_cycle() -> None:
    graph = {dotted(path): own_imports(path) for path in shipped_modules()}
    assert graph["ld3.training.train"] > {"ld3.model", "ld3.training.dode"}  # the graph is read
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_of_the_descent_by_gradient_others_know_its_settings_and_train_and_planning_it() -> None:
    allowed = {
        "ld3/training/planning.py": {f"{WING}.descent"},
        "ld3/training/settings.py": {f"{WING}.gradient_settings"},
        "ld3/training/train.py": {f"{WING}.gradient_settings", f"{WING}.descent"},
    }
    for path in (ROOT / "ld3" / "training").glob("*.py"):
        wing = {module for module in own_imports(path) if module.startswith(WING)}
        assert wing <= allowed.get(name_of(path), {f"{WING}.gradient_settings"}), name_of(path)


def test_file_names_are_unique() -> None:
    names = [path.name for path in shipped_modules() if path.name != "__init__.py"]
    assert len(names) == len(set(names))


def test_tensors_leave_their_device_before_they_become_float64() -> None:
    """Devices of Apple and DirectML have no float64."""
    found = [
        name_of(path)
        for path in (ROOT / "ld3").rglob("*.py")
        if re.search(r"(\.double\(\)|float64\))\.(cpu|to)\(", path.read_text(encoding="utf-8"))
    ]
    assert not found


def test_functions_have_at_most_six_parameters() -> None:
    long = {
        f"{name_of(path)}: {name}"
        for folder in ("ld3", "nodes")
        for path in (ROOT / folder).rglob("*.py")
        for name, parameters in functions(path)
        if len(parameters) > MOST_PARAMETERS
    }
    assert long == set(FIXED_SIGNATURES)
