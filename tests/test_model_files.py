"""Small files with the names and shapes of published models, as core's loaders detect them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOAD = """
import json, sys
from pathlib import Path
from scripts import comfyui_import, support

comfyui_import.prepare(Path(sys.argv[1]))
files, found = support.module_of_tests("model_files"), {}
for name, file in files.FILES.items():
    model = files.loaded(name).model
    weights = model.diffusion_model.state_dict().values()
    read = all(bool(weight.isfinite().all()) for weight in weights)
    found[name] = [type(model.model_config).__name__, file.config, read]
print(json.dumps(found))
"""


def test_core_detects_the_class_of_every_file_and_reads_all_weights(comfyui_root: Path) -> None:
    """In a process where `nodes` is ComfyUI's, which some of core's nodes import."""
    program = [sys.executable, "-c", LOAD, str(comfyui_root)]
    run = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert len(found) >= 11
    for name, (detected, expected, read) in found.items():
        assert detected == expected and read, name
