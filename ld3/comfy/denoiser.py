"""A guider, while it samples, as the method's `Model`."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ..model import Model
from .samplers import coordinate

MEMORY_TOLERANCE = 1e-2  # relative; half precision on a GPU repeats itself far better than this


def guided_model(
    sampler: comfy.samplers.Sampler, model_wrap: Any, extra_args: dict[str, Any]
) -> Model:
    """The model behind a running guider, guidance, hooks and patches included.

    Args:
        sampler: the sampler the guider runs, asked only for `max_denoise`.
        model_wrap, extra_args: what `Sampler.sample` received.
    """
    sampling = model_wrap.inner_model.model_sampling
    options = extra_args["model_options"]
    wrapped = comfy.samplers.KSamplerX0Inpaint(model_wrap, None)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return wrapped(
            x, sigma, denoise_mask=None, model_options=options, seed=extra_args.get("seed")
        )

    def scale_noise(noise: Tensor, latent: Tensor, sigma: float) -> Tensor:
        level = torch.tensor([sigma], dtype=torch.float32, device=noise.device)
        return sampling.noise_scaling(
            level[0], noise, latent, sampler.max_denoise(model_wrap, level)
        )

    def begin_rollout(sigmas: Tensor) -> None:
        # nodes read the schedule's place from here, keyframed hooks count calls
        options.setdefault("transformer_options", {})["sample_sigmas"] = sigmas.to(device)
        wrapped.sigmas = sigmas.to(device)
        for conds in model_wrap.conds.values():
            for cond in conds:
                if cond.get("hooks") is not None:
                    cond["hooks"].reset()

    device = model_wrap.model_patcher.load_device
    return Model(
        denoise,
        coordinate(sampling),
        sigma_min=float(sampling.sigma_min),
        sigma_max=float(sampling.sigma_max),
        scale_noise=scale_noise,
        begin_rollout=begin_rollout,
        device=device,
    )


def check_stateless(
    model: Model, noise: Tensor, latent: Tensor, model_options: dict[str, Any]
) -> None:
    """Refuse a model whose answer depends on earlier calls: shared calls would then be wrong.

    Asks for one (x, sigma) twice with another between.

    Raises:
        ValueError: the answers differ; names what is patched.
    """
    noise, latent = noise.to(model.device), latent.to(model.device)
    levels = torch.tensor(
        [model.sigma_max, 0.5 * (model.sigma_min + model.sigma_max)], dtype=torch.float32
    )
    model.begin_rollout(torch.cat([levels, torch.zeros(1)]))
    first, second = (model.scale_noise(noise, latent, float(s)) for s in levels)
    asked = [(first, levels[0]), (second, levels[1]), (first, levels[0])]
    answers = [model(x, s.to(model.device).expand(x.shape[0])) for x, s in asked]
    if not torch.isfinite(answers[0]).all():
        raise ValueError(
            "the model's output is infinite or undefined (NaN); check that the model works in a "
            "plain KSampler (another precision, such as bf16 or fp32, often helps)"
        )
    difference = float(
        (answers[2] - answers[0]).abs().max() / answers[0].abs().max().clamp_min(1e-8)
    )
    if difference > MEMORY_TOLERANCE:
        patched = [k for k, v in model_options.items() if v and k != "transformer_options"]
        transformer = model_options.get("transformer_options", {})
        patched += [
            f"{k} patches" for k, v in transformer.items() if not isinstance(v, Tensor) and v
        ]
        raise ValueError(
            "the model answers the same question differently the second time (by "
            f"{difference:.1%}), so it keeps a memory between steps; remove caching or momentum "
            "nodes (EasyCache, TeaCache, APG) from the MODEL before training. Patched on it: "
            f"{', '.join(patched) or 'nothing visible'}"
        )
