"""A schedule marked "show in scheduler list" is a scheduler of ComfyUI, and only while marked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.k_diffusion.sampling as k_diffusion
import comfy.samplers
import pytest
import torch
from torch import Tensor

from ld3 import schedule_file
from ld3.comfy import core_samplers, library, scheduler_list
from ld3.schedule import Schedule
from ld3.tracing import TracedSampler

from .test_schedule import SCHEDULE

OFFERED = "LD3: mine"


def in_steps(sigmas: list[float]) -> Schedule:
    """A schedule of dpmpp_2m at these noise levels."""
    levels = torch.tensor(sigmas)
    table = TracedSampler(k_diffusion.sample_dpmpp_2m).table(levels)
    info = replace(SCHEDULE.info, sampler="dpmpp_2m", steps=len(sigmas) - 1,
                   model_calls=len(sigmas) - 1, sampler_options={})  # fmt: skip
    return Schedule(levels, table, info)


LEARNED = in_steps([14.6146, 3.14159, 0.7, 0.1, 0.0])
OTHER = in_steps([14.6146, 1.5, 0.0])


@pytest.fixture
def mine(ld3_folder: Path) -> Iterator[str]:
    for path in ld3_folder.iterdir():
        path.unlink()
    name = schedule_file.save(replace(LEARNED, others=(OTHER,)), ld3_folder, "mine").name
    yield name
    for listed in scheduler_list.listed():
        scheduler_list.remove(listed)


def state() -> Any:
    handlers = comfy.samplers.SCHEDULER_HANDLERS
    return list(comfy.samplers.SCHEDULER_NAMES), dict(handlers)


def sigmas(steps: int, scheduler: str = OFFERED, kind: str = "eps", sampler: str = "") -> Tensor:
    sampling = core_samplers.guider_of(kind).inner_model.model_sampling
    return comfy.samplers.calculate_sigmas(sampling, scheduler, steps)


def test_a_marked_schedule_is_offered_everywhere_and_unmarked_nothing_is_left(mine: str) -> None:
    before = state()
    scheduler_list.add(mine)
    scheduler_list.add(mine)
    assert comfy.samplers.KSampler.SCHEDULERS.count(OFFERED) == 1
    assert scheduler_list.listed() == [mine] and library.contents(mine)["listed"]
    assert OFFERED not in core_samplers.scheduler_names()  # it is no standard schedule
    scheduler_list.remove(mine)
    assert state() == before and not scheduler_list.listed()


def test_it_is_exact_in_its_own_numbers_of_steps_and_stretched_in_others(mine: str) -> None:
    scheduler_list.add(mine)
    assert torch.equal(sigmas(4), LEARNED.sigmas) and torch.equal(sigmas(2), OTHER.sigmas)
    for steps in (1, 3, 5, 8, 30, 200):
        found = sigmas(steps)
        assert found.shape == (steps + 1,) and found.dtype == torch.float32
        assert (found.diff() < 0).all() and found[-1] == 0
        assert found[0] == LEARNED.sigmas[0]
    # between 3 and 5 of the same distribution lie the 4 that were learned
    assert sigmas(3)[1] < sigmas(5)[1] and sigmas(3)[-2] > sigmas(5)[-2]


def test_a_model_with_other_noise_levels_is_refused(mine: str) -> None:
    scheduler_list.add(mine)
    with pytest.raises(ValueError, match="learned for a model with 'eps' noise levels"):
        sigmas(4, kind="flow")


def test_what_a_scheduler_cannot_be_is_not_marked(ld3_folder: Path, mine: str) -> None:
    for changes in ({"sampler": "uni_pc"}, {"denoise": 0.5}):
        made = replace(LEARNED, info=replace(LEARNED.info, **changes))
        name = schedule_file.save(made, ld3_folder, "partial").name
        with pytest.raises(ValueError, match="cannot be in the scheduler list"):
            scheduler_list.add(name)
    with pytest.raises(ValueError, match="there is no schedule"):
        scheduler_list.add("missing.safetensors")
    assert not scheduler_list.listed()


def test_marks_follow_names_and_end_with_files(mine: str, ld3_folder: Path) -> None:
    before = state()
    scheduler_list.add(mine)
    library.rename(mine, "other")
    assert scheduler_list.listed() == ["other.safetensors"]
    assert "LD3: other" in comfy.samplers.SCHEDULER_NAMES
    (ld3_folder / "other.safetensors").rename(ld3_folder / "moved.safetensors")
    with pytest.raises(ValueError, match="there is no schedule 'other.safetensors'"):
        sigmas(4, "LD3: other")
    (ld3_folder / "moved.safetensors").rename(ld3_folder / "other.safetensors")
    library.delete("other.safetensors")
    assert state() == before and not scheduler_list.listed()


def test_marks_are_there_again_after_a_restart_where_the_file_is(mine: str) -> None:
    before = state()
    scheduler_list.add(mine)
    comfy.samplers.SCHEDULER_NAMES.remove(OFFERED)
    del comfy.samplers.SCHEDULER_HANDLERS[OFFERED]
    scheduler_list.register()
    assert OFFERED in comfy.samplers.SCHEDULER_NAMES
    scheduler_list.remove(mine)
    scheduler_list.register()
    assert state() == before


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", "[" * 100_000, "\xff"])
def test_a_damaged_list_of_marks_lists_nothing(text: str, mine: str) -> None:
    path = scheduler_list._file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="latin-1")
    assert scheduler_list.listed() == []
    scheduler_list.register()
    scheduler_list.add(mine)
    assert scheduler_list.listed() == [mine]
