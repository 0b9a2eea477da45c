"""Everything that reads what others wrote answers, or raises its documented error.

`scripts/fuzz.py` runs a million such cases; these are bounded in time. Files that were once read
wrongly are kept as cases of their own in the tests of their readers.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from ld3.json_types import built, has_type
from ld3.schedule import ScheduleInfo
from ld3.schedule_file import ScheduleFileError, check_name, decoded
from ld3.shown_text import shown
from ld3.training.report import Report
from ld3.training.teacher_choice import TeacherCheck
from scripts import fuzz, fuzz_coverage

CORPUS = Path(__file__).parent / "data" / "fuzz"
bounded = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=4), part),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def valid() -> bytes:
    return fuzz.valid_schedule()


@pytest.mark.parametrize(
    "name", ["schedule", "schedule file", "line of text", "report", "teacher's samples", "name",
             "shown text", "widgets"],
)  # fmt: skip
def test_no_reader_raises_an_undocumented_error(name: str, tmp_path: Path) -> None:
    readers = fuzz.readers(tmp_path)
    assert len(readers) == 8 and sum(reader.share for reader in readers.values()) >= 1
    assert fuzz.run(name, readers[name], 250) == 250


@pytest.mark.parametrize("folder", sorted(CORPUS.iterdir()), ids=lambda folder: folder.name)
def test_what_fuzzing_by_coverage_found_is_read_or_refused(folder: Path, tmp_path: Path) -> None:
    reader, files = fuzz.readers(tmp_path)[folder.name], sorted(folder.iterdir())
    assert len(files) >= 10
    for path in files:
        fuzz_coverage.read(folder.name, reader, path.read_bytes())


def test_a_corpus_begins_with_inputs_that_its_reader_reads(tmp_path: Path) -> None:
    readers = fuzz.readers(tmp_path)
    for name in fuzz_coverage.INPUTS:
        for data in fuzz_coverage.first_files(name, readers):
            fuzz_coverage.read(name, readers[name], data)
            changed = fuzz_coverage.changed(name, data, random.Random(len(data)))
            fuzz_coverage.read(name, readers[name], changed)


def test_a_case_that_is_lost_ends_the_run(tmp_path: Path) -> None:
    def fails(found: Any) -> None:
        raise KeyError("not documented")

    reader = fuzz.Reader(fails, (ValueError,), lambda source: source.random(), 1.0)
    with pytest.raises(RuntimeError, match="case 0: KeyError"):
        fuzz.run("broken", reader, 5)


@bounded
@given(data=st.binary(max_size=2000))
def test_bytes_that_are_no_schedule_are_refused(data: bytes) -> None:
    with pytest.raises(ScheduleFileError):
        decoded(data, "fuzzed")


@bounded
@given(metadata=JSON, seed=st.integers(0, 2**32))
def test_any_metadata_is_a_schedule_or_refused(valid: bytes, metadata: Any, seed: int) -> None:
    header, tensors = fuzz.parts_of(valid)
    info = json.loads(header["__metadata__"]["ld3"])
    key = random.Random(seed).choice(sorted(info))
    for found in (metadata, info | {key: metadata}):
        data = fuzz.joined(header | {"__metadata__": {"ld3": json.dumps(found)}}, tensors)
        try:
            assert decoded(data, "fuzzed").info.sampler
        except ScheduleFileError as error:
            assert len(str(error)) < 500


@bounded
@given(header=JSON)
def test_any_header_is_refused(valid: bytes, header: Any) -> None:
    with pytest.raises(ScheduleFileError):
        decoded(fuzz.joined(header, fuzz.parts_of(valid)[1]), "fuzzed")


@bounded
@given(found=JSON)
def test_any_json_is_a_report_or_refused(found: Any) -> None:
    for read in (
        Report.from_json,
        lambda found: TeacherCheck.of_teacher({"scheduler": found, "check": found}),
        lambda found: built(ScheduleInfo, found),
    ):
        try:
            read(found)
        except ValueError:
            continue


@bounded
@given(found=JSON)
def test_what_has_a_type_can_be_written_as_strict_json(found: Any) -> None:
    for kind in (dict[str, float | None], list[float], list[int], float, int, str | None):
        if has_type(found, kind):
            assert json.loads(json.dumps(found, allow_nan=False)) == found


@bounded
@given(text=st.text(st.characters(), max_size=200))
def test_names_are_safe_or_refused_and_all_text_can_be_shown(text: str) -> None:
    assert not set("<>&`\x1b\u202e\0") & set(shown(text))
    try:
        name = check_name(text)
    except ValueError:
        return
    assert name.encode() and not set('/\\:*?"<>|') & set(name) and not name.endswith((".", " "))
