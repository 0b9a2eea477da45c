"""LD3 Train Schedule (Advanced): learn for the inputs of SamplerCustomAdvanced."""

from __future__ import annotations

from dataclasses import fields

from comfy_api.v0_0_2 import io

from ..ld3.comfy import unsaved
from ..ld3.comfy.connected_setup import ConnectedInputs
from ..ld3.comfy.requests import FULL, LEARN, TrainingOptions
from ..ld3.comfy.training_job import CACHE_GB, train_connected
from ..ld3.metrics import DISTANCES
from ..ld3.training.budget import QUALITIES
from .training_inputs import also_steps_input, boundary_input
from .training_options import HIDDEN, OPTIONS_INPUT, with_options
from .training_output import CACHE_GB_INPUT, OUTPUTS, training_output
from .types import CATEGORY, CONTINUED_LATER, MOST_SEED, reporting


class LD3TrainScheduleAdvanced(io.ComfyNode):
    """Learn a schedule for any guider and sampler, with any sigmas as the teacher's."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LD3TrainScheduleAdvanced",
            display_name="LD3 Train Schedule (Advanced)",
            category=CATEGORY,
            description=(
                "Learns few sampling steps for a graph with SamplerCustomAdvanced: connect what is "
                "connected there. The connected sigmas are the teacher's, which the result is "
                "made close to. Requires no training images. The schedule is saved in models/ld3."
            ),
            search_aliases=["learn sigmas", "SamplerCustomAdvanced", "guider", "LD3"],
            is_output_node=True,
            inputs=[
                io.Guider.Input(
                    "guider",
                    tooltip="Guider you will sample with, and its model with LoRAs and patches: "
                    "BasicGuider, CFGGuider, DualCFGGuider, PerpNegGuider or another pack's. Do "
                    "not use caching nodes (EasyCache, TeaCache).",
                ),
                io.Sampler.Input(
                    "sampler",
                    tooltip="Sampler you will sample with, of the teacher and the schedule, with "
                    "its options. Must be deterministic: no added noise (eta and s_noise 0).",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    tooltip="Noise levels of the teacher, from any scheduler node: more steps than "
                    "the schedule. The schedule starts and ends at the same levels. Typical: the "
                    "20 to 30 steps you sample with now.",
                ),
                io.Latent.Input(
                    "latent_image",
                    tooltip="Latent that sets the image size. Typical: an empty latent; where "
                    "sigmas start below the model's largest, the image to start from. The latents "
                    "of a batch are used in turn.",
                ),
                io.Int.Input(
                    "steps",
                    default=8,
                    min=2,
                    max=50,
                    tooltip="Number of sampling steps the schedule is learned for. Typical: 4 to "
                    "10, a third of the teacher's.",
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
                    tooltip="Seed of the noises: training noise i is that of RandomNoise for seed "
                    "+ i. The same seed and settings give the same schedule.",
                ),
                io.Combo.Input(
                    "learn",
                    options=list(LEARN),
                    default=FULL,
                    tooltip="What to learn. Full solver: noise levels, the noise level at which "
                    "the network is evaluated in each call, and the sampler's coefficients; by far "
                    "the lowest error. Time steps: noise levels only, as SIGMAS for any sampler "
                    "node. Typical: full solver.",
                ),
                io.Combo.Input(
                    "quality",
                    options=list(QUALITIES),
                    default="normal",
                    tooltip="How many model calls to spend in all, the teacher's and the report's "
                    f"included: fast {QUALITIES['fast']:,}, normal {QUALITIES['normal']:,}, best "
                    f"{QUALITIES['best']:,} (for up to 6 steps; more above). One image in 20 steps "
                    "takes 20. fast does not count the steps saved. Typical: normal.",
                ),
                io.Float.Input(
                    "minutes",
                    default=0.0,
                    min=0.0,
                    max=10000.0,
                    step=0.5,
                    round=0.01,
                    tooltip="Time to spend; the first model calls are timed to see how much that "
                    "allows. 0: as quality says. Typical: 0.",
                ),
                io.Boolean.Input(
                    "retrain",
                    default=False,
                    tooltip="Off: identical settings return the saved schedule at once. On: every "
                    "run learns again and saves under a numbered name.",
                ),
                io.Combo.Input(
                    "distance",
                    options=list(DISTANCES),
                    default="pseudo-huber",
                    advanced=True,
                    tooltip="Distance to the teacher that is minimized. pseudo-huber, l2 and l1 "
                    "compare latents; lpips-... (perceptual) and pixel-... decoded images: they "
                    "require vae and are slower. Typical: pseudo-huber.",
                ),
                io.Int.Input(
                    "iterations",
                    default=0,
                    min=0,
                    max=200,
                    advanced=True,
                    extra_dict=HIDDEN,
                    tooltip="Optimization iterations of the best start. 0: as quality or minutes "
                    "allow. Typical: 0.",
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
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="VAE that decodes the images. Required for the distances lpips-... and "
                    "pixel-... only.",
                ),
                CACHE_GB_INPUT,
                OPTIONS_INPUT,
                io.Guider.Input(
                    "teacher_guider",
                    optional=True,
                    tooltip="Guider of the teacher, for a distilled model: the model it was "
                    "distilled from (without the LoRA) at its own cfg. It samples first and is "
                    "then unloaded. Without it, guider is the teacher too.",
                ),
                io.Sigmas.Input(
                    "compare_with",
                    optional=True,
                    tooltip="Noise levels you would use otherwise, such as those of the model's "
                    "page (ManualSigmas). They compete on the test noises and are returned where "
                    "they are better.",
                ),
                also_steps_input(),
                io.Guider.Input(
                    "low_noise_guider",
                    optional=True,
                    tooltip="Guider of the second of two models (Wan 2.2 low noise), for noise "
                    "levels below boundary; guider is then that of the high-noise model. Typical: "
                    "not connected.",
                ),
                boundary_input(),
                io.Guider.Input(
                    "low_noise_teacher",
                    optional=True,
                    tooltip="With teacher_guider and low_noise_guider: guider of the teacher's "
                    "second model. Typical: not connected.",
                ),
            ],
            outputs=OUTPUTS,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, retrain: bool, **inputs) -> float | str:
        # NaN is not equal to itself: with retrain on, ComfyUI never uses its cached result
        return float("nan") if retrain else unsaved.fingerprint()

    @classmethod
    def execute(
        cls,
        name: str,
        retrain: bool,
        cache_gb: float = CACHE_GB,
        options=None,
        **connected_and_widgets,
    ) -> io.NodeOutput:
        widgets = dict(connected_and_widgets)
        names = [part.name for part in fields(ConnectedInputs)]
        inputs = ConnectedInputs(**{key: widgets.pop(key) for key in names if key in widgets})
        with reporting(cls, CONTINUED_LATER):
            request = TrainingOptions(**with_options(widgets, options))
            result = train_connected(inputs, request, name, retrain, cache_gb)
        return training_output(cls, "LD3 Train Schedule (Advanced)", result, inputs.sampler)
