"""LD3 Compare Schedules: the same noises sampled in several ways, side by side."""

from __future__ import annotations

import torch
from comfy_api.v0_0_2 import io, ui

from ..ld3.comfy.comparing import ComparisonInputs, ComparisonRequest, compare
from ..ld3.comparison_picture import comparison_picture, comparison_table
from .training_inputs import FOR_SAMPLING, low_noise_model_input
from .types import CATEGORY, LEAST_CFG, MOST_SEED, LD3Schedule, check_widgets, reporting, warn

MOST_PROMPTS = MOST_SCHEDULES = 4


def _more(name: str, count: int) -> list[str]:
    """name_2, name_3, .. up to the count."""
    return [f"{name}_{i}" for i in range(2, count + 1)]


class LD3CompareSchedules(io.ComfyNode):
    """Compare learned schedules with the many-step reference and with standard schedules."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LD3CompareSchedules",
            display_name="LD3 Compare Schedules",
            category=CATEGORY,
            description="Samples the same noises with the many-step reference, standard schedules "
            "and learned ones, and makes one picture of them: what each column is, its model calls "
            "and its error are written in it.",
            search_aliases=["XY plot", "grid", "side by side", "compare schedulers", "LD3"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="Model the schedules were learned for."),
                io.Conditioning.Input("positive", tooltip="First prompt; one row for each noise."),
                io.Conditioning.Input("negative", tooltip="Negative prompt. Not used at cfg 1."),
                io.Latent.Input(
                    "latent_image", tooltip="Latent that sets the image size; an empty one."
                ),
                io.Vae.Input("vae", tooltip="VAE that decodes the pictures."),
                LD3Schedule.Input(
                    "schedule",
                    tooltip="Learned schedule. Its teacher is the reference, and its number of "
                    "steps is that of the standard schedules.",
                ),
                io.Int.Input(
                    "seed",
                    default=1,
                    min=0,
                    max=MOST_SEED,
                    control_after_generate=False,
                    tooltip="Seed of the first noise; further noises have seed + 1, + 2, .. as in "
                    "KSampler.",
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=LEAST_CFG,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale, for all columns. Use the value the schedules were "
                    "learned at.",
                ),
                io.Int.Input(
                    "noises",
                    default=2,
                    min=1,
                    max=16,
                    tooltip="Number of noises, so rows, for every prompt. Typical: 1 to 4.",
                ),
                io.String.Input(
                    "compare_with",
                    default="euler + simple, best standard",
                    tooltip="Standard schedules to show, separated by commas: 'euler + simple', "
                    "'15 steps of euler + simple', or 'best standard', which the training found. "
                    "Without a number they have as many steps as the schedule.",
                ),
                io.String.Input(
                    "row_names",
                    default="",
                    optional=True,
                    tooltip="Names of the rows, separated by commas, or nothing.",
                ),
                *(
                    io.Conditioning.Input(name, optional=True, tooltip="Another prompt, more rows.")
                    for name in _more("positive", MOST_PROMPTS)
                ),
                *(
                    LD3Schedule.Input(name, optional=True, tooltip="Another schedule, as a column.")
                    for name in _more("schedule", MOST_SCHEDULES)
                ),
                low_noise_model_input(FOR_SAMPLING),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="All columns with their captions."),
                io.String.Output(
                    display_name="table", tooltip="Names, steps, model calls and errors as text."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, compare_with: str | None = None, cfg: float | None = None) -> bool:
        cfg = 1.0 if cfg is None else cfg  # connected
        request = ComparisonRequest(seed=0, noises=1, cfg=cfg, compare_with=compare_with or "")
        check_widgets(cls, request.check)
        return True

    @classmethod
    def execute(
        cls, model, positive, negative, latent_image, vae, schedule, **inputs
    ) -> io.NodeOutput:
        prompts = _taken(inputs, "positive", MOST_PROMPTS)
        schedules = _taken(inputs, "schedule", MOST_SCHEDULES)
        connected = ComparisonInputs(
            model,
            [positive, *prompts],
            negative,
            latent_image,
            vae,
            [schedule, *schedules],
            inputs.pop("low_noise_model", None),
        )
        with reporting(cls):
            columns, rows, warnings = compare(connected, ComparisonRequest(**inputs))
            picture = torch.from_numpy(comparison_picture(columns, rows)).float()[None] / 255
        table = comparison_table(columns)
        warn(cls, "LD3 Compare Schedules", warnings)
        shown = ui.PreviewImage(picture, cls=cls).as_dict() | {"table": [table]}
        return io.NodeOutput(picture, table, ui=shown)


def _taken(inputs: dict, name: str, count: int) -> list:
    """Connected inputs of that name with numbers, taken out of the others."""
    found = [inputs.pop(key, None) for key in _more(name, count)]
    return [value for value in found if value is not None]
