"""Traced tables against the samplers of the installed ComfyUI and exactly solved equations."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import comfy.model_sampling as model_sampling
import comfy.samplers
import pytest
import torch
from torch import Tensor

from ld3.comfy.core_samplers import sampler_object, traced_sampler
from ld3.table import SolverTable, rollout
from ld3.tracing import TracedSampler, UnsupportedSampler

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # torchsde warns about float64 noise levels that it rounds itself
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

BASES = {
    "eps": (model_sampling.ModelSamplingDiscrete, model_sampling.EPS),
    "v": (model_sampling.ModelSamplingDiscrete, model_sampling.V_PREDICTION),
    "edm": (model_sampling.ModelSamplingContinuousEDM, model_sampling.EDM),
    "flow": (model_sampling.ModelSamplingDiscreteFlow, model_sampling.CONST),
    "flux": (model_sampling.ModelSamplingFlux, model_sampling.CONST),
}
SAMPLING = {kind: type(kind, bases, {})() for kind, bases in BASES.items()}
STEPS = {"eps": (2, 3, 6), "v": (2, 3, 6), "flow": (2, 3, 6), "edm": (4,), "flux": (4,)}
ONE_CALL = ("euler", "dpmpp_2m", "lms", "ipndm", "ipndm_v", "res_multistep", "uni_pc", "ddim")
TWO_CALLS = ("heun", "dpm_2", "exp_heun_2_x0")


def schedule(kind: str, steps: int) -> Tensor:
    """An uneven schedule from the model's largest noise level to 0."""
    top = float(SAMPLING[kind].sigma_max)
    inner = top * (1 - torch.arange(1, steps) / steps) ** 1.7
    return torch.cat([torch.tensor([top]), inner, torch.zeros(1)])


CFG_PP = ("euler_cfg_pp", "dpmpp_2m_cfg_pp", "res_multistep_cfg_pp", "gradient_estimation_cfg_pp")


def network(x: Tensor, sigma: Tensor, guidance: bool = False) -> Any:
    """A denoiser that is non-linear in both of its inputs, row by row of the batch."""
    s = sigma.reshape(-1, *[1] * (x.ndim - 1))
    x0 = torch.tanh(x.roll(1, -1) + 0.5 * x / (1 + s)) * torch.cos(0.3 * s) + 0.1 * s.sin()
    return (x0, 0.3 * torch.sin(x - x0)) if guidance else x0


class Guider:
    """A guider as KSAMPLER.sample sees it, around a denoiser; counts calls, answers CFG++ hooks."""

    cfg = 1.0

    def __init__(self, kind: str, denoise: Callable[[Tensor, Tensor], Tensor] = network) -> None:
        sampling = SAMPLING[kind]
        self.denoise, self.calls = denoise, 0
        self.inner_model = SimpleNamespace(model_sampling=sampling)
        self.model_patcher = SimpleNamespace(model=self, get_model_object=lambda name: sampling)

    def __call__(self, x: Tensor, sigma: Tensor, model_options: Any, seed: Any) -> Tensor:
        self.calls += 1
        denoised = self.denoise(x, sigma)
        for function in model_options.get("sampler_post_cfg_function", []):
            unconditional = denoised - 0.3 * torch.sin(x - denoised)  # as `network` says
            denoised = function({"denoised": denoised, "uncond_denoised": unconditional})
        return denoised


def sample(
    name: str, guider: Guider, sigmas: Tensor, noise: Tensor, latent: Tensor, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """ComfyUI's own KSAMPLER.sample in float64; also the sigmas as the sampler left them."""
    torch.manual_seed(seed)
    sigmas = sigmas.double()
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        result = sampler_object(name).sample(
            guider, sigmas, {"seed": seed, "model_options": {}}, None, noise, latent, None, True
        )
    finally:
        torch.set_default_dtype(default)
    return result, sigmas


def start(kind: str, sigmas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, latent, and the start state that ComfyUI makes of them, float64."""
    generator = torch.Generator().manual_seed(7)
    noise, latent = torch.randn(2, 3, 1, 4, 4, generator=generator, dtype=torch.float64)
    sampling, first = SAMPLING[kind], sigmas.double()[0]
    full = comfy.samplers.KSAMPLER(None).max_denoise(Guider(kind), sigmas)
    return noise, latent, sampling.noise_scaling(first, noise.clone(), latent, full)


def table_of(name: str, kind: str, sigmas: Tensor) -> SolverTable:
    return traced_sampler(sampler_object(name), SAMPLING[kind]).table(sigmas)


def deterministic(kind: str, sigmas: Tensor) -> dict[str, SolverTable]:
    """Tables of all samplers of this ComfyUI that have one."""
    tables = {}
    for name in comfy.samplers.SAMPLER_NAMES:
        try:
            tables[name] = table_of(name, kind, sigmas)
        except UnsupportedSampler:
            continue
    return tables


def assert_reason_is_true(reason: str, name: str, kind: str, sigmas: Tensor) -> None:
    """What a refusal says about a sampler must show when ComfyUI runs that sampler."""
    noise, latent, _ = start(kind, sigmas)
    guider = Guider(kind)
    result, _ = sample(name, guider, sigmas, noise, latent)
    if "stochastic" in reason:
        other, _ = sample(name, Guider(kind), sigmas, noise, latent, seed=1)
        assert (other - result).abs().max() > 1e-6
    elif "adaptive" in reason:
        easy = Guider(kind, lambda x, sigma: torch.zeros_like(x))
        sample(name, easy, sigmas, noise, latent)
        assert easy.calls != guider.calls
    elif "does not use the noise levels" in reason:
        moved = sigmas.clone()
        moved[1] += 0.1 * (moved[0] - moved[1])
        assert torch.equal(sample(name, Guider(kind), moved, noise, latent)[0], result)
    else:
        pytest.fail(f"{name} is refused for a reason no test knows: {reason}")


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("name", comfy.samplers.SAMPLER_NAMES)
def test_every_sampler_replays_exactly_or_is_refused_for_a_true_reason(
    name: str, kind: str
) -> None:
    for steps in STEPS[kind]:
        sigmas = schedule(kind, steps)
        try:
            table = table_of(name, kind, sigmas)
        except UnsupportedSampler as error:
            assert_reason_is_true(str(error), name, kind, sigmas)
            continue
        noise, latent, x = start(kind, sigmas)
        guider = Guider(kind)
        real, _ = sample(name, guider, sigmas, noise, latent)
        replayed, history = rollout(table, network, [x])
        assert (replayed - real).abs().max() <= 1e-12 * real.abs().max()
        assert table.outputs == (2 if name in CFG_PP else 1)
        assert len(history) - 1 == table.outputs * table.model_calls
        assert table.model_calls == guider.calls


def test_the_samplers_people_use_are_not_refused() -> None:
    expected = {*ONE_CALL, *TWO_CALLS, *CFG_PP, "heunpp2", "deis", "gradient_estimation"}
    expected.add("uni_pc_bh2")
    for kind in ("eps", "flow"):
        assert expected <= set(deterministic(kind, schedule(kind, 3)))


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "uni_pc", "res_multistep", "heun"])
@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_the_first_part_of_a_split_sampling_replays_exactly(name: str, kind: str) -> None:
    sigmas = schedule(kind, 5)[:4]  # ends above 0
    noise, latent, x = start(kind, sigmas)
    real, _ = sample(name, Guider(kind), sigmas, noise, latent)
    replayed, _ = rollout(table_of(name, kind, sigmas), network, [x])
    # core, which also runs tables, scales the result by the last sigma
    replayed = SAMPLING[kind].inverse_noise_scaling(sigmas[-1].double(), replayed)
    assert (replayed - real).abs().max() <= 1e-12 * real.abs().max()


@pytest.mark.parametrize("name", [*ONE_CALL, *TWO_CALLS, "heunpp2", "deis", "gradient_estimation"])
@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_a_constant_prediction_is_sampled_without_error(name: str, kind: str) -> None:
    """For D = c every path is x = c + s n (eps) or (1 - s) c + s n (flow): a straight line.

    X_m = W[m,0] x_init + (sum of the others) c lies on it for all c and n exactly if the row sums
    to 1 and W[m,0] = s_m / s_0, on both kinds; the first holds already where only n = 0 does.
    """
    sigmas = schedule(kind, 5)
    table = table_of(name, kind, sigmas)
    noise, latent, _ = start(kind, sigmas)
    end = sample(name, Guider(kind), sigmas, noise, latent)[1][-1:]  # uni_pc leaves 0.001
    levels = torch.cat([table.state_sigmas, end])
    scale = torch.ones_like(levels)
    scale[-1] = 1 / (1 - end) if kind == "flow" else 1
    torch.testing.assert_close(table.weights.sum(1), scale, rtol=0, atol=1e-12)
    # ComfyUI's deis integrates numerically; the weights of its ipndm_v miss 1 from the third step
    tolerance = {"deis": 1e-5, "ipndm_v": 1e-2}.get(name, 1e-11)
    line = scale * levels / levels[0]
    torch.testing.assert_close(table.weights[:, 0], line, rtol=0, atol=tolerance)


def test_uni_pc_on_flow_is_scaled_for_the_last_sigma_it_leaves() -> None:
    sigmas = schedule("flow", 4)
    bare = TracedSampler(
        traced_sampler(sampler_object("uni_pc"), SAMPLING["flow"]).function, Guider("flow")
    ).table(sigmas)
    folded = table_of("uni_pc", "flow", sigmas)
    torch.testing.assert_close(folded.weights[-1], bare.weights[-1] / 0.999, rtol=1e-12, atol=0)
    assert torch.equal(folded.weights[:-1], bare.weights[:-1])
    torch.testing.assert_close(
        table_of("uni_pc", "eps", schedule("eps", 4)).weights[-1].sum(),
        torch.tensor(1.0, dtype=torch.float64),
    )


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_euler_cfg_pp_has_the_coefficients_of_its_definition(kind: str) -> None:
    """X_{m+1} = D_m + s_{m+1} (X_m - U_m) / s_m, on flow alpha D + .. with alpha = 1 - s, and
    U_m = D_m - G_m; without guidance that is Euler's method.

    On flow core writes the step as alpha_t D + s_t (X - alpha_s U) / s_s.
    """
    sigmas = schedule(kind, 3)
    table, euler = table_of("euler_cfg_pp", kind, sigmas), table_of("euler", kind, sigmas)
    s = sigmas.double().tolist()
    alpha = [1 - level if kind == "flow" else 1.0 for level in s]
    first = [s[1] / s[0], alpha[1] - alpha[0] * s[1] / s[0], alpha[0] * s[1] / s[0]]
    torch.testing.assert_close(table.weights[1, :3], table.weights.new_tensor(first))
    torch.testing.assert_close(table.weights[:, ::2][:, 1:].sum(1)[-1], table.weights.new_zeros(()))
    columns = torch.cat([table.weights[:, :1], table.weights[:, table.denoised]], 1)
    torch.testing.assert_close(columns, euler.weights, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CFG_PP)
def test_cfg_pp_samplers_replay_to_rounding(name: str) -> None:
    sigmas = schedule("eps", 6)
    noise, latent, x = start("eps", sigmas)
    real, _ = sample(name, Guider("eps"), sigmas, noise, latent)
    replayed, _ = rollout(table_of(name, "eps", sigmas), network, [x])
    assert (replayed - real).abs().max() <= 5e-15 * real.abs().max()


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("dpmpp_2m", 2), ("heun", 2)])
def test_gaussian_data_is_sampled_with_the_order_of_the_method(name: str, order: int) -> None:
    """For data N(1, 0.5^2), x(s) - 1 is proportional to sqrt(0.25 + s^2): an exact solution."""
    x0 = torch.tensor([[3.0]], dtype=torch.float64)
    first, last = 4.0, 0.1
    exact = 1 + (x0 - 1) * ((0.25 + last**2) / (0.25 + first**2)) ** 0.5

    def error(steps: int) -> float:
        ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        table = table_of(name, "eps", first * (last / first) ** ramp)
        result, _ = rollout(table, lambda x, s: 1 + 0.25 / (0.25 + s[0] ** 2) * (x - 1), [x0])
        return float((result - exact).abs())

    assert error(16) / error(32) == pytest.approx(2**order, rel=0.12)


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_first_change_is_the_first_call_that_sees_another_input(kind: str) -> None:
    sigmas = schedule(kind, 5)
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def seen(table: SolverTable) -> list[Tensor]:
        inputs: list[Tensor] = []

        def record(x: Tensor, sigma: Tensor, guidance: bool = False) -> Any:
            inputs.append(torch.cat([x.flatten(), sigma]))
            return network(x, sigma, guidance)

        rollout(table, record, [x])
        return inputs

    for name, table in deterministic(kind, sigmas).items():
        for k in range(1, 5):
            moved = sigmas.clone()
            moved[k] *= 0.97
            other = table_of(name, kind, moved)
            same = [
                bool((a - b).abs().max() < 1e-9)
                for a, b in zip(seen(table), seen(other), strict=True)
            ]
            assert table.first_change(other) == same.index(False), (name, k)
            if name in ONE_CALL:
                assert table.first_change(other) == k, name


def test_first_change_of_equal_tables_is_the_number_of_calls() -> None:
    table = table_of("heun", "eps", schedule("eps", 3))
    assert table.first_change(table) == table.model_calls


def test_distance_is_zero_only_for_the_same_sampler_at_the_same_levels() -> None:
    sigmas = schedule("eps", 4)
    table = table_of("euler", "eps", sigmas)
    assert table.distance(table_of("euler", "eps", sigmas)) == 0
    moved = sigmas.clone()
    moved[2] *= 1.001
    assert 1e-4 < table.distance(table_of("euler", "eps", moved)) < 1e-2
    assert table.distance(table_of("dpmpp_2m", "eps", sigmas)) > 1e-2
    assert table.distance(table_of("heun", "eps", sigmas)) == float("inf")


@pytest.mark.parametrize("steps", [2, 3, 6])
def test_n_steps_cost_n_calls_or_two_per_step_except_the_last(steps: int) -> None:
    sigmas = schedule("eps", steps)
    for names, calls in ((ONE_CALL, steps), (TWO_CALLS, 2 * steps - 1)):
        for name in names:
            table = table_of(name, "eps", sigmas)
            assert (table.model_calls, len(table.callback_calls)) == (calls, steps), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tracing_does_not_change_global_state_or_the_callers_sigmas(dtype: torch.dtype) -> None:
    def failing(model: Any, x: Tensor, sigmas: Tensor, **keywords: Any) -> Tensor:
        torch.randn(3)
        sigmas.zero_()
        raise RuntimeError("sampler failed")

    def noisy_euler(model: Any, x: Tensor, sigmas: Tensor, **keywords: Any) -> Tensor:
        torch.randn(3)
        result = euler(model, x, sigmas, **keywords)
        sigmas.zero_()
        return result

    sigmas = schedule("flow", 4).to(dtype)
    kept, default = sigmas.clone(), torch.get_default_dtype()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with pytest.raises(UnsupportedSampler, match="RuntimeError: sampler failed"):
        TracedSampler(failing).table(sigmas)
    for name in ("uni_pc", "dpmpp_sde", "euler_ancestral", "dpm_adaptive"):
        try:
            table_of(name, "flow", sigmas)
        except UnsupportedSampler:
            pass
    TracedSampler(noisy_euler).table(sigmas)
    assert torch.equal(sigmas, kept) and sigmas.dtype == kept.dtype
    assert torch.get_default_dtype() == default
    assert torch.equal(torch.get_rng_state(), state)


def test_traces_in_several_threads_do_not_change_the_default_dtype() -> None:
    default, sampler = (
        torch.get_default_dtype(),
        traced_sampler(sampler_object("heun"), SAMPLING["eps"]),
    )
    sigmas = schedule("eps", 6)
    with ThreadPoolExecutor(8) as pool:
        tables = list(pool.map(sampler.table, [sigmas] * 64))
    assert torch.get_default_dtype() == default
    assert all(torch.equal(table.weights, tables[0].weights) for table in tables)


def euler(
    model: Any, x: Tensor, sigmas: Tensor, gain: float = 1.0, squash: float = 0.0, **keywords: Any
) -> Tensor:
    """A third-party sampler: Euler with a gain on the denoised output, or one that squashes it."""
    for i in range(len(sigmas) - 1):
        denoised = gain * model(x, sigmas[i] * x.new_ones(x.shape[0]))
        if squash:
            denoised = denoised * torch.tanh(squash * denoised.std())
        if keywords.get("callback"):
            keywords["callback"]({"i": i, "denoised": denoised, "x": x})
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def test_a_third_party_sampler_is_traced_with_its_options() -> None:
    sigmas = schedule("eps", 4)
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for gain in (1.0, 0.7):
        sampler = comfy.samplers.KSAMPLER(euler, {"gain": gain})
        table = traced_sampler(sampler, SAMPLING["eps"]).table(sigmas)
        direct = euler(network, x, sigmas.double(), gain)
        assert (rollout(table, network, [x])[0] - direct).abs().max() <= 1e-12 * direct.abs().max()
        assert table.callback_calls.tolist() == [0, 1, 2, 3]


def test_a_sampler_that_scales_by_its_outputs_size_is_refused() -> None:
    sampler = comfy.samplers.KSAMPLER(euler, {"squash": 1.0})
    with pytest.raises(UnsupportedSampler, match="not linear"):
        traced_sampler(sampler, SAMPLING["eps"]).table(schedule("eps", 4))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dpm_fast", "does not use the noise levels"),
        ("dpm_adaptive", "adaptive"),
        ("euler_ancestral", "stochastic"),
        ("dpmpp_2m_sde", "stochastic"),
        ("euler_ancestral_cfg_pp", "stochastic"),
    ],
)
@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_unsupported_samplers_are_refused_with_a_reason(name: str, reason: str, kind: str) -> None:
    with pytest.raises(UnsupportedSampler, match=reason):
        table_of(name, kind, schedule(kind, 4))


def test_a_sampler_object_that_is_no_ksampler_is_refused() -> None:
    with pytest.raises(UnsupportedSampler, match="not a KSAMPLER"):
        traced_sampler(comfy.samplers.Sampler(), SAMPLING["eps"])


@pytest.mark.parametrize(
    "sigmas",
    [[1.0], [1.0, 1.0, 0.0], [1.0, 2.0, 0.0], [1.0, float("nan"), 0.0], [1.0, -1.0], [[1.0]]],
)
def test_schedules_that_do_not_decrease_are_refused(sigmas: list[Any]) -> None:
    with pytest.raises(ValueError, match="noise levels"):
        table_of("euler", "eps", torch.tensor(sigmas))
