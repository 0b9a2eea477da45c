"""LD3 KSampler: sample with a schedule."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..ld3.comfy.job import GraphInputs
from ..ld3.comfy.sampling import prepared_sampling, sample
from .training_inputs import FOR_SAMPLING, low_noise_model_input
from .types import CATEGORY, LEAST_CFG, MOST_SEED, LD3Schedule, check_cfg_widget, reporting, warn


class LD3KSampler(io.ComfyNode):
    """KSampler with the sampler, steps and noise levels of a schedule."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LD3KSampler",
            display_name="LD3 KSampler",
            category=CATEGORY,
            description="KSampler with the sampler, number of steps and noise levels of a learned "
            "schedule.",
            search_aliases=["sample", "few steps", "turbo", "LD3"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Model the schedule was learned for. Other models cause a warning.",
                ),
                LD3Schedule.Input(
                    "schedule", tooltip="Schedule from LD3 Train Schedule or LD3 Load Schedule."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MOST_SEED,
                    control_after_generate=True,
                    tooltip="Seed of the initial noise. The same seed gives the same image.",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.0,
                    min=LEAST_CFG,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale; 1 is no guidance. Use the value the schedule was "
                    "learned at.",
                ),
                io.Conditioning.Input("positive", tooltip="Positive prompt."),
                io.Conditioning.Input("negative", tooltip="Negative prompt. Not used at cfg 1."),
                io.Latent.Input(
                    "latent_image", tooltip="Latent to start from; an empty one for text to image."
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Denoise strength. Typical: the value the schedule was learned at. "
                    "Below it, the same number of steps starts at a lower noise level. The "
                    "schedule is not learned for that; under half, a standard schedule may be "
                    "better.",
                ),
                low_noise_model_input(FOR_SAMPLING),
            ],
            outputs=[io.Latent.Output(tooltip="Sampled latent, for VAE Decode.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, cfg: float | None = None) -> bool:
        return check_cfg_widget(cls, cfg)

    @classmethod
    def execute(
        cls,
        model,
        schedule,
        seed: int,
        cfg: float,
        positive,
        negative,
        latent_image,
        denoise: float,
        low_noise_model=None,
    ) -> io.NodeOutput:
        with reporting(cls):
            given = schedule, model, cfg, denoise, latent_image
            prepared = prepared_sampling(*given, low_model=low_noise_model)
            warn(cls, "LD3 KSampler", prepared.warnings)
            inputs = GraphInputs(
                model, positive, negative, latent_image, low_noise_model=low_noise_model
            )
            latent = sample(inputs, prepared, seed)
        return io.NodeOutput(latent)
