"""Read the table of a real sampler by running it once on basis vectors.

A deterministic sampler is linear in x_init and in the denoised outputs D_m (`ld3.table`). With
x_init = e_0 and a stand-in model whose m-th output is the basis vector e_{m+1}, every x the sampler
produces is a row of W. No sampler is re-implemented, so parity with what runs later is by
construction, third-party samplers included.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .parameters import check_sigmas
from .table import Discretization, SolverTable, lower_triangle, rollout

SamplerFunction = Callable[..., Tensor]
"""`f(model, x, sigmas, extra_args=..., callback=..., disable=...)`, k-diffusion's signature."""

REPLAY_TOLERANCE = 1e-9
SPARE = 4  # basis directions no model call owns: whatever appears there is noise
GLOBAL_STATE = threading.RLock()  # locked while the default dtype and random state are changed
CHECKED_LEVELS = 8  # noise levels perturbed to see that the sampler uses them
CALLS_PER_STEP = 4  # more calls per step than any fixed-step sampler makes


class UnsupportedSampler(ValueError):
    """The sampler is not a fixed linear function of its denoised outputs; the text says why."""


class TracedSampler:
    """A deterministic sampler whose table can be read at any schedule.

    Args:
        function: the real sampler, k-diffusion's signature.
        model: the real model wrapper, for samplers that read its attributes; it is never called.
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

    def discretization(self, sigmas: Tensor) -> Discretization:
        """The sampler at sigmas (N+1,); errors as `table`."""
        return Discretization(sigmas, self.table(sigmas))

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
            self._check_linear(table, sigmas)
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
        owned = lower_triangle(calls + 1, size)
        if not torch.isfinite(rows).all():
            raise UnsupportedSampler("its weights are infinite or undefined at these noise levels")
        if (rows[~owned] != 0).any():
            raise UnsupportedSampler("it is stochastic: it adds noise between its model calls")
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
                model, extra_args = _StandIn(answer, self.model), {"model_options": {}, "seed": 0}
                keywords = {"extra_args": extra_args, "callback": callback, "disable": True}
                result = self.function(model, x, sigmas, **keywords)
            finally:
                torch.set_default_dtype(dtype)
        return result, float(sigmas[-1])

    def _check_linear(self, table: SolverTable, sigmas: Tensor) -> None:
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
                f"it is not linear in the denoised outputs: replaying it deviates by {error:.1e} "
                f"(limit {REPLAY_TOLERANCE})"
            )

    def _check_uses_sigmas(self, table: SolverTable, sigmas: Tensor) -> None:
        inner = range(1, len(sigmas) - 1)
        for k in inner[:: max(1, len(inner) // CHECKED_LEVELS)]:
            perturbed = sigmas.detach().cpu().double().clone()
            perturbed[k] += 0.1 * (perturbed[k - 1] - perturbed[k])
            if self._trace(perturbed)[0].distance(table) < 1e-9:
                raise UnsupportedSampler(
                    "it does not use the noise levels between the first and the last, so there is "
                    "nothing to learn"
                )


class _StandIn:
    """A model whose outputs are `answer`'s; every attribute is that of the real model wrapper."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Tensor], model: Any) -> None:
        self._answer = answer
        self._model = model

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        if extra_args.get("model_options", {}).get("sampler_post_cfg_function"):
            raise UnsupportedSampler("it is a CFG++ sampler: it also uses the unconditional output")
        return self._answer(x, sigma)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
