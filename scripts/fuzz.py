"""Feed damaged and hostile input to everything that reads what others wrote.

    python scripts/fuzz.py --comfyui DIR --cases 1000000 --json docs/results/reliability.json

Every reader may answer or raise its documented error, within a second and 64 MB; anything else is
a case lost, and ends the run with the input that did it. Seeds are fixed: the same cases each time.
`tests/test_fuzz.py` has the same readers with hypothesis.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import logging
import random
import resource
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts import comfyui_import, comfyui_source  # noqa: E402
from scripts.reliability import write_row  # noqa: E402

MOST_SECONDS, MOST_MEGABYTES = 1.0, 64
WARM_UP = 100  # cases, in which modules are imported and tables of samplers made
NUMBERS = (0, 1, -1, 2, 255, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**400)
FLOATS = (0.0, -0.0, 1e-320, 1e300, -1e300, 0.5, 1.5, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "", "a", "NUL", "..", "../x", "a/b", "\0", "\ud800", "\u202e", "<img src=x>", "$", "$x_{$",
    "%s", "euler", "x" * 500, "\U0001f600", "1e999", "-0", "None", ".safetensors",
)  # fmt: skip
BYTES = (b"\0" * 8, b"\xff" * 8, b"{", b"[", b'"', b"}", b":", b",", b"NaN", b"1e999", b"null")


@dataclass(frozen=True)
class Reader:
    """What reads untrusted input.

    Attributes:
        read: input -> anything; raises only `error`.
        made: draws an input.
        share: of the number of cases asked for.
        longest: characters of a message.
    """

    read: Callable[[Any], object]
    error: tuple[type[Exception], ...]
    made: Callable[[random.Random], Any]
    share: float
    longest: int = 500


def value(source: random.Random, depth: int = 0) -> Any:
    """Any value that JSON or a graph can contain."""
    kind = source.randrange(8 if depth < 3 else 6)
    if kind == 0:
        return source.choice([None, True, False])
    if kind == 1:
        return source.choice(NUMBERS) + source.randrange(-2, 3)
    if kind == 2:
        return source.choice([*FLOATS, source.gauss(0, 100)])
    if kind in (3, 4, 5):
        return source.choice(TEXTS) + source.choice(("", "", "", "a", "\n"))
    items = [value(source, depth + 1) for _ in range(source.randrange(4))]
    return items if kind == 6 else {source.choice(TEXTS): item for item in items}


def changed_json(found: Any, source: random.Random) -> Any:
    """A JSON value with one part of it replaced, removed, or added."""
    if isinstance(found, dict) and found and source.random() < 0.85:
        key = source.choice(sorted(found))
        kept = {k: v for k, v in found.items() if k != key}
        if source.random() < 0.1:
            return kept
        return {**kept, key: changed_json(found[key], source)}
    if isinstance(found, list) and found and source.random() < 0.7:
        place = source.randrange(len(found))
        part = [changed_json(found[place], source)] * source.choice((0, 1, 1, 2, 100))
        return found[:place] + part + found[place + 1 :]
    return value(source)


def changed_bytes(data: bytes, source: random.Random) -> bytes:
    """Data with bits, bytes or pieces changed, as by a bad disk or on purpose."""
    found = bytearray(data)
    for _ in range(source.choice((1, 1, 1, 2, 5, 20))):
        place = source.randrange(len(found) + 1)
        kind = source.randrange(6)
        if kind == 0 and place < len(found):
            found[place] ^= 1 << source.randrange(8)
        elif kind == 1 and place < len(found):
            found[place] = source.randrange(256)
        elif kind == 2:
            del found[place : place + source.choice((1, 2, 8, 100, 10**6))]
        elif kind == 3:
            found[place:place] = source.choice(BYTES)
        elif kind == 4:
            found[place : place + 8] = source.choice(BYTES)
        else:
            piece = found[place : place + source.choice((1, 8, 64))]
            found[place:place] = piece * source.choice((1, 2, 50))
    return bytes(found)


def parts_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of a safetensors file."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def joined(header: Any, tensors: bytes) -> bytes:
    """The file of a header and tensors, right or wrong."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors


def changed_file(data: bytes, source: random.Random) -> bytes:
    """A schedule file with a change in its bytes, its header, its metadata or its numbers."""
    kind = source.randrange(5)
    if kind == 0:
        return changed_bytes(data, source)
    header, tensors = parts_of(data)
    if kind == 1:
        return joined(changed_json(header, source), tensors)
    if kind == 2:
        return joined(header, changed_bytes(tensors, source)[: len(tensors)].ljust(len(tensors)))
    info = json.loads(header["__metadata__"]["ld3"])
    for _ in range(source.choice((1, 1, 1, 3))):
        info = changed_json(info, source)
    return joined(header | {"__metadata__": {"ld3": json.dumps(info)}}, tensors)


def changed_line(data: bytes, source: random.Random) -> str:
    """A line of text with a change in its letters, in what they pack, or in the schedule."""
    kind = source.randrange(3)
    packed = zlib.compress(changed_file(data, source) if kind == 0 else data, 1)
    if kind == 1:
        packed = changed_bytes(packed, source)
    line = "ld3:1:" + base64.urlsafe_b64encode(packed).decode()
    return changed_bytes(line.encode(), source).decode("latin-1") if kind == 2 else line


def valid_schedule() -> bytes:
    """A schedule file with everything in it."""
    import comfy.k_diffusion.sampling as k_diffusion
    import torch

    from ld3.schedule import Schedule, ScheduleInfo
    from ld3.schedule_file import encoded
    from ld3.tracing import TracedSampler
    from ld3.training.report import Baseline, Report, StepsCurve, ValidationEntry
    from ld3.training.teacher_choice import TeacherCheck

    sigmas = torch.tensor([14.6146, 3.14159, 0.7, 0.1, 0.0])
    report = Report(
        "karras", test_error=0.1, gain=[0.3, 0.5], spread=0.98, sigmas=sigmas.tolist(),
        baselines={"karras": Baseline(sigmas.tolist(), 7, True, 0.3, 0.2)},
        compared=[StepsCurve("euler, simple", [4, 8], [0.3, 0.1], 0.2)],
        history=[ValidationEntry("karras", 100, 0.2)],
    )  # fmt: skip
    check = TeacherCheck({"karras": 0.01}, 0.5, 40, 700)
    info = ScheduleInfo(
        "heun", 4, 7, 4.5, 1.0, [4, 8, 8], "eps", 14.6146, "0123456789abcdef",
        {"sampler": "heun", "scheduler": "karras", "steps": 20, "check": check.as_json()},
        "gauss-newton", {"seed": 3}, "ab" * 16, report.as_json(),
        sampler_options={"inpaint_options": {"random": True}},
        extras=["decoupled times"], steps_sigmas=sigmas.tolist(), model_file="model.safetensors",
    )  # fmt: skip
    return encoded(Schedule(sigmas, TracedSampler(k_diffusion.sample_heun).table(sigmas), info))


def read_schedule(data: bytes) -> object:
    """A schedule and all that the nodes take from it."""
    import torch

    from ld3.schedule_file import decoded

    found = decoded(data, "fuzzed")
    assert bool((found.sigmas.diff() < 0).all()) and torch.isfinite(found.table.weights).all()
    json.dumps(found.info.report).encode()
    return found


def read_report(found: Any) -> object:
    """A report and a teacher's check, of a file whose settings match."""
    from ld3.training.report import Report
    from ld3.training.teacher_choice import TeacherCheck
    from ld3.training.verdict import verdict

    report = Report.from_json(found.get("report", {}))
    teacher = found.get("teacher")
    TeacherCheck.of_teacher(teacher if isinstance(teacher, dict) else {})
    return verdict(4, "euler", 20, report)


class StoredSamples:
    """The teacher's samples in a file that is damaged before each reading."""

    def __init__(self, folder: Path) -> None:
        import torch

        from ld3.teacher_store import TeacherStore
        from ld3.trajectories import subsample

        self.store = TeacherStore(folder, 10**9).samples("teacher")
        self.noise = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        self.latent = torch.zeros_like(self.noise)
        history = torch.stack([subsample(self.noise)] * 4, 1)
        self.store.put(self.noise, self.latent, self.noise, history, self.noise.cos())
        (self.file,) = folder.iterdir()
        self.data = self.file.read_bytes()

    def read(self, data: bytes) -> object:
        """What is taken from a damaged file is what was stored."""
        self.file.write_bytes(data)
        found = self.store.get(self.noise, self.latent, 4)
        assert found is None or bool((found[0] == self.noise).all()) or data[:32] != self.data[:32]
        return found

    def made(self, source: random.Random) -> bytes:
        """A damaged file, half of them with the right checksum."""
        if source.random() < 0.5:
            return changed_bytes(self.data, source)
        data = changed_bytes(self.data[32:], source)
        return hashlib.sha256(data).digest() + data


def widgets(source: random.Random) -> dict[str, Any]:
    """Inputs of LD3 Train Schedule before its graph runs; None where one is connected."""
    texts = ("sampler_name", "teacher_sampler", "teacher_scheduler", "distance", "optimizer")
    texts += ("learn", "quality", "compare_sampler", "compare_scheduler", "name")
    whole = ("steps", "seed", "teacher_steps", "iterations", "training_noises", "heldout_noises")
    made: dict[str, Any] = {}
    for name in (*texts, *whole, "batch_size", "cfg", "denoise", "soft_radius", "minutes"):
        choice = source.random()
        if choice < 0.5:
            continue
        if choice < 0.6:
            made[name] = None
        elif name in texts:
            made[name] = source.choice(TEXTS)
        elif name in whole or name == "batch_size":
            made[name] = source.choice((*NUMBERS, 3, 20)) + source.randrange(-2, 3)
        else:
            made[name] = source.choice((*FLOATS, source.gauss(1, 3)))
    return made


def readers(folder: Path) -> dict[str, Reader]:
    """All readers, by name."""
    from ld3.comfy.training_job import check_training
    from ld3.schedule_file import check_name, load, read_info
    from ld3.schedule_text import from_line
    from ld3.shown_text import shown

    data, samples = valid_schedule(), StoredSamples(folder / "samples")
    header, _ = parts_of(data)
    info = json.loads(header["__metadata__"]["ld3"])
    path = folder / "fuzzed.safetensors"

    def read_file(found: bytes) -> object:
        path.write_bytes(found)
        read_info(path)
        return load(path)

    def text(source: random.Random) -> str:
        return "".join(source.choice((*TEXTS, chr(source.randrange(0x11_0000)))) for _ in range(4))

    def say(found: str) -> str:
        told = shown(found)
        assert len(told) <= 480 and not set("<>&\x1b") & set(told)
        return told

    def read_line(found: str) -> object:
        return from_line(found, "pasted")

    return {
        "schedule": Reader(read_schedule, (ValueError,), lambda s: changed_file(data, s), 0.45),
        "schedule file": Reader(read_file, (ValueError,), lambda s: changed_file(data, s), 0.1),
        "line of text": Reader(read_line, (ValueError,), lambda s: changed_line(data, s), 0.05),
        "report": Reader(read_report, (ValueError,), lambda s: as_dict(changed_json(info, s)), 0.1),
        "teacher's samples": Reader(samples.read, (), samples.made, 0.1),
        "name": Reader(check_name, (ValueError,), text, 0.1),
        "shown text": Reader(say, (), text, 0.05),
        "widgets": Reader(check_training, (ValueError,), widgets, 0.1, longest=2000),
    }


def as_dict(found: Any) -> dict[str, Any]:
    """What `read_report` expects; metadata that is no object is refused before it."""
    return found if isinstance(found, dict) else {"report": found}


def run(name: str, reader: Reader, cases: int) -> int:
    """Read that many cases; returns how many there were before one was lost, if any was."""
    source, before = random.Random(name), peak_megabytes()
    for i in range(cases):
        made, started = reader.made(source), time.process_time()
        try:
            reader.read(made)
        except reader.error as error:
            if len(str(error)) > reader.longest:
                raise RuntimeError(f"{name}, case {i}: long message {error!s:.1000}") from error
        except BaseException as error:
            raise RuntimeError(f"{name}, case {i}: {error!r} for {made!r:.2000}") from error
        seconds = time.process_time() - started
        if seconds > MOST_SECONDS and i > WARM_UP:
            raise RuntimeError(f"{name}, case {i}: {seconds:.1f} s for {made!r:.2000}")
        if i == WARM_UP:
            before = peak_megabytes()
        if i > WARM_UP and peak_megabytes() - before > MOST_MEGABYTES:
            raise RuntimeError(
                f"{name}, case {i}: more than {MOST_MEGABYTES} MB for {made!r:.2000}"
            )
    return cases


def peak_megabytes() -> float:
    """The most memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run all readers and write a row each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", help="ComfyUI's folder; by default a fetched one")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--only", help="one reader")
    options = parser.parse_args()
    logging.disable()  # what readers log of every case
    comfyui = options.comfyui
    comfyui_import.prepare(
        comfyui_source.require_checkout(comfyui) if comfyui else comfyui_source.fetch()
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, reader in readers(Path(folder)).items():
            if options.only not in (None, name):
                continue
            started = time.perf_counter()
            count = run(name, reader, round(options.cases * reader.share))
            seconds = time.perf_counter() - started
            print(f"fuzz: {name}: {count:,} cases, {seconds:.0f} s, 0 lost", flush=True)
            if options.json:
                write_row(options.json, f"fuzz: {name}", count, 0, "scripts/fuzz.py")


if __name__ == "__main__":
    main()
