"""The graphs of workflows/ in API format, with positions; workflows.py makes the files."""

from __future__ import annotations

from typing import Any

from scripts.model_downloads import CHECKPOINT, VAE, Z_IMAGE, Z_TEXT
from scripts.video_workflow_graphs import VIDEO_GRAPHS
from scripts.workflow_layout import (
    BETWEEN,
    HEIGHT,
    MIDDLE,
    TRAINED,
    groups,
    left,
    node,
    note,
    note_above,
    train_and_compare,
)

NO_SCHEDULE = "no schedule yet: train one with LD3 Train Schedule"
SD_PROMPT = "photo of a red fox in a snowy forest, morning light"
SD_NEGATIVE = "blurry, low quality, text"
DEMO_CONDS = {"model": ["1", 0], "positive": ["20", 0], "negative": ["3", 0]}
DEMO_CONDS |= {"latent_image": ["1", 2]}
SD_CONDS = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0]}
SD_CONDS |= {"latent_image": ["4", 0]}


def demo_inputs() -> dict[str, Any]:
    """Demo model and prompts, the first column of the demo and of the app."""
    return {
        "1": left(60, "LD3DemoModel", tall=174, batch_size=1, model="flow"),
        "20": left(275, "LD3DemoPrompt", "Prompt to learn from", text="grinning face"),
        "3": left(405, "LD3DemoPrompt", "Negative prompt", text=""),
        "2": left(535, "LD3DemoPrompt", "Prompt to sample", text="hamburger"),
    }


def sd_inputs() -> dict[str, Any]:
    """Checkpoint, prompts and empty latent, the first column of both Stable Diffusion graphs."""
    return {
        "1": left(60, "CheckpointLoaderSimple", tall=98, ckpt_name=CHECKPOINT),
        "2": left(230, "CLIPTextEncode", "Prompt", 150, text=SD_PROMPT, clip=["1", 1]),
        "3": left(450, "CLIPTextEncode", "Negative prompt", 130, text=SD_NEGATIVE, clip=["1", 1]),
        "4": left(650, "EmptyLatentImage", tall=106, width=512, height=512, batch_size=1),
    }  # fmt: skip


GRAPHS: dict[str, dict[str, Any]] = {
    "LD3 demo - train and compare": {
        "nodes": {
            **demo_inputs(),
            "21": left(665, "LD3DemoPrompt", "Another prompt", text="fish"),
            **train_and_compare(
                DEMO_CONDS,
                {"positive": ["2", 0], "positive_2": ["21", 0]},
                {"steps": 3, "cfg": 1, "name": "emoji"},
                vae=["1", 1], seed=5, noises=1, compare_with="euler + simple, best standard",
                row_names="hamburger, fish",
            ),
        },
        "groups": groups("1. A tiny model, prompts", "2. Learn 3 steps, once", "3. Compare"),
        "notes": note(
            "**Press Run.** It learns 3 steps that come close to this model's 20, once, in about "
            "a minute on a CPU, and draws prompts that nothing was learned from. Change them and "
            "run again."
        ),
    },
    "LD3 train for Stable Diffusion": {
        "nodes": {
            **sd_inputs(),
            **train_and_compare(
                SD_CONDS,
                {},
                {"steps": 5, "cfg": 7, "name": "my_schedule"},
                vae=["1", 2], seed=1, noises=2, compare_with="dpmpp_2m + karras, best standard",
            ),
        },
        "groups": groups("1. Your model, prompt and size", "2. Learn, once", "3. Compare"),
        "notes": note(
            "**Your own model:** choose your checkpoint, write a typical prompt, set **cfg** and "
            "**steps** as you will sample, and the same **cfg** on the right. Press **Run**: 2,500 "
            "model calls, as many as 125 images in 20 steps (10 minutes where such an image takes "
            "5 s). `quality` fast takes a third."
        ),
    },
    "LD3 train for a flow model (Z-Image)": {
        "nodes": {
            "1": left(60, "UNETLoader", tall=82, unet_name=Z_IMAGE, weight_dtype="default"),
            "6": left(195, "ModelSamplingAuraFlow", "Shift", model=["1", 0], shift=3),
            "7": left(300, "CLIPLoader", tall=106, clip_name=Z_TEXT, type="lumina2"),
            "8": left(460, "VAELoader", vae_name=VAE),
            "2": left(590, "CLIPTextEncode", "Prompt", 90, text=SD_PROMPT, clip=["7", 0]),
            "3": left(735, "CLIPTextEncode", "Negative prompt", 60, text="", clip=["7", 0]),
            "4": left(870, "EmptySD3LatentImage", tall=106, width=768, height=768, batch_size=1),
            **train_and_compare(
                SD_CONDS | {"model": ["6", 0]},
                {},
                {"steps": 8, "cfg": 4, "name": "z_image", "sampler_name": "res_multistep",
                 "teacher_sampler": "res_multistep", "teacher_steps": 25},
                below=190, vae=["8", 0], seed=1, noises=1,
                compare_with="res_multistep + simple, best standard",
            ),
        },
        "groups": groups("1. Model, shift, prompt, size", "2. Learn, once", "3. Compare", 1050),
        "notes": note_above(
            "**A flow model:** Z-Image with its shift, sampler and cfg, 8 steps instead of 25. "
            "Other flow models (Flux, Qwen-Image, SD3): replace the loaders and the shift. "
            "3,333 model calls, as many as 133 images in 25 steps; set "
            "**minutes** to limit it."
        ),
    },
    "LD3 sample with a saved schedule": {
        "nodes": {
            **sd_inputs(),
            "5": node("LD3LoadSchedule", (340, 60), (320, 420), name=NO_SCHEDULE),
            "6": node("LD3KSampler", (340, 580), (320, 214), **SD_CONDS, schedule=["5", 2],
                      seed=1, cfg=7, denoise=1),
            "7": node("VAEDecode", (720, 60), (200, 46), samples=["6", 0], vae=["1", 2]),
            "8": node("SaveImage", (720, 250), (520, 600), images=["7", 0],
                      filename_prefix="LD3"),
        },
        "groups": [
            ("1. Model and prompt", (0, 0, 320, HEIGHT)),
            ("2. Sample with a saved schedule", (320, 0, 940, HEIGHT)),
        ],
        "notes": [
            ((960, 60), (280, 110), "Choose a schedule in *LD3 Load Schedule*, which shows what it "
             "is for. Use its **cfg**."),
        ],
    },
    "LD3 train for SamplerCustomAdvanced": {
        "nodes": {
            "1": node("LD3DemoModel", (20, 60), (300, 174), batch_size=4, model="flow"),
            "2": node("LD3DemoPrompt", (20, 275), (300, 70), "Prompt to learn from",
                      text="grinning face"),
            "3": node("LD3DemoPrompt", (20, 405), (300, 70), "Prompt to sample",
                      text="hamburger"),
            "4": node("RandomNoise", (20, 540), (300, 82), noise_seed=1),
            "5": node("KSamplerSelect", (20, 660), (300, 58), sampler_name="euler"),
            "6": node("BasicScheduler", (20, 765), (300, 106), "Teacher: 20 steps",
                      model=["1", 0], scheduler="simple", steps=20, denoise=1),
            "7": node("BasicScheduler", (20, 935), (300, 106), "simple, 6 steps",
                      model=["1", 0], scheduler="simple", steps=6, denoise=1),
            "8": node("BasicGuider", (400, 60), (300, 46), "Guider to learn with",
                      model=["1", 0], conditioning=["2", 0]),
            "9": node("LD3TrainScheduleAdvanced", (400, 160), (380, 790), guider=["8", 0],
                      sampler=["5", 0], sigmas=["6", 0], latent_image=["1", 2], steps=6,
                      name="advanced"),
            "10": node("BasicGuider", (860, 60), (300, 46), model=["1", 0],
                       conditioning=["3", 0]),
            "11": node("SamplerCustomAdvanced", (860, 160), (300, 126), "Teacher: 20 steps",
                       noise=["4", 0], guider=["10", 0], sampler=["5", 0], sigmas=["6", 0],
                       latent_image=["1", 2]),
            "12": node("SamplerCustomAdvanced", (860, 360), (300, 126), "simple, 6 steps",
                       noise=["4", 0], guider=["10", 0], sampler=["5", 0], sigmas=["7", 0],
                       latent_image=["1", 2]),
            "13": node("SamplerCustomAdvanced", (860, 560), (300, 126), "Learned: 6 steps",
                       noise=["4", 0], guider=["10", 0], sampler=["9", 1], sigmas=["9", 0],
                       latent_image=["1", 2]),
            "14": node("VAEDecode", (1220, 160), (180, 46), samples=["11", 0], vae=["1", 1]),
            "15": node("VAEDecode", (1220, 360), (180, 46), samples=["12", 0], vae=["1", 1]),
            "16": node("VAEDecode", (1220, 560), (180, 46), samples=["13", 0], vae=["1", 1]),
            "17": node("PreviewImage", (1460, 60), (300, 280), "Teacher: 20 steps",
                       images=["14", 0]),
            "18": node("PreviewImage", (1460, 390), (300, 280), "simple, 6 steps",
                       images=["15", 0]),
            "19": node("PreviewImage", (1460, 720), (300, 280), "Learned: 6 steps",
                       images=["16", 0]),
        },
        "groups": [
            ("1. What your graph has", (0, 0, 340, 1090)),
            ("2. Learn 6 steps, once", (380, 0, 420, 1090)),
            ("3. Sample with both outputs", (840, 0, 940, 1090)),
        ],
        "notes": [
            ((860, 760), (560, 260), "## Train for SamplerCustomAdvanced\n\nConnect the guider, "
             "sampler, scheduler and latent of your graph to *LD3 Train Schedule (Advanced)*. Its "
             "result is close to what these sigmas give, in fewer steps.\n\nThen connect its "
             "outputs **sampler** and **sigmas** to SamplerCustomAdvanced. Later runs use the "
             "schedule saved in `models/ld3`. Here it takes a minute or two on a CPU."),
        ],
    },
    "LD3 train a distilled model": {
        "nodes": {
            "1": node("LD3DemoModel", (20, 60), (300, 174), "Distilled model", batch_size=4,
                      model="flow turbo"),
            "2": node("LD3DemoModel", (20, 275), (300, 174), "The model it was distilled from",
                      batch_size=1, model="flow"),
            "3": node("LD3DemoPrompt", (20, 490), (300, 70), "Prompt", text="cat face"),
            "4": node("LD3DemoPrompt", (20, 620), (300, 70), "Negative prompt", text=""),
            "5": node("KSamplerSelect", (20, 755), (300, 58), sampler_name="euler"),
            "6": node("BasicScheduler", (20, 860), (300, 106), "Teacher: 20 steps",
                      model=["2", 0], scheduler="simple", steps=20, denoise=1),
            "7": node("ManualSigmas", (20, 1020), (300, 58), "Sigmas of the model's page",
                      sigmas="1, 0.75, 0.5, 0.25, 0"),
            "8": node("BasicGuider", (400, 60), (380, 46), "Guider", model=["1", 0],
                      conditioning=["3", 0]),
            "9": node("CFGGuider", (400, 160), (380, 98), "Teacher's guider", model=["2", 0],
                      positive=["3", 0], negative=["4", 0], cfg=3),
            "10": node("LD3TrainScheduleAdvanced", (400, 330), (380, 790), guider=["8", 0],
                       sampler=["5", 0], sigmas=["6", 0], latent_image=["1", 2], steps=3,
                       name="distilled", teacher_guider=["9", 0],
                       compare_with=["7", 0]),
            "11": node("RandomNoise", (860, 60), (300, 82), noise_seed=1),
            "12": node("SamplerCustomAdvanced", (860, 200), (300, 126), "Teacher: 20 steps",
                       noise=["11", 0], guider=["9", 0], sampler=["5", 0], sigmas=["6", 0],
                       latent_image=["1", 2]),
            "13": node("SamplerCustomAdvanced", (860, 400), (300, 126), "The page's 4 steps",
                       noise=["11", 0], guider=["8", 0], sampler=["5", 0], sigmas=["7", 0],
                       latent_image=["1", 2]),
            "14": node("SamplerCustomAdvanced", (860, 600), (300, 126), "Learned: 3 steps",
                       noise=["11", 0], guider=["8", 0], sampler=["10", 1], sigmas=["10", 0],
                       latent_image=["1", 2]),
            "15": node("VAEDecode", (1220, 200), (180, 46), samples=["12", 0], vae=["1", 1]),
            "16": node("VAEDecode", (1220, 400), (180, 46), samples=["13", 0], vae=["1", 1]),
            "17": node("VAEDecode", (1220, 600), (180, 46), samples=["14", 0], vae=["1", 1]),
            "18": node("PreviewImage", (1460, 60), (300, 280), "Teacher: 20 steps",
                       images=["15", 0]),
            "19": node("PreviewImage", (1460, 390), (300, 280), "The page's 4 steps",
                       images=["16", 0]),
            "20": node("PreviewImage", (1460, 720), (300, 280), "Learned: 3 steps",
                       images=["17", 0]),
        },
        "groups": [
            ("1. A distilled model and its teacher", (0, 0, 340, 1180)),
            ("2. Learn 3 steps, once", (380, 0, 420, 1180)),
            ("3. Compare", (840, 0, 940, 1180)),
        ],
        "notes": [
            ((860, 800), (560, 260), "## Train a distilled model\n\nThe teacher is the model "
             "without the distillation LoRA, at its own cfg: connect its guider to "
             "**teacher_guider**. It samples first and is then unloaded.\n\nConnect the sigmas "
             "of the model's page to **compare_with**: they compete, and are returned if they are "
             "better.\n\nIf the node says that matching is ill-posed, disconnect "
             "**teacher_guider** and use 20 or more steps of the distilled model as sigmas. Here "
             "it takes a minute or two on a CPU."),
        ],
    },
    "LD3 train on several prompts": {
        "nodes": {
            "1": left(60, "LD3DemoModel", tall=174, batch_size=4, model="flow"),
            "2": left(275, "LD3PromptList", "Prompts to learn from", 200, clip=["1", 3],
                      text="grinning face\nred apple\ncat face\nhamburger\nred heart\n"
                      "yellow flower\nblue car\nmoon"),
            "3": left(515, "LD3DemoPrompt", "Prompt to sample", text="pizza"),
            "4": left(645, "LD3DemoPrompt", "Negative prompt", text=""),
            "5": node("LD3TrainSchedule", MIDDLE, (BETWEEN, TRAINED), model=["1", 0],
                      positive=["2", 0], negative=["4", 0], latent_image=["1", 2], steps=4, cfg=1,
                      name="several", batch_size=16),
            "6": node("LD3KSampler", (680, 60), (300, 214), "Learned: 4 steps", model=["1", 0],
                      positive=["3", 0], negative=["4", 0], latent_image=["1", 2],
                      schedule=["5", 2], seed=1, cfg=1, denoise=1),
            "7": node("VAEDecode", (680, 345), (300, 46), samples=["6", 0], vae=["1", 1]),
            "8": node("PreviewImage", (1020, 60), (440, 340), images=["7", 0]),
            "9": node("PreviewImage", (680, 450), (780, 440), "Report", images=["5", 3]),
        },
        "groups": groups("1. Model and prompts", "2. Learn, once", "3. Sample another prompt"),
        "notes": note(
            "Prompts of the kind you use go into *LD3 Prompt List*, one per line. Three in four of "
            "them are learned from; the error in the report is that on the others, which are new "
            "to the schedule. Connect your own model's CLIP for your own prompts."
        ),
    },
    "LD3 demo as an app": {
        "nodes": {
            **demo_inputs(),
            **train_and_compare(
                DEMO_CONDS,
                {"positive": ["2", 0]},
                {"steps": 3, "cfg": 1, "name": "emoji"},
                vae=["1", 1], seed=5, noises=2, compare_with="euler + simple, best standard",
            ),
        },
        "groups": groups("1. A tiny model, prompts", "2. Learn, once", "3. Compare"),
        "notes": note(
            "**An app:** ComfyUI shows only the inputs that matter and the result. *App mode* in "
            "the menu of the workflow's name switches between both. Runs in a minute or two on a "
            "CPU.",
            685,
        ),
        "app": {
            "inputs": [(2, "text"), (5, "steps"), (5, "quality"), (9, "seed")],
            "outputs": [9],
        },
    },
    **VIDEO_GRAPHS,
}  # fmt: skip
