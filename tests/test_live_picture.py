"""What a training shows while it runs: its cost, and two samples of one noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ld3.comfy import progress, training_run
from ld3.comfy.job import GraphInputs
from ld3.comfy.requests import TrainingRequest
from ld3.comfy.training_job import train_schedule
from ld3.comparison_picture import with_thumbnails
from ld3.training.report import Progress

REQUEST = TrainingRequest(
    sampler_name="euler", steps=2, cfg=1.0, seed=0, teacher_sampler="euler",
    teacher_scheduler="karras", teacher_steps=4, denoise=1.0, distance="pseudo-huber",
    iterations=2, training_noises=4, heldout_noises=4, batch_size=16, learn="time steps",
    quality="fast",
)  # fmt: skip


def test_events_carry_two_samples_of_one_noise_that_previews_can_draw(
    demo_inputs: dict[str, Any], ld3_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, drawn = list[Progress](), list[Any]()

    def live(thumbnails: Any) -> Any:
        def show(event: Progress) -> None:
            events.append(event)
            if event.pair is not None:
                drawn.append(thumbnails(event.pair))

        return show

    monkeypatch.setattr(training_run, "LiveProgress", live)
    train_schedule(GraphInputs(**demo_inputs), REQUEST, "live", True, 0.0)
    pairs = [event.pair for event in events if event.pair is not None]
    assert pairs
    teacher, student = pairs[-1]
    assert teacher.shape == student.shape == (1, 3, 8, 8)
    assert torch.equal(pairs[0][0], teacher)  # always of the same noise
    error = float((teacher - student).square().mean().sqrt())
    assert 0 < error < 0.2 * float(teacher.square().mean().sqrt())
    assert all(image.size == (8, 8) for images in drawn for image in images)


def test_thumbnails_stand_beside_the_picture_with_their_names() -> None:
    picture = np.full((420, 1300, 3), 255, np.uint8)
    images = {name: Image.new("RGB", (32, 24), "black") for name in ("teacher", "the best so far")}
    found = with_thumbnails(picture, images)
    assert np.array_equal(found[:, :1300], picture) and found.shape[0] == 420
    column = (found[:, 1300:] < 128).all(-1)
    assert 100 < column.shape[1] < 300
    assert column.sum() > 2 * 100 * 75  # both enlarged
    edge = np.concatenate([column[:2].ravel(), column[-2:].ravel(), column[:, -2:].ravel()])
    assert not edge.any()


def test_the_cost_is_said_in_calls_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[tuple[str, str]]()
    monkeypatch.setattr(progress, "show_text", lambda node, text: said.append((node, text)))
    progress.show_cost(4, 2134, 250.0)
    assert said == []  # outside a server

    class Running:
        node_id = "5"

    monkeypatch.setattr(progress, "get_executing_context", Running)
    progress.show_cost(4, 2134, 250.0)
    assert said == [("5", "learning 4 steps: 2,134 model calls at most, about 4 min")]
