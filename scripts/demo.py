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
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ld3 import schedule as schedule_file  # noqa: E402
from ld3.training.report import Report, best_baseline  # noqa: E402
from scripts import comfyui_source  # noqa: E402
from scripts.comfyui_server import ComfyServer, ComfyServerError, raise_for_status  # noqa: E402

TWIN = ROOT / "tests" / "workflows" / "LD3 demo - train and compare.json"
MODEL, PROMPT, SEED, TRAIN = "1", "2", "4", "5"
STANDARD, REPORT = "7", "16"
DECODED = {"teacher": "9", "standard": "10", "learned": "11"}
PICTURES = [("grinning face", 1), ("cat face", 2), ("red apple", 3), ("red heart", 4)]
PICTURES_PER_PROMPT = 2
QUICK = {"iterations": 1, "training_noises": 4, "heldout_noises": 4, "teacher_steps": 8}
ZOOM, MARGIN, LABEL = 4, 8, 150
DIFFERENCE_GAIN = 4  # differences are too faint to see


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
        # the node's text starts with the name of the file it wrote
        saved = server.base / "models" / "ld3" / outputs[TRAIN]["text"][0].split(":")[0]
        schedule = schedule_file.load(saved)
        shutil.copyfile(saved, output / "emoji.safetensors")
        server.fetch_image(outputs[REPORT]["images"][0]).save(output / "report.png")
        result = summary(schedule, seconds)
        picture = comparison(server, prompt, saved.name, result["best_baseline"])
        picture.save(output / "comparison.png")
    (output / "report.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if options.docs:
        images = ROOT / "docs" / "images"
        images.mkdir(parents=True, exist_ok=True)
        for name in ("comparison.png", "report.png"):
            shutil.copyfile(output / name, images / name)
    print_table(result, Report.from_json(schedule.info.report))
    print(f"pictures, schedule and report.json are in {output}")
    if result["ratio"] is None:
        raise ValueError("no standard schedule was measured, so there is no ratio; see report.png")
    best, error = (
        result["best_baseline"],
        result["heldout_error_baselines"][result["best_baseline"]],
    )
    print(
        f"learned / best standard schedule ({best}): "
        f"{result['heldout_error_learned']:.4f} / {error:.4f} = {result['ratio']:.3f}"
    )


def train(server: ComfyServer, prompt: dict[str, Any]) -> dict[str, Any]:
    """Run the demo workflow, print the training's progress, and return outputs by node id."""
    with server.listen() as messages:
        prompt_id = server.queue(prompt)
        print("learning 5 steps of dpmpp_2m for the demo model", flush=True)
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


def summary(schedule: schedule_file.Schedule, seconds: float) -> dict[str, Any]:
    """The contents of report.json."""
    info, report = schedule.info, Report.from_json(schedule.info.report)
    errors = {name: baseline.test_error for name, baseline in report.baselines.items()}
    best, learned = best_baseline(report.baselines, "test_error"), report.test_error
    return {
        "sampler": info.sampler,
        "steps": info.steps,
        "cfg": info.cfg,
        "model_calls_training": report.training_calls,
        "model_calls_teacher": report.teacher_calls,
        "heldout_error_learned": learned,
        "heldout_error_baselines": errors,
        "best_baseline": best,
        "ratio": learned / errors[best] if best and learned is not None else None,
        "seconds": round(seconds, 1),
    }


def comparison(
    server: ComfyServer, prompt: dict[str, Any], schedule: str, scheduler: str | None
) -> Image.Image:
    """Sample several prompts in three ways with the same noises: one labelled picture."""
    scheduler = scheduler or prompt[STANDARD]["inputs"]["scheduler"]
    steps = prompt[TRAIN]["inputs"]["steps"]
    rows = {
        "teacher": f"teacher\n{prompt['6']['inputs']['steps']} steps",
        "standard": f"{scheduler}\n{steps} steps",
        "learned": f"learned\n{steps} steps",
    }
    cells: dict[str, list[Image.Image]] = {row: [] for row in rows}
    for text, seed in PICTURES:
        graph = copy.deepcopy(
            {k: v for k, v in prompt.items() if int(k) <= int(DECODED["learned"])}
        )
        # sigmas, sampler and schedule are the same outputs of both nodes
        graph[TRAIN] = {"class_type": "LD3LoadSchedule", "inputs": {"name": schedule}}
        graph[MODEL]["inputs"]["batch_size"] = PICTURES_PER_PROMPT
        graph[PROMPT]["inputs"]["text"] = text
        graph[SEED]["inputs"]["value"] = seed
        graph[STANDARD]["inputs"]["scheduler"] = scheduler
        for row, decoded in DECODED.items():
            graph[row] = {"class_type": "PreviewImage", "inputs": {"images": [decoded, 0]}}
        outputs = server.run(graph, timeout=120)
        for row in rows:
            cells[row] += [server.fetch_image(record) for record in outputs[row]["images"]]
    for row in ("standard", "learned"):
        rows[f"{row} off"] = (
            f"{rows[row].splitlines()[0]}:\ndifference\nto the teacher\n(x {DIFFERENCE_GAIN})"
        )
        cells[f"{row} off"] = [
            difference(picture, target)
            for picture, target in zip(cells[row], cells["teacher"], strict=True)
        ]
    return labelled_grid(cells, rows, [text for text, _ in PICTURES])


def difference(picture: Image.Image, target: Image.Image) -> Image.Image:
    """The absolute difference of two pictures, amplified, on white."""
    off = ImageChops.difference(picture.convert("RGB"), target.convert("RGB"))
    return ImageChops.invert(off.point(lambda value: min(255, DIFFERENCE_GAIN * value)))


def labelled_grid(
    cells: dict[str, list[Image.Image]], rows: dict[str, str], columns: list[str]
) -> Image.Image:
    """Rows of pictures, enlarged without smoothing, with labels for rows and groups of columns."""
    size = cells["teacher"][0].width * ZOOM
    count = len(cells["teacher"])
    pitch = size + MARGIN
    group = count // len(columns)
    font, top = ImageFont.load_default(18), 36
    width = LABEL + count * pitch + (len(columns) - 1) * MARGIN + MARGIN
    picture = Image.new("RGB", (width, top + len(rows) * pitch + MARGIN), "white")
    drawing = ImageDraw.Draw(picture)

    def left(index: int) -> int:
        return LABEL + index * pitch + index // group * MARGIN

    for index, text in enumerate(columns):
        middle = (left(index * group) + left(index * group + group - 1) + size) // 2
        drawing.text((middle, top // 2), text, "black", font, anchor="mm")
    for number, (row, label) in enumerate(rows.items()):
        y = top + number * pitch
        drawing.multiline_text((16, y + size // 2), label, "black", font, anchor="lm")
        for index, cell in enumerate(cells[row]):
            picture.paste(cell.resize((size, size), Image.NEAREST), (left(index), y))
    return picture


def print_table(result: dict[str, Any], report: Report) -> None:
    """Error to the teacher by schedule, best first."""
    errors = result["heldout_error_baselines"] | {"learned": result["heldout_error_learned"]}
    print(f"\n{result['sampler']}, {result['steps']} steps, cfg {result['cfg']:g}")
    print(f"{'schedule':<18}{'error to the teacher':>22}")
    for name in sorted(errors, key=lambda n: (errors[n] is None, errors[n])):
        comparable = name == "learned" or report.baselines[name].comparable
        value = "not finite" if errors[name] is None else f"{errors[name]:.4f}"
        print(f"{name:<18}{value:>22}{'' if comparable else '  (more model calls)'}")
    print(
        f"model calls: teacher {result['model_calls_teacher']}, "
        f"training {result['model_calls_training']}; {result['seconds']:.0f} s\n"
    )


if __name__ == "__main__":
    main()
