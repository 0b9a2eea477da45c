"""The model files that workflows name, and where they are downloaded from."""

from __future__ import annotations

HUB = "https://huggingface.co/Comfy-Org"
Z_IMAGE, Z_TEXT = "z_image_bf16.safetensors", "qwen_3_4b.safetensors"
CHECKPOINT, VAE = "v1-5-pruned-emaonly-fp16.safetensors", "ae.safetensors"
WAN = "wan2.2_t2v_{}_noise_14B_fp8_scaled.safetensors"
WAN_HIGH, WAN_LOW = WAN.format("high"), WAN.format("low")
WAN_TEXT, WAN_VAE = "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "wan_2.1_vae.safetensors"
WAN_FILES = f"{HUB}/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files"
WAN_TEXT_FILES = f"{HUB}/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
LTX, LTX_TEXT = "ltx-2-19b-dev-fp8.safetensors", "gemma_3_12B_it_fp4_mixed.safetensors"
MODELS = {  # file -> folder below models, and where core's templates download it from
    CHECKPOINT: ("checkpoints", f"{HUB}/stable-diffusion-v1-5-archive/resolve/main/{CHECKPOINT}"),
    Z_IMAGE: (
        "diffusion_models",
        f"{HUB}/z_image/resolve/main/split_files/diffusion_models/{Z_IMAGE}",
    ),
    Z_TEXT: (
        "text_encoders",
        f"{HUB}/z_image_turbo/resolve/main/split_files/text_encoders/{Z_TEXT}",
    ),
    WAN_HIGH: ("diffusion_models", f"{WAN_FILES}/diffusion_models/{WAN_HIGH}"),
    WAN_LOW: ("diffusion_models", f"{WAN_FILES}/diffusion_models/{WAN_LOW}"),
    WAN_TEXT: ("text_encoders", f"{WAN_TEXT_FILES}/text_encoders/{WAN_TEXT}"),
    WAN_VAE: ("vae", f"{WAN_FILES}/vae/{WAN_VAE}"),
    LTX: ("checkpoints", f"https://huggingface.co/Lightricks/LTX-2/resolve/main/{LTX}"),
    LTX_TEXT: (
        "text_encoders",
        f"{HUB}/ltx-2/resolve/main/split_files/text_encoders/{LTX_TEXT}",
    ),
    VAE: ("vae", f"{HUB}/z_image_turbo/resolve/main/split_files/vae/{VAE}"),
}
