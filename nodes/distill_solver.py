"""LD3 Distill Solver: D-ODE's lambdas for a schedule, or for any sigmas and sampler."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..ld3.comfy import samplers
from ..ld3.comfy.distilling import DistillRequest, distill_solver
from ..ld3.comfy.sampling import schedule_sampler
from .types import CATEGORY, MOST_SEED, LD3Schedule, errors_of, tell, warn


class LD3DistillSolver(io.ComfyNode):
    """Teach a sampler, without moving its steps, where a many-step sampling goes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LD3DistillSolver",
            display_name="LD3 Distill Solver",
            category=CATEGORY,
            description="Fits one number a model call that brings a few-step sampling nearer "
            "to a many-step one (D-ODE): in closed form, in a minute, without gradients. The noise "
            "levels stay as they are. Saved in models/ld3.",
            search_aliases=["D-ODE", "distill sampler", "few steps", "LD3"],
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model to fit for, with its LoRAs and patches as you will sample "
                    "with. Connect no caching node (EasyCache, TeaCache).",
                ),
                io.Conditioning.Input(
                    "positive", tooltip="A typical prompt; others of its kind are served too."
                ),
                io.Conditioning.Input(
                    "negative", tooltip="The negative prompt you use; unused at cfg 1."
                ),
                io.Latent.Input(
                    "latent_image",
                    tooltip="Gives the size to fit at, usually an empty latent of your usual size.",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale you will sample with (1 = none). For a schedule, the "
                    "one it was learned at.",
                ),
                io.String.Input(
                    "name",
                    default="my_distilled_schedule",
                    tooltip="File name in models/ld3. A name already taken is numbered, never "
                    "overwritten.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MOST_SEED,
                    control_after_generate=False,
                    tooltip="Noise i is what KSampler draws for seed + i. The same seed and "
                    "settings give the same numbers.",
                ),
                io.Combo.Input(
                    "teacher_sampler",
                    options=samplers.sampler_names(),
                    default="dpmpp_2m",
                    advanced=True,
                    tooltip="Sampler of the reference, which takes ten steps for each of yours. "
                    "Deterministic; dpmpp_2m is a good choice.",
                ),
                io.Int.Input(
                    "training_noises",
                    default=16,
                    min=2,
                    max=4096,
                    advanced=True,
                    tooltip="Noises to fit on; as many more decide what is kept. 16 is typical.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=4,
                    min=1,
                    max=256,
                    advanced=True,
                    tooltip="Samples a model call. More is faster while memory lasts. 1 for models "
                    "that barely fit.",
                ),
                LD3Schedule.Input(
                    "schedule",
                    optional=True,
                    tooltip="The schedule to extend, from LD3 Train Schedule or LD3 Load Schedule. "
                    "Or connect sigmas and sampler instead.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="Noise levels of any scheduler, together with sampler; unused if a "
                    "schedule is connected.",
                ),
                io.Sampler.Input(
                    "sampler",
                    optional=True,
                    tooltip="A deterministic sampler (KSamplerSelect), together with sigmas.",
                ),
            ],
            outputs=[
                io.Sigmas.Output(
                    display_name="sigmas", tooltip="The same noise levels, for any sampler graph."
                ),
                io.Sampler.Output(
                    display_name="sampler",
                    tooltip="A sampler that carries the fitted numbers; it works with these sigmas "
                    "only.",
                ),
                LD3Schedule.Output(
                    display_name="schedule", tooltip="Both in one, for LD3 KSampler."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

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
        with errors_of("LD3 Distill Solver"):
            result = distill_solver(
                model,
                positive,
                negative,
                latent_image,
                DistillRequest(**widgets),
                name,
                schedule,
                sigmas,
                sampler,
            )
        warn(cls, "LD3 Distill Solver", result.warnings)
        tell(cls, "\n".join([result.summary(), *result.warnings]))
        made = result.schedule
        return io.NodeOutput(made.sigmas.clone(), schedule_sampler(made), made)
