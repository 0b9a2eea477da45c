"""A teacher that is another model, and a schedule to compare with, by exact models and the demo's.

The exact ones turn a noise n into the image S n (the teacher, and a student that follows it) or
S R n with a rotation R (a student that makes the same images from other noises).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from comfy_extras.nodes_custom_sampler import (
    BasicGuider,
    BasicScheduler,
    CFGGuider,
    KSamplerSelect,
)
from torch import Tensor

from demo.demo_model import DemoClip
from ld3.training.report import Report

pytestmark = pytest.mark.usefixtures("one_thread")
S = 0.4
TINY = {
    "steps": 3, "name": "distilled", "seed": 0, "learn": "time steps", "quality": "fast",
    "minutes": 0.0, "retrain": False, "distance": "pseudo-huber", "iterations": 2,
    "training_noises": 6, "heldout_noises": 6, "batch_size": 16,
}  # fmt: skip


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """The mean of the images of variance S^2 behind x: its ODE turns n into S n, in a curve."""
    return (1 - sigma) * S**2 * x / ((1 - sigma) ** 2 * S**2 + sigma**2)


def straight(x: Tensor, sigma: Tensor) -> Tensor:
    """S n where x lies on the straight line from n to S n: distilled so that one step suffices."""
    return S * x / (sigma + (1 - sigma) * S)


def rotated(x: Tensor, sigma: Tensor) -> Tensor:
    """The same with R, by 90 degrees in the plane of two halves of the pixels."""
    a, b = x.chunk(2, dim=-1)
    k = (1 - sigma) * S
    n = torch.cat([sigma * a + k * b, sigma * b - k * a], -1) / (sigma**2 + k**2)
    first, second = n.chunk(2, dim=-1)
    return S * torch.cat([-second, first], -1)


@pytest.fixture(scope="module")
def exact(pack_nodes: dict[str, type], demo_inputs: dict[str, Any]) -> Any:
    """`exact(denoise, seen)`: a guider whose model is a function; `seen` is called before it."""

    def guider(denoise: Any, seen: Any = lambda: None) -> Any:
        model = pack_nodes["LD3DemoModel"].execute(batch_size=1, model="flow")[0]

        def call(apply: Any, arguments: dict[str, Any]) -> Tensor:
            seen()
            sigma = arguments["timestep"].reshape(-1, 1, 1, 1)
            return denoise(arguments["input"], sigma)

        model.set_model_unet_function_wrapper(call)
        return BasicGuider.execute(model, demo_inputs["positive"])[0]

    return guider


@pytest.fixture(scope="module")
def train(pack_nodes: dict[str, type], demo_inputs: dict[str, Any], ld3_folder: Path) -> Any:
    def run(guider: Any, **changes: Any) -> Any:
        model = guider.model_patcher
        inputs = {
            "guider": guider,
            "sampler": KSamplerSelect.execute("euler")[0],
            "sigmas": BasicScheduler.execute(model, "simple", 24, 1.0)[0],
            "latent_image": demo_inputs["latent_image"],
        }
        return pack_nodes["LD3TrainScheduleAdvanced"].execute(**(inputs | TINY | changes))

    return run


def report_of(outputs: Any) -> Report:
    return Report.from_json(outputs[2].info.report)


def test_the_teacher_samples_first_and_is_then_unloaded(train: Any, exact: Any) -> None:
    order: list[str] = []

    def loaded() -> list[Any]:
        return [model.model for model in comfy.model_management.current_loaded_models]

    teacher = exact(gaussian, lambda: order.append("teacher"))
    student = exact(
        straight, lambda: order.append("both" if teacher.model_patcher in loaded() else "student")
    )
    outputs = train(student, teacher_guider=teacher, name="first")
    calls = order.index("student")
    assert set(order[:calls]) == {"teacher"} and set(order[calls:]) == {"student"}
    report, info = report_of(outputs), outputs[2].info
    noises = 6 + 4 + 6
    assert report.teacher_calls == noises * 24  # and no call to see whether the first one repeats
    assert info.teacher["guider"] == "Guider_Basic" and info.teacher["steps"] == 24


def test_a_student_is_compared_with_the_other_teachers_samples(train: Any, exact: Any) -> None:
    """A straight student gives S n whatever the schedule, the teacher nearly so."""
    report = report_of(train(exact(straight), teacher_guider=exact(gaussian), name="exact"))
    noise_spread = 2**0.5 * S
    assert report.unrelated_error == pytest.approx(noise_spread, rel=0.1)
    errors = [b.ranking_error for b in report.baselines.values() if b.ranking_error is not None]
    assert len(errors) >= 2 and max(errors) == pytest.approx(min(errors), rel=1e-3)
    assert min(errors) < 0.1 * noise_spread


def test_a_student_that_makes_the_images_from_other_noises_is_recognised(
    train: Any, exact: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        train(exact(straight), teacher_guider=exact(gaussian), name="follows")
        assert "ill-posed" not in caplog.text
        report = report_of(train(exact(rotated), teacher_guider=exact(gaussian), name="rotated"))
    error = min(b.test_error or 9.0 for b in report.baselines.values())
    assert error == pytest.approx(report.unrelated_error, rel=0.1)
    assert "LD3 Train Schedule (Advanced): no schedule comes close" in caplog.text
    assert "disconnect teacher_guider" in caplog.text and "own sampling in many" in caplog.text


def test_identical_work_is_loaded_and_another_teacher_is_other_work(
    train: Any, exact: Any, ld3_folder: Path
) -> None:
    train(exact(straight), teacher_guider=exact(gaussian), name="kept")
    files = set(ld3_folder.iterdir())
    train(exact(straight), teacher_guider=exact(gaussian), name="kept")
    assert set(ld3_folder.iterdir()) == files
    train(exact(straight), teacher_guider=exact(straight), name="kept")
    assert len(set(ld3_folder.iterdir())) == len(files) + 1


@pytest.mark.parametrize("steps", [3, 5])
def test_sigmas_to_compare_with_are_measured_and_returned_where_they_are_better(
    steps: int, train: Any, exact: Any
) -> None:
    """The student is right at two levels only, so that no other schedule comes close."""
    card = torch.tensor([1.0, 0.61, 0.23, 0.0])
    if steps == 5:
        card = torch.tensor([1.0, 0.8, 0.61, 0.4, 0.23, 0.0])

    def only_there(x: Tensor, sigma: Tensor) -> Tensor:
        known = any(abs(float(sigma.flatten()[0]) - float(level)) < 1e-5 for level in card)
        return straight(x, sigma) if known else 0 * x

    outputs = train(
        exact(only_there), teacher_guider=exact(gaussian), compare_with=card, name=f"card{steps}"
    )
    report = report_of(outputs)
    measured = report.baselines["compare_with"]
    assert measured.sigmas == pytest.approx(card.tolist()) and measured.test_error is not None
    if steps == 3:  # as many calls: it competes
        assert report.chosen == "compare_with" and torch.equal(outputs[0], card)
    else:
        assert not measured.comparable and report.chosen != "compare_with"
        assert len(outputs[0]) == 4


def test_the_plan_of_calls_contains_those_of_both_models(
    train: Any, exact: Any, monkeypatch: pytest.MonkeyPatch, pack_nodes: dict[str, type]
) -> None:
    import sys

    node = pack_nodes["LD3TrainScheduleAdvanced"]
    run = sys.modules[node.__module__.removesuffix("nodes.train_schedule_advanced") +
                      "ld3.comfy.training_run"]  # fmt: skip
    events: list[Any] = []
    monkeypatch.setattr(run, "LiveProgress", lambda *_: events.append)
    report = report_of(train(exact(straight), teacher_guider=exact(gaussian), name="p", seed=9))
    calls = [event.calls for event in events]
    assert calls == sorted(calls) and all(e.calls <= e.planned_calls for e in events)
    assert calls[-1] == report.teacher_calls + report.training_calls + report.report_calls
    assert len({event.planned_calls for event in events}) == 1


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("eps", ["teacher_guider's model is no flow model", "distilled from"]),
        ("format", ["teacher_guider's model has 4 latent channels", "guider's 3 in EmojiPixels"]),
        ("no guider", ["teacher_guider is a object", "BasicGuider"]),
        ("compare_with", ["compare_with", "decrease", "scheduler"]),
    ],
)
def test_a_teacher_of_other_latents_is_refused(
    kind: str, parts: list[str], train: Any, exact: Any, pack_nodes: dict[str, type],
    demo_inputs: dict[str, Any],
) -> None:  # fmt: skip
    from comfy.latent_formats import SD15

    changes: dict[str, Any] = {"teacher_guider": object()}
    if kind == "eps":
        eps = pack_nodes["LD3DemoModel"].execute(batch_size=1)[0]
        changes = {"teacher_guider": BasicGuider.execute(eps, demo_inputs["positive"])[0]}
    elif kind == "format":
        changes = {"teacher_guider": exact(gaussian)}
        changes["teacher_guider"].model_patcher.model.latent_format = SD15()
    elif kind == "compare_with":
        changes = {"compare_with": torch.tensor([0.5, 0.7, 0.0])}
    with pytest.raises(ValueError) as caught:
        train(exact(straight), name="refused", **changes)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.slow
def test_the_turbo_demo_model_follows_the_model_it_was_distilled_from(
    train: Any, pack_nodes: dict[str, type], demo_inputs: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """From guidance 3 to none, at its own size; its four steps are hard to beat."""
    load, prompt = pack_nodes["LD3DemoModel"], pack_nodes["LD3DemoPrompt"]
    burger, nothing = (prompt.execute(text=text)[0] for text in ("hamburger", ""))
    turbo, flow = (load.execute(batch_size=1, model=name) for name in ("flow turbo", "flow"))
    card = BasicScheduler.execute(flow[0], "simple", 4, 1.0)[0]
    with caplog.at_level(logging.WARNING):
        outputs = train(
            BasicGuider.execute(turbo[0], burger)[0], steps=4, name="turbo", latent_image=turbo[2],
            teacher_guider=CFGGuider.execute(flow[0], burger, nothing, 3.0)[0], compare_with=card,
        )  # fmt: skip
    report = report_of(outputs)
    assert "ill-posed" not in caplog.text
    assert report.test_error is not None and report.unrelated_error is not None
    assert report.test_error < 0.6 * report.unrelated_error
    errors = {name: b.ranking_error for name, b in report.baselines.items() if b.ranking_error}
    assert min(errors, key=lambda name: errors[name]) == "compare_with"


def test_a_teacher_with_other_prompts_than_the_students_is_refused(
    train: Any, exact: Any, pack_nodes: dict[str, type]
) -> None:
    clip = DemoClip()

    def with_prompts(count: int) -> Any:
        text = "\n".join(["red apple", "cat face", "fish"][:count])
        prompts = pack_nodes["LD3PromptList"].execute(clip=clip, text=text)[0]
        return BasicGuider.execute(exact(gaussian).model_patcher, prompts)[0]

    for student, teacher in ((1, 3), (3, 2)):
        with pytest.raises(ValueError, match=f"has {student} prompts and teacher_guider {teacher}"):
            train(with_prompts(student), teacher_guider=with_prompts(teacher), name="others")
