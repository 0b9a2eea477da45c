"""Train for a model of every family, and write docs/support.md and docs/results/support.json.

    python scripts/support.py --comfyui DIR [--only TEXT]

The models are ComfyUI's own classes, tiny and with random weights (tests/models.py). That shows
whether training and sampling work, not how good they are. `--only` runs the rows that contain TEXT
and keeps the others.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts import comfyui_import  # noqa: E402
from scripts.support_checks import (  # noqa: E402
    CFG,
    SAMPLER,
    check_gradients,
    differences,
    differences_of_two,
)

RESULTS, PAGE = ROOT / "docs" / "results" / "support.json", ROOT / "docs" / "support.md"
SETTINGS = {
    "sampler_name": SAMPLER, "steps": 3, "cfg": CFG, "denoise": 1.0, "seed": 0,
    "teacher_sampler": SAMPLER, "teacher_scheduler": "auto", "teacher_steps": 8,
    "distance": "pseudo-huber", "iterations": 3, "training_noises": 4, "heldout_noises": 4,
    "batch_size": 2, "quality": "fast", "learn": "time steps + full solver",
}  # fmt: skip
PATCHED = "SD 1.5 with "
TWO, BOUNDARY = "Wan 2.1 as two models", 0.875
ROUNDING = 1e-3  # relative; some of the random networks enlarge the rounding of float32
COLUMNS = ("family", "prediction", "gauss_newton", "gradient", "sigmas", "sampler", "ratio",
           "reason")  # fmt: skip
INTRODUCTION = """# What is supported

Made by `nox -s support`: each row is a model of ComfyUI {version}'s own classes, tiny and with
random weights, for which a schedule of 3 steps is learned (full solver, cfg 2) and then sampled by
core's nodes. It shows what works, not how well: for results on trained models see
[benchmarks.md](benchmarks.md).

- *gauss-newton*: a training ends with a schedule. *gradient*: the network's gradients pass the
  check before a training with that optimizer.
- *SIGMAS*, *SAMPLER*: core's sampling with these outputs is what was learned, to rounding.
- *ratio*: error on test noises relative to the best standard schedule's; 1 where that is better
  and is returned.

"""
SAMPLERS = """
## Samplers of other packs

A deterministic sampler of any pack is read when a node runs. Tried with RES4LYF 1.1.0 (commit
022c873) on the demo models, 4 steps, cfg 3, on the CPU: of its 19 samplers, the eight `_ode` ones
(`res_2m_ode`, `res_3m_ode`, `res_2s_ode`, `res_3s_ode`, `res_5s_ode`, `res_6s_ode`, `deis_2m_ode`,
`deis_3m_ode`) and `rk` are read, and their tables sample as they do to 4e-6. Reading one takes 0.05
to 0.5 s a schedule, and a training reads about 500: a minute for `res_2s_ode`, several for
`res_6s_ode`. The eight without `_ode` and `rk_beta` are stochastic at their defaults (the message
names the `_ode` sampler to use instead), and `legacy_rk` needs an NVIDIA GPU even if ComfyUI runs
on the CPU.
"""


def main() -> None:
    """Make the rows, then both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--comfyui", required=True, type=Path, help="ComfyUI's source folder")
    parser.add_argument("--only", default="", help="only rows whose family contains this")
    options = parser.parse_args()
    known = json.loads(RESULTS.read_text("utf-8"))["rows"] if RESULTS.is_file() else []
    rows = {row["family"]: row for row in known} if options.only else {}
    with tempfile.TemporaryDirectory() as folder:
        comfyui_import.prepare(options.comfyui.resolve(), "--base-directory", folder)
        logging.disable(logging.WARNING)
        import comfyui_version
        import torch

        from ld3.comfy import folders

        torch.set_num_threads(1)
        folders.register()
        with torch.inference_mode():  # as ComfyUI runs its nodes
            for name, *inputs in cases(options.only):
                rows[name] = row(name, *inputs)
                print(" | ".join(str(rows[name][column]) for column in COLUMNS), flush=True)
                found = {"comfyui": comfyui_version.__version__, "rows": list(rows.values())}
                RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
                PAGE.write_text(page(found), encoding="utf-8")


def page(found: dict[str, Any]) -> str:
    """docs/support.md for the contents of docs/results/support.json."""
    lines = [INTRODUCTION.format(version=found["comfyui"])]
    titles = ("model", "prediction", "gauss-newton", "gradient", "SIGMAS", "SAMPLER", "ratio")
    lines.append(f"| {' | '.join(titles)} | if not, why |\n|{'---|' * len(COLUMNS)}\n")
    words = {True: "yes", False: "no", None: ""}
    for row in found["rows"]:
        cells = [
            value if isinstance(value, str) else f"{value:.2f}" if column == "ratio" and value
            else words[value]
            for column, value in ((column, row[column]) for column in COLUMNS)
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines) + SAMPLERS


def module_of_tests(name: str) -> Any:
    """A module of tests/, under another name: ComfyUI has a package `tests` of its own."""
    if "support_tests" not in sys.modules:
        package = ModuleType("support_tests")
        package.__path__ = [str(ROOT / "tests")]
        sys.modules["support_tests"] = package
    return importlib.import_module(f"support_tests.{name}")


def names() -> list[str]:
    """Of all rows."""
    return list(_sources())


def _sources() -> dict[str, tuple[Any, Callable[[], Any]]]:
    """The family of each row, and what makes its MODEL."""
    models = module_of_tests("models")
    made, sd15 = models.family_model, models.SD15
    families = models.FAMILIES | models.NESTED
    sources = {name: (family, partial(made, family)) for name, family in families.items()}
    sources |= {
        f"weights: {name}": (models.FLUX_FAMILY, partial(made, models.FLUX_FAMILY, **weights))
        for name, weights in models.WEIGHTS.items()
    }
    files = module_of_tests("model_files")
    sources |= {
        f"file: {name}": (family, partial(files.loaded, name))
        for name, family in files.FILES.items()
    }
    wan = families["Wan 2.1"]
    sources[TWO] = wan, lambda: (high := made(wan), models.lora(high))
    for name, patch in models.VARIANTS.items():
        sources[PATCHED + name] = sd15, lambda patch=patch: patch(made(sd15))
    return sources


def cases(only: str = "") -> Iterator[tuple[str, Any, Any, Any]]:
    """Name, MODEL, two conditionings and LATENT of every row that contains `only`, one by one.

    In the row of two models MODEL is a pair, for high and for low noise.
    """
    models = module_of_tests("models")
    for name, (family, model) in _sources().items():
        if only in name:
            yield name, model(), models.conditionings(family), models.latent(family)


def row(name: str, model: Any, conds: tuple[Any, Any], latent: dict[str, Any]) -> dict[str, Any]:
    """Train and sample with one model; each false has its reason."""
    from ld3.comfy import core_samplers
    from ld3.comfy.job import GraphInputs
    from ld3.comfy.requests import TrainingRequest
    from ld3.comfy.training_job import train_schedule

    model, low = model if isinstance(model, tuple) else (model, None)
    inputs, reasons = GraphInputs(model, *conds, latent, None, low, BOUNDARY), []
    found = dict.fromkeys(COLUMNS)
    found |= {"family": name, "gauss_newton": False, "gradient": False}
    found |= {"sigmas": False, "sampler": False}
    sampling = model.get_model_object("model_sampling")
    found["prediction"] = core_samplers.prediction_type(sampling)
    try:
        result = train_schedule(inputs, TrainingRequest(**SETTINGS), "support")
        found["gauss_newton"] = True
        report = result.report
        best = report.best_baseline()
        error = report.baselines[best].test_error if best else None
        returned = report.returned_error
        found["ratio"] = returned / error if returned and error else None
        compared = differences if low is None else partial(differences_of_two, boundary=BOUNDARY)
        difference = compared(inputs, result.schedule)
        for column, value in zip(("sigmas", "sampler"), difference, strict=True):
            found[column] = value <= ROUNDING
            if value > ROUNDING:
                reasons.append(f"{column}: differs by {value:.1e}")
    except ValueError as error:
        reasons.append(str(error))
    try:
        if low is not None:
            raise ValueError("not made for two models")
        check_gradients(inputs)
        found["gradient"] = True
    except ValueError as error:
        reasons.append(f"gradient: {error}" if found["gauss_newton"] else "")
    found["reason"] = "; ".join(filter(None, reasons))
    gc.collect()
    return found


if __name__ == "__main__":
    main()
