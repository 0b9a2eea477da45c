"""The graphs of workflows/ for video; see workflow_graphs.py."""

from __future__ import annotations

from typing import Any

from scripts.model_downloads import (
    LTX,
    LTX_TEXT,
    WAN_HIGH,
    WAN_LOW,
    WAN_TEXT,
    WAN_VAE,
)
from scripts.workflow_layout import BETWEEN, MIDDLE, TRAINED, groups, left, node, note_above

VIDEO_GRAPHS: dict[str, dict[str, Any]] = {
    "LD3 train two models (Wan 2.2)": {
        "nodes": {
            "1": left(60, "UNETLoader", "High-noise model", 82, unet_name=WAN_HIGH,
                      weight_dtype="default"),
            "2": left(195, "UNETLoader", "Low-noise model", 82, unet_name=WAN_LOW,
                      weight_dtype="default"),
            "3": left(330, "ModelSamplingSD3", "Shift, high noise", model=["1", 0], shift=8),
            "4": left(440, "ModelSamplingSD3", "Shift, low noise", model=["2", 0], shift=8),
            "6": left(550, "CLIPLoader", tall=106, clip_name=WAN_TEXT, type="wan"),
            "7": left(710, "VAELoader", vae_name=WAN_VAE),
            "8": left(840, "CLIPTextEncode", "Prompt", 90, clip=["6", 0],
                      text="a red fox walks through a snowy forest, morning light"),
            "9": left(985, "CLIPTextEncode", "Negative prompt", 60, text="blurry, static",
                      clip=["6", 0]),
            "10": left(1130, "EmptyHunyuanLatentVideo", tall=130, width=480, height=272, length=33,
                       batch_size=1),
            "5": node("LD3TrainSchedule", MIDDLE, (BETWEEN, TRAINED), model=["3", 0],
                      low_noise_model=["4", 0], positive=["8", 0], negative=["9", 0],
                      latent_image=["10", 0], sampler_name="euler", steps=6, cfg=3.5,
                      name="wan", teacher_sampler="euler", teacher_steps=20, quality="fast",
                      batch_size=1, boundary=0.875),
            "11": node("LD3KSampler", (680, 190), (300, 234), "Learned: 6 steps", model=["3", 0],
                       low_noise_model=["4", 0], positive=["8", 0], negative=["9", 0],
                       latent_image=["10", 0], schedule=["5", 2], seed=1, cfg=3.5, denoise=1),
            "12": node("VAEDecode", (1020, 190), (180, 46), samples=["11", 0], vae=["7", 0]),
            "13": node("SaveAnimatedWEBP", (1020, 300), (440, 420), images=["12", 0],
                       filename_prefix="LD3", fps=16, lossless=False, quality=80,
                       method="default"),
            "14": node("PreviewImage", (680, 770), (780, 420), "Report", images=["5", 3]),
        },
        "groups": groups("1. Two models, prompt, size", "2. Learn, once", "3. Sample", 1290),
        "notes": note_above(
            "**Wan 2.2:** 6 steps of both models in place of 20. How many each makes is learned, "
            "too: the low-noise model takes over below **boundary**, an advanced input (0.875 for "
            "text, 0.9 for image to video). Set **minutes** to limit the time. For graphs with two "
            "SamplerCustomAdvanced use the outputs **high_sigmas** and **low_sigmas**."
        ),
    },
    "LD3 train for video with sound (LTX-2)": {
        "nodes": {
            "1": left(60, "CheckpointLoaderSimple", tall=126, ckpt_name=LTX),
            "2": left(225, "LTXAVTextEncoderLoader", tall=114, text_encoder=LTX_TEXT,
                      ckpt_name=LTX, device="default"),
            "3": left(380, "LTXVAudioVAELoader", tall=62, ckpt_name=LTX),
            "4": left(510, "EmptyLTXVLatentVideo", tall=146, width=640, height=352, length=49,
                      batch_size=1),
            "5": left(695, "LTXVEmptyLatentAudio", tall=142, frames_number=49, frame_rate=25,
                      batch_size=1, audio_vae=["3", 0]),
            "6": left(880, "LTXVConcatAVLatent", tall=54, video_latent=["4", 0],
                      audio_latent=["5", 0]),
            "7": node("CLIPTextEncode", (340, 60), (300, 150), "Prompt", clip=["2", 0],
                      text="a street musician plays the violin in the rain, close-up"),
            "8": node("CLIPTextEncode", (340, 250), (300, 102), "Negative prompt", clip=["2", 0],
                      text="blurry, low quality, still frame, watermark"),
            "9": node("LTXVConditioning", (340, 390), (300, 86), positive=["7", 0],
                      negative=["8", 0], frame_rate=25),
            "10": node("CFGGuider", (340, 515), (300, 102), model=["1", 0], positive=["9", 0],
                       negative=["9", 1], cfg=4),
            "11": node("KSamplerSelect", (340, 655), (300, 62), sampler_name="euler"),
            "12": node("LTXVScheduler", (340, 755), (300, 190), "Teacher: 20 steps", steps=20,
                       max_shift=2.05, base_shift=0.95, stretch=True, terminal=0.1,
                       latent=["6", 0]),
            "13": node("LD3TrainScheduleAdvanced", (680, 60), (320, 790), guider=["10", 0],
                       sampler=["11", 0], sigmas=["12", 0], latent_image=["6", 0], steps=8,
                       name="ltx2", quality="fast", batch_size=1),
            "14": node("RandomNoise", (1040, 60), (420, 82), noise_seed=1),
            "15": node("SamplerCustomAdvanced", (1040, 180), (420, 126), "Learned: 8 steps",
                       noise=["14", 0], guider=["10", 0], sampler=["13", 1], sigmas=["13", 0],
                       latent_image=["6", 0]),
            "16": node("LTXVSeparateAVLatent", (1040, 345), (420, 54), av_latent=["15", 0]),
            "17": node("VAEDecode", (1040, 440), (420, 54), samples=["16", 0], vae=["1", 2]),
            "18": node("LTXVAudioVAEDecode", (1040, 530), (420, 54), samples=["16", 1],
                       audio_vae=["3", 0]),
            "19": node("CreateVideo", (1040, 620), (420, 102), images=["17", 0], audio=["18", 0],
                       fps=25),
            "20": node("SaveVideo", (1040, 760), (420, 190), video=["19", 0],
                       filename_prefix="video/LD3", format="auto", codec="auto"),
        },
        "groups": [
            ("1. Model and size", (0, 0, 320, 1050)),
            ("2. Prompt, cfg and teacher", (320, 0, 340, 1050)),
            ("3. Learn, once", (660, 0, 360, 1050)),
            ("4. Sample", (1020, 0, 460, 1050)),
        ],
        "notes": [
            ((680, 890), (320, 130), "**Video with sound:** 8 steps of LTX-2 in place of 20. Video "
             "and sound count alike, each by its own scale. Learn with few frames and a small "
             "size, and set **minutes** to limit the time. With the distilled LoRA: use cfg 1, and "
             "connect a guider without it to **teacher_guider**."),
        ],
    },
}  # fmt: skip
