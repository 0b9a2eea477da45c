"""A small workflow and grids over it, for the tests of sweeps; they import it as `.sweep_grids`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from scripts.sweeping.grid import Prompt

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "tests" / "workflows" / "LD3 demo - train and compare.json"
TRAIN = "5"
TINY = {
    "steps": 3, "teacher_steps": 6, "iterations": 1, "training_noises": 4, "heldout_noises": 4,
    "batch_size": 16, "teacher_scheduler": "simple", "quality": "fast", "learn": "time steps",
}  # fmt: skip


def workflow() -> Prompt:
    """A quick training on 16x16 pictures: node "5" trains, "4" is its latent."""
    every = json.loads(DEMO.read_text(encoding="utf-8"))
    prompt = {key: every[key] for key in ("1", "3", TRAIN, "20")}
    size = {"width": 16, "height": 16, "batch_size": 1}
    prompt["4"] = {"class_type": "EmptyLatentImage", "inputs": size}
    prompt[TRAIN]["inputs"] |= TINY | {"latent_image": ["4", 0]}
    return prompt


def grid_file(folder: Path, **grid: Any) -> Path:
    """A grid's file beside its workflow; `axes` has a default."""
    (folder / "train.json").write_text(json.dumps(workflow()), encoding="utf-8")
    found = {"workflow": "train.json", "axes": {"steps": [3, 4]}} | grid
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(found, sort_keys=False), encoding="utf-8")
    return path
