"""A MODEL with its prompts and latents, in which something of ours runs where samplers run."""

from __future__ import annotations

import logging
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import comfy.samplers
import comfyui_version
import torch
from torch import Tensor

from ..schedule import EXTENSION, Schedule, ScheduleFileError, load, read_info, save
from ..version import __version__
from . import fingerprint, folders, samplers
from .latents import check_conditioning, latent_samples, training_noises

logger = logging.getLogger(__name__)
ALGORITHM = 4  # raised when the same settings learn another schedule than before


class Session:
    """Checks the inputs that all learning nodes share.

    Args:
        model: MODEL. positive, negative: CONDITIONING. latent: LATENT. cfg: guidance scale.

    Raises:
        ValueError: batched prompts, an empty batch, or nested latents.
    """

    def __init__(
        self, model: Any, positive: Any, negative: Any, latent: dict[str, Any], cfg: float
    ) -> None:
        self.model, self.cfg = model, cfg
        self.guider = comfy.samplers.CFGGuider(model)
        self.guider.set_conds(positive, negative)
        self.guider.set_cfg(cfg)
        check_conditioning("positive", positive)
        check_conditioning("negative", negative)
        self.samples = latent_samples(model, latent)
        if latent.get("noise_mask") is not None:
            logger.warning("LD3: latent_image's mask is not used for learning")
        self.batch_index = latent.get("batch_index")
        if self.batch_index is None and torch.count_nonzero(self.samples) == 0:
            self.samples = self.samples[:1]  # how many empty latents there are does not matter
        self.fingerprint = fingerprint.model_fingerprint(model)
        self._prompts = [fingerprint.patches_of(model), positive, negative if cfg != 1 else None]

    def key(self, settings: dict[str, Any], *contents: Any) -> str:
        """Hash of settings with model and prompts: equal for identical work."""
        facts = {"model": self.fingerprint, "algorithm": ALGORITHM}
        return fingerprint.settings_hash(settings | facts, self._prompts, *contents)

    def noises(self, seed: int, count: int) -> tuple[Tensor, Tensor]:
        """Noises and latents (count, *latent), see `training_noises`."""
        return training_noises(self.samples, seed, count, self.batch_index)

    def run(
        self, sampler: comfy.samplers.Sampler, sigmas: Tensor, batch_size: int, seed: int
    ) -> None:
        """Run a sampler of ours in the guider, which loads the model and cleans up."""
        batch = self.samples[:1].repeat(batch_size, *[1] * (self.samples.ndim - 1))
        # only the shapes count: ComfyUI reserves memory for a batch of this size
        self.guider.sample(
            torch.zeros_like(batch), batch, sampler, sigmas, disable_pbar=True, seed=seed
        )

    def provenance(self) -> dict[str, Any]:
        """What every `ScheduleInfo` tells of the model, the versions and the time."""
        sampling = self.model.get_model_object("model_sampling")
        return {
            "cfg": self.cfg,
            "latent_shape": list(self.samples.shape[1:]),
            "prediction_type": samplers.prediction_type(sampling),
            "sigma_max": float(sampling.sigma_max),
            "model_fingerprint": self.fingerprint,
            "model_file": fingerprint.model_file(self.model),
            "model_name": fingerprint.architecture(self.model),
            "pack_version": __version__,
            "comfyui_version": comfyui_version.__version__,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }


def saved_schedule(key: str, name: str) -> tuple[Schedule, Path] | None:
    """The newest saved schedule of identical work, of that name if there is one.

    Files that were damaged since are passed over: the work is done again.
    """
    folder = folders.save_folder()
    found = []
    for path in folder.glob(f"*{EXTENSION}") if folder.is_dir() else ():
        info = read_info(path)
        if info is not None and info.settings_hash == key and info.report:
            found.append((path.stem == name, path.stat().st_mtime, path))
    for _, _, path in sorted(found, reverse=True):
        try:
            return load(path), path
        except ScheduleFileError as error:
            logger.warning("LD3: %s; the work is done again", error)
    return None


def save_schedule(schedule: Schedule, name: str) -> tuple[Schedule, Path]:
    """Save, and return what the file holds and where it is."""
    path = save(schedule, folders.save_folder(), name)
    return load(path), path
