"""LD3 Distill Solver: fit D-ODE's lambdas to a schedule, or to any sigmas and sampler."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..ld3.comfy import core_samplers, unsaved
from ..ld3.comfy.distilling_job import Source, distill_solver
from ..ld3.comfy.job import GraphInputs
from ..ld3.comfy.requests import DistillRequest
from ..ld3.comfy.sampling import schedule_sampler
from .messages import distilling_summary
from .types import (
    CATEGORY,
    LEAST_CFG,
    MOST_SEED,
    NOTHING_SAVED,
    LD3Schedule,
    announce,
    check_cfg_widget,
    reporting,
)


class LD3DistillSolver(io.ComfyNode):
    """Fit a sampler to a many-step teacher without changing its noise levels (D-ODE)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LD3DistillSolver",
            display_name="LD3 Distill Solver",
            category=CATEGORY,
            description="Fits one number per model call (D-ODE), so that the result of few steps "
            "is closer to that of many steps. Takes about 400 model calls for each call of your "
            "sampler; the noise levels do not change. The result is saved in models/ld3.",
            search_aliases=["D-ODE", "distill sampler", "few steps", "LD3"],
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Model to fit the sampler for, with the LoRAs and patches you will "
                    "sample with. Do not use caching nodes (EasyCache, TeaCache).",
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="Positive prompt. The result also works for similar prompts.",
                ),
                io.Conditioning.Input("negative", tooltip="Negative prompt. Not used at cfg 1."),
                io.Latent.Input(
                    "latent_image",
                    tooltip="Latent that sets the image size. Typical: an empty latent.",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.0,
                    min=LEAST_CFG,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale you will sample with; 1 is no guidance. With a "
                    "schedule, use the value it was learned at.",
                ),
                io.String.Input(
                    "name",
                    default="my_distilled_schedule",
                    tooltip="File name in models/ld3. If the name is taken, a number is added; no "
                    "file is overwritten.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MOST_SEED,
                    control_after_generate=False,
                    tooltip="Seed of the noises: noise i is the noise of KSampler for seed + i. "
                    "The same seed and settings give the same result.",
                ),
                io.Combo.Input(
                    "teacher_sampler",
                    options=core_samplers.deterministic_samplers(),
                    default="dpmpp_2m",
                    advanced=True,
                    tooltip="Sampler of the teacher, which takes ten steps for each of yours. Must "
                    "be deterministic. Typical: dpmpp_2m.",
                ),
                io.Int.Input(
                    "training_noises",
                    default=16,
                    min=2,
                    max=4096,
                    advanced=True,
                    tooltip="Number of noises to fit the numbers to; as many validation noises "
                    "decide which are kept. Typical: 16.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=4,
                    min=0,
                    max=256,
                    advanced=True,
                    tooltip="Samples per model call, at most: fewer where memory does not "
                    "suffice. Larger can be faster; the result is the same up to rounding. 0: up "
                    "to 16, as many as memory is free for (4 on a CPU). Typical: 4.",
                ),
                LD3Schedule.Input(
                    "schedule",
                    optional=True,
                    tooltip="Schedule to extend, from LD3 Train Schedule or LD3 Load Schedule. "
                    "Alternative: connect sigmas and sampler.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="Noise levels of any scheduler; requires sampler. Not used if a "
                    "schedule is connected.",
                ),
                io.Sampler.Input(
                    "sampler",
                    optional=True,
                    tooltip="Deterministic sampler (KSamplerSelect); requires sigmas. Not used if "
                    "a schedule is connected.",
                ),
            ],
            outputs=[
                io.Sigmas.Output(
                    display_name="sigmas",
                    tooltip="Noise levels, unchanged, for nodes that accept SIGMAS.",
                ),
                io.Sampler.Output(
                    display_name="sampler",
                    tooltip="Sampler with the fitted numbers. It works with these sigmas only.",
                ),
                LD3Schedule.Output(
                    display_name="schedule", tooltip="Sigmas and sampler in one, for LD3 KSampler."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, cfg: float | None = None) -> bool:
        return check_cfg_widget(cls, cfg)

    @classmethod
    def fingerprint_inputs(cls, **inputs) -> float | str:
        return unsaved.fingerprint()

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        latent_image,
        name: str,
        schedule=None,
        sigmas=None,
        sampler=None,
        **widgets,
    ) -> io.NodeOutput:
        with reporting(cls, NOTHING_SAVED):
            inputs = GraphInputs(model, positive, negative, latent_image)
            source = Source(schedule, sigmas, sampler)
            result = distill_solver(inputs, DistillRequest(**widgets), name, source)
        announce(cls, "LD3 Distill Solver", distilling_summary(result), result.warnings)
        made = result.schedule
        return io.NodeOutput(made.sigmas.clone(), schedule_sampler(made), made)
