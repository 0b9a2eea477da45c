"""Train, sample, interrupt and misuse one ComfyUI server for long, and see what it loses.

    python scripts/soak.py --comfyui DIR --json docs/results/reliability.json

Settings are random and tiny: the demo model at 16x16 pixels. Trainings are interrupted at random
moments and run again; between them are samplings, damaged files and impossible widgets. It ends
when all is done, at the latest after `--minutes`.

A training is lost if it ends with an error, or without a schedule that loads; a sampling if it
gives no finite latent; bad input if the server answers with anything but its documented error.
Memory is the server's resident one. With ComfyUI's default cache it grows by what the graph made,
a picture of 7 MB for each training, until RAM is short; therefore the server keeps the outputs of
the last prompt only (--cache-classic), and its history is deleted, as a user can.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts import comfyui_import, comfyui_source, fuzz  # noqa: E402
from scripts.comfyui_client import (  # noqa: E402
    ComfyRunError,
    PromptRefusedError,
    raise_for_status,
)
from scripts.comfyui_server import ComfyServer  # noqa: E402
from scripts.reliability import write_row  # noqa: E402

SEED = 0
SAMPLINGS_A_PROMPT = 10
WARM_UP = 0.25  # of the rounds: modules, fonts and caches of samplers fill
MOST_GROWTH = 0.02
MOST_MESSAGE = 500
Prompt = dict[str, dict[str, Any]]

MODEL = {"class_type": "LD3DemoModel", "inputs": {"batch_size": 1, "model": "flow"}}
LATENT = {
    "class_type": "EmptyLatentImage", "inputs": {"width": 16, "height": 16, "batch_size": 1}
}  # fmt: skip
SAMPLERS = ("euler", "heun", "dpmpp_2m", "ipndm", "res_multistep", "lms")
LEARN = ("time steps", "time steps + decoupled times", "time steps + full solver")
NAMES = ("soak", "$x_{$", "50 % of b", "\u6a21\u578b", "a.b", "x" * 100)
SMALL = {
    "teacher_steps": 5, "iterations": 1, "training_noises": 2, "heldout_noises": 2, "batch_size": 4,
    "quality": "fast", "denoise": 1.0, "teacher_scheduler": "simple", "cache_gb": 0.01,
}  # fmt: skip
IMPOSSIBLE: tuple[dict[str, Any], ...] = (
    {"sampler_name": "euler_ancestral"}, {"steps": 1}, {"teacher_steps": 2}, {"name": "../x"},
    {"name": "CON"}, {"cfg": -1.0}, {"minutes": -1.0}, {"learn": "everything"}, {"denoise": 0.0},
    {"also_steps": "3 to 5"}, {"distance": "lpips"}, {"teacher_sampler": "dpmpp_sde"},
    {"seed": "one"}, {"latent_image": ["3", 0]},
)  # fmt: skip


class Soak:
    """A server under load, and what was counted.

    Attributes:
        tried, lost: by case.
        memory: megabytes of the server after each round.
        problems: what was lost, in words.
    """

    def __init__(self, server: ComfyServer, seed: int = SEED) -> None:
        self.server, self.source = server, random.Random(seed)
        self.tried: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.memory: list[float] = []
        self.problems: list[str] = []
        self._folder = server.base / "models" / "ld3"
        self._seconds: list[float] = []  # of whole trainings
        self._whole = fuzz.valid_schedule()
        self._completed: Prompt | None = None  # the last one

    def round(self) -> None:
        """A training, perhaps interrupted and run again; samplings; perhaps bad input."""
        prompt = self._training()
        if self.source.random() < 0.3 and self._seconds:
            self._train(prompt, self.source.uniform(0, 1.2) * statistics.median(self._seconds))
        if self.source.random() < 0.8:
            self._train(prompt)
        self._sample()
        if self.source.random() < 0.5:
            self._misuse()
        self.server.clear_history()
        self.memory.append(self.server.memory())

    def check_files(self) -> None:
        """Count every saved file, and lose those that do not load."""
        from ld3.schedule_file import ScheduleFileError, load

        for path in sorted(self._folder.iterdir()):
            self.tried["saved file"] += 1
            try:
                if path.suffix != ".partial":  # from which a training goes on
                    load(path)
            except ScheduleFileError as error:
                self._lose("saved file", f"{path.name}: {error}")
        for path in self._folder.glob(".*"):
            self._lose("saved file", f"{path.name} was left")

    @property
    def growth(self) -> float:
        """Of the memory since the warm-up, as a share; of medians of a sixth of the rounds each."""
        after = self.memory[int(WARM_UP * len(self.memory)) :]
        part = max(1, len(after) // 6)
        return statistics.median(after[-part:]) / statistics.median(after[:part]) - 1

    def _training(self) -> Prompt:
        source = self.source
        inputs = SMALL | {
            "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0],
            "sampler_name": source.choice(SAMPLERS), "teacher_sampler": source.choice(SAMPLERS),
            "steps": source.choice((2, 2, 3)), "cfg": source.choice((1.0, 1.0, 1.0, 1.0, 2.5)),
            "distance": source.choice(("l2", "l1", "pseudo-huber")), "name": source.choice(NAMES),
            "learn": source.choice(LEARN), "seed": source.randrange(2**32),
            "retrain": source.random() < 0.2,
        }  # fmt: skip
        return {**self._model(), "5": {"class_type": "LD3TrainSchedule", "inputs": inputs}}

    def _model(self) -> Prompt:
        texts = [self.source.choice(("hamburger", "red heart", "cat face", "")), ""]
        found = {"1": MODEL, "4": LATENT}
        for key, text in zip(("2", "3"), texts, strict=True):
            found[key] = {"class_type": "LD3DemoPrompt", "inputs": {"text": text}}
        return found

    def _train(self, prompt: Prompt, interrupt_after: float | None = None) -> None:
        self.tried["training"] += 1
        before, started = set(self._folder.glob("*.safetensors")), time.monotonic()
        prompt_id = self.server.queue(prompt)
        if interrupt_after is not None:
            time.sleep(interrupt_after)
            self.tried["interrupt"] += 1
            self.server.interrupt(prompt_id)
        entry = self.server.wait(prompt_id, timeout=600)
        try:
            raise_for_status(entry)
        except ComfyRunError as error:
            if not (error.interrupted and interrupt_after is not None):
                self._lose("training", f"{error} in {prompt['5']['inputs']}")
            return
        repeated, self._completed = prompt is self._completed, prompt
        if repeated:  # ended before its interruption: ComfyUI kept its result and ran nothing
            return
        if interrupt_after is None:
            self._seconds.append(time.monotonic() - started)
            self._seconds = self._seconds[-20:]
        if not (set(self._folder.glob("*.safetensors")) - before or self._saved_before(entry)):
            self._lose("training", f"nothing was saved for {prompt['5']['inputs']}")

    def _saved_before(self, entry: dict[str, Any]) -> bool:
        return "saved before" in str(entry["outputs"])

    def _sample(self) -> None:
        """Sample with a schedule of those saved, by LD3 KSampler, in one prompt."""
        names = [path.name for path in self._folder.glob("*.safetensors")]
        if not names:
            return
        load = {"class_type": "LD3LoadSchedule", "inputs": {"name": self.source.choice(names)}}
        prompt: Prompt = {**self._model(), "5": load}
        inputs = {
            "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0],
            "schedule": ["5", 2], "denoise": 1.0,
        }  # fmt: skip
        seeds = self.source.sample(range(2**32), SAMPLINGS_A_PROMPT)
        last: list[Any] = []
        for i, seed in enumerate(seeds):
            given = {"seed": seed, "cfg": self.source.choice((1.0, 1.0, 1.0, 2.5))}
            prompt[f"s{i}"] = {"class_type": "LD3KSampler", "inputs": inputs | given}
            if i:
                both = {"samples1": last, "samples2": [f"s{i}", 0]}
                prompt[f"b{i}"] = {"class_type": "LatentBatch", "inputs": both}
            last = [f"b{i}" if i else "s0", 0]
        saved = {"samples": last, "filename_prefix": "soak"}
        prompt["9"] = {"class_type": "SaveLatent", "inputs": saved}
        self.tried["sampling"] += len(seeds)
        try:
            (record,) = self.server.run(prompt)["9"]["latents"]
            bad = len(seeds) - self._finite(record)
        except (ComfyRunError, PromptRefusedError) as error:
            bad = len(seeds)
            self.problems.append(f"sampling: {error}")
        if bad:
            self.lost["sampling"] += bad
            self.problems.append(f"sampling: {bad} samples of {load['inputs']['name']} are bad")

    def _finite(self, record: dict[str, str]) -> int:
        """How many latents of a file are finite and not constant."""
        import torch
        from safetensors.torch import load_file

        path = self.server.output / record["subfolder"] / record["filename"]
        latents = load_file(path)["latent_tensor"].flatten(1)
        path.unlink()
        return int((torch.isfinite(latents).all(1) & (latents.std(1) > 0.01)).sum())

    def _misuse(self) -> None:
        """A file that is damaged, or widgets that cannot be."""
        self.tried["bad input"] += 1
        file = self._folder / "damaged.safetensors"
        if self.source.random() < 0.5:
            prompt = self._training()
            prompt["5"]["inputs"] |= self.source.choice(IMPOSSIBLE)
            expected = True
        else:
            file.write_bytes(fuzz.changed_file(self._whole, self.source))
            load = {"class_type": "LD3LoadSchedule", "inputs": {"name": file.name}}
            preview = {"class_type": "PreviewAny", "inputs": {"source": ["5", 0]}}
            prompt, expected = {"5": load, "9": preview}, False  # not every change is wrong
        try:
            self.server.run(prompt)
            if expected:
                self._lose("bad input", f"{prompt['5']['inputs']} was accepted")
        except PromptRefusedError as error:
            if len(str(error)) > 4 * MOST_MESSAGE:  # core adds the inputs
                self._lose("bad input", f"long message {error!s:.2000}")
        except ComfyRunError as error:
            documented = error.exception_type.endswith("ValueError")
            if not documented or len(error.exception_message) > MOST_MESSAGE:
                self._lose("bad input", f"{error.exception_type}: {error}")
        finally:
            file.unlink(missing_ok=True)

    def _lose(self, case: str, problem: str) -> None:
        self.lost[case] += 1
        self.problems.append(f"{case}: {problem}")
        print(self.problems[-1], flush=True)


def main() -> None:
    """Run until all is tried, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", help="ComfyUI's folder; by default a fetched one")
    parser.add_argument("--trainings", type=int, default=200)
    parser.add_argument("--samplings", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=30.0, help="the most it takes")
    parser.add_argument("--json", type=Path, help="file for the rows")
    options = parser.parse_args()
    comfyui = comfyui_source.require_checkout(options.comfyui or comfyui_source.fetch())
    comfyui_import.prepare(comfyui)
    end = time.monotonic() + 60 * options.minutes
    with ComfyServer(comfyui, extra_args=["--cache-classic"], start_timeout=600) as server:
        soak, least = Soak(server), {"training": options.trainings, "sampling": options.samplings}
        while time.monotonic() < end and any(soak.tried[k] < n for k, n in least.items()):
            soak.round()
            if len(soak.memory) % 10 == 1:
                print(f"{dict(soak.tried)}, {soak.memory[-1]:.0f} MB", flush=True)
        soak.check_files()
    print(f"memory: {soak.memory[0]:.0f} to {soak.memory[-1]:.0f} MB")
    print(f"memory after warm-up: {soak.growth:+.2%}")
    for problem in soak.problems:
        print(problem)
    for case, count in sorted(soak.tried.items()):
        print(f"soak: {case}: {count:,}, {soak.lost[case]} lost", flush=True)
        if options.json:
            name = case if case in least else f"soak: {case}"
            write_row(options.json, name, count, soak.lost[case], "scripts/soak.py")
    if options.json:
        write_row(
            options.json, "soak: memory", 1, int(soak.growth > MOST_GROWTH), "scripts/soak.py"
        )
    if soak.problems or soak.growth > MOST_GROWTH:
        sys.exit(1)
    if any(soak.tried[k] < n for k, n in least.items()):
        sys.exit(f"only that much in {options.minutes:g} minutes")


if __name__ == "__main__":
    # as Ctrl+C: the servers it started end with it
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
