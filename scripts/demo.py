"""Learn a schedule for the bundled model in a real ComfyUI and compare it with standard ones.

    python scripts/demo.py --comfyui DIR

Starts ComfyUI's server with this pack, queues the demo workflow over its HTTP API, and writes
output/demo/: comparison.png, report.png, the schedule and report.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ld3 import schedule_file  # noqa: E402
from ld3.schedule import Schedule  # noqa: E402
from ld3.training.report import Report  # noqa: E402
from ld3.training.verdict import verdict  # noqa: E402
from scripts import comfyui_source  # noqa: E402
from scripts.comfyui_client import raise_for_status  # noqa: E402
from scripts.comfyui_messages import ComfyServerError  # noqa: E402
from scripts.comfyui_server import ComfyServer  # noqa: E402

TWIN = ROOT / "tests" / "workflows" / "LD3 demo - train and compare.json"
TRAIN, COMPARE = "5", "9"
QUICK = {"iterations": 1, "training_noises": 4, "heldout_noises": 4, "teacher_steps": 8}


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
        for key, name in ((TRAIN, "report.png"), (COMPARE, "comparison.png")):
            server.fetch_image(outputs[key]["images"][0]).save(output / name)
    result = summary(schedule, seconds)
    result["comparison"] = outputs[COMPARE]["table"][0].splitlines()
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


def print_result(text: str, result: dict[str, Any]) -> None:
    """What the node says of its result, and the errors of the pictures."""
    print()
    for line in text.splitlines():
        print(f"  {line}")
    print("\ncomparison.png:")
    for line in result["comparison"]:
        print(f"  {line}")
    print()


if __name__ == "__main__":
    main()
