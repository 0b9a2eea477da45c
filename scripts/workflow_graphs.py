"""The graphs of workflows/ in API format, with positions; workflows.py makes the files."""

from __future__ import annotations

from typing import Any

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
SCHEDULE = "my_schedule.safetensors"
SD_PROMPT = "photo of a red fox in a snowy forest, morning light"
SD_NEGATIVE = "blurry, low quality, text"


def node(kind: str, at: tuple[int, int], size: tuple[int, int], title: str = "", **inputs: Any):
    """One node: API inputs (a link is [node id, output slot]; a widget has its default)."""
    return {"kind": kind, "at": at, "size": size, "title": title, "inputs": inputs}


def sampling(seed: Any, **options: Any) -> dict[str, Any]:
    """Widget values of KSampler in the demo."""
    defaults = {"cfg": 1, "sampler_name": "dpmpp_2m", "scheduler": "beta", "denoise": 1}
    return {"seed": seed, **defaults, **options}


DEMO_CONDS = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0]}
DEMO_CONDS |= {"latent_image": ["1", 2]}
STITCH = {"direction": "right", "match_image_size": True, "spacing_width": 2}
STITCH |= {"spacing_color": "white"}
SD_CONDS = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0]}
SD_CONDS |= {"latent_image": ["4", 0]}


def sd_inputs() -> dict[str, Any]:
    """Checkpoint, prompts and empty latent, the first column of both Stable Diffusion graphs."""
    return {
        "1": node("CheckpointLoaderSimple", (20, 60), (340, 98), ckpt_name=CHECKPOINT),
        "2": node("CLIPTextEncode", (20, 230), (340, 130), "Prompt",
                  text=SD_PROMPT, clip=["1", 1]),
        "3": node("CLIPTextEncode", (20, 430), (340, 130), "Negative prompt",
                  text=SD_NEGATIVE, clip=["1", 1]),
        "4": node("EmptyLatentImage", (20, 630), (340, 106), width=512, height=512, batch_size=1),
    }  # fmt: skip


GRAPHS: dict[str, dict[str, Any]] = {
    "LD3 demo - train and compare": {
        "nodes": {
            "1": node("LD3DemoModel", (20, 60), (300, 98), batch_size=4, model="flow"),
            "2": node("LD3DemoPrompt", (20, 210), (300, 70), "Prompt to sample",
                      text="hamburger"),
            "3": node("LD3DemoPrompt", (20, 370), (300, 70), "Negative prompt", text=""),
            "20": node("LD3DemoPrompt", (20, 690), (300, 70), "Prompt to learn from",
                       text="grinning face"),
            "4": node("PrimitiveInt", (20, 530), (300, 82), "Seed of all four", value=1),
            "5": node("LD3TrainSchedule", (400, 60), (380, 530),
                      **DEMO_CONDS | {"positive": ["20", 0]}, steps=3, cfg=1, name="emoji",
                      batch_size=16),
            "6": node("KSampler", (860, 60), (300, 262), "Teacher: 20 steps", **DEMO_CONDS,
                      **sampling(["4", 0], steps=20)),
            "7": node("KSampler", (860, 390), (300, 262), "euler + simple, 3 steps",
                      **DEMO_CONDS, **sampling(["4", 0], steps=3, sampler_name="euler",
                                               scheduler="simple")),
            "8": node("KSampler", (860, 720), (300, 262), "dpmpp_2m + beta, 3 steps",
                      **DEMO_CONDS, **sampling(["4", 0], steps=3)),
            "9": node("LD3KSampler", (860, 1050), (300, 214), "Learned: 3 steps", **DEMO_CONDS,
                      schedule=["5", 2], seed=["4", 0], cfg=1, denoise=1),
            "10": node("VAEDecode", (1220, 60), (180, 46), samples=["6", 0], vae=["1", 1]),
            "11": node("VAEDecode", (1220, 390), (180, 46), samples=["7", 0], vae=["1", 1]),
            "12": node("VAEDecode", (1220, 720), (180, 46), samples=["8", 0], vae=["1", 1]),
            "13": node("VAEDecode", (1220, 1050), (180, 46), samples=["9", 0], vae=["1", 1]),
            "14": node("ImageStitch", (1220, 180), (220, 150), "Teacher | euler",
                       image1=["10", 0], image2=["11", 0], **STITCH),
            "15": node("ImageStitch", (1220, 510), (220, 150), "... | dpmpp_2m",
                       image1=["14", 0], image2=["12", 0], **STITCH),
            "16": node("ImageStitch", (1220, 840), (220, 150), "... | learned",
                       image1=["15", 0], image2=["13", 0], **STITCH),
            "17": node("ImageScale", (1220, 1150), (220, 130), "Enlarge", image=["16", 0],
                       upscale_method="nearest-exact", width=1072, height=256, crop="disabled"),
            "18": node("SaveImage", (1520, 60), (960, 570),
                       "Teacher | euler + simple | dpmpp_2m + beta | learned",
                       images=["17", 0], filename_prefix="LD3_demo"),
            "19": node("PreviewImage", (1520, 710), (960, 570), "Report", images=["5", 3]),
        },
        "groups": [
            ("1. A tiny model, prompts", (0, 0, 340, 820)),
            ("2. Learn 3 steps, once", (380, 0, 420, 1310)),
            ("3. Sample the same noise in four ways", (840, 0, 620, 1310)),
            ("4. Compare", (1500, 0, 1000, 1310)),
        ],
        "notes": [
            ((20, 890), (300, 390), "## LD3 demo\n\nPress **Run**. The node *LD3 Train Schedule* "
             "learns 3 sampling steps, so that the result is close to what this model gives in 20, "
             "and saves them in `models/ld3`. Later runs use the saved schedule.\n\nEach image on "
             "the right, from left to right:\n\n1. the teacher in 20 steps\n2. euler + simple in "
             "3\n3. dpmpp_2m + beta in 3\n4. the learned schedule in 3\n\nChange **Seed** or "
             "**Prompt to sample** to see others: nothing is learned again."),
        ],
    },
    "LD3 train for Stable Diffusion": {
        "nodes": {
            **sd_inputs(),
            "5": node("LD3TrainSchedule", (440, 60), (400, 530), **SD_CONDS),
            "6": node("SamplerCustom", (920, 60), (340, 230), "Core: SIGMAS + SAMPLER",
                      **SD_CONDS, sampler=["5", 1], sigmas=["5", 0], add_noise=True,
                      noise_seed=1, cfg=7),
            "7": node("LD3KSampler", (920, 420), (340, 214), "The same in one node", **SD_CONDS,
                      schedule=["5", 2], seed=1, cfg=7, denoise=1),
            "8": node("VAEDecode", (1300, 60), (200, 46), samples=["6", 0], vae=["1", 2]),
            "9": node("VAEDecode", (1300, 420), (200, 46), samples=["7", 0], vae=["1", 2]),
            "10": node("SaveImage", (1560, 60), (340, 300), images=["8", 0],
                       filename_prefix="LD3_core"),
            "11": node("SaveImage", (1560, 420), (340, 300), images=["9", 0],
                       filename_prefix="LD3"),
            "12": node("PreviewImage", (920, 760), (980, 340), "Report", images=["5", 3]),
        },
        "groups": [
            ("1. Your model, prompt and size", (0, 0, 380, 1120)),
            ("2. Learn, once", (420, 0, 440, 1120)),
            ("3. Sample in either way: both give the same image", (900, 0, 1020, 1120)),
        ],
        "notes": [
            ((20, 780), (340, 320), "## Train for your own model\n\n1. Choose your checkpoint; "
             "add your LoRAs, if any.\n2. Write a typical prompt.\n3. In *LD3 Train Schedule*, set "
             "**cfg**, **sampler_name** and **steps** to what you will sample with; set the same "
             "cfg in the samplers.\n4. Press **Run**. The schedule is saved in `models/ld3` under "
             "**name**; later runs use it at once."),
        ],
    },
    "LD3 sample with a saved schedule": {
        "nodes": {
            **sd_inputs(),
            "5": node("LD3LoadSchedule", (440, 60), (360, 98), name=SCHEDULE),
            "6": node("LD3KSampler", (440, 230), (360, 214), **SD_CONDS, schedule=["5", 2],
                      seed=1, cfg=7, denoise=1),
            "7": node("VAEDecode", (860, 60), (200, 46), samples=["6", 0], vae=["1", 2]),
            "8": node("SaveImage", (860, 170), (480, 560), images=["7", 0],
                      filename_prefix="LD3"),
        },
        "groups": [
            ("1. Model and prompt", (0, 0, 380, 760)),
            ("2. Sample with a saved schedule", (420, 0, 940, 760)),
        ],
        "notes": [
            ((440, 520), (360, 220), "## Sample with a saved schedule\n\nChoose a file "
             "from `models/ld3` in *LD3 Load Schedule*; press **R** if it is not listed. The "
             "schedule sets the sampler and the steps. Use the **cfg** it was learned at."),
        ],
    },
    "LD3 train for SamplerCustomAdvanced": {
        "nodes": {
            "1": node("LD3DemoModel", (20, 60), (300, 98), batch_size=4, model="flow"),
            "2": node("LD3DemoPrompt", (20, 210), (300, 70), "Prompt to learn from",
                      text="grinning face"),
            "3": node("LD3DemoPrompt", (20, 330), (300, 70), "Prompt to sample",
                      text="hamburger"),
            "4": node("RandomNoise", (20, 450), (300, 82), noise_seed=1),
            "5": node("KSamplerSelect", (20, 580), (300, 58), sampler_name="euler"),
            "6": node("BasicScheduler", (20, 690), (300, 106), "Teacher: 20 steps",
                      model=["1", 0], scheduler="simple", steps=20, denoise=1),
            "7": node("BasicScheduler", (20, 850), (300, 106), "simple, 6 steps",
                      model=["1", 0], scheduler="simple", steps=6, denoise=1),
            "8": node("BasicGuider", (400, 60), (300, 46), "Guider to learn with",
                      model=["1", 0], conditioning=["2", 0]),
            "9": node("LD3TrainScheduleAdvanced", (400, 160), (380, 480), guider=["8", 0],
                      sampler=["5", 0], sigmas=["6", 0], latent_image=["1", 2], steps=6,
                      name="advanced", batch_size=16),
            "10": node("BasicGuider", (860, 60), (300, 46), model=["1", 0],
                       conditioning=["3", 0]),
            "11": node("SamplerCustomAdvanced", (860, 160), (300, 126), "Teacher: 20 steps",
                       noise=["4", 0], guider=["10", 0], sampler=["5", 0], sigmas=["6", 0],
                       latent_image=["1", 2]),
            "12": node("SamplerCustomAdvanced", (860, 340), (300, 126), "simple, 6 steps",
                       noise=["4", 0], guider=["10", 0], sampler=["5", 0], sigmas=["7", 0],
                       latent_image=["1", 2]),
            "13": node("SamplerCustomAdvanced", (860, 520), (300, 126), "Learned: 6 steps",
                       noise=["4", 0], guider=["10", 0], sampler=["9", 1], sigmas=["9", 0],
                       latent_image=["1", 2]),
            "14": node("VAEDecode", (1220, 160), (180, 46), samples=["11", 0], vae=["1", 1]),
            "15": node("VAEDecode", (1220, 340), (180, 46), samples=["12", 0], vae=["1", 1]),
            "16": node("VAEDecode", (1220, 520), (180, 46), samples=["13", 0], vae=["1", 1]),
            "17": node("PreviewImage", (1460, 60), (300, 280), "Teacher: 20 steps",
                       images=["14", 0]),
            "18": node("PreviewImage", (1460, 380), (300, 280), "simple, 6 steps",
                       images=["15", 0]),
            "19": node("PreviewImage", (1460, 700), (300, 280), "Learned: 6 steps",
                       images=["16", 0]),
            "20": node("PreviewImage", (860, 710), (560, 270), "Report", images=["9", 3]),
        },
        "groups": [
            ("1. What your graph has", (0, 0, 340, 1000)),
            ("2. Learn 6 steps, once", (380, 0, 420, 1000)),
            ("3. Sample with both outputs", (840, 0, 940, 1000)),
        ],
        "notes": [
            ((400, 700), (380, 280), "## Train for SamplerCustomAdvanced\n\nConnect the guider, "
             "sampler, scheduler and latent of your graph to *LD3 Train Schedule (Advanced)*. Its "
             "result is close to what these sigmas give, in fewer steps.\n\nThen connect its "
             "outputs **sampler** and **sigmas** to SamplerCustomAdvanced. Later runs use the "
             "schedule saved in `models/ld3`."),
        ],
    },
    "LD3 train a distilled model": {
        "nodes": {
            "1": node("LD3DemoModel", (20, 60), (300, 98), "Distilled model", batch_size=4,
                      model="flow turbo"),
            "2": node("LD3DemoModel", (20, 210), (300, 98), "The model it was distilled from",
                      batch_size=1, model="flow"),
            "3": node("LD3DemoPrompt", (20, 360), (300, 70), "Prompt", text="cat face"),
            "4": node("LD3DemoPrompt", (20, 480), (300, 70), "Negative prompt", text=""),
            "5": node("KSamplerSelect", (20, 600), (300, 58), sampler_name="euler"),
            "6": node("BasicScheduler", (20, 710), (300, 106), "Teacher: 20 steps",
                      model=["2", 0], scheduler="simple", steps=20, denoise=1),
            "7": node("ManualSigmas", (20, 870), (300, 58), "Sigmas of the model's page",
                      sigmas="1, 0.75, 0.5, 0.25, 0"),
            "8": node("BasicGuider", (400, 60), (380, 46), "Guider", model=["1", 0],
                      conditioning=["3", 0]),
            "9": node("CFGGuider", (400, 160), (380, 98), "Teacher's guider", model=["2", 0],
                      positive=["3", 0], negative=["4", 0], cfg=3),
            "10": node("LD3TrainScheduleAdvanced", (400, 320), (380, 520), guider=["8", 0],
                       sampler=["5", 0], sigmas=["6", 0], latent_image=["1", 2], steps=3,
                       name="distilled", batch_size=16, teacher_guider=["9", 0],
                       compare_with=["7", 0]),
            "11": node("RandomNoise", (860, 60), (300, 82), noise_seed=1),
            "12": node("SamplerCustomAdvanced", (860, 200), (300, 126), "Teacher: 20 steps",
                       noise=["11", 0], guider=["9", 0], sampler=["5", 0], sigmas=["6", 0],
                       latent_image=["1", 2]),
            "13": node("SamplerCustomAdvanced", (860, 380), (300, 126), "The page's 4 steps",
                       noise=["11", 0], guider=["8", 0], sampler=["5", 0], sigmas=["7", 0],
                       latent_image=["1", 2]),
            "14": node("SamplerCustomAdvanced", (860, 560), (300, 126), "Learned: 3 steps",
                       noise=["11", 0], guider=["8", 0], sampler=["10", 1], sigmas=["10", 0],
                       latent_image=["1", 2]),
            "15": node("VAEDecode", (1220, 200), (180, 46), samples=["12", 0], vae=["1", 1]),
            "16": node("VAEDecode", (1220, 380), (180, 46), samples=["13", 0], vae=["1", 1]),
            "17": node("VAEDecode", (1220, 560), (180, 46), samples=["14", 0], vae=["1", 1]),
            "18": node("PreviewImage", (1460, 60), (300, 280), "Teacher: 20 steps",
                       images=["15", 0]),
            "19": node("PreviewImage", (1460, 380), (300, 280), "The page's 4 steps",
                       images=["16", 0]),
            "20": node("PreviewImage", (1460, 700), (300, 280), "Learned: 3 steps",
                       images=["17", 0]),
            "21": node("PreviewImage", (860, 740), (560, 240), "Report", images=["10", 3]),
        },
        "groups": [
            ("1. A distilled model and its teacher", (0, 0, 340, 1180)),
            ("2. Learn 3 steps, once", (380, 0, 420, 1180)),
            ("3. Compare", (840, 0, 940, 1180)),
        ],
        "notes": [
            ((400, 890), (380, 270), "## Train a distilled model\n\nThe teacher is the model "
             "without the distillation LoRA, at its own cfg: connect its guider to "
             "**teacher_guider**. It samples first and is then unloaded.\n\nConnect the sigmas "
             "of the model's page to **compare_with**: they compete, and are returned if they are "
             "better.\n\nIf the node says that matching is ill-posed, disconnect "
             "**teacher_guider** and use 20 or more steps of the distilled model as sigmas."),
        ],
    },
}  # fmt: skip
