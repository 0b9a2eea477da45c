"""ComfyUI's own networks, small and with random weights, differentiated under its executor's rules.

Every run is under inference mode, as ComfyUI's executor starts it, and most weights are made so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.hooks
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.samplers
import comfy.supported_models
import pytest
import torch
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_freelunch import FreeU_V2
from torch import Tensor

from demo.demo_model import encode_prompt, load_demo_model
from ld3.comfy.gradient.differentiable_model import (
    differentiable_run,
    normal_tensors,
    time_neighbours,
)
from ld3.comfy.gradient.gradient_check import check_gradient
from ld3.comfy.guided_run import GuidedRun, run
from ld3.comfy.guiders import cfg_guider
from ld3.model import Model
from ld3.training.gradient.recompute import recomputed

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
UNET = {
    "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32,
    "channel_mult": (1, 2), "num_res_blocks": 1, "use_spatial_transformer": True,
    "context_dim": 16, "transformer_depth": [0, 1], "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 1, 1], "use_linear_in_transformer": False, "legacy": False,
    "adm_in_channels": None, "use_temporal_attention": False, "num_heads": 2,
}  # fmt: skip
FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "hidden_size": 32, "num_heads": 2,
    "axes_dim": [4, 6, 6], "depth": 1, "depth_single_blocks": 1, "vec_in_dim": 8, "mlp_ratio": 2.0,
    "context_in_dim": 16, "guidance_embed": False, "qkv_bias": True, "theta": 10000,
    "patch_size": 2, "txt_ids_dims": [],
}  # fmt: skip


@pytest.fixture(autouse=True)
def unloaded() -> Any:
    yield
    comfy.model_management.unload_all_models()


def randomised(network: torch.nn.Module) -> None:
    """Random weights with outputs about as large as inputs, zero-initialised layers included."""
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        random = torch.randn(weight.shape, generator=generator)
        inputs = weight[0].numel() if weight.ndim > 1 else 0
        weight.copy_(random / inputs**0.5 if inputs else 1 + 0.1 * random)


def patcher(kind: str = "unet", dtype: torch.dtype = torch.float64, cast: Any = None) -> Any:
    """A MODEL made under inference mode, as loaders make it inside ComfyUI."""
    with torch.inference_mode():
        if kind == "flux":
            config: Any = comfy.supported_models.FluxSchnell(FLUX)
        else:
            config = comfy.supported_models.SD15(UNET)
            config.unet_config["num_heads"] = 2
        config.set_inference_dtype(dtype, cast)
        model = config.get_model({})
        assert all(weight.is_inference() for weight in model.diffusion_model.parameters())
        randomised(model.diffusion_model)
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


def conditions(kind: str = "unet") -> tuple[Any, Any]:
    if kind == "demo":
        return encode_prompt("red apple")[0], encode_prompt("")[0]
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(1)
        pooled = torch.randn(1, 8, generator=generator) if kind == "flux" else None
        made = [torch.randn(1, 5, 16, generator=generator) for _ in range(2)]
    positive, negative = ([[cond, {"pooled_output": pooled}]] for cond in made)
    return positive, negative


def controlled(condition: Any) -> Any:
    """The condition with a ControlNet of the same size as the UNet."""
    skipped = ("out_channels", "transformer_depth_output", "image_size")
    options = {key: value for key, value in UNET.items() if key not in skipped}
    with torch.inference_mode():
        network = comfy.cldm.cldm.ControlNet(
            image_size=8, hint_channels=3, dtype=torch.float64, **options
        ).requires_grad_(False)
        randomised(network)
        hint = torch.rand(1, 3, 64, 64)
        control = comfy.controlnet.ControlNet(network, load_device=CPU)
        control = control.copy().set_cond_hint(hint, 0.7, (0.0, 1.0))
    return [[condition[0][0], condition[0][1] | {"control": control}]]


def hooked(condition: Any, model: Any) -> Any:
    """The condition with a LoRA hook, which then counts for one side of guidance only."""
    hooks = comfy.hooks.HookGroup()
    hook = comfy.hooks.WeightHook()
    names = [n for n, w in model.model.state_dict().items() if "diffusion" in n and w.ndim > 1]
    hook.weights, hook.need_weight_init = {}, False
    for name in names:
        weight = model.model.state_dict()[name]
        hook.weights[name] = ("diff", (0.5 * weight.abs().mean() * torch.ones_like(weight),))
    hooks.add(hook)
    return comfy.hooks.set_hooks_for_conditioning(condition, hooks)


def shape_of(model: Any) -> tuple[int, int, int]:
    """A latent's shape: 8x8, or the demo model's 32x32 pixels."""
    channels = model.latent_format.latent_channels
    return (channels, 32, 32) if channels == 3 else (channels, 8, 8)


def inside(
    model: Any, conds: tuple[Any, Any], task: Callable[[GuidedRun], Any], cfg: float = 1.0
) -> Any:
    """The value of a task in a differentiable run."""
    return inside_guider(cfg_guider(model, *conds, cfg), task)


def inside_guider(guider: Any, task: Callable[[GuidedRun], Any]) -> Any:
    def differentiated(guided: GuidedRun) -> Any:
        with differentiable_run(guided) as differentiable:
            return task(differentiable)

    with torch.inference_mode():
        latent = torch.zeros(2, *shape_of(guider.model_patcher.model))
        return run(guider, latent, torch.tensor([1.0, 0.0]), differentiated)


def gradient_error(guided: GuidedRun) -> float:
    """|gradient - differences| / |gradient| of a random projection, to the input."""
    model, generator = guided.model, torch.Generator().manual_seed(2)
    level, shape = 0.6, shape_of(guided.model_wrap.inner_model)
    x = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    w = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    model.begin_rollout(torch.tensor([1.0, level, 0.0]))

    def projection(x: Tensor) -> Tensor:
        return (w * model(x, x.new_full((2,), level))).sum()

    leaf = x.clone().requires_grad_()
    denoised = recomputed(model)(leaf, leaf.new_full((2,), level))
    (gradient,) = torch.autograd.grad((w * denoised).sum(), leaf)
    squares, h = [], 3e-4
    for _ in range(6):
        v = torch.randn(x.shape, generator=generator, dtype=torch.float64).sign()
        with torch.no_grad():
            measured = (projection(x + h * v) - projection(x - h * v)) / (2 * h)
        squares.append((measured - (gradient * v).sum()) ** 2)
    return float(torch.stack(squares).mean().sqrt() / gradient.norm())


def check(guided: GuidedRun) -> None:
    """`check_gradient` with two random samples."""
    latent = torch.zeros(2, *shape_of(guided.model_wrap.inner_model))
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(3))
    check_gradient(guided, noise, latent)


@pytest.mark.slow
@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("case", ["plain", "controlnet", "freeu", "hooks"])
def test_gradients_of_a_unet_agree_with_differences(case: str, cfg: float) -> None:
    model, (positive, negative) = patcher(), conditions()
    if case == "controlnet":
        positive = controlled(positive)
    elif case == "freeu":
        model = FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2).args[0]
    elif case == "hooks":
        positive = hooked(positive, model)
    assert inside(model, (positive, negative), gradient_error, cfg) < 2e-3


def test_gradients_of_flux_agree_with_differences() -> None:
    assert inside(patcher("flux"), conditions("flux"), gradient_error) < 2e-3


def test_the_error_measured_of_a_gradient_a_tenth_too_small_is_a_tenth() -> None:
    def spoiled(guided: GuidedRun) -> float:
        inner = guided.model.denoise

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return inner(x.detach() + 0.9 * (x - x.detach()), sigma)

        guided.model.denoise = denoise
        return gradient_error(guided)

    assert 0.05 < inside(patcher(), conditions(), spoiled) < 0.15


def samples(model: Any, conds: tuple[Any, Any]) -> Tensor:
    """Two ordinary Euler steps, as the executor would sample."""
    guider = cfg_guider(model, *conds, 3.0)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    euler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([5.0, 1.0, 0.0])
    with torch.inference_mode():
        latent = torch.zeros_like(noise)
        return guider.sample(noise, latent, euler, sigmas, disable_pbar=True, seed=0)


@pytest.mark.parametrize("fails", [False, True])
def test_a_differentiable_run_leaves_the_model_unchanged(fails: bool) -> None:
    model, conds = patcher(), conditions()
    before = samples(model, conds)
    tensors = dict(model.model.named_parameters()) | dict(model.model.named_buffers())
    bits = {name: tensor.clone() for name, tensor in tensors.items()}
    management, seen = comfy.model_management, {}

    def task(guided: GuidedRun) -> None:
        seen["inside"] = management.in_training, torch.is_inference_mode_enabled()
        gradient_error(guided)
        if fails:
            raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            inside(model, conds, task)
    else:
        inside(model, conds, task)
    assert seen["inside"] == (True, False)
    assert (management.in_training, torch.is_inference_mode_enabled()) == (False, False)
    after = dict(model.model.named_parameters()) | dict(model.model.named_buffers())
    assert after.keys() == tensors.keys()
    assert all(after[name] is tensor for name, tensor in tensors.items())
    assert all(torch.equal(tensor, bits[name]) for name, tensor in after.items())
    assert "optimized_attention_override" not in model.model_options["transformer_options"]
    assert torch.equal(samples(model, conds), before)


def test_conditions_are_normal_tensors_inside_and_the_guiders_own_after_the_run() -> None:
    found = []

    class Guider(comfy.samplers.CFGGuider):
        def inner_sample(self, *arguments: Any, **options: Any) -> Tensor:
            result = super().inner_sample(*arguments, **options)
            found.append(self.conds["positive"][0]["model_conds"]["c_crossattn"].cond)
            return result

    def task(guided: GuidedRun) -> None:
        found.append(guided.model_wrap.conds["positive"][0]["model_conds"]["c_crossattn"].cond)

    guider = Guider(patcher())
    guider.set_conds(*conditions())
    inside_guider(guider, task)
    assert [cond.is_inference() for cond in found] == [False, True]
    assert torch.equal(*found)


@pytest.mark.parametrize("moved", [False, True])
def test_stand_ins_use_the_same_memory_and_are_replaced_by_the_originals(moved: bool) -> None:
    with torch.inference_mode():
        network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).eval()
    hybrid = torch.nn.Linear(4, 1)
    with torch.inference_mode():
        hybrid.to(torch.float64).to(torch.float32)
        hybrid.plain = plain = torch.ones(1)  # neither a parameter nor a buffer
    network.append(hybrid)
    originals = list(network.parameters()) + list(network.buffers())
    x = torch.randn(2, 3, requires_grad=True)
    with normal_tensors(network):
        for original, now in zip(
            originals, [*network.parameters(), *network.buffers()], strict=True
        ):
            assert now is not original and now.data_ptr() == original.data_ptr()
            assert not now.is_inference() and not now.requires_grad
        assert not hybrid.plain.is_inference()
        assert hybrid.plain.data_ptr() == plain.data_ptr()
        network(x).sum().backward()
        if moved:
            network.to(torch.float64)
    assert hybrid.plain is plain
    after = [*network.parameters(), *([] if moved else network.buffers())]  # .to() makes new ones
    assert all(now is original for now, original in zip(after, originals, strict=not moved))
    assert {t.dtype for t in network.parameters()} == {torch.float64 if moved else torch.float32}
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_quantised_weights_have_stand_ins_too() -> None:
    from comfy.quant_ops import QuantizedTensor

    layer = torch.nn.Linear(16, 16, bias=False)
    with torch.inference_mode():
        weight = QuantizedTensor.from_float(
            torch.randn(16, 16, dtype=torch.bfloat16), "TensorCoreFP8E4M3Layout", scale=None
        )
        layer.weight = original = torch.nn.Parameter(weight, requires_grad=False)
    with normal_tensors(layer):
        now = layer.weight
        assert isinstance(now, QuantizedTensor) and not now.is_inference()
        assert now._qdata.data_ptr() == original._qdata.data_ptr()
        assert torch.equal(now.dequantize(), original.dequantize())
    assert layer.weight is original


def test_attention_without_gradient_is_replaced_and_other_attention_kept() -> None:
    used = []

    def task(guided: GuidedRun) -> None:
        override = guided.options["transformer_options"]["optimized_attention_override"]
        for name in ("attention_sub_quad", "attention_sage", "attention_flash", "attention_basic"):

            def deployed(*arguments: Any, **keywords: Any) -> Tensor:
                used.append(name)  # noqa: B023
                return arguments[0]

            deployed.__name__ = name
            q = torch.randn(1, 4, 8, requires_grad=True)
            assert override(deployed, q, q, q, 2, _inside_attn_wrapper=True).requires_grad

    inside(patcher(), conditions(), task)
    assert used == ["attention_basic"]


def sampling_of(*bases: type, **parameters: float) -> Any:
    made = type("Sampling", bases, {})()
    if parameters:
        made.set_parameters(**parameters)
    return made


def test_neighbours_of_discrete_time_are_ten_timesteps_away() -> None:
    ms = comfy.model_sampling
    sampling = sampling_of(ms.ModelSamplingDiscrete, ms.V_PREDICTION)
    neighbours, levels = time_neighbours(sampling), sampling.sigmas.tolist()
    assert neighbours is not None
    assert neighbours(levels[500]) == (levels[490], levels[510])
    assert neighbours(levels[500] * 1.0005) == (levels[490], levels[510])
    assert neighbours(levels[3]) == (levels[0], levels[13])
    assert neighbours(levels[999]) == (levels[989], levels[999])
    assert neighbours(1e-9) == (levels[0], levels[10])


def test_neighbours_of_a_coarser_table_are_its_next_levels() -> None:
    class Distilled(comfy.model_sampling.ModelSamplingDiscrete):
        """As LCM's (comfy_extras/nodes_model_advanced.py): 50 of 1000 timesteps."""

        def __init__(self) -> None:
            super().__init__()
            self.set_sigmas(self.sigmas[19::20].clone())

        def timestep(self, sigma: Tensor) -> Tensor:
            return super().timestep(sigma) * 20 + 19

    sampling = Distilled()
    neighbours, levels = time_neighbours(sampling), sampling.sigmas.tolist()
    assert neighbours is not None and len(levels) == 50
    assert neighbours(levels[20]) == (levels[19], levels[21])


def test_neighbours_of_flow_models_are_a_hundredth_away() -> None:
    ms = comfy.model_sampling
    for sampling in (
        sampling_of(ms.ModelSamplingDiscreteFlow, ms.CONST, shift=3.0),
        sampling_of(ms.ModelSamplingFlux, ms.CONST, shift=1.15),
    ):
        neighbours, lowest = time_neighbours(sampling), float(sampling.sigma_min)
        assert neighbours is not None
        assert neighbours(0.5) == pytest.approx((0.49, 0.51))
        assert neighbours(1.0) == pytest.approx((0.99, 1.0))
        assert neighbours(0.005) == pytest.approx((lowest, 0.015))
        assert neighbours(lowest / 2) == pytest.approx((lowest / 2, lowest / 2 + 0.01))


@pytest.mark.parametrize(
    "base", ["ModelSamplingContinuousEDM", "ModelSamplingDiscreteEDM", "ModelSamplingContinuousV"]
)
def test_models_of_continuous_time_have_no_neighbours(base: str) -> None:
    ms = comfy.model_sampling
    assert time_neighbours(sampling_of(getattr(ms, base), ms.EDM)) is None


def time_gradients(guided: GuidedRun) -> tuple[Tensor, Tensor]:
    """Gradients to log or logit sigma of random projections: autograd's, and by differences."""
    model, generator = guided.model, torch.Generator().manual_seed(5)
    ends = torch.tensor([model.sigma_max, model.sigma_min], dtype=torch.float64)
    high, low = model.coordinate.from_sigma(ends).tolist()
    noise = torch.randn(2, 3, 32, 32, generator=generator)
    claimed, measured = [], []
    for u in torch.linspace(high - 1, low + 1, 6, dtype=torch.float64):
        sigma, above, below = model.coordinate.to_sigma(u + torch.tensor([0, 0.05, -0.05])).tolist()
        model.begin_rollout(torch.tensor([model.sigma_max, sigma, 0.0]))
        x = model.scale_noise(noise, torch.zeros_like(noise), sigma)
        w = torch.randn(x.shape, generator=generator)
        with torch.no_grad():
            change = model(x, torch.full((2,), above)) - model(x, torch.full((2,), below))
        level = torch.full((2,), sigma, requires_grad=True)
        (gradient,) = torch.autograd.grad((w * recomputed(model)(x, level)).sum(), level)
        claimed.append(gradient * (above - below))
        measured.append((w * change).flatten(1).sum(1))
    return torch.cat(claimed), torch.cat(measured)


@pytest.mark.slow
@pytest.mark.parametrize("flow", [False, True])
def test_secants_over_time_agree_with_the_differences_of_gauss_newton(
    flow: bool, flow_model: Any
) -> None:
    model, prompt = load_demo_model(), encode_prompt("red apple")[0]
    model = flow_model(model, 3.0) if flow else model
    claimed, measured = inside(model, (prompt, prompt), time_gradients)
    assert torch.cosine_similarity(claimed, measured, dim=0) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("case", ["demo", "flow", "flux", "controlnet", "hooks"])
def test_the_check_accepts_right_gradients(case: str, flow_model: Any) -> None:
    if case in ("demo", "flow"):
        model = load_demo_model() if case == "demo" else flow_model(load_demo_model(), 1.0)
    else:
        model = patcher(case, torch.float32)
    positive, negative = conditions({"flow": "demo"}.get(case, case))
    if case == "controlnet":
        positive = controlled(positive)
    elif case == "hooks":
        positive = hooked(positive, model)
    inside(model, (positive, negative), check, 1.0 if case == "flux" else 4.0)


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_the_check_accepts_half_precision_and_quantised_weights(weights: torch.dtype) -> None:
    """A network with coarse weights is another network, and its gradient is right for itself."""
    cast = None if weights.itemsize > 1 else torch.bfloat16
    inside(patcher("unet", weights, cast), conditions(), check, 4.0)


def refusal(
    model: Any, change: Callable[[Model], None] = lambda model: None, kind: str = "unet"
) -> str:
    """The check's message about a model that `change` has spoiled."""

    def task(guided: GuidedRun) -> None:
        change(guided.model)
        check(guided)

    with pytest.raises(ValueError, match="gauss-newton") as caught:
        inside(model, conditions(kind), task, 4.0)
    return str(caught.value)


def test_the_check_refuses_easycache() -> None:
    model = EasyCacheNode.execute(patcher("unet", torch.float32), 0.2, 0.0, 1.0, False).args[0]
    assert "EasyCache" in refusal(model)


def test_the_check_refuses_a_cache_that_the_same_call_repeated_does_not_show() -> None:
    """As EasyCache: near the last full call, its difference to the input is used again."""
    last: dict[str, Tensor] = {}

    def cached(call: Callable[..., Tensor], arguments: dict[str, Any]) -> Tensor:
        x = arguments["input"]
        if last and (x - last["x"]).norm() < 0.2 * x.norm():
            return x + last["difference"]
        answer = call(x, arguments["timestep"], **arguments["c"])
        last.update(x=x.detach(), difference=(answer - x).detach())
        return answer

    model = patcher("unet", torch.float32).clone()
    model.set_model_unet_function_wrapper(cached)
    message = refusal(model)
    assert "earlier calls" in message and "model_function_wrapper" in message


def test_the_check_refuses_a_detached_time() -> None:
    def detach_time(model: Model) -> None:
        inner, model.time_neighbours = model.denoise, None
        model.denoise = lambda x, sigma: inner(x, sigma.detach())

    assert "to the noise level" in refusal(patcher("unet", torch.float32), detach_time)


def test_the_check_refuses_attention_without_gradient_and_names_it() -> None:
    def no_gradient(function: Callable[..., Tensor], *arguments: Any, **options: Any) -> Tensor:
        q, k, v, *rest = arguments
        return function(q.detach(), k.detach(), v.detach(), *rest, **options)

    model = patcher("flux", torch.float32).clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = no_gradient
    message = refusal(model, kind="flux")
    assert "to the input" in message and "attention replaced by" in message


def test_the_check_refuses_noise_in_the_gradient() -> None:
    """Its agreement with the right gradient is the same: only its length shows it."""

    def noisy(model: Model) -> None:
        inner, generator = model.denoise, torch.Generator().manual_seed(6)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            noise = torch.randn(x.shape, generator=generator)
            return inner(x, sigma) + noise * (x - x.detach())

        model.denoise = denoise

    assert "along itself" in refusal(load_demo_model(), noisy, kind="demo")


def test_the_check_refuses_undefined_gradients_and_autograd_errors() -> None:
    class NoBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            raise NotImplementedError("no autograd formula for this kernel")

    def spoil(function: Callable[[Tensor], Tensor]) -> Callable[[Model], None]:
        def change(model: Model) -> None:
            inner = model.denoise
            model.denoise = lambda x, sigma: function(inner(x, sigma))

        return change

    model = patcher("unet", torch.float32)
    assert "undefined" in refusal(model, spoil(lambda x: x + (x - x).abs().sqrt()))
    assert "no autograd formula" in refusal(model, spoil(NoBackward.apply))
