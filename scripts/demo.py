"""Learn a schedule for the bundled model in a real ComfyUI and compare it with standard ones.

    python scripts/demo.py --comfyui DIR

Starts ComfyUI's server with this pack, queues the demo workflow over its HTTP API, and writes
output/demo/: comparison.png, report.png, the schedule and report.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ld3 import schedule_file  # noqa: E402
from ld3.schedule import Schedule  # noqa: E402
from ld3.training.report import Report  # noqa: E402
from ld3.training.verdict import verdict  # noqa: E402
from scripts import comfyui_source  # noqa: E402
from scripts.comfyui_server import ComfyServer, ComfyServerError, raise_for_status  # noqa: E402

TWIN = ROOT / "tests" / "workflows" / "LD3 demo - train and compare.json"
MODEL, PROMPT, LEARNED_PROMPT, SEED, TRAIN, REPORT = "1", "2", "20", "4", "5", "19"
SAMPLERS = {"teacher": "6", "own": "7", "standard": "8", "learned": "9"}
DECODED = {"teacher": "10", "own": "11", "standard": "12", "learned": "13"}
PICTURES = [  # prompts and seeds; the first prompt is the one learned from
    ("grinning face", 1),
    ("hamburger", 5),
    ("fish", 13),
    ("rocket", 7),
    ("sunflower", 12),
]
QUICK = {"iterations": 1, "training_noises": 4, "heldout_noises": 4, "teacher_steps": 8}
ZOOM, MARGIN, LABEL, TOP = 6, 8, 150, 84


def main() -> None:
    """Run the demo; on failure, print one line and exit with status 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", required=True, type=Path, help="ComfyUI's source folder")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "demo")
    parser.add_argument("--base", type=Path, help="keep the server's files in this folder")
    parser.add_argument("--docs", action="store_true", help="copy the pictures to docs/images")
    parser.add_argument("--quick", action="store_true", help="tiny settings, to test the demo")
    options = parser.parse_args()
    # The server inherits it: while other programs use the cores, threads that wait actively make
    # the network several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        comfyui_source.require_checkout(options.comfyui)
        run_demo(options)
    except (comfyui_source.SourceError, ComfyServerError, ValueError, OSError) as error:
        sys.exit(f"demo: {error}")


def run_demo(options: argparse.Namespace) -> None:
    """Train, sample, and write everything below `options.output`."""
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    prompt = json.loads(TWIN.read_text(encoding="utf-8"))
    prompt[TRAIN]["inputs"]["retrain"] = True
    if options.quick:
        prompt[TRAIN]["inputs"].update(QUICK)
    print("starting ComfyUI", flush=True)
    with ComfyServer(options.comfyui, options.base) as server:
        started = time.monotonic()
        outputs = train(server, prompt)
        seconds = time.monotonic() - started
        text = outputs[TRAIN]["text"][0]
        saved = server.base / "models" / "ld3" / outputs[TRAIN]["ld3_file"][0]
        schedule = schedule_file.load(saved)
        shutil.copyfile(saved, output / "emoji.safetensors")
        server.fetch_image(outputs[REPORT]["images"][0]).save(output / "report.png")
        columns = ways(prompt, schedule)
        cells = sample(server, prompt, saved.name, columns["standard"])
    errors = {way: mean_error(cells[way], cells["teacher"]) for way in columns}
    labelled_grid(cells, columns, errors, learned_prompt(prompt)).save(output / "comparison.png")
    result = summary(schedule, seconds)
    result["pictures_error"] = {w.label: errors[k] for k, w in columns.items() if k != "teacher"}
    (output / "report.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if options.docs:
        images = ROOT / "docs" / "images"
        images.mkdir(parents=True, exist_ok=True)
        for name in ("comparison.png", "report.png"):
            shutil.copyfile(output / name, images / name)
    print_result(text, result)
    print(f"pictures, schedule and report.json are in {output}")
    if result["ratio"] is None:
        raise ValueError("no standard schedule was measured, so there is no ratio; see report.png")
    low, high = result["ratio_interval"]
    print(
        f"error of the learned schedule / of the best standard one ({result['best_baseline']}): "
        f"{result['error_learned']:.4f} / {result['error_best_baseline']:.4f} = "
        f"{result['ratio']:.2f} (90 % interval {low:.2f} to {high:.2f})"
    )
    print(result["verdict"])


def train(server: ComfyServer, prompt: dict[str, Any]) -> dict[str, Any]:
    """Run the demo workflow, print the training's progress, and return outputs by node id."""
    with server.listen() as messages:
        prompt_id = server.queue(prompt)
        widgets = prompt[TRAIN]["inputs"]
        what = f"{widgets['steps']} steps of {widgets['sampler_name']}"
        print(f"learning {what} for the demo model", flush=True)
        printed, read, entry = 0, 0, None
        while entry is None:
            time.sleep(1.0)
            seen = messages.drain()
            for message in seen[read:]:
                if message.kind == "progress" and message.data.get("node") == TRAIN:
                    done = 100 * message.data["value"] // max(1, message.data["max"])
                    if done >= printed + 10:
                        printed = int(done)
                        print(f"  {printed} %", flush=True)
            read = len(seen)
            try:
                entry = server.history(prompt_id)
            except OSError:
                entry = server.wait(prompt_id, timeout=30)  # raises the reason if the server exited
    raise_for_status(entry)
    return entry["outputs"]


def summary(schedule: Schedule, seconds: float) -> dict[str, Any]:
    """The contents of report.json; errors are on the test noises."""
    info, report = schedule.info, Report.from_json(schedule.info.report)
    best, learned = report.best_baseline(), report.test_error
    error = report.baselines[best].test_error if best else None
    return {
        "sampler": info.sampler,
        "steps": info.steps,
        "cfg": info.cfg,
        "learned": ["time steps", *info.extras],
        "teacher": f"{info.teacher['sampler']} + {info.teacher['scheduler']}",
        "teacher_steps": info.teacher["steps"],
        "model_calls_teacher": report.teacher_calls,
        "model_calls_training": report.training_calls,
        "model_calls_report": report.report_calls,
        "error_learned": learned,
        "error_time_steps_alone": report.steps_error,
        "best_baseline": best,
        "error_best_baseline": error,
        "ratio": learned / error if error and learned is not None else None,
        "ratio_interval": report.gain,
        "compared": [
            asdict(curve) | dict(zip(("equal_steps", "more"), curve.equal_steps(), strict=True))
            for curve in report.compared
        ],
        "verdict": verdict(info.steps, info.sampler, info.teacher["steps"], report),
        "seconds": round(seconds, 1),
    }


@dataclass(frozen=True)
class Way:
    """A column of the picture: how it was sampled."""

    label: str
    model_calls: int
    scheduler: str = ""


def ways(prompt: dict[str, Any], schedule: Schedule) -> dict[str, Way]:
    """The columns of the picture by name; the standard one is the best of its number of calls."""
    report = Report.from_json(schedule.info.report)
    own, standard = (prompt[SAMPLERS[way]]["inputs"] for way in ("own", "standard"))
    best = report.best_baseline() or standard["scheduler"]
    teacher, steps = prompt[SAMPLERS["teacher"]]["inputs"]["steps"], schedule.info.steps
    few = schedule.info.model_calls
    return {
        "teacher": Way(f"teacher, {teacher} steps", teacher),
        "own": Way(f"{own['sampler_name']} + {own['scheduler']}, {steps} steps", steps),
        "standard": Way(f"{schedule.info.sampler} + {best}, {steps} steps", few, best),
        "learned": Way(f"learned, {steps} steps", few),
    }


def learned_prompt(prompt: dict[str, Any]) -> str:
    """The prompt of the training."""
    return prompt[LEARNED_PROMPT]["inputs"]["text"]


def sample(
    server: ComfyServer, prompt: dict[str, Any], schedule: str, standard: Way
) -> dict[str, list[Image.Image]]:
    """Pictures by way, of several prompts with the same noises."""
    cells: dict[str, list[Image.Image]] = {way: [] for way in DECODED}
    needed = {MODEL, PROMPT, "3", SEED, *SAMPLERS.values(), *DECODED.values()}
    for text, seed in PICTURES:
        graph = copy.deepcopy({key: prompt[key] for key in needed})
        # sigmas, sampler and schedule are the same outputs of both nodes
        graph[TRAIN] = {"class_type": "LD3LoadSchedule", "inputs": {"name": schedule}}
        graph[MODEL]["inputs"]["batch_size"] = 1
        graph[PROMPT]["inputs"]["text"] = text
        graph[SEED]["inputs"]["value"] = seed
        graph[SAMPLERS["standard"]]["inputs"]["scheduler"] = standard.scheduler
        for way, decoded in DECODED.items():
            graph[way] = {"class_type": "PreviewImage", "inputs": {"images": [decoded, 0]}}
        outputs = server.run(graph, timeout=120)
        for way in cells:
            cells[way].append(server.fetch_image(outputs[way]["images"][0]).convert("RGB"))
    return cells


def mean_error(pictures: list[Image.Image], targets: list[Image.Image]) -> float:
    """Mean RMSE of pictures, with pixels from -1 to 1 as the demo model's latents."""
    pairs = zip(pictures, targets, strict=True)
    off = [np.asarray(a, float) / 127.5 - np.asarray(b, float) / 127.5 for a, b in pairs]
    return float(np.mean([np.sqrt(np.mean(part**2)) for part in off]))


def labelled_grid(
    cells: dict[str, list[Image.Image]],
    columns: dict[str, Way],
    errors: dict[str, float],
    learned_from: str,
) -> Image.Image:
    """A row per prompt and a column per way, enlarged without smoothing."""
    size = cells["teacher"][0].width * ZOOM
    width, height = size + 5 * MARGIN, size + MARGIN
    large, small = ImageFont.load_default(18), ImageFont.load_default(15)
    area = LABEL + len(columns) * width, TOP + len(PICTURES) * height
    picture = Image.new("RGB", area, "white")
    drawing = ImageDraw.Draw(picture)
    for row, (text, _) in enumerate(PICTURES):
        note = "(learned from)" if text == learned_from else "(new prompt)"
        middle = TOP + row * height + size // 2
        drawing.text((16, middle - 12), text, "black", large, anchor="lm")
        drawing.text((16, middle + 12), note, "dimgray", small, anchor="lm")
    for column, (way, described) in enumerate(columns.items()):
        left = LABEL + column * width
        middle = left + size // 2
        drawing.text((middle, 20), described.label, "black", large, anchor="mm")
        calls = f"{described.model_calls} model calls"
        drawing.text((middle, 43), calls, "dimgray", small, anchor="mm")
        error = "the goal" if way == "teacher" else f"error {errors[way]:.3f}"
        drawing.text((middle, 64), error, "dimgray", small, anchor="mm")
        for row, cell in enumerate(cells[way]):
            enlarged = cell.resize((size, size), Image.Resampling.NEAREST)
            picture.paste(enlarged, (left, TOP + row * height))
    return picture


def print_result(text: str, result: dict[str, Any]) -> None:
    """What the node says of its result, and the errors of the pictures."""
    print()
    for line in text.splitlines():
        print(f"  {line}")
    print("\nerror to the teacher, of the pictures in comparison.png:")
    for label, error in result["pictures_error"].items():
        print(f"  {label:<30}{error:.4f}")
    print()


if __name__ == "__main__":
    main()
