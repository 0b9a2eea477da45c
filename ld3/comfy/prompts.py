"""Several prompts in one training: which noise is sampled with which, in every rollout.

ComfyUI pairs the prompts of a batch with positions in a batch, and adds up the prompts of a list.
Here each noise keeps its prompt wherever it stands: a call is made for the samples of each prompt.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..teacher_store import TeacherStore
from .guiders import prompts_of

MARK = "ld3_prompt"  # of a conditioning's entries: the number of their prompt
NEW_SHARE = 4  # one prompt in four is for the test alone
SEEN = 8  # values of a noise by which it is recognised
Outputs = Any  # a tensor, or several, (batch, *latent)


def prompt_list(conditionings: list[list[Any]]) -> list[Any]:
    """One CONDITIONING of several, whose prompts a training takes one by one."""
    return [
        [tensor, options | {MARK: number}]
        for number, conditioning in enumerate(conditionings)
        for tensor, options in conditioning
    ]


def separated(guider: Any) -> tuple[Any, int]:
    """A guider whose prompts are marked one by one, and their number; the given one if it has one.

    A batch of prompts becomes as many. ValueError, naming the input, for batches of other sizes.
    """
    conds, sizes = {}, {}
    for name, entries in prompts_of(guider).items():
        batches = {_batch_size(entry) for entry in entries} - {1}
        marked = [entry[MARK] for entry in entries if MARK in entry]
        found = batches | ({max(marked) + 1} if marked else set())
        if len(found) > 1:
            raise ValueError(
                f"{name} contains batches of different sizes ({', '.join(map(str, sorted(found)))} "
                "prompts); use one size, or LD3 Prompt List"
            )
        sizes[name] = next(iter(found), 1)
        split = [_split(entry, sizes[name]) for entry in entries]
        conds[name] = [part for parts in split for part in parts]
    several = {size for size in sizes.values() if size > 1}
    if not several:
        return guider, 1
    if len(several) > 1:
        listed = ", ".join(f"{size} of {name}" for name, size in sizes.items())
        raise ValueError(f"the numbers of prompts differ: {listed}; use the same, or one")
    guider = copy.copy(guider)
    guider.original_conds = conds
    return guider, several.pop()


def _batch_size(entry: dict[str, Any]) -> int:
    batched = [entry.get("cross_attn"), entry.get("concat_latent_image")]
    batched += entry.get("reference_latents") or []
    return max((t.shape[0] for t in batched if isinstance(t, Tensor)), default=1)


def _split(entry: dict[str, Any], size: int) -> list[dict[str, Any]]:
    if MARK in entry or _batch_size(entry) == 1:
        return [entry]

    def part(value: Any, i: int) -> Any:
        if isinstance(value, list):
            return [part(item, i) for item in value]
        whole = isinstance(value, Tensor) and value.ndim > 1 and value.shape[0] == size
        return value[i : i + 1] if whole else value

    return [
        {key: part(value, i) for key, value in entry.items()} | {MARK: i, "uuid": uuid.uuid4()}
        for i in range(size)
    ]


def new_prompts(count: int) -> int:
    """How many of the prompts are not learned from, but tested with."""
    return count // NEW_SHARE


def assigned(count: int, prompts: int, tests_from: int | None) -> Tensor:
    """The prompts of noises 0, 1, ..: (count,) int64; from `tests_from` on new ones."""
    noise, new = torch.arange(count), new_prompts(prompts)
    known = noise % (prompts - new)
    if tests_from is None or not new:
        return known
    return torch.where(noise < tests_from, known, prompts - new + (noise - tests_from) % new)


class PromptedCalls:
    """Calls of a running guider's model, each sample with the prompt of its noise.

    Args:
        wrap: the guider.
    """

    def __init__(self, wrap: Any) -> None:
        self._wrap = wrap
        self._noises, self._prompts = torch.zeros(0, SEEN), torch.zeros(0, dtype=torch.int64)
        self._rows: list[int] = []

    def know(self, noises: Tensor, prompts: Tensor) -> None:
        """From now on noises (n, *latent) have these prompts (n,)."""
        self._noises, self._prompts = _seen(noises), prompts

    def of(self, noises: Tensor) -> list[int]:
        """The prompts of noises (batch, *latent), which may be slightly changed."""
        if not len(self._noises):
            return []
        # without the products of matrices, whose rounding depends on their sizes
        distances = torch.cdist(
            _seen(noises), self._noises, compute_mode="donot_use_mm_for_euclid_dist"
        )
        return self._prompts[distances.argmin(1)].tolist()

    def begin(self, noises: Tensor) -> None:
        """The calls that follow are of the samples of these noises."""
        self._rows = self.of(noises)

    def __call__(self, wrapped: Any, call: Callable[..., Outputs], x: Tensor, s: Tensor) -> Outputs:
        """`call(x, s)` on a masked model, for the samples of each prompt."""
        if not self._rows:
            return call(x, s)
        every, noise, latent = self._wrap.conds, wrapped.noise, wrapped.latent_image
        rows, outputs = torch.tensor(self._rows), []
        order = [(rows == prompt).nonzero()[:, 0] for prompt in sorted(set(self._rows))]
        try:
            for at in order:
                self._wrap.conds = _with_prompt(every, self._rows[int(at[0])])
                at = at.to(x.device)
                wrapped.noise, wrapped.latent_image = noise[at], latent[at]
                outputs.append(call(x[at], s[at]))
        finally:
            self._wrap.conds, wrapped.noise, wrapped.latent_image = every, noise, latent
        back = torch.cat(order).argsort().to(x.device)
        if isinstance(outputs[0], tuple):
            return tuple(torch.cat(parts)[back] for parts in zip(*outputs, strict=True))
        return torch.cat(outputs)[back]


def _seen(noises: Tensor) -> Tensor:
    seen = noises.flatten(1)[:, :SEEN].detach().cpu().float()
    return seen / seen.norm(dim=1, keepdim=True).clamp_min(1e-12)  # also scaled ones are the same


def _with_prompt(conds: dict[str, list[Any]], prompt: int) -> dict[str, list[Any]]:
    return {
        name: [cond for cond in entries if cond.get(MARK, prompt) == prompt]
        for name, entries in conds.items()
    }


class PromptedTargets:
    """A teacher's samples on disk, which the prompts of the noises decide too."""

    def __init__(self, store: TeacherStore, key: str, calls: PromptedCalls) -> None:
        self._store, self._key, self._calls = store, key, calls

    def get(
        self, noise: Tensor, latent: Tensor, states: int
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """As `ld3.teacher_store.TargetStore`."""
        return self._store.samples(f"{self._key} {self._calls.of(noise)}").get(
            noise, latent, states
        )

    def put(
        self, noise: Tensor, latent: Tensor, target: Tensor, history: Tensor, first: Tensor
    ) -> None:
        """As `ld3.teacher_store.TargetStore`."""
        samples = self._store.samples(f"{self._key} {self._calls.of(noise)}")
        samples.put(noise, latent, target, history, first)
