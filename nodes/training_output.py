"""What the nodes that train return and show."""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import torch
from comfy_api.v0_0_2 import io, ui

from ..ld3.comfy.sampling import schedule_sampler, sigmas_of_parts
from ..ld3.comfy.training_job import CACHE_GB, TrainingResult
from ..ld3.plots import report_picture
from ..ld3.shown_text import shown
from .messages import report_details, report_title, training_summary, training_warnings
from .schedule_parts import PARTS_OUTPUTS
from .types import FILE_KEY, MOST_MESSAGE, LD3Schedule, announce

logger = logging.getLogger(__name__)

OUTPUTS = [
    io.Sigmas.Output(
        display_name="sigmas",
        tooltip="Noise levels for the plain sampler, in SamplerCustom and other nodes "
        "that accept SIGMAS. Together with the sampler output the full solver runs, "
        "which has noise levels of its own.",
    ),
    io.Sampler.Output(
        display_name="sampler",
        tooltip="Sampler the schedule was learned for. If more than time steps was "
        "learned, it carries that too; connect the sigmas output beside it.",
    ),
    LD3Schedule.Output(
        display_name="schedule",
        tooltip="Sigmas and sampler in one, for LD3 KSampler.",
    ),
    io.Image.Output(
        display_name="report",
        tooltip="Report image: the learned and the standard schedules, the error "
        "during learning, and all errors on the test noises.",
    ),
    *PARTS_OUTPUTS,
]

CACHE_GB_INPUT = io.Float.Input(
    "cache_gb",
    default=CACHE_GB,
    min=0.0,
    max=10000.0,
    step=0.5,
    round=0.1,
    optional=True,
    advanced=True,
    tooltip="Disk space in GB for the teacher's samples of all trainings, which are used again by "
    "the next training with the same model, prompt and teacher. The oldest are removed first; 0 "
    "removes all and keeps none. Typical: 4.",
)


def training_output(
    node: type[io.ComfyNode], name: str, result: TrainingResult, sampler: Any = None
) -> io.NodeOutput:
    """A training's outputs, announced under the node's display name.

    Args:
        sampler: a SAMPLER that was connected; it is returned where nothing but steps was learned.
    """
    schedule, summary = result.schedule, shown(training_summary(result), MOST_MESSAGE)
    picture, problems = _picture(result)
    warnings = [*result.problems, *training_warnings(schedule.info), *problems]
    said = announce(node, name, summary, warnings)
    preview = _preview(picture, node) | ui.PreviewText(said).as_dict()
    preview[FILE_KEY] = [result.path.name]
    if sampler is None or schedule.info.extras:
        sampler = schedule_sampler(schedule)
    found = schedule.plain_sigmas, sampler, schedule, picture
    return io.NodeOutput(*found, *sigmas_of_parts(schedule), ui=preview)


def _preview(picture: torch.Tensor, node: type[io.ComfyNode]) -> dict[str, Any]:
    # core draws the file's name from Python's random state (ComfyUI 0.30.0, comfy_api _ui.py)
    state = random.getstate()
    try:
        return ui.PreviewImage(picture, cls=node).as_dict()
    finally:
        random.setstate(state)


def _picture(result: TrainingResult) -> tuple[torch.Tensor, list[str]]:
    """The report as an IMAGE, and what is wrong with it: no picture is worth a schedule."""
    try:
        pixels = report_picture(result.report, report_title(result), report_details(result))
        problems = []
    except Exception as error:
        logger.exception("LD3: the report could not be drawn")
        problems = [f"the report's picture could not be drawn ({error}); the schedule is complete"]
        pixels = np.full((64, 256, 3), 255, np.uint8)
    return torch.from_numpy(pixels).float()[None] / 255, problems
