"""What is known to be wrong before a graph runs is refused before it runs."""

from __future__ import annotations

from typing import Any

import pytest

from ld3.comfy import core_samplers, folders
from ld3.comfy.training_job import check_training

STOCHASTIC = {"euler_ancestral", "dpmpp_2m_sde", "dpm_adaptive", "lcm", "ddpm"}


def test_samplers_on_offer_are_those_that_can_be_read() -> None:
    offered = core_samplers.deterministic_samplers()
    assert not STOCHASTIC & set(offered)
    assert {"euler", "heun", "dpmpp_2m", "ipndm", "uni_pc", "deis", "res_multistep"} <= set(offered)
    assert set(offered) < set(core_samplers.sampler_names())
    assert core_samplers.deterministic_samplers() == offered


def test_samplers_of_other_packs_that_need_a_model_are_offered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that cannot be looked at without a model may work with one."""
    import comfy.k_diffusion.sampling as sampling
    import comfy.samplers

    def sample_needy(model: Any, x: Any, sigmas: Any, **keywords: Any) -> Any:
        raise RuntimeError("needs a real model")

    monkeypatch.setattr(sampling, "sample_needy", sample_needy, raising=False)
    names = [*comfy.samplers.SAMPLER_NAMES, "needy"]
    monkeypatch.setattr(comfy.samplers, "SAMPLER_NAMES", names)
    monkeypatch.setattr(comfy.samplers, "KSAMPLER_NAMES", [*names])
    assert "needy" in core_samplers.deterministic_samplers()


@pytest.mark.parametrize(
    ("inputs", "parts"),
    [
        ({"sampler_name": "euler_ancestral"}, ["sampler_name: ", "stochastic", "'euler'"]),
        ({"sampler_name": "nonsense"}, ["sampler_name: ", "nonsense", "install"]),
        ({"teacher_sampler": "lcm"}, ["teacher_sampler: ", "stochastic", "Choose"]),
        ({"compare_sampler": "dpm_adaptive"}, ["compare_sampler: ", "Choose"]),
        ({"teacher_scheduler": "nonsense"}, ["teacher_scheduler is 'nonsense'", "karras"]),
        ({"steps": 1}, ["steps is 1", "2 or more"]),
        ({"steps": 5, "teacher_steps": 5}, ["teacher_steps is 5 and steps 5", "more steps"]),
        ({"cfg": -1.0}, ["cfg is -1.0", "0 or more"]),
        ({"minutes": -2.0}, ["minutes is -2.0"]),
        ({"quality": "perfect"}, ["quality is 'perfect'", "normal"]),
        ({"name": "a/b"}, ["'a/b'", "no folders"]),
        ({"distance": "pixel-l2"}, ["distance 'pixel-l2'", "connect vae"]),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_what_widgets_get_wrong_is_named(inputs: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        check_training(inputs)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"steps": None, "teacher_steps": 3},
        {"steps": 50, "teacher_steps": None},
        {"sampler_name": None, "name": None, "model": None},
        {"distance": "pixel-l2", "vae": None},
    ],
    ids=str,
)
def test_values_that_come_over_links_are_not_judged_yet(inputs: dict[str, Any]) -> None:
    check_training(inputs)


def test_load_schedule_offers_and_explains_the_first_step_where_there_is_none(
    pack_nodes: dict[str, type], ld3_folder: Any
) -> None:
    load = pack_nodes["LD3LoadSchedule"]
    name, _ = load.GET_SCHEMA().inputs
    assert name.options == [folders.NO_SCHEDULE]
    for given in (folders.NO_SCHEDULE, "theirs.safetensors"):
        message = load.validate_inputs(name=given)
        assert message.startswith(folders.NO_SCHEDULE) and str(ld3_folder) in message
