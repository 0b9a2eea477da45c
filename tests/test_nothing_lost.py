"""What was learned survives everything around it, and what others wrote does no harm."""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from ld3 import schedule_file
from ld3.schedule import Schedule
from ld3.shown_text import shown

pytestmark = pytest.mark.usefixtures("one_thread", "small_search")

TINY = {
    "sampler_name": "euler", "steps": 3, "cfg": 1.0, "name": "tiny", "seed": 0,
    "teacher_sampler": "euler", "teacher_scheduler": "karras", "teacher_steps": 4,
    "retrain": False, "denoise": 1.0, "distance": "pseudo-huber", "iterations": 1,
    "training_noises": 4, "heldout_noises": 4, "batch_size": 16, "learn": "time steps",
    "quality": "fast",
}  # fmt: skip


@pytest.fixture(scope="module")
def train(pack_nodes: dict[str, type], demo_inputs: dict[str, Any], ld3_folder: Path) -> Any:
    """LD3 Train Schedule with small settings; keywords replace some."""

    def run(**changes: Any) -> Any:
        return pack_nodes["LD3TrainSchedule"].execute(**(demo_inputs | TINY | changes))

    return run


@pytest.fixture(scope="module")
def learned(train: Any) -> Schedule:
    return train()[2]


@pytest.fixture
def shared(learned: Schedule, ld3_folder: Path) -> Any:
    """`shared(**changes)`: the file name of a schedule with other provenance, as from others."""

    def write(**changes: Any) -> str:
        info = replace(learned.info, **changes)
        return schedule_file.save(replace(learned, info=info), ld3_folder, "shared").name

    return write


@pytest.fixture
def said(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What nodes show in the browser."""
    found: list[str] = []
    types = sys.modules[f"{pack.__name__}.nodes.types"]
    monkeypatch.setattr(types, "show_text", lambda node_id, text: found.append(text))
    return found


def shown_by(node: type) -> type:
    """A node as in a running server, where it can show text."""
    return type(node.__name__, (node,), {"hidden": SimpleNamespace(unique_id="1")})


@pytest.mark.parametrize("name", ["$x_{$ and", "^_$$", "a$b$c", "\u6a21\u578b"])
def test_any_name_that_can_be_saved_can_be_drawn(name: str, train: Any, caplog: Any) -> None:
    _, _, schedule, picture, *_ = train(name=name, retrain=True)
    assert schedule.name == name and picture.shape[1] > 100
    assert "could not be drawn" not in caplog.text


def test_a_picture_that_cannot_be_drawn_costs_no_schedule(
    pack: ModuleType, train: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def failing(*arguments: Any) -> None:
        raise RuntimeError("no font")

    for module in ("nodes.training_output", "ld3.comfy.progress"):
        monkeypatch.setattr(sys.modules[f"{pack.__name__}.{module}"], "report_picture", failing)
    sigmas, _, schedule, picture, *_ = train(name="undrawn", seed=3)
    assert torch.equal(sigmas, schedule.plain_sigmas) and picture.ndim == 4
    assert "picture could not be drawn (no font)" in caplog.text


def test_a_schedule_that_names_a_stochastic_sampler_is_refused_when_it_is_loaded(
    pack_nodes: dict[str, type], shared: Any
) -> None:
    for sampler in ("euler_ancestral", "lcm"):
        for extras in ([], ["solver corrections"]):
            name = shared(sampler=sampler, extras=extras)
            with pytest.raises(ValueError, match=f"{sampler}.*stochastic"):
                pack_nodes["LD3LoadSchedule"].execute(name=name)


def test_a_connected_name_is_checked_when_the_node_runs(
    pack_nodes: dict[str, type], learned: Schedule
) -> None:
    """ComfyUI validates inputs without those that are connected."""
    load = pack_nodes["LD3LoadSchedule"]
    assert load.validate_inputs() is True and load.fingerprint_inputs() == ""
    for name in (5, "half\ud800", "a\0b", ["list"]):
        assert isinstance(load.validate_inputs(name=name), str)
        with pytest.raises(ValueError, match="there is no schedule"):
            load.execute(name=name)


MARKUP = "<img src=x onerror=alert(1)>\x1b[31m\u202e&lt;"


def test_text_from_files_reaches_browser_and_log_without_markup(
    pack_nodes: dict[str, type], shared: Any, said: list[str], caplog: Any, demo_inputs: Any
) -> None:
    load, sample = (shown_by(pack_nodes[key]) for key in ("LD3LoadSchedule", "LD3KSampler"))
    name = shared(model_file=MARKUP, model_name=MARKUP, model_fingerprint="another")
    loaded = load.execute(name=name)[2]
    sample.execute(**demo_inputs, schedule=loaded, seed=0, cfg=1.0, denoise=1.0)
    with pytest.raises(ValueError) as refused:
        sample.execute(
            **demo_inputs, schedule=replace(loaded, name=MARKUP), seed=0, cfg=1.0, denoise=2.0
        )
    written = [text for text in said if text.strip()]  # a node's text is cleared first
    texts = [*written, caplog.text, str(refused.value)]
    assert len(written) == 2 and all("img src=x" in text for text in texts)
    for text in texts:
        assert not set("<>&\x1b\u202e") & set(text), text


def test_shown_text_is_short_and_keeps_its_ends() -> None:
    assert shown("plain text, 4.5 at cfg 7") == "plain text, 4.5 at cfg 7"
    text = shown("start" + "x" * 10_000 + "end", 100)
    assert len(text) <= 100 and text.startswith("start") and text.endswith("end")
    assert shown("a\nb") == "a\nb"


@pytest.fixture
def disk(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`disk.fails(code, after)`: writes fail with an error code, after so many good ones.

    `disk.full_of_files()`: nothing can be created, as without inodes.
    """
    real, real_open = os.fsync, Path.open

    def full_of_files() -> None:
        def create(path: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
            if "x" in mode or "w" in mode:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real_open(path, mode, *more, **named)

        monkeypatch.setattr(Path, "open", create)

    def fails(code: int, after: int = 0) -> None:
        left = [after]

        def fsync(handle: int) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(code, os.strerror(code))
            real(handle)

        monkeypatch.setattr(os, "fsync", fsync)

    def works() -> None:
        monkeypatch.setattr(os, "fsync", real)

    return SimpleNamespace(fails=fails, full_of_files=full_of_files, works=works)


FAULTS = [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES, errno.EDQUOT]
NO_INODES = 0


@pytest.mark.parametrize("code", [*FAULTS, NO_INODES], ids=errno.errorcode.get)
def test_a_folder_that_cannot_be_written_is_reported_before_the_learning(
    code: int, train: Any, disk: Any, ld3_folder: Path, demo_inputs: Any
) -> None:
    before, calls = set(ld3_folder.iterdir()), []
    model = demo_inputs["model"].clone()
    model.set_model_unet_function_wrapper(lambda *a: calls.append(a))
    if code == NO_INODES:
        disk.full_of_files()
    else:
        disk.fails(code)
    reason = os.strerror(code or errno.ENOSPC)
    with pytest.raises(ValueError, match=f"nothing can be written .{reason}"):
        train(name="unwritable", seed=5, model=model)
    assert not calls and set(ld3_folder.iterdir()) == before


@pytest.mark.parametrize("code", FAULTS[:3], ids=errno.errorcode.get)
def test_a_schedule_that_cannot_be_saved_is_returned_and_saved_by_the_next_run(
    code: int, train: Any, disk: Any, ld3_folder: Path, pack_nodes: Any, caplog: Any
) -> None:
    """And no model call is made for that."""
    settings = {"name": f"full {code}", "seed": 600 + code, "cache_gb": 0.0}
    whole = train(**settings | {"name": "whole"})
    (ld3_folder / f"{whole[2].name}.safetensors").unlink()
    before = set(ld3_folder.glob("*.s*"))
    node = pack_nodes["LD3TrainSchedule"]
    assert node.fingerprint_inputs(retrain=False) == ""
    disk.fails(code, after=1)  # the folder can be written when the learning begins
    for retrain in (False, True):
        sigmas, _, schedule, *_ = train(**settings, retrain=retrain)
        assert torch.equal(sigmas, whole[0]) and schedule.name == settings["name"]
        assert "run the workflow again to save it" in caplog.text
        assert set(ld3_folder.glob("*.s*")) == before
        # so that ComfyUI runs the node again
        assert node.fingerprint_inputs(retrain=False) != node.fingerprint_inputs(retrain=False)
        caplog.clear()
    disk.works()
    saved = train(**settings, retrain=True)
    assert saved[2].name == settings["name"] and torch.equal(saved[0], whole[0])
    assert node.fingerprint_inputs(retrain=False) == "" and not caplog.records
    assert not list(ld3_folder.glob("*.partial"))
    assert set(ld3_folder.iterdir()) - before == {ld3_folder / f"{settings['name']}.safetensors"}


def patched(model: Any, change: Any) -> Any:
    """A MODEL whose network's outputs are changed."""
    clone = model.clone()
    clone.set_model_unet_function_wrapper(
        lambda call, given: change(call(given["input"], given["timestep"], **given["c"]))
    )
    return clone


@pytest.mark.parametrize(
    "change",
    [lambda x: x[:, :, :4], lambda x: torch.cat([x, x], 1)],
    ids=["cut", "channels"],
)
def test_a_model_of_another_output_shape_gets_an_error_in_the_words_of_the_screen(
    change: Any, train: Any, demo_inputs: Any
) -> None:
    with pytest.raises(ValueError, match="the model.*shape.*KSampler"):
        train(name="shape", seed=9, model=patched(demo_inputs["model"], change))


def test_a_constant_model_gets_no_warning_about_samples_that_are_alike(
    train: Any, pack_nodes: Any, ld3_folder: Path, caplog: Any, flow_model: Any, demo_inputs: Any
) -> None:
    """Every sampler is exact for it: nothing can be wrong with the schedule."""
    constant = demo_inputs["model"].clone()
    picture = torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8)

    def patch(given: Any) -> torch.Tensor:
        return picture.expand_as(given["denoised"]).clone()

    patch.__qualname__ = "patch"  # without this test's name, which is about samples alike
    constant.set_model_sampler_post_cfg_function(patch)
    _, _, schedule, *_ = train(name="constant", model=constant, quality="normal")
    assert "alike" not in caplog.text and "not certain" not in caplog.text
    assert schedule.info.report["spread"] is None
