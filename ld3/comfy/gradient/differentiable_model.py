"""Make the model behind a running guider differentiable, and restore it afterwards.

ComfyUI samples under inference mode, with kernels that have no gradient. What is changed here
during a training is in this process's memory alone: weights are never copied or written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ...training.gradient.recompute import GradientError
from ..core_samplers import is_flow
from ..guided_run import GuidedRun

ATTENTION_WITH_GRADIENT = (
    "attention_basic",
    "attention_split",
    "attention_pytorch",
    "attention_xformers",
)
TIMESTEPS = 10  # half width of the secant over time, in steps of a table of 1000
OTHER_OPTIMIZER = (
    "Choose optimizer 'gauss-newton (fast, no autograd)', which needs no gradients, or remove the "
    "cause"
)


@contextmanager
def differentiable_run(guided: GuidedRun) -> Iterator[GuidedRun]:
    """While the context lasts, the same run with a model that autograd can differentiate.

    Switches inference mode off, selects ComfyUI's operations that have gradients, makes normal
    tensors of weights and conditions made under inference mode, and replaces ComfyUI's attention
    where that has no gradient. Tensors of the caller (noises, latents) must be cloned inside. The
    given run is not written to, but the guider's `conds` are replaced until the end.

    Raises:
        ValueError: a gradient was needed that the model does not have.
    """
    model_wrap, conds = guided.model_wrap, guided.model_wrap.conds
    options = comfy.model_patcher.create_model_options_clone(guided.options)
    options.setdefault("transformer_options", {}).setdefault(
        "optimized_attention_override", attention_with_gradient
    )
    extra_args = guided.extra_args | {"model_options": options}
    with torch.inference_mode(False), normal_tensors(*_modules(model_wrap)), _in_training():
        try:
            model_wrap.conds = _normal(conds)
            run = GuidedRun(model_wrap, extra_args, guided.model.batch_size)
            run.model.time_neighbours = time_neighbours(run.sampling)
            yield run
        except GradientError as error:
            raise ValueError(f"{error}. {OTHER_OPTIMIZER}") from error
        finally:
            model_wrap.conds = conds


@contextmanager
def normal_tensors(*modules: torch.nn.Module) -> Iterator[None]:
    """Give modules stand-ins for all their tensors that autograd can save, then the originals.

    These are parameters, buffers and plain attributes. Tensors made under inference mode cannot be
    saved for a backward pass. A stand-in is another tensor on the same memory, so nothing is
    copied, and no weight requires a gradient. Moving a module meanwhile is allowed: its originals
    follow. Tensors of other classes stay as they are.
    """
    exchanged: list[tuple[dict[str, Any], str, Tensor, Tensor]] = []
    try:
        with torch.inference_mode(False):
            for part in dict.fromkeys(part for module in modules for part in module.modules()):
                places: list[dict[str, Any]] = [part._parameters, part._buffers, vars(part)]
                for tensors in places:
                    for name, original in tensors.items():
                        stand_in = _stand_in(original)
                        if stand_in is not None:
                            if tensors is part._parameters:
                                stand_in = _parameter(stand_in)
                            exchanged.append((tensors, name, original, stand_in))
                            tensors[name] = stand_in
        yield
    finally:
        for tensors, name, original, stand_in in exchanged:
            if tensors.get(name) is stand_in:
                if stand_in.data_ptr() != original.data_ptr():
                    original.data = stand_in.data
                tensors[name] = original


def time_neighbours(model_sampling: Any) -> Callable[[float], tuple[float, float]] | None:
    """The noise levels between which the gradient to a model's time is taken as a secant.

    Networks of discrete time round sigma to a timestep, which has no gradient; those that embed
    1000 timesteps as sines have one that is mostly ripple. Both get the levels 10 timesteps away.

    Returns:
        sigma -> (lower, upper), clipped to the model's range; None for models of continuous
        log-sigma, whose own gradient is right.
    """
    if is_flow(model_sampling):
        lowest, highest = float(model_sampling.sigma_min), float(model_sampling.sigma_max)
        width = TIMESTEPS / 1000

        def flow(sigma: float) -> tuple[float, float]:
            # the network is evaluated at sigma itself: shift only places the standard schedules
            return max(sigma - width, min(sigma, lowest)), min(sigma + width, max(sigma, highest))

        return flow
    levels = getattr(model_sampling, "sigmas", None)
    if not isinstance(levels, Tensor) or len(levels) < 2:
        return None
    steps = model_sampling.timestep(levels)
    if steps.is_floating_point():
        return None
    levels, steps = levels.cpu().double(), steps.cpu()

    def discrete(sigma: float) -> tuple[float, float]:
        here = steps[(levels.log() - torch.tensor(sigma).double().log()).abs().argmin()]
        below, above = levels[steps <= here - TIMESTEPS], levels[steps >= here + TIMESTEPS]
        lower = below[-1] if len(below) else levels[0]
        return float(lower), float(above[0] if len(above) else levels[-1])

    return discrete


def attention_with_gradient(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """ComfyUI's attention function, PyTorch's in place of sage, flash and sub-quadratic ones.

    Set as `optimized_attention_override` (comfy/ldm/modules/attention.py, wrap_attn).
    """
    if function.__name__ not in ATTENTION_WITH_GRADIENT:
        function = comfy.ldm.modules.attention.attention_pytorch
    return function(*args, **kwargs)


class _Weight(torch.nn.Parameter):
    """A parameter whose in-place changes through `.data` count as new versions.

    LoRA hooks write weights so between the two sides of guidance (comfy/utils.py, copy_to_param,
    ComfyUI 0.30.0), and autograd, which would not notice, then mixes up the two.
    """

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        descriptor: Any = torch.Tensor.data
        descriptor.__set__(self, value)


def _parameter(tensor: Tensor) -> torch.nn.Parameter:
    plain = type(tensor) is Tensor
    return (_Weight if plain else torch.nn.Parameter)(tensor, requires_grad=False)


def _stand_in(tensor: Any) -> Tensor | None:
    """Another tensor on the same memory; None for what is no tensor or of another class."""
    if not isinstance(tensor, Tensor):
        return None
    if is_traceable_wrapper_subclass(tensor):  # ComfyUI's quantised weights
        names, context = tensor.__tensor_flatten__()
        parts: dict[str, Any] = {name: _stand_in(getattr(tensor, name)) for name in names}
        return type(tensor).__tensor_unflatten__(parts, context, tensor.size(), tensor.stride())
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
        return None
    made = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    storage, offset = tensor.untyped_storage(), tensor.storage_offset()
    return made.set_(storage, offset, tensor.size(), tensor.stride())


def _normal(value: Any) -> Any:
    """Conditions with all tensors made normal; shared or compared objects stay the same."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, dict):
        return {key: _normal(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_normal(item) for item in value)
    if hasattr(value, "cond") and hasattr(value, "_copy_with"):  # comfy.conds.CONDRegular and kin
        return value._copy_with(_normal(value.cond))
    return value


def _modules(model_wrap: Any) -> list[torch.nn.Module]:
    """The networks that a call of the guider runs."""
    patchers = [*model_wrap.loaded_models, *model_wrap.model_patcher.model_patches_models()]
    found = [model_wrap.inner_model, *(getattr(patcher, "model", None) for patcher in patchers)]
    for cond in (cond for conds in model_wrap.conds.values() for cond in conds):
        control = cond.get("control")
        while control is not None:  # a ControlLora's network is made in the run, without a patcher
            found.append(getattr(control, "control_model", None))
            control = getattr(control, "previous_controlnet", None)
    return [module for module in found if isinstance(module, torch.nn.Module)]


@contextmanager
def _in_training() -> Iterator[None]:
    """ComfyUI's own switch for operations with gradients, as its LoRA trainer sets it."""
    management = comfy.model_management
    before = management.in_training, management.training_fp8_bwd
    management.in_training, management.training_fp8_bwd = True, False
    try:
        yield
    finally:
        management.in_training, management.training_fp8_bwd = before
