"""Every error text that a user can meet is expected by a test: here those no other file meets."""

from __future__ import annotations

import ast
import asyncio
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ld3.comfy import (
    comparing,
    folders,
    guided_run,
    guiders,
    image_distance,
    latents,
    requests,
    routes,
    sampling,
    scheduler_list,
)
from ld3.comfy.distilling_job import _check_inputs
from ld3.comfy.gradient import gradient_check
from ld3.comfy.training_job import check_training

from .source_code import ROOT, name_of

ERROR = re.compile(r"(Error|UnsupportedSampler)$")
SHORTEST = 12  # characters of a text that stand in the tests
RAISED_AGAIN = {  # they pass on the text of another error, with the widget before it
    ("nodes/types.py", "message"),
    ("ld3/comfy/core_samplers.py", "f'{widget}: {error}'"),
    ("ld3/comfy/core_samplers.py", "f'{widget}: {reason}'"),
    ("ld3/comfy/distilling_job.py", "f'sigmas: {error}'"),
    ("ld3/comfy/gradient/differentiable_model.py", "f'{error}. {OTHER_OPTIMIZER}'"),
}
SHORT = {  # CASES expect them, but their literal parts are too short to look for
    "f'{name} is {value}; use {least} or more'",
    "f'send {JSON}, not {request.content_type}'",
    "f'{key} is missing'",
    "f'{name} is {shown(str(known[name]), 80)!r}; use {words}'",
}
NEVER_SHOWN = {  # a file that raises it is not used again, a request not made by our page
    "'the report has no errors'",
    "'the teacher has no name'",
    "'the teacher has no steps'",
    "'note is missing'",
}


def lost_guider(*arguments: Any, **options: Any) -> None:
    """A guider whose patches replaced the sampler."""


class _NoSampling:
    sample = staticmethod(lost_guider)


def first_empty() -> Any:
    return latents.latent_samples(None, {"samples": torch.zeros(0, 4, 8, 8)})


def wrong_gradient() -> None:
    guided: Any = SimpleNamespace(model_wrap=None, options={}, model=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient_check, "_wrong_gradient", lambda *_: "it is zero")
        patch.setattr(gradient_check, "likely_causes", lambda *_: ["TeaCache"])
        gradient_check.check_gradient(guided, torch.zeros(1), torch.zeros(1))


def stochastic_schedule() -> None:
    info = SimpleNamespace(sampler="euler_ancestral", prediction_type="eps", boundary=0.0)
    sigmas = torch.tensor([10.0, 1.0, 0.0])
    schedule: Any = SimpleNamespace(info=info, name="x", sigmas=sigmas, plain_sigmas=sigmas)
    sampling.check_deterministic(schedule)


def no_room_for_steps() -> None:
    def stretched(*arguments: Any) -> None:
        raise ValueError("no room for 90 steps")

    found = SimpleNamespace(info=SimpleNamespace(steps=3), others=(), plain_sigmas=None)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"load": found, "check_levels": None, "coordinate": None}.items():
            patch.setattr(scheduler_list, name, lambda *_, value=value: value)
        patch.setattr(scheduler_list.folders, "schedule_path", lambda name: name)
        patch.setattr(scheduler_list, "stretched_sigmas", stretched)
        scheduler_list.scheduler_sigmas("x.safetensors", SimpleNamespace(sigma_min=0.1), 90)


def easycache() -> None:
    options = {"transformer_options": {"easycache": object()}}
    guided: Any = SimpleNamespace(model_wrap=None, options=options)
    gradient_check.check_gradient(guided, torch.zeros(1), torch.zeros(1))


CASES: list[tuple[Callable[[], Any], list[str]]] = [
    (
        lambda: comparing._entry("euler simple"),
        ["compare_with contains 'euler simple'; expected ", "euler + simple"],
    ),
    (
        lambda: comparing._entry("nonsense + simple"),
        ["compare_with contains 'nonsense'; choose one of ", "dpmpp_2m"],
    ),
    (
        lambda: comparing._entry("euler + nonsense"),
        ["compare_with contains 'nonsense'; choose one of ", "karras"],
    ),
    (lambda: _check_inputs(torch.tensor([1.0, 2.0, 0.0]), None), ["sigmas: "]),
    (
        lambda: guided_run.run(_NoSampling(), torch.zeros(1), torch.ones(2), lambda _: 0),
        ["the guider did not sample: remove patches that replace the sampler"],
    ),
    (
        lambda: guiders.check_guider("teacher_guider", object()),
        ["teacher_guider is a object without sample and model_patcher", "; connect a GUIDER"],
    ),
    (
        lambda: image_distance.check_image_distance("l2", None),
        ["distance 'l2' compares no images; choose one of ", "pixel-l2"],
    ),
    (first_empty, ["latent_image is an empty batch (0 latents)", "batch_size 1 or more"]),
    (lambda: requests.check_cfg(float("nan")), ["cfg is nan; use 0 or more, 1 for no guidance"]),
    (
        lambda: requests.check_at_least(2, "training_noises", 1),
        ["training_noises is 1; use 2 or more"],
    ),
    (
        wrong_gradient,
        ["the model has no usable gradient: it is zero. Likely causes: TeaCache. ", "optimizer"],
    ),
    (stochastic_schedule, ["schedule 'x' cannot be used: ", "stochastic"]),
    (
        lambda: check_training({"denoise": 1.5}),
        ["denoise is 1.5; use a value above 0 and up to 1"],
    ),
    (lambda: check_training({"seed": [1]}), ["seed is '[1]'; use a whole number"]),
    (lambda: check_training({"cfg": {}}), ["cfg is '{}'; use a number"]),
    (lambda: check_training({"name": 5}), ["name is '5'; use text"]),
    (lambda: routes._text({}, "name"), ["name is missing"]),
    (
        no_room_for_steps,
        ["'LD3: x': no room for 90 steps; use fewer steps, or more denoise"],
    ),
    (easycache, ["EasyCache or LazyCache is on the MODEL: calls that it skips have wrong "]),
]


@pytest.mark.parametrize(("call", "parts"), CASES, ids=[parts[0][:30] for _, parts in CASES])
def test_an_error_says_what_was_given_and_what_to_do(
    call: Callable[[], Any], parts: list[str]
) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)


def test_a_list_without_a_chosen_schedule_names_those_there_are(ld3_folder: Path) -> None:
    (ld3_folder / "mine.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="no schedule is chosen; choose one: mine.safetensors"):
        folders.schedule_path(folders.NO_SCHEDULE)


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        ("text/plain", {}, "send application/json, not text/plain"),
        ("application/json", [], "send an object"),
    ],
)
def test_a_route_says_what_to_send(kind: str, body: Any, text: str) -> None:
    async def json_body() -> Any:
        return body

    request: Any = SimpleNamespace(content_type=kind, json=json_body)
    answer = asyncio.run(routes._answering(lambda data: data, "body")(request))
    assert answer.status == 400 and json.loads(answer.text)["error"] == text


def raised(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Line, source and literal parts of every text with which a file makes an error."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and node.args and ERROR.search(ast.unparse(node.func)):
            text = node.args[0]
            parts = [
                part.value
                for part in ast.walk(text)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            ]
            yield node.lineno, ast.unparse(text), parts


def test_every_error_text_of_the_nodes_is_expected_by_a_test() -> None:
    """A dozen characters in a row of every text raised stand in the tests, or in CASES above."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    tests = re.sub(r'"\s*\n\s*[rf]?"', "", sources)  # texts that continue on the next line
    unmet = []
    for folder in ("nodes", "ld3/comfy"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for line, source, parts in raised(path):
                starts = ((part, i) for part in parts for i in range(len(part) - SHORTEST + 1))
                if any(part[i : i + SHORTEST] in tests for part, i in starts):
                    continue
                if (name_of(path), source) in RAISED_AGAIN or source in SHORT | NEVER_SHOWN:
                    continue
                unmet.append(f"{name_of(path)}:{line}: {source}")
    assert not unmet, "\n".join(unmet)


def test_errors_that_the_readme_explains_exist_in_the_code() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme[readme.index("| If it says | do this |") :]
    rows = re.findall(r"^\| (`.*) \|", table[: table.index("\n\n")], re.MULTILINE)
    assert len(rows) >= 8
    code = ""
    for folder in ("nodes", "ld3"):
        for path in (ROOT / folder).rglob("*.py"):
            code += re.sub(r'"\s*\n\s*[rf]?"', "", path.read_text(encoding="utf-8"))
    for row in rows:
        for text in re.findall(r"`([^`]+)`", row.split(" | ")[0]):
            for part in re.split(r"\.\.\.|'[^']*'", text):
                assert part.strip(" :") in code, text
