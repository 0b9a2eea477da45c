"""Kill, interrupt and starve savings and trainings, and count what was lost.

    python scripts/endure.py --comfyui DIR --json docs/results/reliability.json

A process that saves schedules, or trains, is killed (SIGKILL) at random moments. A file must be
complete or absent, and a training that runs again with the same settings must come to the bits of
one that was never interrupted. On Linux and macOS, where processes can be forked.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts import comfyui_import, comfyui_source, fuzz  # noqa: E402
from scripts.reliability import write_row  # noqa: E402

SEED = 0
KILLED_AFTER = (0.1, 1.2)  # times what an uninterrupted training takes


class Interrupted(BaseException):
    """As ComfyUI's: raised in the middle of a model call."""


def forked(work: Callable[[], None]) -> int:
    """Run work in a process of its own; returns its id. Here torch's threads must not be used."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def killed(work: Callable[[], None], seconds: float) -> bool:
    """Run work in a process of its own and kill it then; whether it had not ended before."""
    child = forked(work)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def kill_while_saving(folder: Path, count: int) -> int:
    """How many files were not complete after that many kills."""
    from ld3.schedule_file import ScheduleFileError, decoded, load, save

    schedule, source, lost = decoded(fuzz.valid_schedule(), "kept"), random.Random(SEED), 0
    written, count_before = 0, count

    def work() -> None:
        while True:
            save(schedule, folder, "kept")

    while count:
        if not killed(work, source.uniform(0.002, 0.05)):
            continue
        count -= 1
        for path in folder.glob("*.safetensors"):
            try:
                load(path)
            except ScheduleFileError:
                lost += 1
            path.unlink()
            written += 1
        for path in folder.glob(".ld3-*.tmp"):
            os.utime(path, (0, 0))  # long ago
    save(schedule, folder, "kept")
    if written < count_before:
        raise RuntimeError(f"only {written} files were written: nothing was killed while saving")
    return lost + len(list(folder.glob(".ld3-*.tmp")))


class Training:
    """A training of a mixture of two Gaussians, in folders that survive it."""

    def __init__(self, folder: Path) -> None:
        import comfy.k_diffusion.sampling as k_diffusion
        import torch

        from ld3.teacher_store import TeacherStore
        from ld3.tracing import TracedSampler
        from ld3.training.settings import TrainingSettings

        self.folder, self.sampler = folder, TracedSampler(k_diffusion.sample_euler)
        self.store = TeacherStore(folder / "teacher", 10**9).samples("teacher")
        self.settings = TrainingSettings(
            3, True, 1, True, training_noises=6, validation_noises=4, test_noises=4, iterations=6
        )
        generator = torch.Generator().manual_seed(SEED)
        self.noise = torch.randn(self.settings.noises, 16, generator=generator)
        self.centre = torch.randn(16, generator=generator)

    def run(self, last_call: float = float("inf"), seconds: float = 0.0) -> list[Any]:
        """All bits of what is learned; a model call takes some seconds, and one is interrupted."""
        import torch

        from ld3.journal import Journal
        from ld3.model import Model
        from ld3.parameters import LOG_SIGMA
        from ld3.training.problem import TrainingProblem
        from ld3.training.train import train

        calls = 0

        def denoise(x: Any, sigma: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > last_call:
                raise Interrupted
            time.sleep(seconds)
            variance = 0.04 + sigma[:, None] ** 2
            share = torch.tanh((x @ self.centre)[:, None] / variance)
            return x * 0.04 / variance + share * self.centre * sigma[:, None] ** 2 / variance

        model = Model(denoise, LOG_SIGMA, 0.03, 15.0)
        path = self.folder / "training.partial"
        model.journal = Journal(path, "settings")

        def levels(steps: int, power: float) -> Any:
            ramp = torch.linspace(15.0 ** (1 / power), 0.03 ** (1 / power), steps) ** power
            return torch.cat([ramp, torch.zeros(1)]).float()

        baselines = {f"rho {power:g}": levels(3, power) for power in (3.0, 7.0)}
        teacher = self.sampler.discretization(levels(12, 7.0))
        problem = TrainingProblem(model, self.sampler, teacher, 15.0, baselines)
        latent = torch.zeros_like(self.noise)
        solver, report = train(problem, self.settings, self.noise, latent, self.store)[:2]
        model.journal.remove()
        return [solver.sigmas.tolist(), solver.table.weights.tolist(), report.as_json()]


def kill_while_training(folder: Path, count: int) -> tuple[int, int]:
    """Trainings that did not come to the same bits, and how many were finished.

    This process must not have computed with torch before: its children could wait for threads that
    only it has.
    """
    source, lost, finished, learned = random.Random(SEED), 0, 0, folder / "learned"

    def work() -> None:
        bits = json.dumps(Training(folder).run(seconds=0.002))
        learned.write_text(bits)

    started = time.monotonic()
    os.waitpid(forked(work), 0)
    seconds = time.monotonic() - started
    whole = learned.read_text()
    forget(folder)
    while count:
        count -= killed(work, seconds * source.uniform(*KILLED_AFTER))
        if not count:
            os.waitpid(forked(work), 0)
        if learned.exists():
            lost += learned.read_text() != whole
            finished += 1
            forget(folder)
    return lost, finished


def forget(folder: Path) -> None:
    """Remove all files."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()


def interrupt_training(folder: Path, count: int) -> tuple[int, int]:
    """The same for interrupts at random model calls, with which a training goes on each time."""
    training, source, lost, finished = Training(folder), random.Random(SEED), 0, 0
    whole = training.run()
    forget(folder)
    while count:
        try:
            lost += training.run(last_call=source.randrange(30, 120)) != whole
            finished += 1
            forget(folder)
        except Interrupted:
            count -= 1
    return lost, finished


class HalfWritten(io.BufferedWriter):
    """A new file on a disk that fails in the middle of writing it."""

    def __init__(self, error: OSError, path: Path, mode: str, *ignored: Any) -> None:
        super().__init__(io.FileIO(path, mode.replace("b", "")))
        self.error = error

    def write(self, data: Any) -> int:
        super().write(data[: len(data) // 2])
        raise self.error


def full_disk(folder: Path, count: int) -> int:
    """Savings on a disk that fails at any step: files that are left, or replaced."""
    from ld3.schedule_file import decoded, save

    schedule, source = decoded(fuzz.valid_schedule(), "kept"), random.Random(SEED)
    first, lost, failed = save(schedule, folder, "kept"), 0, 0
    kept = first.read_bytes()
    codes = (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT, errno.EACCES, errno.ENOENT)
    steps = ((io, "open"), (HalfWritten, "write"), (os, "fsync"), (os, "link"), (os, "replace"))
    for _ in range(count):
        (owner, name), code = source.choice(steps), source.choice(codes)
        error = OSError(code, os.strerror(code))
        with ExitStack() as faults:
            if owner is HalfWritten:
                opened = partial(HalfWritten, error)
                faults.enter_context(mock.patch.object(io, "open", opened))
            else:
                faults.enter_context(mock.patch.object(owner, name, side_effect=error))
            if name == "replace":  # which serves where a file system has no links
                no_links = OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
                faults.enter_context(mock.patch.object(os, "link", side_effect=no_links))
            try:
                save(schedule, folder, "kept")
            except OSError:
                failed += 1
        found = [path for path in folder.iterdir() if path != first]
        for path in found:
            lost += 1
            path.unlink()
        lost += first.read_bytes() != kept
    if failed < count:
        raise RuntimeError(f"only {failed} of {count} savings met the fault")
    return lost


def main() -> None:
    """Run all cases and write their rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", help="ComfyUI's folder; by default a fetched one")
    parser.add_argument("--count", type=int, default=200, help="of each case")
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--only", choices=("files", "interrupts", "kills"))
    options = parser.parse_args()
    comfyui = options.comfyui
    comfyui_import.prepare(
        comfyui_source.require_checkout(comfyui) if comfyui else comfyui_source.fetch()
    )
    import torch

    torch.set_num_threads(1)  # threads do not survive a fork
    logging.disable()

    def report(case: str, count: int, lost: int) -> None:
        print(f"{case}: {count:,}, {lost} lost", flush=True)
        if options.json:
            write_row(options.json, case, count, lost, "scripts/endure.py")

    count = options.count
    with tempfile.TemporaryDirectory() as folder:
        if options.only in (None, "kills"):
            lost, finished = kill_while_training(_made(folder, "killed"), count)
            report("kill: training", count, lost)
            report("resume: after kills", finished, lost)
        if options.only in (None, "files"):
            report("disk", count, full_disk(_made(folder, "disk"), count))
            report("kill: saving", count, kill_while_saving(_made(folder, "saving"), count))
        if options.only in (None, "interrupts"):
            lost, finished = interrupt_training(_made(folder, "interrupted"), count)
            report("interrupt", count, lost)
            report("resume: after interrupts", finished, lost)


def _made(folder: str, name: str) -> Path:
    path = Path(folder) / name
    path.mkdir()
    return path


if __name__ == "__main__":
    main()
