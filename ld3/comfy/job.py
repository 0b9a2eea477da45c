"""What all learning nodes do with their inputs before and after the learning itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, TypeVar

import comfyui_version
import torch
from torch import Tensor

from ..version import __version__
from . import core_samplers, fingerprint
from .guided_run import GuidedRun, run
from .guiders import check_prompts, guidance_scale, kind_of
from .latents import (
    check_image_condition,
    latent_mask,
    latent_samples,
    nested,
    packed,
    training_noises,
)
from .memory import fitting_batch
from .mismatch import model_facts
from .prompts import assigned, new_prompts, separated
from .two_models import TwoGuiders, boundary_of, guider_of_models, guiders_in

T = TypeVar("T")
logger = logging.getLogger(__name__)
ALGORITHM = 6  # increased when the same settings learn another schedule than before


@dataclass(frozen=True)
class GraphInputs:
    """What a graph connects to a node: MODEL, two CONDITIONINGs, LATENT, and perhaps a VAE.

    With `low_noise_model`, that samples below the noise level `boundary`.
    """

    model: Any
    positive: Any
    negative: Any
    latent_image: dict[str, Any]
    vae: Any = None
    low_noise_model: Any = None
    boundary: float = 0.0

    def guider(self, cfg: float) -> Any:
        """The guider of these inputs at a guidance scale, or two; ValueError if they cannot be."""
        models, conds = (self.model, self.low_noise_model), (self.positive, self.negative)
        return guider_of_models(models, conds, cfg, self.boundary)

    def job(self, cfg: float) -> Job:
        """The job of these inputs at a guidance scale."""
        return Job(self.guider(cfg), self.latent_image)


class Job:
    """Checks what is sampled, and knows all facts that a result depends on.

    Args:
        guider: any GUIDER, or `TwoGuiders`.
        latent: a LATENT.
    """

    def __init__(self, guider: Any, latent: dict[str, Any]) -> None:
        for one in guiders_in(guider):
            check_prompts(one)
        self.guider, self.prompts = _separated(guider)
        self.model, self.boundary = guider.model_patcher, boundary_of(guider)
        self.samples, self.shapes = packed(latent_samples(self.model, latent))
        self.mask = latent_mask(latent)
        self.batch_index = latent.get("batch_index")
        if self.batch_index is None and torch.count_nonzero(self.samples) == 0:
            self.samples = self.samples[:1]  # the number of empty latents does not matter
        every = guiders_in(self.guider)
        for one in every:
            check_image_condition(one.model_patcher, self.samples)
        self._models = [one.model_patcher for one in every]
        self._fingerprints = [fingerprint.model_fingerprint(model) for model in self._models]
        self._guidance = [fingerprint.guidance_hash(one) for one in every]

    def key(self, settings: dict[str, Any], *contents: Any) -> str:
        """Hash of settings with model and guidance: equal for identical work."""
        facts: dict[str, Any] = {"algorithm": ALGORITHM}
        facts |= {"model": self._fingerprints[0], "guidance": self._guidance[0]}
        if self.boundary:
            facts["low_noise"] = [self._fingerprints[1], self._guidance[1], self.boundary]
        more = [] if self.mask is None else [self.mask]
        more += [self.shapes] if self.shapes else []
        return fingerprint.settings_hash(settings | facts, *contents, *more)

    def noises(self, seed: int, count: int) -> tuple[Tensor, Tensor]:
        """Noises and latents (count, *latent), see `training_noises`."""
        return training_noises(self.samples, seed, count, self.batch_index, self.shapes)

    def pair(self, guided: GuidedRun, noises: Tensor, tests_from: int | None = None) -> None:
        """Let noises 0, 1, .. be sampled with the prompts in turn; from `tests_from` with new ones.

        Args:
            noises: (n, *latent), as `noises` returns them.
        """
        if self.prompts > 1:
            guided.know_prompts(noises, assigned(len(noises), self.prompts, tests_from))

    def run(self, task: Callable[[GuidedRun], T], sigmas: Tensor, batch_size: int, seed: int) -> T:
        """`task`'s value with model and guidance, see `guided_run.run`.

        Args:
            batch_size: the widget's; fewer samples are called at once where memory is short.
        """
        batch = fitting_batch(self.model, self.shapes or [self.samples.shape[1:]], batch_size)
        latents = self.samples[:1].repeat(batch, *[1] * (self.samples.ndim - 1))
        return run(self.guider, nested(latents, self.shapes), sigmas, task, seed, self.mask)

    def described(self) -> dict[str, Any]:
        """What a file says of guider, model and latents, besides the provenance."""
        prompts = {"prompts": self.prompts, "new_prompts": new_prompts(self.prompts)}
        streams = {"streams": [list(shape) for shape in self.shapes]} if self.shapes else {}
        every = guiders_in(self.guider)
        kinds = {"guider": kind_of(every[0])}
        if self.boundary:
            low = every[1]
            kinds |= {"low_noise_guider": kind_of(low), "low_noise_cfg": guidance_scale(low)}
        return kinds | model_facts(self.model) | streams | prompts

    def provenance(self) -> dict[str, Any]:
        """What every `ScheduleInfo` says of the model, the versions and the time."""
        model, low = self.model, {}
        if self.boundary:
            low["low_model_fingerprint"] = self._fingerprints[1]
            low["low_model_file"] = fingerprint.model_file(self._models[1])
        sampling = model.get_model_object("model_sampling")
        return low | {
            "cfg": guidance_scale(guiders_in(self.guider)[0]),
            "latent_shape": list(self.samples.shape[1:]),
            "prediction_type": core_samplers.prediction_type(sampling),
            "sigma_max": float(sampling.sigma_max),
            "model_fingerprint": self._fingerprints[0],
            "model_file": fingerprint.model_file(model),
            "model_name": fingerprint.architecture(model),
            "pack_version": __version__,
            "comfyui_version": comfyui_version.__version__,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }


def _separated(guider: Any) -> tuple[Any, int]:
    """`separated` for one guider or two, which must have the same number of prompts, or one."""
    if not isinstance(guider, TwoGuiders):
        return separated(guider)
    (high, first), (low, second) = separated(guider.high), separated(guider.low)
    if 1 != first != second != 1:
        raise ValueError(
            f"the numbers of prompts differ: {first} for high noise, {second} for low noise; use "
            "the same, or one"
        )
    return replace(guider, high=high, low=low), max(first, second)
