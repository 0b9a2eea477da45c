"""Read the table of a real sampler by running it once on basis vectors.

A deterministic sampler is linear in x_init and in the denoised outputs D_m (`ld3.table`). With
x_init = e_0 and a stand-in model whose m-th outputs D_m and G_m are the basis vectors e_{2m+1} and
e_{2m+2}, every x the sampler produces is a row of W. (Only CFG++ samplers ask for the guidance G_m;
for others its columns are dropped.) No sampler is re-implemented, so parity with what runs later is
by construction, third-party samplers included.

Samplers compute in float64 here. Those that compute in float32 whatever they receive are read to
the precision of float32, and checked to it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .parameters import check_sigmas
from .table import Discretization, SolverTable, lower_triangle, rollout

SamplerFunction = Callable[..., Tensor]
"""`f(model, x, sigmas, extra_args=..., callback=..., disable=...)`, k-diffusion's signature."""

Answer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x, sigma) -> denoised output and guidance, see `ld3.table`."""

REPLAY_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # by what the model is called with
SPARE = 4  # basis directions no model call owns: whatever appears there is noise
RANDOM_STATE = threading.RLock()  # locked while samplers may draw from torch's own generator
CHECKED_LEVELS = 8  # noise levels perturbed to see that the sampler uses them
CALLS_PER_STEP = 20  # more calls per step than any fixed-step sampler makes
KEPT_TRACES = 256
ADAPTIVE = "it is adaptive: its model calls depend on the outputs"
COPIES = {torch.tensor, torch.as_tensor}
FACTORIES = COPIES | {torch.scalar_tensor, torch.zeros, torch.ones, torch.full, torch.empty}
FACTORIES |= {torch.eye, torch.arange, torch.linspace, torch.logspace, torch.rand, torch.randn}


class UnsupportedSampler(ValueError):
    """The sampler is not a fixed linear function of its denoised outputs; the text says why."""

    def __init__(self, reason: str, name: str = "") -> None:
        super().__init__(f"no schedule can be learned for {name!r}: {reason}" if name else reason)
        self.reason = reason


class SamplerFailed(UnsupportedSampler):
    """The sampler's own code raised an error."""


class TracedSampler:
    """A deterministic sampler whose table can be read at any schedule.

    Args:
        function: the real sampler, k-diffusion's signature.
        model: the real model wrapper, for samplers that read its attributes; it is never called.
        end_scale: factor a runtime applies to the result, given the last sigma (flow models divide
            by 1 - sigma). Where the sampler changed that sigma (uni_pc leaves 0.001 for 0), the
            last row has the difference: whoever runs the table applies that of the given sigma.
        name: the sampler's, for errors.
    """

    def __init__(
        self,
        function: SamplerFunction,
        model: Any = None,
        end_scale: Callable[[float], float] = lambda end: 1.0,
        name: str = "",
    ) -> None:
        self.function = function
        self.model = model
        self.end_scale = end_scale
        self.name = name
        self._dtype = torch.float64
        self._makes_tensors = False  # without a dtype, as seen while its tables were checked
        self._verified: set[int] = set()
        self._traces: dict[bytes, tuple[SolverTable, float]] = {}

    def discretization(self, sigmas: Tensor) -> Discretization:
        """The sampler at sigmas (N+1,); errors as `table`."""
        return Discretization(sigmas, self.table(sigmas))

    def table(self, sigmas: Tensor) -> SolverTable:
        """The sampler's table at sigmas (N+1,).

        The first table of every N is checked: the real sampler must agree with it on a non-linear
        toy denoiser to `REPLAY_TOLERANCE`, and must use the noise levels between the first and the
        last.

        Raises:
            UnsupportedSampler: stochastic, adaptive, non-linear, schedule-blind or failing sampler.
            ValueError: sigmas not strictly decreasing.
        """
        check_sigmas(sigmas)
        try:
            return self._checked_table(sigmas)
        except UnsupportedSampler as error:
            raise type(error)(error.reason, self.name) from error.__cause__

    def _checked_table(self, sigmas: Tensor) -> SolverTable:
        table, end = self._trace(sigmas)
        if len(sigmas) not in self._verified:
            toy = self._toy_run(sigmas, table.model_calls)
            _check_linear(table, toy)
            self._check_uses_sigmas(sigmas, toy)
            self._verified.add(len(sigmas))
        scale = self.end_scale(end) / self.end_scale(float(sigmas[-1]))
        if scale == 1.0:
            return table
        weights = table.weights.clone()
        weights[-1] *= scale
        return SolverTable(table.state_sigmas, table.eval_sigmas, weights, table.callback_calls)

    def _trace(self, sigmas: Tensor) -> tuple[SolverTable, float]:
        """Table and last sigma, of the latest `KEPT_TRACES` schedules without running the sampler.

        Some third-party samplers take a second.
        """
        key = sigmas.detach().cpu().double().numpy().tobytes()
        found = self._traces.get(key)
        if found is None:
            try:
                found = self._read(sigmas)
            except SamplerFailed:
                if self._dtype == torch.float32:
                    raise
                self._dtype = torch.float32  # as in ComfyUI; some cannot compute in float64
                found = self._read(sigmas)
            while len(self._traces) >= KEPT_TRACES:
                self._traces.pop(next(iter(self._traces)), None)
            self._traces[key] = found
        return found

    def _read(self, sigmas: Tensor) -> tuple[SolverTable, float]:
        most_calls = CALLS_PER_STEP * len(sigmas)
        size = 1 + 2 * most_calls + SPARE
        inputs: list[Tensor] = []
        levels: list[float] = []
        reported: list[int] = []

        def answer(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            if len(inputs) == most_calls:
                raise UnsupportedSampler(
                    f"it is adaptive: more than {most_calls} model calls for {len(sigmas) - 1} "
                    "steps"
                )
            inputs.append(x.detach().cpu().double().reshape(-1).clone())
            levels.append(float(sigma.reshape(-1)[0]))
            denoised, guidance = torch.zeros_like(x), torch.zeros_like(x)
            denoised.view(-1)[2 * len(inputs) - 1] = guidance.view(-1)[2 * len(inputs)] = 1.0
            return denoised, guidance

        x_init = torch.zeros(1, 1, 1, size, dtype=torch.float64)
        x_init.view(-1)[0] = 1.0
        result, end, guided = self._run(
            answer, x_init, sigmas, lambda _: reported.append(len(inputs) - 1)
        )
        calls = len(inputs)
        rows = torch.stack([*inputs, result.reshape(-1)])
        owned = lower_triangle(calls + 1, size, 2)
        if not torch.isfinite(rows).all():
            raise UnsupportedSampler("its weights are infinite or undefined at these noise levels")
        if (rows[~owned] != 0).any():
            raise UnsupportedSampler("it is stochastic: it adds noise between its model calls")
        weights = rows[:, : 2 * calls + 1]
        if not guided:
            weights = torch.cat([weights[:, :1], weights[:, 1::2]], 1)
        level = torch.tensor(levels, dtype=torch.float64)
        callbacks = torch.tensor(reported, dtype=torch.int64)
        return SolverTable(level, level, weights.clone(), callbacks), end

    def _run(
        self, answer: Answer, x: Tensor, sigmas: Tensor, callback: Callable[..., Any] | None = None
    ) -> tuple[Tensor, float, bool]:
        """Run the real sampler.

        Returns:
            Its result in float64, the last sigma as it left it, and whether it asked for guidance.
        """
        # a copy: uni_pc overwrites the last entry (ComfyUI 0.30.0, extra_samplers/uni_pc.py)
        x, sigmas = x.to(self._dtype), sigmas.detach().cpu().to(self._dtype, copy=True)
        options = {"transformer_options": {"sample_sigmas": sigmas.clone()}}
        extra_args = {"model_options": options, "seed": 0, "denoise_mask": None}
        keywords = {"extra_args": extra_args, "callback": callback, "disable": True}
        model, doubles = _StandIn(answer, self.model, sigmas), None
        if self._dtype == torch.float64 and (
            self._makes_tensors or len(sigmas) not in self._verified
        ):
            doubles = _DoubleByDefault()  # with which a run takes half as long again
        with RANDOM_STATE, torch.random.fork_rng(devices=[]), torch.no_grad():
            try:
                with doubles or nullcontext():
                    result = self.function(model, x, sigmas, **keywords)
            except UnsupportedSampler:
                raise
            except Exception as error:  # code of other packs
                raise SamplerFailed(
                    "it failed while its coefficients were read from it, with "
                    f"{type(error).__name__}: {error}"
                ) from error
        self._makes_tensors |= doubles is not None and doubles.used
        return result.detach().cpu().double(), float(sigmas[-1]), model.guided

    def _check_uses_sigmas(self, sigmas: Tensor, toy: _ToyRun) -> None:
        inner = range(1, len(sigmas) - 1)
        for k in inner[:: max(1, len(inner) // CHECKED_LEVELS)]:
            perturbed = sigmas.detach().cpu().double().clone()
            perturbed[k] += 0.1 * (perturbed[k - 1] - perturbed[k])
            change = self._toy_run(perturbed, len(toy.levels)).values - toy.values
            if float(change.abs().max()) < 1e-9 * float(toy.values.abs().max()):
                raise UnsupportedSampler(
                    "it does not use the noise levels between the first and the last, so there is "
                    "nothing to learn"
                )

    def _toy_run(self, sigmas: Tensor, most_calls: int) -> _ToyRun:
        """Run the real sampler on a small denoiser that is not linear."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64) * float(sigmas[0])
        mix = torch.randn(4, 4, generator=generator, dtype=torch.float64)
        states: list[Tensor] = []
        levels: list[float] = []
        tolerances = {REPLAY_TOLERANCE[torch.float64]}

        def toy(x: Tensor, sigma: Tensor, guidance: bool = False) -> Any:
            mixed = x @ mix.to(x) / (1 + float(sigma.reshape(-1)[0]))
            return (mixed.tanh(), (0.5 * mixed).sin()) if guidance else mixed.tanh()

        def answer(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            if x.dtype not in REPLAY_TOLERANCE:
                raise UnsupportedSampler(f"it calls the model in {x.dtype}, which is too coarse")
            if len(levels) == most_calls:
                raise UnsupportedSampler(ADAPTIVE)
            tolerances.add(REPLAY_TOLERANCE[x.dtype])
            states.append(x.detach().cpu().double().flatten())
            levels.append(float(sigma.reshape(-1)[0]))
            return toy(x, sigma, guidance=True)

        result, _, _ = self._run(answer, x.clone(), sigmas)
        seen = torch.tensor(levels, dtype=torch.float64)
        values = torch.cat([seen, *states, result.flatten()])
        return _ToyRun(toy, x, result, seen, values, max(tolerances))


class _ToyRun(NamedTuple):
    """A real sampler's run on a toy denoiser.

    Attributes:
        denoise: the toy, as `rollout` calls it.
        start, result: x before and after.
        levels: of the model calls, (M,).
        values: these, the states there and the result in one vector: all that the sampler computed.
        tolerance: the relative error that the sampler's precision allows.
    """

    denoise: Callable[..., Any]
    start: Tensor
    result: Tensor
    levels: Tensor
    values: Tensor
    tolerance: float


def _check_linear(table: SolverTable, toy: _ToyRun) -> None:
    if len(toy.levels) != table.model_calls or not torch.allclose(
        toy.levels, table.state_sigmas, rtol=toy.tolerance, atol=0
    ):
        raise UnsupportedSampler(ADAPTIVE)
    replayed = rollout(table, toy.denoise, [toy.start])[0]
    error = float((toy.result - replayed).abs().max() / toy.result.abs().max())
    if not error <= toy.tolerance:
        raise UnsupportedSampler(
            f"it is not linear in the denoised outputs: replaying it deviates by {error:.1e} "
            f"(limit {toy.tolerance})"
        )


class _DoubleByDefault(TorchFunctionMode):
    """Tensors made without a dtype are float64, in this thread only.

    uni_pc makes such tensors; torch's default dtype is that of all threads. `used` is whether any
    was made.
    """

    used = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs := kwargs or {}))
        if func not in FACTORIES or kwargs.get("dtype") or made.dtype != torch.get_default_dtype():
            return made
        if func in COPIES and isinstance(args[0], Tensor):
            return made  # of that tensor's dtype
        self.used = True
        return func(*args, **{**kwargs, "dtype": torch.float64})


class _StandIn:
    """A model whose outputs are `answer`'s; every attribute is that of the real model wrapper."""

    def __init__(self, answer: Answer, model: Any, sigmas: Tensor) -> None:
        self.sigmas, self.guided = sigmas, False
        self._answer = answer
        self._model = model

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        denoised, guidance = self._answer(x, sigma)
        # how CFG++ samplers receive the unconditional output (ComfyUI 0.30.0, cfg_function)
        outputs = {"uncond_denoised": denoised - guidance, "sigma": sigma, "input": x}
        for function in extra_args.get("model_options", {}).get("sampler_post_cfg_function", []):
            self.guided = True
            denoised = function(outputs | {"denoised": denoised})
        return denoised

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
