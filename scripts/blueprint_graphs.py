"""The graphs of subgraphs/, which ComfyUI offers as nodes; blueprints.py makes the files."""

from __future__ import annotations

from typing import Any

from scripts.workflow_layout import node

# connected by name to every node of the graph that has such an input
LINKED = ("model", "positive", "negative", "latent_image", "vae")

BLUEPRINTS: dict[str, dict[str, Any]] = {
    "LD3 train and sample": {
        "description": "Learns few sampling steps for a model once, saves them in models/ld3 and "
        "samples with them.",
        "aliases": ["few steps", "turbo", "schedule", "LD3"],
        "nodes": {
            "1": node("LD3TrainSchedule", (0, 0), (300, 400)),
            "2": node("LD3KSampler", (380, 0), (300, 214), schedule=["1", 2], seed=1, denoise=1),
            "3": node("VAEDecode", (760, 0), (200, 46), samples=["2", 0]),
        },
        # name on the subgraph's node, and the inputs it sets
        "widgets": [
            ("sampler_name", [("1", "sampler_name")]),
            ("steps", [("1", "steps")]),
            ("cfg", [("1", "cfg"), ("2", "cfg")]),
            ("name", [("1", "name")]),
            ("quality", [("1", "quality")]),
            ("seed", [("2", "seed")]),
        ],
        "outputs": [("IMAGE", "3", 0), ("schedule", "1", 2), ("report", "1", 3)],
    },
    "LD3 sample": {
        "description": "Samples with a schedule of models/ld3.",
        "aliases": ["few steps", "turbo", "schedule", "LD3"],
        "nodes": {
            "1": node("LD3LoadSchedule", (0, 0), (300, 400)),
            "2": node("LD3KSampler", (380, 0), (300, 214), schedule=["1", 2], seed=1, denoise=1),
            "3": node("VAEDecode", (760, 0), (200, 46), samples=["2", 0]),
        },
        "widgets": [
            ("name", [("1", "name")]),
            ("cfg", [("2", "cfg")]),
            ("seed", [("2", "seed")]),
            ("denoise", [("2", "denoise")]),
        ],
        "outputs": [("IMAGE", "3", 0), ("LATENT", "2", 0)],
    },
}
