"""Any deterministic sampler as one small triangular matrix, read off the real sampler by tracing.

For given noise levels a deterministic sampler is linear in its start state and in the denoised
outputs it has seen. With M model calls, the m-th at noise level s_m on input X_m:

    X_m = W[m,0] x_init + sum_{j<m} W[m,j+1] D_j ,   D_m = denoise(X_m, s_m) ,   result = X_M .

Running the sampler once with x_init = e_0 and a stand-in model whose m-th answer is the basis
vector e_{m+1} makes every x it produces a row of W. No sampler is re-implemented, so parity with
what will later run is by construction, third-party samplers included.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .parameters import check_sigmas
from .rollout import rollout

SamplerFunction = Callable[..., Tensor]
"""`f(model, x, sigmas, extra_args=..., callback=..., disable=...)`, k-diffusion's signature."""

REPLAY_TOLERANCE = 1e-9
SPARE = 4  # basis directions no model call owns: whatever appears there is noise
GLOBAL_STATE = threading.RLock()  # held while the default dtype and random state are borrowed
PROBED_LEVELS = 8  # noise levels moved to see that they count
CALLS_PER_STEP = 4  # more calls a step than any fixed-step sampler makes


class UnsupportedSampler(ValueError):
    """The sampler is no fixed linear function of its denoised outputs; the text says why."""


@dataclass(frozen=True)
class SolverTable:
    """One sampler at one schedule, all tensors float64 or int64 on the CPU.

    Attributes:
        state_sigmas: (M,) noise level of the input X_m of each model call.
        eval_sigmas: (M,) noise level the network is asked at (equal unless times are decoupled).
        weights: (M+1, 1+M), row m combines x_init and D_0..D_{m-1} into X_m; the last row is the
            result.
        callback_calls: (steps reported,) int64, the model calls whose output a callback reported.
    """

    state_sigmas: Tensor
    eval_sigmas: Tensor
    weights: Tensor
    callback_calls: Tensor

    def __post_init__(self) -> None:
        calls = self.state_sigmas.numel()
        shapes = [tuple(t.shape) for t in (self.state_sigmas, self.eval_sigmas, self.weights)]
        expected = [(calls,), (calls,), (calls + 1, calls + 1)]
        if shapes != expected:
            raise ValueError(
                f"a table of {calls} calls has state_sigmas, eval_sigmas and weights of shapes "
                f"{expected}; got {shapes}"
            )
        for name in ("state_sigmas", "eval_sigmas", "weights"):
            if not torch.isfinite(getattr(self, name)).all():
                raise ValueError(f"{name} of a solver table must be finite")
        for name in ("state_sigmas", "eval_sigmas"):
            if (getattr(self, name) <= 0).any():
                raise ValueError(f"{name} of a solver table must be above 0")
        if self.weights[~_lower(calls + 1, calls + 1)].any():
            raise ValueError(
                "weights of a solver table must be lower triangular: no call sees a later output"
            )
        reported = self.callback_calls
        if reported.ndim != 1 or (
            len(reported) and not 0 <= reported.min() <= reported.max() < calls
        ):
            raise ValueError(
                f"callback_calls must name calls 0..{calls - 1}; got {reported.tolist()}"
            )

    @property
    def model_calls(self) -> int:
        """M, the network evaluations one sample costs."""
        return len(self.state_sigmas)

    def first_change(self, other: SolverTable) -> int:
        """The first model call whose input or noise level differs in `other` (M if only the result
        does).

        Everything before it is shared: its denoised outputs hold for both tables. Differences below
        1e-10 relative are rounding of the trace, far under the float32 a network computes in.
        """
        for m in range(min(self.model_calls, other.model_calls)):
            mine = torch.cat([self.weights[m, : m + 1], self.eval_sigmas[m : m + 1]])
            theirs = torch.cat([other.weights[m, : m + 1], other.eval_sigmas[m : m + 1]])
            if not torch.allclose(mine, theirs, rtol=1e-10, atol=1e-12):
                return m
        return min(self.model_calls, other.model_calls)

    def distance(self, other: SolverTable) -> float:
        """Largest relative difference; infinite for another number of calls."""
        if self.model_calls != other.model_calls:
            return float("inf")
        pairs = [(self.weights, other.weights), (self.eval_sigmas, other.eval_sigmas)]
        return max(float(((a - b).abs() / (1 + a.abs())).max()) for a, b in pairs)


class Plan(NamedTuple):
    """A way to sample: sigmas (N+1,) float32 on the CPU, and a sampler's table at them."""

    sigmas: Tensor
    table: SolverTable


def _lower(rows: int, columns: int) -> Tensor:
    """Mask of the lower triangle with its diagonal."""
    # torch.tril and triu (2.14) start all threads for any size: milliseconds on a busy machine
    return torch.arange(rows)[:, None] >= torch.arange(columns)


class Sampler:
    """A deterministic sampler that can be asked for its table at any schedule.

    Args:
        function: the real sampler, k-diffusion's signature.
        model: the real model wrapper, for samplers that look up its attributes; it is never called.
        end_scale: factor a runtime applies to the result, given the last sigma as the sampler left
            it (uni_pc leaves 0.001, and flow models divide by 1 - sigma); folded into the last row.
    """

    def __init__(
        self,
        function: SamplerFunction,
        model: Any = None,
        end_scale: Callable[[float], float] = lambda end: 1.0,
    ) -> None:
        self.function = function
        self.model = model
        self.end_scale = end_scale
        self._verified: set[int] = set()

    def table(self, sigmas: Tensor) -> SolverTable:
        """The sampler's table at sigmas (N+1,).

        The first table of every N is checked: the real sampler must agree with it on a non-linear
        toy denoiser to 1e-9, and must use the noise levels between the first and the last.

        Raises:
            UnsupportedSampler: stochastic, adaptive, non-linear, guidance-reading or schedule-blind
                sampler.
            ValueError: sigmas not strictly decreasing.
        """
        table, end = self._trace(sigmas)
        if len(sigmas) not in self._verified:
            self._check_linear(table, sigmas, end)
            self._check_uses_sigmas(table, sigmas)
            self._verified.add(len(sigmas))
        scale = self.end_scale(end)
        if scale == 1.0:
            return table
        weights = table.weights.clone()
        weights[-1] *= scale
        return SolverTable(table.state_sigmas, table.eval_sigmas, weights, table.callback_calls)

    def _trace(self, sigmas: Tensor) -> tuple[SolverTable, float]:
        check_sigmas(sigmas)
        most_calls = CALLS_PER_STEP * len(sigmas)
        size = 1 + most_calls + SPARE
        inputs: list[Tensor] = []
        levels: list[float] = []
        reported: list[int] = []

        def answer(x: Tensor, sigma: Tensor) -> Tensor:
            if len(inputs) == most_calls:
                raise UnsupportedSampler(
                    f"it is adaptive: more than {most_calls} model calls for {len(sigmas) - 1} "
                    "steps"
                )
            inputs.append(x.detach().double().reshape(-1).clone())
            levels.append(float(sigma.reshape(-1)[0]))
            output = torch.zeros_like(x)
            output.view(-1)[len(inputs)] = 1.0
            return output

        x_init = torch.zeros(1, 1, 1, size, dtype=torch.float64)
        x_init.view(-1)[0] = 1.0
        result, end = self._run(answer, x_init, sigmas, lambda _: reported.append(len(inputs) - 1))
        calls = len(inputs)
        rows = torch.stack([*inputs, result.double().reshape(-1)])
        owned = _lower(calls + 1, size)
        if not torch.isfinite(rows).all():
            raise UnsupportedSampler(
                "it produces infinite or undefined weights at these noise levels"
            )
        if (rows[~owned] != 0).any():
            raise UnsupportedSampler(
                "it is stochastic: it adds fresh noise between its model calls"
            )
        level = torch.tensor(levels, dtype=torch.float64)
        table = SolverTable(
            level, level, rows[:, : calls + 1].clone(), torch.tensor(reported, dtype=torch.int64)
        )
        return table, end

    def _run(self, answer, x: Tensor, sigmas: Tensor, callback=None) -> tuple[Tensor, float]:
        """Run the real sampler in float64; returns its result and the last sigma as it left it."""
        # a copy: uni_pc overwrites the last entry (ComfyUI 0.30.0, extra_samplers/uni_pc.py)
        sigmas = sigmas.detach().cpu().double().clone()
        with GLOBAL_STATE, torch.random.fork_rng(devices=[]), torch.no_grad():
            # uni_pc builds tensors of the default dtype; the caller's is restored whatever happens
            dtype = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)
            try:
                result = self.function(
                    _StandIn(answer, self.model),
                    x,
                    sigmas,
                    extra_args={"model_options": {}, "seed": 0},
                    callback=callback,
                    disable=True,
                )
            finally:
                torch.set_default_dtype(dtype)
        return result, float(sigmas[-1])

    def _check_linear(self, table: SolverTable, sigmas: Tensor, end: float) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64) * float(sigmas[0])
        mix = torch.randn(4, 4, generator=generator, dtype=torch.float64)

        def toy(x: Tensor, sigma: Tensor) -> Tensor:
            return torch.tanh(x @ mix / (1 + float(sigma.reshape(-1)[0])))

        direct, _ = self._run(toy, x.clone(), sigmas)
        replayed = rollout(table, toy, [x])[0]
        error = float((direct - replayed).abs().max() / direct.abs().max())
        if not error <= REPLAY_TOLERANCE:
            raise UnsupportedSampler(
                f"it is not linear in the denoised outputs: replaying it is {error:.1e} off "
                f"(limit {REPLAY_TOLERANCE})"
            )

    def _check_uses_sigmas(self, table: SolverTable, sigmas: Tensor) -> None:
        inner = range(1, len(sigmas) - 1)
        for k in inner[:: max(1, len(inner) // PROBED_LEVELS)]:
            moved = sigmas.detach().cpu().double().clone()
            moved[k] += 0.1 * (moved[k - 1] - moved[k])
            if self._trace(moved)[0].distance(table) < 1e-9:
                raise UnsupportedSampler(
                    "it ignores noise levels between the first and the last: nothing to learn"
                )


class _StandIn:
    """Answers model calls with `answer` and forwards every attribute to the real model wrapper."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Tensor], model: Any) -> None:
        self._answer = answer
        self._model = model

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        if extra_args.get("model_options", {}).get("sampler_post_cfg_function"):
            raise UnsupportedSampler("it is a CFG++ sampler: it also uses the unconditional output")
        return self._answer(x, sigma)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
