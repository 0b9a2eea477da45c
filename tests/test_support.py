"""docs/support.md: complete, explained, and what its script writes today."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import support

ROOT = Path(__file__).parents[1]
ANSWERS = ("gauss_newton", "gradient", "sigmas", "sampler")


MEASURE = """
import json, logging, sys, tempfile
from pathlib import Path
from scripts import comfyui_import, support

with tempfile.TemporaryDirectory() as folder:
    comfyui_import.prepare(Path(sys.argv[1]), "--base-directory", folder)
    logging.disable(logging.WARNING)
    import torch
    from ld3.comfy import folders

    torch.set_num_threads(1)
    folders.register()
    wanted = sys.argv[2:]
    with torch.inference_mode():
        rows = [support.row(*c) for name in wanted for c in support.cases(name) if c[0] == name]
    print(json.dumps({"names": support.names(), "rows": rows}))
"""


def measured(comfyui: Path, *names: str) -> dict[str, Any]:
    """The names of all families, and rows measured in a process where `nodes` is ComfyUI's."""
    program = [sys.executable, "-c", MEASURE, str(comfyui), *names]
    run = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return json.loads(support.RESULTS.read_text(encoding="utf-8"))


def test_the_page_is_made_of_the_results(results: dict[str, Any]) -> None:
    assert support.PAGE.read_text(encoding="utf-8") == support.page(results)


def test_every_no_has_a_reason(results: dict[str, Any]) -> None:
    for row in results["rows"]:
        assert set(row) == set(support.COLUMNS)
        assert all(row[answer] for answer in ANSWERS) or row["reason"], row


def test_what_is_learned_is_no_worse_than_the_standard(results: dict[str, Any]) -> None:
    for row in results["rows"]:
        if row["gauss_newton"]:
            # a learned schedule that is within the noise of the test is returned
            assert row["sigmas"] and row["sampler"] and row["ratio"] <= 1.01, row


@pytest.mark.slow
def test_every_family_has_a_row_and_some_are_measured_again(
    results: dict[str, Any], comfyui_root: Path
) -> None:
    names = ["Flux schnell", "SD 1.5 with v prediction, continuous EDM"]
    known = {row["family"]: row for row in results["rows"]}
    refused = next(name for name in known if "EasyCache" in name)
    found = measured(comfyui_root, *names, refused)
    assert set(known) == set(found["names"]) and len(known) >= 24
    assert [row["family"] for row in found["rows"]] == [*names, refused]
    for row in found["rows"][:2]:
        before = known[row["family"]]
        assert all(row[answer] == before[answer] for answer in ANSWERS)
        assert row["ratio"] == pytest.approx(before["ratio"], abs=0.05)
    assert not found["rows"][2]["gauss_newton"] and "EasyCache" in found["rows"][2]["reason"]
