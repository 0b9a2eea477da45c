"""Batches that memory does not suffice for are made smaller, and nothing of them remains."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import pytest
import torch
from torch import Tensor

from ld3.comfy import memory
from ld3.journal import Journal
from ld3.training.report import Learned

from .exact_problems import SMALL, Problem, learn, problem

pytestmark = pytest.mark.usefixtures("one_thread")
FULL = replace(SMALL, decoupled=True, order=1, output_mix=True, descents=1, iterations=1)
D_ODE = replace(SMALL, dode=True, descents=1, iterations=1)
OutOfMemory = torch.OutOfMemoryError
GIGABYTE = 2**30


class Limited:
    """A problem whose model has memory for `most` samples per call.

    Attributes:
        sizes: of the batches that were called; failed: tensors of calls that failed.
    """

    def __init__(self, most: int, batch_size: int) -> None:
        given = problem("gmm16")
        self.most, self.sizes = most, []
        self.failed: list[weakref.ref[Tensor]] = []
        self._denoise = given.model.denoise
        model = replace(given.model, denoise=self._call, batch_size=batch_size)
        model.out_of_memory, model.free_memory = memory.out_of_memory, self._free
        self.problem = Problem(model, given.shape, given.sampling)
        self.freed = 0

    def _call(self, x: Tensor, sigma: Tensor) -> Tensor:
        if len(x) > self.most:
            activations = x.clone()
            self.failed.append(weakref.ref(activations))
            raise OutOfMemory("CUDA out of memory")
        self.sizes.append(len(x))
        return self._denoise(x, sigma)

    def _free(self) -> None:
        self.freed += 1
        assert not any(reference() is not None for reference in self.failed)


def trained(limited: Limited, settings: Any) -> Learned:
    return learn(limited.problem, settings, "euler", baselines={})


def same(found: Learned, other: Learned) -> None:
    assert torch.equal(found.solver.sigmas, other.solver.sigmas)
    assert torch.equal(found.solver.table.weights, other.solver.table.weights)
    assert torch.equal(found.solver.table.eval_sigmas, other.solver.table.eval_sigmas)
    assert found.report == other.report


@cache
def smaller(settings: Any) -> tuple[Learned, list[int]]:
    """What is learned with batches of two, and the sizes of all calls."""
    small = Limited(2, 2)
    return trained(small, settings), small.sizes


@pytest.mark.parametrize("settings", [FULL, D_ODE], ids=["full solver", "d-ode"])
def test_a_training_that_runs_out_of_memory_learns_what_one_with_smaller_batches_learns(
    settings: Any, tmp_path: Path
) -> None:
    """To the bit, calls of the report included; what failed is freed before the next attempt, and
    the answers in the journal are complete."""
    large = Limited(2, 8)
    large.problem.model.journal = Journal(tmp_path / "known.partial", "key")
    gc.disable()  # freed by reference, not by the collector
    try:
        found = trained(large, settings)
    finally:
        gc.enable()
    expected, sizes = smaller(settings)
    same(found, expected)
    assert large.problem.model.batch_size == 2 and large.freed == 2 and large.sizes == sizes
    if settings is D_ODE:
        return
    again = Limited(2, 2)
    again.problem.model.journal = Journal(tmp_path / "known.partial", "key")
    same(trained(again, settings), expected)
    assert len(again.sizes) < len(sizes)  # the teacher, whose samples are kept elsewhere


def test_memory_that_shrinks_in_the_middle_of_an_answer_changes_it_by_rounding_only() -> None:
    """The sums of normal equations contain each noise once, whichever batch failed."""
    shrinking = Limited(8, 4)
    call = shrinking.problem.model.denoise

    def shrinks(x: Tensor, sigma: Tensor) -> Tensor:
        shrinking.most = 8 if len(shrinking.sizes) < 60 else 1
        return call(x, sigma)

    shrinking.problem.model.denoise = shrinks
    found, (expected, _) = trained(shrinking, FULL), smaller(FULL)
    assert shrinking.freed == 2 and {4, 1} <= set(shrinking.sizes)
    torch.testing.assert_close(found.solver.sigmas, expected.solver.sigmas, rtol=1e-3, atol=0)
    assert found.report.training_calls == expected.report.training_calls


def test_one_sample_without_memory_and_every_other_error_come_through() -> None:
    with pytest.raises(OutOfMemory):
        trained(Limited(0, 4), FULL)
    broken = Limited(8, 4)

    def fails(x: Tensor, sigma: Tensor) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    broken.problem.model.denoise = fails
    with pytest.raises(RuntimeError, match="mat1"):
        trained(broken, FULL)
    assert broken.problem.model.batch_size == 4


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OutOfMemory("CUDA out of memory"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate"), True),
        (MemoryError(), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_mean_too_little_memory(error: Exception, expected: bool) -> None:
    assert memory.out_of_memory(error) is expected


class Patcher:
    """A MODEL of `size` GB whose calls take 1 GB per latent of 64 x 64, on a graphics card."""

    load_device = torch.device("cuda", 0)

    def __init__(self, size: float) -> None:
        self.size = size

    def model_size(self) -> float:
        return self.size * GIGABYTE

    def memory_required(self, shape: list[int]) -> float:
        return shape[0] * shape[-1] * shape[-2] / 64**2 * GIGABYTE


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`card(free, other)`: a graphics card with GB free, and a loaded model of others' GB."""

    def of(free: float, other: float = 0.0) -> None:
        management = comfy.model_management
        loaded = SimpleNamespace(
            device=Patcher.load_device, model_loaded_memory=lambda: other * GIGABYTE
        )
        elsewhere = SimpleNamespace(
            device=torch.device("cpu"), model_loaded_memory=lambda: 99 * GIGABYTE
        )
        monkeypatch.setattr(management, "current_loaded_models", [loaded, elsewhere])
        monkeypatch.setattr(management, "get_free_memory", lambda device: free * GIGABYTE)
        monkeypatch.setattr(management, "extra_reserved_memory", lambda: 0.5 * GIGABYTE)

    return of


SHAPE = [(4, 64, 64)]


@pytest.mark.parametrize(
    ("free", "most", "expected"),
    [(24, 4, 4), (10, 4, 2), (7, 4, 1), (2, 4, 1), (60, 0, 16), (24, 0, 8), (24, 5, 5), (12, 5, 3)],
)
def test_as_many_samples_as_fit_beside_the_whole_model(
    card: Any, free: float, most: int, expected: int
) -> None:
    """Guidance doubles a batch: 4 samples need 8 GB, beside the model's 4 and the reserved 0.5."""
    card(free)
    assert memory.fitting_batch(Patcher(4), SHAPE, most) == expected


def test_memory_of_models_that_comfyui_would_unload_counts_as_free(card: Any) -> None:
    card(7, other=6)
    assert memory.fitting_batch(Patcher(4), SHAPE, 4) == 4


def test_all_streams_of_nested_latents_need_memory(card: Any) -> None:
    card(13)
    assert memory.fitting_batch(Patcher(4), SHAPE, 4) == 4
    assert memory.fitting_batch(Patcher(4), [*SHAPE, (8, 64, 64)], 4) == 2


def test_on_a_cpu_the_number_of_the_widget_is_kept(card: Any) -> None:
    card(0)
    patcher = Patcher(4)
    patcher.load_device = torch.device("cpu")
    assert memory.fitting_batch(patcher, SHAPE, 64) == 64
    assert memory.fitting_batch(patcher, SHAPE, memory.AUTO) == memory.AUTO_CPU
