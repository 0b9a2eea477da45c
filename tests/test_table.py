"""Tables: what is valid, and how they are rolled out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ld3.table import SolverTable, combine, rollout


def table(calls: int, seed: int = 0) -> SolverTable:
    """Random weights, a different one in every place, at eval sigmas unlike the state sigmas."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(calls + 1, calls + 1, generator=generator, dtype=torch.float64)
    levels = torch.linspace(5, 1, calls, dtype=torch.float64)
    return SolverTable(levels, 0.9 * levels, weights.tril(), torch.arange(calls))


class Denoiser:
    """Non-linear in x and sigma; remembers its inputs."""

    def __init__(self) -> None:
        self.inputs: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.inputs.append((x, sigma))
        return torch.tanh(x * sigma.reshape(-1, 1))


def noise(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_rollout_is_the_triangular_recursion() -> None:
    solver, x_init, denoise = table(4), noise(torch.float64), Denoiser()
    result, history = rollout(solver, denoise, [x_init])
    for m, (x, sigma) in enumerate(denoise.inputs):
        expected = torch.einsum(
            "j,jbd->bd", solver.weights[m, : m + 1], torch.stack(history)[: m + 1]
        )
        torch.testing.assert_close(x, expected, rtol=1e-14, atol=1e-14)
        assert torch.equal(sigma, solver.eval_sigmas[m].expand(3))
    whole = torch.einsum("j,jbd->bd", solver.weights[-1], torch.stack(history))
    torch.testing.assert_close(result, whole, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("shared", range(5))
def test_a_shared_prefix_gives_the_same_bits_with_fewer_calls(shared: int) -> None:
    solver, denoise = table(4), Denoiser()
    full, history = rollout(solver, denoise, [noise()])
    again = Denoiser()
    result, same = rollout(solver, again, history[: shared + 1])
    assert torch.equal(result, full)
    assert all(torch.equal(a, b) for a, b in zip(same, history, strict=True))
    assert len(again.inputs) == 4 - shared


def test_a_rollout_does_not_change_the_given_history() -> None:
    given = [noise()]
    before = given[0].clone()
    rollout(table(3), Denoiser(), given)
    assert len(given) == 1 and torch.equal(given[0], before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_and_noise_levels_have_the_start_states_dtype(dtype: torch.dtype) -> None:
    denoise = Denoiser()
    result, _ = rollout(table(3), denoise, [noise(dtype)])
    assert {result.dtype, *(t.dtype for inputs in denoise.inputs for t in inputs)} == {dtype}
    assert [tuple(sigma.shape) for _, sigma in denoise.inputs] == [(3,)] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_combine_is_the_weighted_sum_to_rounding(dtype: torch.dtype) -> None:
    history = [noise(dtype) + k for k in range(4)]
    weights = torch.tensor([1e3, -1e3, 0.0, 0.25], dtype=torch.float64)
    exact = sum(w * h.double() for w, h in zip(weights, history, strict=True))
    rounding = 4 * 1e3 * 10 * torch.finfo(dtype).eps
    torch.testing.assert_close(combine(weights, history).double(), exact, rtol=0, atol=rounding)


def test_a_zero_weight_excludes_even_infinite_states() -> None:
    infinite = torch.full((3, 8), torch.inf)
    assert torch.equal(combine(torch.tensor([1.0, 0.0]), [noise(), infinite]), noise())


def test_invalid_tables_are_refused() -> None:
    good = table(3)
    upper, undefined = good.weights.clone(), good.weights.clone()
    upper[0, 2], undefined[1, 0] = 1e-3, float("nan")
    levels, calls = good.state_sigmas, good.callback_calls
    invalid = [
        ((levels, levels, upper, calls), "triangular"),
        ((levels, levels, undefined, calls), "finite"),
        ((levels, levels / 0, good.weights, calls), "finite"),
        ((0 * levels, levels, good.weights, calls), "above 0"),
        ((levels, -levels, good.weights, calls), "above 0"),
        ((levels, levels[:2], good.weights, calls), "calls has"),
        ((levels, levels, good.weights[:, :3], calls), "calls has"),
        ((levels, levels, good.weights, torch.tensor([3])), "callback_calls"),
        ((levels, levels, good.weights, torch.tensor([-1, 0])), "callback_calls"),
        ((levels, levels, good.weights, calls.reshape(1, -1)), "callback_calls"),
    ]
    for parts, reason in invalid:
        with pytest.raises(ValueError, match=reason):
            SolverTable(*parts)
