"""The examples run as their first line says, without ComfyUI."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_mixture_is_learned_without_comfyui_and_the_report_is_drawn(tmp_path: Path) -> None:
    picture = tmp_path / "new" / "report.png"
    program = [sys.executable, "docs/examples/learn_mixture.py", str(picture)]
    run = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    levels = [float(x) for x in re.search(r"noise levels: (.+)", run.stdout)[1].split(", ")]
    assert len(levels) == 5 and levels == sorted(levels, reverse=True)
    errors = [float(x) for x in re.findall(r"error of .* ([\d.]+)\n", run.stdout)]
    assert errors[1] < 0.3 * errors[0]
    width, height = Image.open(picture).size
    assert width == 1300 and 380 < height < 460
