"""How the flow demo model is distilled to four steps."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from demo import demo_model, distill_demo_model, emoji, train_demo_model
from demo.distill_demo_model import STEPS, Distiller


@pytest.fixture
def distiller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> Iterator[Callable[[], Distiller]]:
    """`distiller()`: a Distiller with two captions."""
    images = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    monkeypatch.setattr(emoji, "load_emoji", lambda *_: (images, ["red apple", "red heart"]))
    monkeypatch.setattr(train_demo_model, "import_demo_model", lambda _: demo_model)
    monkeypatch.setattr(distill_demo_model, "SUBSTEPS", 1)
    monkeypatch.setattr(distill_demo_model, "TRAJECTORIES", 2)
    options = argparse.Namespace(
        comfyui=None, checkpoint=tmp_path, prediction="flow", start_from=demo_model.WEIGHTS["flow"],
        steps=10, batch=2, learning_rate=0.1, seed=0, threads=1, minutes=1.0, compile=False,
        bf16=False, font=emoji.FONT,
    )  # fmt: skip
    with torch.random.fork_rng():
        yield lambda: Distiller(options)


def test_student_starts_as_its_teacher(distiller: Any) -> None:
    training = distiller()
    x = torch.randn(2, 3, 32, 32)
    sigmas, tokens = torch.tensor([0.25, 1.0]), training.tokens
    student = training.output(x, sigmas, tokens)
    training.forward = training.teacher
    torch.testing.assert_close(student, training.output(x, sigmas, tokens))


def test_trajectories_of_a_straight_flow_are_exact(
    distiller: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = distiller()
    monkeypatch.setattr(training, "output", lambda x, sigmas, tokens: torch.full_like(x, 2.0))
    training.add_trajectories(torch.Generator().manual_seed(0))
    states = training.states
    assert states.shape == (2, STEPS + 1, 3, 32, 32)
    for index in range(STEPS + 1):
        moved = states[:, 0] - 2.0 * index / STEPS
        torch.testing.assert_close(states[:, index], moved, atol=1e-5, rtol=0)


def test_loss_is_zero_where_each_step_ends_on_the_teachers_trajectory(
    distiller: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = distiller()
    training.add_trajectories(torch.Generator().manual_seed(0))
    velocity = torch.full((2, 3, 32, 32), 2.0, requires_grad=True)
    straight = torch.stack([torch.full((2, 3, 32, 32), 3.0 - 0.5 * k) for k in range(STEPS + 1)], 1)
    training.states, training.step = straight, 1
    monkeypatch.setattr(training, "output", lambda x, sigmas, tokens: velocity * 1.0)
    assert float(training.backward()) < 1e-9
    training.states = straight + torch.arange(STEPS + 1)[None, :, None, None, None]
    assert float(training.backward()) > 1


def test_only_the_factors_change(distiller: Any) -> None:
    training = distiller()
    base = {name: value.clone() for name, value in training.teacher.state_dict().items()}
    for _ in range(2):
        assert float(training.train_step()) > 0
    assert all(
        torch.equal(base[name], value) for name, value in training.teacher.state_dict().items()
    )
    assert all(float(pair.up.detach().abs().max()) > 0 for pair in training.factors.values())
