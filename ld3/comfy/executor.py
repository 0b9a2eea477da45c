"""A schedule's table as a SAMPLER, for what no core sampler can do and for samplers not installed.

It runs wherever a core sampler does: the model it receives is ComfyUI's, so guidance, masks,
previews and hooks are the caller's. Of a schedule for two models it runs the part whose noise
levels it receives.
"""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..parameters import listed
from ..schedule import INPAINT, Schedule
from ..table import Discretization, SolverTable, rollout
from . import core_samplers
from .cfg_pp import with_guidance

SAME_LEVEL = 1e-4  # relative: nodes may compute with sigmas in float32
LOWERED_END = 0.001  # uni_pc replaces a last 0 by this


class TableSampler(comfy.samplers.KSAMPLER):
    """A SAMPLER that executes a schedule's table, at this schedule's noise levels only.

    Of two models, that of the part whose noise levels it receives.
    """

    def __init__(self, schedule: Schedule) -> None:
        info = schedule.info
        options = info.sampler_options.get(INPAINT)
        if options is None and core_samplers.is_installed(info.sampler):
            options = comfy.samplers.sampler_object(info.sampler).inpaint_options
        super().__init__(_table_function(schedule), inpaint_options=dict(options or {}))
        self.schedule = schedule

    def sample(self, model_wrap: Any, sigmas: Tensor, *others: Any, **more: Any) -> Tensor:
        """As any KSAMPLER, with the schedule's own sigmas, by whose last core scales the result."""
        own = recognised(self.schedule, sigmas).sigmas
        return super().sample(model_wrap, own.to(sigmas), *others, **more)


def _table_function(schedule: Schedule) -> Any:
    def sample_ld3_table(
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Any = None,
        disable: bool | None = None,
    ) -> Tensor:
        table = recognised(schedule, sigmas).table

        def denoise(x: Tensor, sigma: Tensor, guidance: bool = False) -> Any:
            if guidance:
                return with_guidance(model, x, sigma, extra_args or {})
            return model(x, sigma, **(extra_args or {}))

        return executed(table, denoise, x, callback, disable)

    return sample_ld3_table


def executed(
    table: SolverTable, denoise: Any, x: Tensor, callback: Any, disable: bool | None = None
) -> Tensor:
    """The result of a table from a start state (batch, *latent), with a bar and callbacks.

    Args:
        denoise: see `ld3.table.rollout`.
        callback: a sampler's: receives i, x, sigma and denoised in a dict.
    """
    reported, call, step = set(table.callback_calls.tolist()), 0, 0

    def reporting(x: Tensor, sigma: Tensor, **how: bool) -> Any:
        nonlocal call, step
        outputs = denoise(x, sigma, **how)
        if call in reported:
            if callback is not None:
                level = table.state_sigmas[call].to(sigma)
                state = {"x": x, "i": step, "sigma": level, "sigma_hat": level}
                callback(state | {"denoised": outputs[0] if table.outputs == 2 else outputs})
            step += 1
            bar.update()
        call += 1
        return outputs

    with tqdm(total=len(reported), disable=disable) as bar:
        return rollout(table, reporting, [x])[0]


def recognised(schedule: Schedule, sigmas: Tensor) -> Discretization:
    """What a schedule's SAMPLER does with sigmas (N+1,); ValueError unless they are the schedule's.

    Its own, or those for the plain sampler, which LD3's nodes give as SIGMAS; of two models those
    of one part.
    """
    own, given = schedule.sigmas.double(), sigmas.detach().cpu().double()
    solvers = schedule.own_parts or (Discretization(schedule.sigmas, schedule.table),)
    for solver, plain in zip(
        solvers, schedule.plain_parts or (schedule.plain_sigmas,), strict=True
    ):
        if _same(solver.sigmas.double(), given) or _same(plain.double(), given):
            return solver
    if schedule.info.boundary:
        raise ValueError(
            f"the sampler of LD3 schedule {schedule.name!r} is for two models and works with its "
            f"high_sigmas or low_sigmas only; it received {len(given) - 1} steps at "
            f"{listed(given.tolist())}. Sample high_sigmas with the high-noise model, then "
            "low_sigmas with the low-noise model and no noise added (DisableNoise), or use LD3 "
            "KSampler with low_noise_model"
        )
    carried = ", ".join(schedule.info.extras) or f"the table of {schedule.info.sampler}"
    raise ValueError(
        f"the sampler of LD3 schedule {schedule.name!r} contains {carried} and works only with its "
        f"own {len(own) - 1} steps at noise levels {listed(own.tolist())}; it received "
        f"{len(given) - 1} steps at {listed(given.tolist())}. Connect the sigmas of the same LD3 "
        "node, or use LD3 KSampler, which also supports a lower denoise"
    )


def _same(own: Tensor, given: Tensor) -> bool:
    if len(own) != len(given):
        return False
    ends = own[-1] == 0 and float(given[-1]) in (0.0, float(torch.tensor(LOWERED_END)))
    last = bool(ends or torch.isclose(own[-1], given[-1], rtol=SAME_LEVEL))
    return last and torch.allclose(own[:-1], given[:-1], rtol=SAME_LEVEL, atol=0)
