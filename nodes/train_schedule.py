"""LD3 Train Schedule: learn the noise levels of a few-step sampling."""

from __future__ import annotations

import torch
from comfy_api.v0_0_2 import io, ui

from ..ld3.comfy import samplers, training
from ..ld3.comfy.request import (
    GAUSS_NEWTON,
    LEARN,
    OPTIMIZERS,
    PUBLISHED_RADIUS,
    STEPS,
    TrainingRequest,
)
from ..ld3.comfy.sampling import schedule_sampler
from ..ld3.metrics import DISTANCES
from ..ld3.plots import report_picture
from .types import CATEGORY, MOST_SEED, LD3Schedule, errors_of, tell, warn


class LD3TrainSchedule(io.ComfyNode):
    """Learn a schedule for this model, prompt kind, sampler, guidance and number of steps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LD3TrainSchedule",
            display_name="LD3 Train Schedule",
            category=CATEGORY,
            description=(
                "Learns where a few-step sampling should place its noise levels, so that it "
                "reproduces what the model makes in many steps. Needs no training data: the model "
                "teaches itself. Saved in models/ld3."
            ),
            search_aliases=[
                "learn sigmas",
                "train sigmas",
                "optimal steps",
                "AYS",
                "few steps",
                "LD3",
            ],
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model to learn for, with its LoRAs and patches as you will sample "
                    "with. Connect no caching node (EasyCache, TeaCache).",
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="A typical prompt. A schedule learned on one prompt serves others of "
                    "its kind.",
                ),
                io.Conditioning.Input(
                    "negative", tooltip="The negative prompt you use; unused at cfg 1."
                ),
                io.Latent.Input(
                    "latent_image",
                    tooltip="Gives the size to learn at, usually an empty latent of your usual "
                    "size; with denoise below 1 the image to start from. Several latents of a "
                    "batch take turns.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=samplers.sampler_names(),
                    default="dpmpp_2m",
                    tooltip="The sampler the schedule is for. It must be deterministic: euler, "
                    "heun, dpmpp_2m, ipndm, uni_pc, deis, res_multistep and the like; not "
                    "ancestral, SDE or CFG++.",
                ),
                io.Int.Input(
                    "steps",
                    default=5,
                    min=2,
                    max=50,
                    tooltip="Sampling steps of the schedule to learn. Most is gained at 3 to 6; "
                    "above 10 standard schedulers are nearly as good, and learning takes long.",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale you will sample with (1 = none, half the time). A "
                    "schedule is best at the scale it was learned at. Typical: 7 for SD and SDXL, "
                    "1 for distilled and Flux models.",
                ),
                io.String.Input(
                    "name",
                    default="my_schedule",
                    tooltip="File name in models/ld3. A name already taken is numbered, never "
                    "overwritten.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MOST_SEED,
                    control_after_generate=False,
                    tooltip="Training noise i is what KSampler draws for seed + i. The same seed "
                    "and settings give the same schedule.",
                ),
                io.Combo.Input(
                    "teacher_sampler",
                    options=samplers.sampler_names(),
                    default="dpmpp_2m",
                    tooltip="Sampler of the many-step reference the schedule shall reproduce. "
                    "Deterministic.",
                ),
                io.Combo.Input(
                    "teacher_scheduler",
                    options=samplers.scheduler_names(),
                    default="karras",
                    tooltip="Scheduler of the reference. karras is near the exact solution for eps "
                    "and v models (SD, SDXL); for flow models (Flux, SD3) use simple or beta. "
                    "Choose what looks best to you in many steps.",
                ),
                io.Int.Input(
                    "teacher_steps",
                    default=20,
                    min=3,
                    max=1000,
                    tooltip="Steps of the reference, more than the schedule's. 20 is typical; at "
                    "high guidance a nearer teacher (2 to 4 times the steps) can be easier to "
                    "follow.",
                ),
                io.Boolean.Input(
                    "retrain",
                    default=False,
                    tooltip="Off: identical settings return the schedule saved before, at once. "
                    "On: every Run learns anew and saves under a numbered name.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Denoise strength you will sample with; below 1 for image to image. 1 "
                    "is typical.",
                ),
                io.Combo.Input(
                    "distance",
                    options=list(DISTANCES),
                    default="pseudo-huber",
                    advanced=True,
                    tooltip="How a difference to the reference counts. pseudo-huber, l2 and l1 "
                    "compare latents; pseudo-huber is the safe choice: a few samples that turn out "
                    "entirely different do not rule the rest. lpips-... (as people see) and "
                    "pixel-... compare decoded images: connect vae; slower.",
                ),
                io.Int.Input(
                    "iterations",
                    default=12,
                    min=1,
                    max=200,
                    advanced=True,
                    tooltip="Improvement steps of the best of three starts (the others get a third "
                    "of them); where more than time steps is learned, six starts compete and the "
                    "best makes 1.6 times as many. With gradient (Adam), passes over the training "
                    "noises. More take proportionally longer; 12 is typical.",
                ),
                io.Int.Input(
                    "training_noises",
                    default=32,
                    min=4,
                    max=4096,
                    advanced=True,
                    tooltip="Noises to learn from; as many more (at least 16) decide which "
                    "schedule is kept. Each costs one many-step sampling. 32 is typical.",
                ),
                io.Int.Input(
                    "heldout_noises",
                    default=64,
                    min=4,
                    max=4096,
                    advanced=True,
                    tooltip="Fresh noises that measure the result and all standard schedulers for "
                    "the report. They do not change the schedule; 16 save time on a large model.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=4,
                    min=1,
                    max=256,
                    advanced=True,
                    tooltip="Samples a model call. More is faster while memory lasts; the result "
                    "is the same up to rounding. 1 for models that barely fit.",
                ),
                io.Combo.Input(
                    "learn",
                    options=list(LEARN),
                    default=STEPS,
                    optional=True,  # as all below: API workflows made before them lack them
                    tooltip="What to learn. Time steps alone fit any sampler node as SIGMAS. "
                    "Decoupled times also choose the noise level the network is told at each call, "
                    "for a tenth to a half less error. D-ODE fits one number a call, in closed "
                    "form. The full solver learns decoupled times and the sampler's coefficients: "
                    "the least error, best with 64 training_noises. All but the first need LD3 "
                    "KSampler or the sampler output.",
                ),
                io.Combo.Input(
                    "optimizer",
                    options=list(OPTIMIZERS),
                    default=GAUSS_NEWTON,
                    optional=True,
                    advanced=True,
                    tooltip="How to learn. gauss-newton works with every model, at the memory of "
                    "sampling, and goes furthest. gradient is the published method: it "
                    "differentiates the model, and says so where that is impossible.",
                ),
                io.Float.Input(
                    "soft_radius",
                    default=PUBLISHED_RADIUS,
                    optional=True,
                    min=-1.0,
                    max=1000.0,
                    step=0.01,
                    round=0.0001,
                    advanced=True,
                    tooltip="Only for gradient: how far, in noise, the start may move from the "
                    "reference's. -1 is the paper's 0.001 x latent size / model calls squared, 0 "
                    "holds it fast.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Only for distances between images (lpips-..., pixel-...): the VAE "
                    "that decodes them.",
                ),
            ],
            outputs=[
                io.Sigmas.Output(
                    display_name="sigmas",
                    tooltip="The learned noise levels, for SamplerCustom and any sampler graph. "
                    "Use them with the sampler beside, which also carries what else was learned.",
                ),
                io.Sampler.Output(
                    display_name="sampler",
                    tooltip="The sampler the schedule was learned for: ComfyUI's own, or, if "
                    "more than steps was learned, LD3's, which works with these sigmas only.",
                ),
                LD3Schedule.Output(
                    display_name="schedule",
                    tooltip="Sigmas and sampler in one, with where they come from, for LD3 "
                    "KSampler.",
                ),
                io.Image.Output(
                    display_name="report",
                    tooltip="The schedule beside the standard ones, the error while learning, and "
                    "errors on fresh noises against all standard schedulers.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, retrain: bool, **inputs) -> float | str:
        # NaN equals nothing, itself included: with retrain on ComfyUI's cache answers no Run
        return float("nan") if retrain else ""

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        latent_image,
        name: str,
        retrain: bool,
        vae=None,
        **widgets,
    ) -> io.NodeOutput:
        with errors_of("LD3 Train Schedule"):
            request = TrainingRequest(**widgets)
            result = training.train_schedule(
                model, positive, negative, latent_image, request, name, retrain, vae
            )
        schedule = result.schedule
        report = (
            torch.from_numpy(report_picture(result.report, result.summary())).float()[None] / 255
        )
        warn(cls, "LD3 Train Schedule", result.warnings())
        tell(cls, "\n".join([result.summary(), *result.warnings()]))
        shown = (
            ui.PreviewImage(report, cls=cls).as_dict() | ui.PreviewText(result.summary()).as_dict()
        )
        return io.NodeOutput(
            schedule.sigmas.clone(), schedule_sampler(schedule), schedule, report, ui=shown
        )
