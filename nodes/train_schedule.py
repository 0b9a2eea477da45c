"""LD3 Train Schedule: learn the noise levels for sampling in few steps."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..ld3.comfy import core_samplers, unsaved
from ..ld3.comfy.job import GraphInputs
from ..ld3.comfy.requests import (
    AUTO,
    FULL,
    GAUSS_NEWTON,
    LEARN,
    OPTIMIZERS,
    PUBLISHED_RADIUS,
    TrainingRequest,
)
from ..ld3.comfy.training_job import CACHE_GB, check_training, train_schedule
from ..ld3.metrics import DISTANCES
from ..ld3.training.budget import QUALITIES
from .training_inputs import also_steps_input, boundary_input, low_noise_model_input
from .training_options import HIDDEN, OPTIONS_INPUT, with_options
from .training_output import CACHE_GB_INPUT, OUTPUTS, training_output
from .types import CATEGORY, CONTINUED_LATER, LEAST_CFG, MOST_SEED, check_widgets, reporting


class LD3TrainSchedule(io.ComfyNode):
    """Learn a schedule for a model, kind of prompt, sampler, guidance and number of steps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LD3TrainSchedule",
            display_name="LD3 Train Schedule",
            category=CATEGORY,
            description=(
                "Learns the noise levels for sampling in few steps, so that the result is close to "
                "that of the same model in many steps. Requires no training images. The schedule "
                "is saved in models/ld3."
            ),
            search_aliases=[
                "learn sigmas",
                "train sigmas",
                "optimal steps",
                "AYS",
                "align your steps",
                "custom sigmas",
                "scheduler",
                "turbo",
                "few steps",
                "LD3",
            ],
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Model to learn the schedule for, with the LoRAs and patches you will "
                    "sample with. Do not use caching nodes (EasyCache, TeaCache).",
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="Positive prompt. The schedule also works for similar prompts.",
                ),
                io.Conditioning.Input("negative", tooltip="Negative prompt. Not used at cfg 1."),
                io.Latent.Input(
                    "latent_image",
                    tooltip="Latent that sets the image size. Typical: an empty latent; with "
                    "denoise below 1, the image to start from. The latents of a batch are used in "
                    "turn.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=core_samplers.deterministic_samplers(),
                    default="dpmpp_2m",
                    tooltip="Sampler the schedule is learned for. Must be deterministic: euler, "
                    "heun, dpmpp_2m, ipndm, uni_pc, deis, res_multistep and similar; not "
                    "ancestral or SDE. For CFG++, choose the same sampler as teacher_sampler.",
                ),
                io.Int.Input(
                    "steps",
                    default=5,
                    min=2,
                    max=50,
                    tooltip="Number of sampling steps the schedule is learned for. The gain is "
                    "largest at 3 to 7 and smaller at 8 to 10. Above 10 it was not measured, and "
                    "learning takes long.",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.0,
                    min=LEAST_CFG,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale you will sample with; 1 is no guidance and takes half "
                    "the time. The schedule works best at this value. Typical: 7 for SD and SDXL, "
                    "1 for distilled and Flux models.",
                ),
                io.String.Input(
                    "name",
                    default="my_schedule",
                    tooltip="File name in models/ld3. If the name is taken, a number is added; no "
                    "file is overwritten.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MOST_SEED,
                    control_after_generate=False,
                    tooltip="Seed of the noises: training noise i is the noise of KSampler for "
                    "seed + i. The same seed and settings give the same schedule.",
                ),
                io.Combo.Input(
                    "teacher_sampler",
                    options=core_samplers.deterministic_samplers(),
                    default="dpmpp_2m",
                    tooltip="Sampler of the teacher, the many-step reference that the schedule "
                    "approximates. Must be deterministic. Typical: dpmpp_2m.",
                ),
                io.Combo.Input(
                    "teacher_scheduler",
                    options=[AUTO, *core_samplers.scheduler_names()],
                    default=AUTO,
                    tooltip="Scheduler of the teacher. auto: the levels halfway between karras and "
                    "beta for flow models (Flux, SD3), exponential for others (SD, SDXL), or "
                    "karras if a short test with twice the steps finds it closer to the exact "
                    "solution. A scheduler you choose is used, and tested too: a warning names a "
                    "clearly better one. Typical: auto.",
                ),
                io.Int.Input(
                    "teacher_steps",
                    default=20,
                    min=3,
                    max=1000,
                    tooltip="Number of teacher steps; must be larger than steps. Typical: 20. At "
                    "high guidance a teacher with fewer steps (2 to 4 times the student's) can be "
                    "easier to match.",
                ),
                io.Boolean.Input(
                    "retrain",
                    default=False,
                    tooltip="Off: identical settings return the saved schedule at once. On: every "
                    "run learns again and saves under a numbered name.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Denoise strength you will sample with; below 1 for image to image. "
                    "Typical: 1.",
                ),
                io.Combo.Input(
                    "distance",
                    options=list(DISTANCES),
                    default="pseudo-huber",
                    advanced=True,
                    tooltip="Distance to the teacher that is minimized. pseudo-huber, l2 and l1 "
                    "compare latents; with pseudo-huber a few very different samples do not "
                    "dominate. lpips-... (perceptual) and pixel-... compare decoded images: they "
                    "require vae and are slower. Typical: pseudo-huber.",
                ),
                io.Int.Input(
                    "iterations",
                    default=0,
                    min=0,
                    max=200,
                    advanced=True,
                    extra_dict=HIDDEN,
                    tooltip="Optimization iterations of the best start. With gradient (Adam): "
                    "passes over the training noises. 0: as quality or minutes allow. Typical: 0.",
                ),
                io.Int.Input(
                    "training_noises",
                    default=0,
                    min=0,
                    max=4096,
                    advanced=True,
                    extra_dict=HIDDEN,
                    tooltip="Number of noises to learn from; a third as many decide which schedule "
                    "is kept. Each requires one sampling of the teacher. 0: as quality or minutes "
                    "allow. Typical: 0.",
                ),
                io.Int.Input(
                    "heldout_noises",
                    default=0,
                    min=0,
                    max=4096,
                    advanced=True,
                    extra_dict=HIDDEN,
                    tooltip="Number of test noises, on which the result competes with the best "
                    "standard schedule: the better one is returned. 0: as quality or minutes "
                    "allow. Typical: 0.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=4,
                    min=0,
                    max=256,
                    advanced=True,
                    extra_dict=HIDDEN,
                    tooltip="Samples per model call, at most: fewer where memory does not "
                    "suffice. Larger can be faster; the result is the same up to rounding. 0: up "
                    "to 16, as many as memory is free for (4 on a CPU). Typical: 4.",
                ),
                io.Combo.Input(
                    "learn",
                    options=list(LEARN),
                    default=FULL,
                    optional=True,  # like all below: older API workflows lack them
                    tooltip="What to learn. Full solver: noise levels, the noise level at which "
                    "the network is evaluated in each call, and the sampler's coefficients; by "
                    "far the lowest error. Time steps: noise levels only, as SIGMAS for any "
                    "sampler node. Decoupled times: without the coefficients. D-ODE: one number "
                    "per model call, in closed form. All but time steps require LD3 KSampler or "
                    "the sampler output. Typical: full solver.",
                ),
                io.Combo.Input(
                    "optimizer",
                    options=list(OPTIMIZERS),
                    default=GAUSS_NEWTON,
                    optional=True,
                    advanced=True,
                    tooltip="Optimization method. gauss-newton works with every model, uses about "
                    "as much memory as sampling and reduces the error most. gradient is the "
                    "published method: it differentiates the model, and reports if that is "
                    "impossible.",
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
                    tooltip="Gradient only: how far the student's initial noise may differ from "
                    "the teacher's. -1: the paper's 0.001 x latent size / model calls squared; 0: "
                    "no difference. Typical: -1.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="VAE that decodes the images. Required for the distances lpips-... and "
                    "pixel-... only.",
                ),
                io.Combo.Input(
                    "quality",
                    options=list(QUALITIES),
                    default="normal",
                    optional=True,
                    tooltip="How many model calls to spend in all, the teacher's and the report's "
                    f"included: fast {QUALITIES['fast']:,}, normal {QUALITIES['normal']:,}, best "
                    f"{QUALITIES['best']:,} (for up to 6 steps; more above). One image in 20 steps "
                    "takes 20. fast neither tests the teacher nor counts the steps saved. "
                    "Typical: normal.",
                ),
                io.Float.Input(
                    "minutes",
                    default=0.0,
                    min=0.0,
                    max=10000.0,
                    step=0.5,
                    round=0.01,
                    optional=True,
                    tooltip="Time to spend; the first model calls are timed to see how much that "
                    "allows. 0: as quality says. Typical: 0.",
                ),
                io.Combo.Input(
                    "compare_sampler",
                    options=[AUTO, *core_samplers.deterministic_samplers()],
                    default=AUTO,
                    optional=True,
                    advanced=True,
                    tooltip="Sampler you would use otherwise: the report says how many of its "
                    "steps the learned schedule saves. auto: euler for flow models, sampler_name "
                    "for others.",
                ),
                io.Combo.Input(
                    "compare_scheduler",
                    options=[AUTO, *core_samplers.scheduler_names()],
                    default=AUTO,
                    optional=True,
                    advanced=True,
                    tooltip="Scheduler you would use otherwise. auto: simple for flow models, "
                    "karras for others.",
                ),
                CACHE_GB_INPUT,
                OPTIONS_INPUT,
                also_steps_input(),
                low_noise_model_input(
                    "Second of two models (Wan 2.2 low noise), for noise levels below boundary; "
                    "model is then the one for high noise. The teacher uses both, too. Typical: "
                    "not connected."
                ),
                boundary_input(),
            ],
            outputs=OUTPUTS,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, **inputs) -> bool:
        # an error is raised: ComfyUI repeats one that is returned for every input of the node
        check_widgets(cls, lambda: check_training(inputs))
        return True

    @classmethod
    def fingerprint_inputs(cls, retrain: bool, **inputs) -> float | str:
        # NaN is not equal to itself: with retrain on, ComfyUI never uses its cached result
        return float("nan") if retrain else unsaved.fingerprint()

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
        cache_gb: float = CACHE_GB,
        options=None,
        low_noise_model=None,
        boundary: float = 0.0,
        **widgets,
    ) -> io.NodeOutput:
        with reporting(cls, CONTINUED_LATER):
            request = TrainingRequest(**with_options(widgets, options))
            inputs = GraphInputs(
                model, positive, negative, latent_image, vae, low_noise_model, boundary
            )
            result = train_schedule(inputs, request, name, retrain, cache_gb)
        return training_output(cls, "LD3 Train Schedule", result)
