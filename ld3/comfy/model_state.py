"""Whether a model's output depends on earlier calls, which decides which calls can be shared.

Caching nodes (EasyCache, TeaCache) and guidance with momentum (APG) keep state between the steps of
a sampling. Training shares calls between rollouts, which is right only without state. Where the
state begins anew with every sampling, rollouts are repeatable as a whole and a training that shares
nothing is right too; where it does not, nothing is.
"""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ..model import REPEAT_TOLERANCE, Model, repeat_difference
from .guided_run import GuidedRun

logger = logging.getLogger(__name__)
PLACES = (0.0, 0.05, 0.45, 0.5, 0.9, 0.95)  # of the sweep, between the highest and lowest u
ALONE = 3  # which of them is called without those before
CORES = {"sample_sigmas", "callbacks", "wrappers", "cond_or_uncond", "uuids", "sigmas"}
HOLDERS = {"transformer_options", "to_load_options"}
REMEDY = "remove caching or momentum nodes (EasyCache, TeaCache, APG) from the MODEL"


def keeps_state(guided: GuidedRun, noise: Tensor, latent: Tensor) -> bool:
    """Whether an output depends on the calls before it in the same sampling; 15 calls of a sample.

    A sweep through falling noise levels, one of them alone, and the sweep again. The level alone
    differs if there is state; the sweep differs if that does not begin anew with a sampling.

    Args:
        noise, latent: (n, *latent); the first is used.

    Raises:
        ValueError: state that does not begin anew, a model that fails because of it, or an output
            that is not finite; names what is patched.
    """
    model = guided.model
    noise, latent = noise[:1].to(model.device), latent[:1].to(model.device)
    model.begin_batch(noise, latent)
    try:
        for level in _levels(model)[[0, -1]]:  # of both, if there are two models
            # with dynamic VRAM, patched fp8 weights are rounded only after their first use
            _call(model, noise, latent, level)
        once = _sweep(model, noise, latent)
        if not torch.isfinite(once[0]).all():
            raise ValueError(
                "the model's output is infinite or undefined (NaN); check that the model works in "
                "a plain KSampler (another precision, such as bf16 or fp32, often helps)"
            )
        alone = _call(model, noise, latent, _levels(model)[ALONE])
        again = _sweep(model, noise, latent)
    except (ValueError, comfy.model_management.OOM_EXCEPTION):
        raise
    except Exception as error:  # code of other packs
        patched = patches(guided.options)
        if not patched:
            raise
        raise ValueError(
            f"the model failed with {type(error).__name__}: {error}. A patch may keep state "
            f"between the steps of a sampling: {REMEDY}. Patched on it: {', '.join(patched)}"
        ) from error
    change = max(repeat_difference(a, b) for a, b in zip(once, again, strict=True))
    patched = ", ".join(patches(guided.options)) or "nothing visible"
    if change > REPEAT_TOLERANCE:
        raise ValueError(
            f"the model returns different outputs for the same input (difference {change:.1%}), so "
            f"it keeps state between samplings: {REMEDY}. Patched on it: {patched}"
        )
    difference = repeat_difference(once[ALONE], alone)
    if difference <= REPEAT_TOLERANCE:
        if torch.equal(once[-1], once[-2]):
            logger.warning(
                "LD3: the model ignores the noise level: its output is the same at two of them. "
                "Levels at which it is evaluated (decoupled times) cannot help. If it should not "
                "be so, check the model in a plain KSampler. Patched on it: %s",
                patched,
            )
        return False
    logger.warning(
        "LD3: outputs of the model depend on earlier steps (by %.1f %%), so no calls are shared "
        "and training needs more of them. Patched on the model: %s",
        100 * difference,
        patched,
    )
    return True


def refuse_state(what: str) -> ValueError:
    """The error for what cannot be used with a model that keeps state."""
    return ValueError(f"{what} needs a model without state between steps: {REMEDY}")


def patches(options: dict[str, Any]) -> list[str]:
    """What is patched on a model, by the names its nodes gave it.

    Args:
        options: the model options of a running guider.
    """
    transformer = options.get("transformer_options", {})
    placed = [item for item in transformer.items() if item[0] not in CORES]
    placed += [item for item in options.items() if item[0] not in HOLDERS]
    for by_key in transformer.get("wrappers", {}).values():
        placed += by_key.items()
    found = []
    for place, value in placed:
        for patch in value if isinstance(value, (list, tuple)) else [value]:
            if not isinstance(patch, Tensor) and patch:
                found.append(_described(place, patch))
    return list(dict.fromkeys(found))


def _described(place: str, patch: Any) -> str:
    """A node's name for its patch, or that of its function; and where it is."""
    name = getattr(patch, "name", None) or getattr(patch, "__qualname__", "").split(".")[0]
    return f"{name} ({place})" if isinstance(name, str) and name else str(place)


def _levels(model: Model) -> Tensor:
    ends = torch.tensor([model.sigma_max, model.sigma_min], dtype=torch.float64)
    upper, lower = model.coordinate.from_sigma(ends)
    levels = model.coordinate.to_sigma(upper + (lower - upper) * ends.new_tensor(PLACES))
    levels[0] = model.sigma_max  # which flow's coordinate clips
    return levels.float()


def _sweep(model: Model, noise: Tensor, latent: Tensor) -> list[Tensor]:
    """Outputs at all levels; those at the last two are for the same x."""
    levels = _levels(model)
    model.begin_rollout(torch.cat([levels, torch.zeros(1)]))
    states = [*levels[:-1], levels[-2]]
    return [
        _call(model, noise, latent, level, state)
        for level, state in zip(levels, states, strict=True)
    ]


def _call(
    model: Model, noise: Tensor, latent: Tensor, level: Tensor, state: Tensor | None = None
) -> Tensor:
    """The output at a level, for the noised latent of that level or of another, `state`."""
    x = model.scale_noise(noise, latent, float(level if state is None else state))
    return _output(model, x, level.to(model.device).expand(len(x)))


def _output(model: Model, x: Tensor, sigma: Tensor) -> Tensor:
    """The model's output; ValueError if it has not the shape of its input."""
    try:
        output = model(x, sigma)
    except RuntimeError as error:
        shapes = any(word in str(error) for word in ("shape", "size", "dimension"))
        if comfy.model_management.is_oom(error) or not shapes:
            raise
        raise ValueError(
            f"the model cannot be called with latent_image's shape {tuple(x.shape[1:])}: {error}. "
            "Check that both work together in a plain KSampler"
        ) from error
    if output.shape != x.shape:
        raise ValueError(
            f"the model's output has shape {tuple(output.shape[1:])} for an input of "
            f"{tuple(x.shape[1:])}; remove patches that change it, and check it in a plain KSampler"
        )
    return output
