"""Schedule files: bit-exact, never overwritten, never partial, and safe to load."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import comfy.k_diffusion.sampling as k_diffusion
import hypothesis.strategies as st
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from ld3.schedule import FORMAT_VERSION, Schedule, ScheduleInfo, resampled
from ld3.schedule_file import (
    MOST_BYTES,
    ScheduleFileError,
    check_name,
    load,
    read_info,
    save,
)
from ld3.tracing import TracedSampler

no_deadline = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def schedule() -> Schedule:
    """Heun's table, so that model calls, callbacks and steps all differ."""
    sigmas = torch.tensor([14.6146, 3.14159, 0.7, 0.1, 0.0])
    info = ScheduleInfo(
        sampler="heun", steps=4, model_calls=7, cfg=4.5, denoise=1.0, latent_shape=[4, 8, 8],
        prediction_type="eps", sigma_max=14.6146, model_fingerprint="0123456789abcdef",
        teacher={"sampler": "heun", "scheduler": "karras", "steps": 20}, method="gauss-newton",
        settings={"seed": 3, "noises": [32, 16, 64]}, settings_hash="ab" * 16,
        report={"sigmas": [1.0, 0.1], "heldout_error": 0.0123},
        sampler_options={"inpaint_options": {"random": True}},
        model_file="caf\u00e9 \u6a21\u578b.safetensors", created="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    return Schedule(sigmas, TracedSampler(k_diffusion.sample_heun).table(sigmas), info)


SCHEDULE = schedule()


@pytest.fixture(scope="module")
def valid() -> bytes:
    """A valid file's bytes."""
    with tempfile.TemporaryDirectory() as folder:
        return save(SCHEDULE, Path(folder), "valid").read_bytes()


def tensors_of(data: bytes) -> dict[str, Tensor]:
    return safetensors.torch.load(data)


def info_of(data: bytes) -> dict[str, Any]:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["ld3"])


def rewritten(
    data: bytes, tensors: dict[str, Any] | None = None, info: dict[str, Any] | None = None
) -> bytes:
    """The file with some tensors and metadata entries replaced; None removes one."""
    new_tensors = {
        k: v for k, v in {**tensors_of(data), **(tensors or {})}.items() if v is not None
    }
    new_info = {k: v for k, v in {**info_of(data), **(info or {})}.items() if v is not None}
    return safetensors.torch.save(new_tensors, {"ld3": json.dumps(new_info)})


def test_a_saved_schedule_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    before = SCHEDULE
    after = load(save(before, tmp_path / "new" / "folder", "my schedule"))
    assert after.name == "my schedule"
    assert after.sigmas.dtype == torch.float32 and torch.equal(after.sigmas, before.sigmas)
    for field in ("state_sigmas", "eval_sigmas", "weights", "callback_calls"):
        a, b = getattr(before.table, field), getattr(after.table, field)
        assert a.dtype == b.dtype and torch.equal(a, b), field
    assert after.info == before.info


def test_the_file_contains_the_float32_sigmas_as_float64(valid: bytes) -> None:
    stored = tensors_of(valid)["sigmas"]
    assert stored.dtype == torch.float64
    assert stored.tolist() == [float(s) for s in SCHEDULE.sigmas]


def test_provenance_is_read_without_tensors_and_is_none_for_other_files(
    tmp_path: Path, valid: bytes
) -> None:
    path = save(SCHEDULE, tmp_path, "a")
    assert read_info(path) == SCHEDULE.info
    path.write_bytes(valid[: len(valid) // 2])
    assert read_info(path) is None
    path.write_bytes(safetensors.torch.save({"weight": torch.ones(3)}))
    assert read_info(path) is None
    assert read_info(tmp_path / "absent.safetensors") is None


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_numbers_that_json_cannot_express_are_refused_and_nothing_is_written(
    number: float, tmp_path: Path
) -> None:
    info = replace(SCHEDULE.info, report={"history": [{"error": number}, {"error": 1.5}]})
    with pytest.raises(ValueError):
        save(replace(SCHEDULE, info=info), tmp_path / "new", "a")
    assert not list(tmp_path.iterdir())


def test_a_name_in_use_gets_a_number_and_the_old_file_is_kept(tmp_path: Path) -> None:
    first = save(SCHEDULE, tmp_path, "mine")
    kept = first.read_bytes()
    other = replace(SCHEDULE, info=replace(SCHEDULE.info, cfg=1.0))
    second, third = save(other, tmp_path, "mine"), save(other, tmp_path, "mine.safetensors")
    assert [p.stem for p in (first, second, third)] == ["mine", "mine_2", "mine_3"]
    assert first.read_bytes() == kept and load(second).info.cfg == 1.0


def test_eight_threads_saving_under_one_name_lose_nothing(tmp_path: Path) -> None:
    def write(number: int) -> tuple[int, Path]:
        info = replace(SCHEDULE.info, cfg=float(number))
        return number, save(replace(SCHEDULE, info=info), tmp_path, "same")

    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(write, range(24)))
    assert len({path for _, path in written}) == 24
    assert all(load(path).info.cfg == number for number, path in written)
    assert len(list(tmp_path.iterdir())) == 24


@pytest.mark.parametrize(
    "error", [OSError(code, os.strerror(code)) for code in (errno.ENOSPC, errno.EROFS, errno.EIO)]
    + [KeyboardInterrupt()],
)  # fmt: skip
def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    old = save(SCHEDULE, tmp_path, "mine")

    def failing(*arguments: Any) -> None:
        raise error

    for step in ("fsync", "link"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, failing)
            with pytest.raises(type(error)):
                save(SCHEDULE, tmp_path, "mine")
        assert list(tmp_path.iterdir()) == [old]
    assert save(SCHEDULE, tmp_path, "mine").stem == "mine_2"


def test_without_hard_links_names_are_numbered_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on FAT and some network drives."""

    def refused(*arguments: Any) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refused)
    first, second = save(SCHEDULE, tmp_path, "mine"), save(SCHEDULE, tmp_path, "mine")
    assert [p.stem for p in (first, second)] == ["mine", "mine_2"]
    assert load(first).info == load(second).info == SCHEDULE.info
    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(OSError):
        save(SCHEDULE, tmp_path, "mine")
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_what_crashes_left_is_removed_by_the_next_save_and_pushes_no_name(tmp_path: Path) -> None:
    now = time.time()
    left = {".ld3-0123.tmp": b"half", "mine.safetensors": b"", "mine_2.safetensors": b""}
    kept = {".ld3-now.tmp": b"being written", "now.safetensors": b"", "notes.txt": b""}
    for name, content in {**left, **kept}.items():
        (tmp_path / name).write_bytes(content)
    for name in left:
        # long ago, or long ahead where the clock went backwards
        when = now + (1e4 if name == "mine_2.safetensors" else -1e4)
        os.utime(tmp_path / name, (when, when))
    assert save(SCHEDULE, tmp_path, "mine").stem == "mine"
    assert {p.name for p in tmp_path.iterdir()} == {"mine.safetensors", *kept}


@pytest.mark.parametrize("change", ["truncated", "changed in place"])
def test_what_happens_to_a_file_after_loading_does_not_reach_the_schedule(
    tmp_path: Path, change: str
) -> None:
    path = save(SCHEDULE, tmp_path, "mine")
    loaded = load(path)
    if change == "truncated":
        os.truncate(path, 0)
    else:
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
    for field in ("state_sigmas", "eval_sigmas", "weights", "callback_calls"):
        assert torch.equal(getattr(loaded.table, field), getattr(SCHEDULE.table, field))

    assert torch.equal(loaded.sigmas, SCHEDULE.sigmas)


def test_pipes_folders_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    link = tmp_path / "device.safetensors"
    link.symlink_to("/dev/zero")
    (tmp_path / "folder.safetensors").mkdir()
    for path in tmp_path.iterdir():
        assert read_info(path) is None
        with pytest.raises(ScheduleFileError, match="cannot be read"):
            load(path)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.truncate(50 * 2**30)  # takes no space
    started = time.perf_counter()
    with pytest.raises(ScheduleFileError, match="bytes") as caught:
        load(path)
    assert read_info(path) is None
    assert time.perf_counter() - started < 0.5 and len(str(caught.value)) < 500


def many_steps(steps: int) -> dict[str, Any]:
    """Sigmas of so many steps, with the table of one call."""
    return {
        "sigmas": torch.linspace(10, 0, steps + 1).double(),
        "state_sigmas": levels(10.0), "eval_sigmas": levels(10.0),
        "weights": levels(1, 0, 0, 1).view(2, 2), "callback_calls": torch.tensor([0]),
    }  # fmt: skip


@pytest.mark.parametrize("steps", [101, 1001, 2000])
def test_schedules_of_too_many_steps_are_refused_quickly(
    steps: int, tmp_path: Path, valid: bytes
) -> None:
    path = tmp_path / "long.safetensors"
    info = {"steps": steps, "model_calls": 1}
    path.write_bytes(rewritten(valid, many_steps(steps), info))
    started = time.perf_counter()
    with pytest.raises(ScheduleFileError) as caught:
        load(path)
    assert time.perf_counter() - started < 0.5 and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "tensors",
    [
        {"sigmas": torch.rand(1001, dtype=torch.float64)},
        {"callback_calls": torch.full((90_000,), 9)},
        {"sigmas": torch.full((1001,), math.nan, dtype=torch.float64)},
    ],
    ids=["unordered", "calls", "undefined"],
)
def test_messages_about_long_contents_are_short(
    tensors: dict[str, Tensor], tmp_path: Path, valid: bytes
) -> None:
    path = tmp_path / f"{'long name ' * 20}.safetensors"
    path.write_bytes(rewritten(valid, tensors))
    with pytest.raises(ScheduleFileError) as caught:
        load(path)
    assert len(str(caught.value)) < 500


def test_nothing_is_saved_that_could_not_be_loaded(tmp_path: Path) -> None:
    table = replace(SCHEDULE.table, weights=1e7 * SCHEDULE.table.weights)
    for unusable in (
        replace(SCHEDULE, table=table),
        replace(SCHEDULE, info=replace(SCHEDULE.info, report={"notes": "x" * MOST_BYTES})),
        replace(SCHEDULE, info=replace(SCHEDULE.info, model_file="\udcff")),
    ):
        with pytest.raises(ValueError):
            save(unusable, tmp_path / "new", "mine")
        assert not list(tmp_path.iterdir())


def test_a_saved_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    mode = save(SCHEDULE, tmp_path, "mine").stat().st_mode
    assert mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError):
        save(SCHEDULE, tmp_path / "file", "mine")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


ALWAYS = {
    "empty": lambda data: b"",
    "truncated header": lambda data: data[:100],
    "truncated": lambda data: data[:-9],
    "trailing bytes": lambda data: data + b"\0" * 16,
    "random bytes": lambda data: torch.arange(2000).mul(97).remainder(251).byte().numpy().tobytes(),
    "text": lambda data: b"sigmas: 14.6, 0.0",
    "foreign": lambda data: safetensors.torch.save({"weight": torch.ones(3)}, {"format": "pt"}),
    "damaged JSON": lambda data: safetensors.torch.save(tensors_of(data), {"ld3": "{'cfg': 1"}),
    "JSON list": lambda data: safetensors.torch.save(tensors_of(data), {"ld3": "[1]"}),
    "endless number": lambda data: safetensors.torch.save(tensors_of(data), {"ld3": "9" * 9000}),
    "deep JSON": lambda data: safetensors.torch.save(tensors_of(data), {"ld3": "[" * 90000}),
}


def levels(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


TENSORS: dict[str, dict[str, Any]] = {
    "no sigmas": {"sigmas": None},
    "no weights": {"weights": None},
    "no callback_calls": {"callback_calls": None},
    "NaN sigma": {"sigmas": levels(9.0, math.nan, 2, 1, 0)},
    "increasing sigmas": {"sigmas": levels(9.0, 1, 2, 0.5, 0)},
    "equal sigmas": {"sigmas": levels(9.0, 2, 2, 1, 0)},
    "sigmas equal in float32": {"sigmas": levels(9, 2, 2 - 1e-12, 1, 0)},
    "negative sigma": {"sigmas": levels(9.0, 3, 2, 1, -1)},
    "negative evaluation level": {"eval_sigmas": levels(-5.0, 1, 1, 1, 1, 1, 1)},
    "state without noise": {"state_sigmas": levels(9.0, 2, 1, 1, 1, 1, 0)},
    "matrix of sigmas": {"sigmas": torch.ones(5, 5).double()},
    "too few sigmas": {"sigmas": levels(9.0, 1, 0)},
    "scalar sigmas": {"sigmas": levels(1.0)[0]},
    "scalar states": {"state_sigmas": levels(1.0)[0]},
    "huge weight": {"weights": torch.eye(8).double() * 1e300},
    "infinite weight": {"weights": torch.full((8, 8), math.inf).double()},
    "upper triangle": {"weights": torch.ones(8, 8).double()},
    "wrong weights": {"weights": torch.eye(7).double()},
    "fewer calls": {
        "state_sigmas": levels(1.0), "eval_sigmas": levels(1.0),
        "weights": levels(1, 0, 1, 1).view(2, 2), "callback_calls": torch.tensor([0]),
    },
    "wrong call": {"callback_calls": torch.tensor([0, 7])},
    "float call": {"callback_calls": levels(0.0, 1.0)},
    "huge tensor": {"weights": torch.zeros(3000, 3000, dtype=torch.uint8)},
    "half sigmas": {"sigmas": torch.tensor([9, 3, 2, 1, 0]).half()},
    "complex sigmas": {"sigmas": torch.tensor([9, 3, 2, 1, 0]).to(torch.complex64)},
}  # fmt: skip
INFOS: dict[str, dict[str, Any]] = {
    "newer version": {"format_version": FORMAT_VERSION + 1},
    "version is text": {"format_version": "1"},
    "no version": {"format_version": None},
    "no sampler": {"sampler": None},
    "sampler is a list": {"sampler": ["heun"]},
    "steps is text": {"steps": "4"},
    "other steps": {"steps": 5},
    "NaN cfg": {"cfg": math.nan},
    "cfg is text": {"cfg": "4.5"},
    "denoise 0": {"denoise": 0.0},
    "NaN denoise": {"denoise": math.nan},
    "negative sigma_max": {"sigma_max": -1.0},
    "report is a list": {"report": [1]},
    "latent_shape is text": {"latent_shape": "4x8x8"},
    "prediction_type is a number": {"prediction_type": 3},
    "teacher is text": {"teacher": "heun"},
    "model_file is a number": {"model_file": 3},
    "huge cfg": {"cfg": 10**400},
    "negative cfg": {"cfg": -1.0},
    "inpaint options are a number": {"sampler_options": {"inpaint_options": 5}},
    "inpaint options hold lists": {"sampler_options": {"inpaint_options": {"random": [1]}}},
    "half a character": {"model_name": "\ud800"},
    "half a character in the report": {"report": {"\ud800": 1}},
    "huge number of steps": {"steps": 10**30},
    "step sigmas are text": {"steps_sigmas": ["9", "3", "2", "1", "0"]},
    "many step sigmas": {"steps_sigmas": [float(n) for n in range(2000, 0, -1)]},
    "long text": {"model_file": "x" * 1000},
    "long extra": {"extras": ["x" * 1000]},
}
CORRUPT: dict[str, Callable[[bytes], bytes]] = {
    **ALWAYS,
    **{k: lambda data, v=v: rewritten(data, tensors=v) for k, v in TENSORS.items()},
    **{k: lambda data, v=v: rewritten(data, info=v) for k, v in INFOS.items()},
}


@pytest.mark.parametrize("variant", CORRUPT)
def test_every_corrupt_file_is_refused_with_its_name_and_a_remedy(
    variant: str, tmp_path: Path, valid: bytes
) -> None:
    path = tmp_path / "broken one.safetensors"
    path.write_bytes(CORRUPT[variant](valid))
    with pytest.raises(ScheduleFileError) as error:
        load(path)
    message = str(error.value)
    assert "'broken one.safetensors'" in message
    remedies = "(train or download it again|choose another( one)?|update the pack)$"
    assert re.search(remedies, message) and len(message) < 500
    if variant == "newer version":
        assert "update the pack" in message


def test_a_rewritten_valid_file_loads(tmp_path: Path, valid: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(rewritten(valid, info={"unknown_future_note": "kept quiet"}))
    assert load(path).info == SCHEDULE.info


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("absent.safetensors", "folder.safetensors"):
        with pytest.raises(ScheduleFileError, match=name):
            load(tmp_path / name)


@no_deadline
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4)
)
def test_flipped_bytes_load_or_are_refused_but_never_crash(
    tmp_path: Path, valid: bytes, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(valid)
    for place, change in flips:
        data[place % len(data)] ^= change
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(data)
    read_info(path)
    try:
        loaded = load(path)
    except ScheduleFileError:
        return
    assert bool((loaded.sigmas.diff() < 0).all())


@no_deadline
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
        lambda children: st.lists(children, max_size=2),
        max_leaves=3,
    ),
    key=st.sampled_from(sorted(asdict(SCHEDULE.info))),
)
def test_any_value_in_the_metadata_loads_or_is_refused_but_never_crashes(
    tmp_path: Path, valid: bytes, key: str, value: Any
) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(safetensors.torch.save(
        tensors_of(valid), {"ld3": json.dumps({**info_of(valid), key: value})}
    ))  # fmt: skip
    read_info(path)
    try:
        info = load(path).info
    except ScheduleFileError:
        return
    assert type(getattr(info, key)) in (type(getattr(SCHEDULE.info, key)), int)


@pytest.mark.parametrize(
    "name",
    ["\u6a21" * 90, "../up", "a/b", "a\\b", "/etc/passwd", "C:x", "..", ".hidden", "", "   ",
     "a\0b", "x" * 121, "what?", ".safetensors", "line\nbreak", "half\ud800", "CON", "nul",
     "com1", "LPT9.old", "aux.safetensors", "ends with a dot.", "line\u2028break"],
)  # fmt: skip
def test_names_outside_the_folder_and_invalid_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be a schedule's name"):
        save(SCHEDULE, tmp_path / "inner", name)
    assert list(tmp_path.rglob("*.safetensors")) == []


@pytest.mark.parametrize(
    "name", ["console", "com10", "lpt", "null", "v1.5", "\u0645\u06cc\u200c\u062e"]
)
def test_names_that_only_resemble_reserved_ones_are_saved(name: str, tmp_path: Path) -> None:
    assert save(SCHEDULE, tmp_path, name).stem == name


@no_deadline
@given(st.text(max_size=130))
def test_a_checked_name_stays_inside_its_folder(tmp_path: Path, name: str) -> None:
    try:
        checked = check_name(name)
    except ValueError:
        return
    path = tmp_path / f"{checked}.safetensors"
    assert path.resolve().parent == tmp_path.resolve() and path.name == f"{checked}.safetensors"
    assert check_name(checked) == checked


def test_a_schedule_must_have_the_steps_and_calls_of_its_table() -> None:
    good = SCHEDULE
    with pytest.raises(ValueError, match="4 steps and 7 model calls"):
        replace(good, sigmas=good.sigmas[1:])
    with pytest.raises(ValueError, match="7"):
        replace(good, info=replace(good.info, model_calls=6))
    with pytest.raises(ValueError, match="decrease"):
        replace(good, sigmas=good.sigmas.flip(0))


@no_deadline
@given(st.lists(st.floats(0.05, 1), min_size=2, max_size=9), st.integers(1, 30), st.booleans())
def test_resampling_keeps_the_ends_and_the_order(
    ratios: list[float], steps: int, full: bool
) -> None:
    levels = 50 * torch.tensor([1.0, *(0.3 + 0.65 * r for r in ratios)]).cumprod(0)
    sigmas = torch.cat([levels, torch.zeros(1)]) if full else levels
    new = resampled(sigmas, steps)
    assert len(new) == steps + 1 and new.dtype == torch.float32
    torch.testing.assert_close(new[[0, -1]], sigmas[[0, -1]], rtol=1e-6, atol=0)
    assert bool((new.diff() < 0).all())


def test_resampling_to_the_same_steps_changes_nothing() -> None:
    sigmas = SCHEDULE.sigmas
    assert torch.equal(resampled(sigmas, 4), sigmas)


def test_resampling_a_geometric_schedule_stays_geometric() -> None:
    sigmas = torch.tensor([16.0, 8, 4, 2, 1, 0])
    torch.testing.assert_close(resampled(sigmas, 3), torch.tensor([16.0, 4, 1, 0]))
    torch.testing.assert_close(resampled(sigmas, 9)[:9:2], sigmas[:5])
