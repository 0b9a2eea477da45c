"""GUIDERs: what a graph connects to them, read without sampling."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch

from . import core_samplers

TEACHER = "teacher_guider"


def cfg_guider(model: Any, positive: Any, negative: Any, cfg: float) -> Any:
    """Core's guider for a MODEL with two prompts."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def check_guider(name: str, guider: Any) -> None:
    """Raise ValueError, naming the input, unless an object has what samplers need of a GUIDER."""
    missing = [part for part in ("sample", "model_patcher") if not hasattr(guider, part)]
    if missing:
        raise ValueError(
            f"{name} is a {type(guider).__name__} without {' and '.join(missing)}; connect a "
            "GUIDER, such as the output of BasicGuider or CFGGuider"
        )


def check_prompts(guider: Any) -> None:
    """Raise ValueError, naming the input, for an empty CONDITIONING that would be evaluated.

    Core takes the output without any prompt for zero, whatever the model (ComfyUI 0.30.0,
    comfy/samplers.py). A conditioning without tokens, [[None, {}]], is a prompt.
    """
    prompts = prompts_of(guider)
    for name in ("positive", "negative"):
        if name in prompts and not prompts[name] and name not in unused_prompts(guider):
            raise ValueError(
                f"{name} is an empty conditioning (0 prompts), and ComfyUI would not call the "
                "model for it; connect a prompt, such as the output of CLIP Text Encode"
            )


def check_same_latents(model: Any, other: Any, names: tuple[str, str]) -> None:
    """Raise ValueError unless two MODELs have the same latents and kind of noise levels.

    Args:
        names: of the inputs.
    """
    kinds = [core_samplers.is_flow(m.get_model_object("model_sampling")) for m in (model, other)]
    remedy = "connect a model of the same family"
    if names[1] == TEACHER:
        remedy = "connect the model that this one was distilled from"
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{names[1]}'s model is {_level_kind(kinds[1])}, {names[0]}'s is "
            f"{_level_kind(kinds[0])}: their noise levels mean different things; {remedy}"
        )
    formats = [m.get_model_object("latent_format") for m in (model, other)]
    shapes = [(f.latent_channels, f.latent_dimensions) for f in formats]
    channels, dimensions = shapes[0]
    probe = torch.tensor([0.0, 1.0]).reshape(2, 1, *[1] * dimensions)
    probe = probe.repeat(1, channels, *[1] * dimensions)
    same = shapes[0] == shapes[1] and torch.allclose(*(f.process_in(probe) for f in formats))
    if not same:
        raise ValueError(
            f"{names[1]}'s model has {shapes[1][0]} latent channels in the format "
            f"{type(formats[1]).__name__}, {names[0]}'s {shapes[0][0]} in "
            f"{type(formats[0]).__name__}: their latents mean different images; {remedy}"
        )


def _level_kind(flow: bool) -> str:
    return "a flow model" if flow else "no flow model"


def kind_of(guider: Any) -> str:
    """A guider's class."""
    return type(guider).__name__


def guidance_scale(guider: Any) -> float:
    """A guider's cfg; 1 for one that has none (BasicGuider)."""
    return float(getattr(guider, "cfg", 1.0))


def prompts_of(guider: Any) -> dict[str, list[dict[str, Any]]]:
    """A guider's conditionings by name, as core stores them; empty where it stores none."""
    return getattr(guider, "original_conds", {})


def unused_prompts(guider: Any) -> tuple[str, ...]:
    """The prompts that a guider does not evaluate: at cfg 1 core's needs no negative one."""
    predict = getattr(type(guider), "predict_noise", None)
    plain = predict is comfy.samplers.CFGGuider.predict_noise
    return ("negative",) if plain and guidance_scale(guider) == 1 else ()
