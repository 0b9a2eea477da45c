"""Fuzz the readers of `scripts/fuzz.py` by coverage, with atheris (Linux; not in the environment).

    python -m pip install atheris
    python scripts/fuzz_coverage.py schedule --comfyui DIR --runs 100000 --corpus FOLDER

Inputs that reach new code are kept in the corpus and changed again, also in ways that keep a file's
structure. A reader that raises anything but its documented error ends the run, with the input in
a file `crash-..`. `tests/data/fuzz` holds what was found; `tests/test_fuzz.py` reads it again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts import comfyui_import, comfyui_source, fuzz  # noqa: E402
from scripts.reliability import write_row  # noqa: E402

NOTHING = object()
MOST_BYTES = 20_000


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass" if b"\xed" in data else "replace")


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return NOTHING


def _object(data: bytes) -> Any:
    found = _json(data)
    return found if isinstance(found, dict) else NOTHING


INPUTS: dict[str, Callable[[bytes], Any]] = {
    "schedule": lambda data: data,
    "schedule file": lambda data: data,
    "line of text": lambda data: data.decode("latin-1"),
    "report": _object,
    "teacher's samples": lambda data: hashlib.sha256(data).digest() + data,
    "name": lambda data: data.decode("utf-16-le", "surrogatepass") if len(data) % 2 == 0 else "",
    "shown text": lambda data: data.decode("utf-8", "replace"),
    "widgets": _object,
}
"""What a reader is given for a file of the corpus; NOTHING is not read."""


def first_files(name: str, readers: dict[str, fuzz.Reader]) -> list[bytes]:
    """Where the corpus of a reader begins: right inputs, and some that are changed."""
    source, reader = random.Random(0), readers[name]
    found = []
    for _ in range(20):
        made = reader.made(source)
        if name == "teacher's samples":
            made = made[32:]
        if name == "name":
            made = made.encode("utf-16-le", "surrogatepass")
        elif isinstance(made, str):
            made = made.encode("utf-8" if name == "shown text" else "latin-1", "replace")
        elif isinstance(made, dict):
            made = json.dumps(made).encode()
        found.append(made)
    return [fuzz.valid_schedule(), *found] if name.startswith("schedule") else found


def changed(name: str, data: bytes, source: random.Random) -> bytes:
    """Data with a change that keeps what it is: a file, or JSON."""
    try:
        if name.startswith("schedule"):
            return fuzz.changed_file(data, source)
        if INPUTS[name] is _object:
            return json.dumps(fuzz.changed_json(json.loads(data), source)).encode()
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        pass  # it was none before
    return fuzz.changed_bytes(data, source)


def read(name: str, reader: fuzz.Reader, data: bytes) -> None:
    """Read a file of the corpus; raises what is not documented, and for a long message."""
    try:
        found = INPUTS[name](data)
    except UnicodeDecodeError:
        return
    if found is NOTHING:
        return
    try:
        reader.read(found)
    except reader.error as error:
        assert len(str(error)) <= reader.longest, str(error)


def main() -> None:
    """Run one reader."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reader", choices=sorted(INPUTS))
    parser.add_argument("--comfyui", help="ComfyUI's folder; by default a fetched one")
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--json", type=Path, help="file for the row")
    parser.add_argument("--corpus", type=Path, required=True, help="folder for what is found")
    options = parser.parse_args()
    comfyui = options.comfyui
    comfyui_import.prepare(
        comfyui_source.require_checkout(comfyui) if comfyui else comfyui_source.fetch()
    )
    import atheris  # pyright: ignore[reportMissingImports]

    logging.disable()
    with atheris.instrument_imports(include=["ld3"]):
        import ld3.comfy.training_job
        import ld3.schedule_text  # noqa: F401
    name = options.reader
    options.corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        readers = fuzz.readers(Path(folder))
        for data in first_files(name, readers):
            (options.corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)

        def mutated(data: bytes, most: int, seed: int) -> bytes:
            source = random.Random(seed)
            if source.random() < 0.3:
                return atheris.Mutate(data, most)
            return changed(name, data, source)[:most]

        cases = 0

        def tried(data: bytes) -> None:
            nonlocal cases
            read(name, readers[name], data)
            cases += 1
            if options.json and cases == options.runs:  # atheris ends the process after it
                case = f"fuzz by coverage: {name}"
                write_row(options.json, case, cases, 0, "scripts/fuzz_coverage.py")

        limits = [f"-atheris_runs={options.runs}", f"-max_len={MOST_BYTES}"]
        limits += ["-timeout=10", "-rss_limit_mb=4000"]
        atheris.Setup([sys.argv[0], str(options.corpus), *limits], tried, custom_mutator=mutated)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
