"""Compare a model's gradient with finite differences before training relies on it."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

from ...model import Model
from ...training.gradient.recompute import recomputed
from ..guided_run import GuidedRun
from .differentiable_model import OTHER_OPTIMIZER, attention_with_gradient

STATE_DIFFERENCE = 0.06  # of the state's size: above half precision's rounding, and mostly linear
SMALLER = STATE_DIFFERENCE / 20  # for networks that are not linear over the former
TIME_DIFFERENCE = 0.05  # in the coordinate, as Gauss-Newton's differences
TOLERANCE = 0.3  # relative: in bf16, right gradients were found up to 0.15 off, in float32 0.05
FIRST, OTHERS = (STATE_DIFFERENCE, 0), tuple(product((STATE_DIFFERENCE, SMALLER), (1, 2)))
"""Sizes and seeds of the directions that are tried."""
CACHED_TOLERANCE = 0.1  # of the change that the difference makes


def check_gradient(guided: GuidedRun, noise: Tensor, latent: Tensor) -> None:
    """Refuse a model whose gradient to its input or to its noise level is wrong.

    At a middle noise level the gradient of a projection <w, D> is compared with differences of D.
    Along a random direction it is too short if part of the network has no gradient; along itself it
    is too long if it contains anything else; the third direction is the noise level, unless
    the gradient to it is itself a difference (`Model.time_neighbours`). In bf16 one random
    direction can be mostly rounding, and a network need not be linear over it: a gradient that
    fails with it is right if it passes with another one, perhaps a smaller one. Costs about 18
    network calls of `noise`'s batch size, and then up to 72 more.

    Args:
        guided: inside `differentiable_run`. noise, latent: (batch, *latent), one sample is enough.

    Raises:
        ValueError: there is no gradient or it is wrong; names the likely cause and what to do.
    """
    model_wrap, options = guided.model_wrap, guided.options
    if "easycache" in options.get("transformer_options", {}):  # its errors show only in a rollout
        raise ValueError(
            "EasyCache or LazyCache is on the MODEL: calls that it skips have wrong gradients. "
            + OTHER_OPTIMIZER
        )
    try:
        wrong = _wrong_gradient(guided.model, noise, latent, *FIRST)
        if wrong and not all(_wrong_gradient(guided.model, noise, latent, *o) for o in OTHERS):
            wrong = ""
    except torch.cuda.OutOfMemoryError:  # no fault of the model; ComfyUI says what to do
        raise
    except (RuntimeError, ValueError) as error:  # autograd's and GradientError
        wrong = str(error).strip().splitlines()[0]
    if wrong:
        causes = "; ".join(likely_causes(model_wrap, options))
        likely = f" Likely causes: {causes}." if causes else ""
        raise ValueError(
            f"the model has no usable gradient: {wrong.rstrip('.')}.{likely} {OTHER_OPTIMIZER}"
        )


def likely_causes(model_wrap: Any, options: dict[str, Any]) -> list[str]:
    """What is visible on a guider's model and known to make gradients wrong."""
    causes = []
    network = model_wrap.inner_model.diffusion_model
    weights = list(network.parameters())
    types = {str(w.dtype).removeprefix("torch.") for w in weights if w.element_size() == 1}
    types |= {type(w).__name__ for w in weights if type(w).__name__ == "QuantizedTensor"}
    if types:
        causes.append(f"quantised weights ({', '.join(sorted(types))})")
    if any(
        w.device.type != torch.device(model_wrap.model_patcher.load_device).type for w in weights
    ):
        causes.append("weights offloaded because of low memory")
    conds = [cond for conds in model_wrap.conds.values() for cond in conds]
    if any(cond.get("hooks") is not None for cond in conds):
        causes.append("LoRA or other hooks on the conditioning")
    if any(cond.get("control") is not None for cond in conds):
        causes.append("ControlNet")
    transformer = options.get("transformer_options", {})
    attention = transformer.get("optimized_attention_override")
    if attention not in (None, attention_with_gradient):
        causes.append(f"attention replaced by {attention.__module__}")
    wrappers = transformer.get("wrappers", {}).values()
    named = [str(key) for by_key in wrappers for key, found in by_key.items() if found and key]
    settings = {**options, **transformer}
    named += [k for k, v in settings.items() if callable(v) and v is not attention]
    named += [k for k in settings if "cache" in str(k).lower()]
    named += [f"{key} patches" for key, value in transformer.get("patches", {}).items() if value]
    named += [f"{k} replacement" for k, v in transformer.get("patches_replace", {}).items() if v]
    if named:
        causes.append(f"patches of other nodes ({', '.join(dict.fromkeys(named))})")
    return causes


def _wrong_gradient(
    model: Model, noise: Tensor, latent: Tensor, difference: float, seed: int
) -> str:
    """What is wrong with the gradient along a random direction of this size; empty if nothing."""
    noise, latent = noise.to(model.device), latent.to(model.device)
    levels = torch.tensor([model.sigma_max, model.sigma_min], dtype=torch.float64)
    high, low = model.coordinate.from_sigma(levels)
    middle = (high + low) / 2
    level, early, above, below = model.coordinate.to_sigma(
        torch.stack(
            [middle, (high + middle) / 2, middle + TIME_DIFFERENCE, middle - TIME_DIFFERENCE]
        )
    ).tolist()
    model.begin_batch(noise, latent)
    model.begin_rollout(torch.tensor([model.sigma_max, early, level, 0.0]))

    def answer(x: Tensor, sigma: float = level) -> Tensor:
        with torch.no_grad():
            return model(x, x.new_full((x.shape[0],), sigma))

    def change(direction: Tensor) -> Tensor:
        return answer(x + direction) - answer(x - direction)

    start = model.scale_noise(noise, latent, early)
    x = model.scale_noise(noise, answer(start, early), level)
    step = difference * x.square().mean().sqrt()
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(x.shape, generator=generator).to(x) * step
    # right after a call with another input, and right after one with nearly the same
    behind = answer(x - random)
    near = answer(x + random)
    answer(start, early)
    memory = float((answer(x + random) - near).norm() / (near - behind).norm())
    if memory > CACHED_TOLERANCE:
        return f"outputs depend on earlier calls (by {memory:.0%} of the effect of a small step)"
    # the output's change across the step: along it, most models merely pass their input on.
    # w and what it is compared with come from different calls, so that rounding averages out
    across = near - behind
    across = across - (across * random).sum() / random.square().sum() * random
    w, by_time = _unit(across), None
    if model.time_neighbours is None:
        by_time = answer(x, above) - answer(x, below)
        w += _unit(by_time)
    x_in = x.detach().requires_grad_()
    sigma_in = x.new_full((x.shape[0],), level).requires_grad_()
    to_x, to_sigma = torch.autograd.grad(
        (w * recomputed(model)(x_in, sigma_in)).sum(), [x_in, sigma_in], allow_unused=True
    )
    to_x = torch.zeros_like(x) if to_x is None else to_x
    to_sigma = torch.zeros_like(sigma_in) if to_sigma is None else to_sigma
    if not (torch.isfinite(to_x).all() and torch.isfinite(to_sigma).all()):
        return "it is infinite or undefined (NaN)"
    along = 0.1 * random.norm() * to_x / to_x.norm().clamp_min(1e-30)
    tests = {
        "to the input": ((to_x * random).sum(), (w * change(random / 2)).sum()),
        "along itself": (2 * (to_x * along).sum(), (w * change(along)).sum()),
    }
    if by_time is not None:
        claimed = to_sigma.sum() * (above - below)
        tests["to the noise level"] = claimed, (w * by_time).sum()
    for name, (claimed, measured) in tests.items():
        ratio = float(claimed / measured)
        if not abs(ratio - 1) <= TOLERANCE:
            return f"the gradient {name} is {ratio:.2f} times the finite-difference estimate"
    return ""


def _unit(change: Tensor) -> Tensor:
    return change / change.norm().clamp_min(1e-30)
