"""A schedule's table as a SAMPLER, for what no core sampler can do and for samplers not installed.

It runs wherever a core sampler does: the model it receives is ComfyUI's, so guidance, masks,
previews and hooks are the caller's.
"""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..parameters import listed
from ..schedule import INPAINT, Schedule
from ..table import rollout
from . import core_samplers
from .cfg_pp import with_guidance

SAME_LEVEL = 1e-4  # relative: nodes may compute with sigmas in float32
LOWERED_END = 0.001  # uni_pc replaces a last 0 by this


class TableSampler(comfy.samplers.KSAMPLER):
    """A SAMPLER that executes a schedule's table, at this schedule's noise levels only."""

    def __init__(self, schedule: Schedule) -> None:
        info = schedule.info
        options = info.sampler_options.get(INPAINT)
        if options is None and core_samplers.is_installed(info.sampler):
            options = comfy.samplers.sampler_object(info.sampler).inpaint_options
        super().__init__(_table_function(schedule), inpaint_options=dict(options or {}))
        self.schedule = schedule

    def sample(self, model_wrap: Any, sigmas: Tensor, *others: Any, **more: Any) -> Tensor:
        """As any KSAMPLER, with the schedule's own sigmas, by whose last core scales the result."""
        check_sigmas_are(self.schedule, sigmas)
        return super().sample(model_wrap, self.schedule.sigmas.to(sigmas), *others, **more)


def _table_function(schedule: Schedule) -> Any:
    def sample_ld3_table(
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Any = None,
        disable: bool | None = None,
    ) -> Tensor:
        check_sigmas_are(schedule, sigmas)
        table, call, step = schedule.table, 0, 0
        reported = set(table.callback_calls.tolist())

        def denoise(x: Tensor, sigma: Tensor, guidance: bool = False) -> Any:
            nonlocal call, step
            outputs = with_guidance(model, x, sigma, extra_args or {}) if guidance else None
            denoised = outputs[0] if outputs else model(x, sigma, **(extra_args or {}))
            if call in reported:
                if callback is not None:
                    level = table.state_sigmas[call].to(sigma)
                    state = {"x": x, "i": step, "sigma": level, "sigma_hat": level}
                    callback(state | {"denoised": denoised})
                step += 1
                bar.update()
            call += 1
            return outputs or denoised

        with tqdm(total=len(reported), disable=disable) as bar:
            return rollout(table, denoise, [x])[0]

    return sample_ld3_table


def check_sigmas_are(schedule: Schedule, sigmas: Tensor) -> None:
    """Raise ValueError unless sigmas (N+1,) are the schedule's; a table is for no others.

    Its own, or those for the plain sampler, which LD3's nodes give as SIGMAS.
    """
    own, given = schedule.sigmas.double(), sigmas.detach().cpu().double()
    if _same(own, given) or _same(schedule.plain_sigmas.double(), given):
        return
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
