"""The surrogate read off one teacher trajectory, and the search for starts on it."""

from __future__ import annotations

from collections.abc import Callable

import comfy.k_diffusion.sampling as k_diffusion
import pytest
import torch
from torch import Tensor

from benchmarks.problems.mixtures import gmm16
from benchmarks.problems.noise_levels import karras
from ld3.model import Model
from ld3.parameters import LOG_SIGMA, StepParameters, check_sigmas
from ld3.rollout import rollout
from ld3.solver import Sampler, SolverTable
from ld3.training.initial import TrajectorySurrogate, surrogate_starts
from ld3.trajectories import Trajectories, few_elements

EULER = Sampler(k_diffusion.sample_euler)
DPMPP_2M = Sampler(k_diffusion.sample_dpmpp_2m)
PARAMETERS = StepParameters(LOG_SIGMA, 80.0, 0.03)
MEAN, VARIANCE = 0.5, 0.49


def taught(
    model: Callable[[Tensor, Tensor], Tensor], table: SolverTable, x_init: Tensor
) -> TrajectorySurrogate:
    result, history = rollout(table, model, [x_init])
    few = torch.stack([few_elements(state) for state in history], 1)
    return TrajectorySurrogate(Trajectories(table, few, LOG_SIGMA), few_elements(result))


def gmm_surrogate() -> tuple[Model, TrajectorySurrogate, SolverTable]:
    model = gmm16()
    noise = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    table = DPMPP_2M.table(karras(20, 0.03, 80.0))
    return model, taught(model, table, 80 * noise), table


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact denoiser of data N(MEAN, VARIANCE)."""
    share = VARIANCE / (VARIANCE + sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2)
    return MEAN + share * (x - MEAN)


def gaussian_surrogate(steps: int) -> tuple[TrajectorySurrogate, Tensor]:
    """A surrogate of `gaussian` whose teacher's samples have exactly its variance; its levels."""
    sigmas = karras(steps, 0.03, 80.0)
    table = EULER.table(sigmas)
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    shrunk = rollout(table, gaussian, [MEAN + noise])[0].std()  # linear: scale the start to match
    return taught(gaussian, table, MEAN + noise * VARIANCE**0.5 / shrunk), sigmas


@pytest.mark.parametrize("sampler", [EULER, DPMPP_2M])
def test_on_the_teachers_own_trajectory_the_surrogate_is_the_model(sampler: Sampler) -> None:
    table = sampler.table(karras(12, 0.03, 80.0))
    noise = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    surrogate = taught(gmm16(), table, 80 * noise)
    assert surrogate.error(table) < 1e-4  # float32 states start at 80
    assert surrogate.error(sampler.table(karras(4, 0.03, 80.0))) > 1e-2


def test_for_gaussian_data_the_surrogate_is_exact_everywhere_at_the_teachers_levels() -> None:
    surrogate, sigmas = gaussian_surrogate(10)
    anywhere = 30 * torch.randn(4, 64, generator=torch.Generator().manual_seed(2))
    for sigma in sigmas[:-1]:
        level = sigma.expand(4)
        torch.testing.assert_close(
            surrogate(anywhere, level), gaussian(anywhere, level), rtol=1e-4, atol=1e-3
        )


def test_between_the_teachers_levels_the_surrogate_converges_quadratically() -> None:
    anywhere = torch.randn(4, 64, generator=torch.Generator().manual_seed(2))

    def error(steps: int) -> float:
        surrogate, sigmas = gaussian_surrogate(steps)
        between = (sigmas[:-2] * sigmas[1:-1]).sqrt()
        return max(
            float((surrogate(anywhere, s.expand(4)) - gaussian(anywhere, s.expand(4))).abs().max())
            for s in between
        )

    assert error(20) / error(40) == pytest.approx(4, rel=0.25)


def test_a_large_latent_is_represented_by_a_sample_of_its_elements() -> None:
    noise = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    table = EULER.table(karras(6, 0.03, 80.0))
    few = few_elements(80 * noise)
    assert few[0].numel() < noise[0].numel() and bool(torch.isin(few, 80 * noise).all())
    surrogate = taught(gaussian, table, 80 * noise)
    assert surrogate.error(table) < 1e-4


def test_the_search_is_deterministic_by_seed_sorted_and_makes_no_model_call() -> None:
    model, surrogate, _ = gmm_surrogate()
    calls, rounds = model.calls, []
    found = surrogate_starts(
        surrogate, EULER.table, PARAMETERS, 4, 3, lambda: rounds.append(model.calls)
    )
    again, other = (surrogate_starts(surrogate, EULER.table, PARAMETERS, 4, s) for s in (3, 4))
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert not torch.equal(found[0], other[0])
    assert set(rounds) == {model.calls} == {calls}
    errors = [surrogate.error(EULER.table(PARAMETERS.sigmas(u))) for u in found]
    assert errors == sorted(errors)
    for u in found:
        check_sigmas(PARAMETERS.sigmas(u))
        torch.testing.assert_close(PARAMETERS.separated(u), u)


def test_the_search_beats_every_standard_schedule_on_the_surrogate_and_on_the_model() -> None:
    model, surrogate, teacher = gmm_surrogate()
    found = surrogate_starts(surrogate, DPMPP_2M.table, PARAMETERS, 5, 0)
    noise = torch.randn(32, 16, generator=torch.Generator().manual_seed(9))
    target = rollout(teacher, model, [80 * noise])[0]

    def errors(sigmas: Tensor) -> tuple[float, float]:
        table = DPMPP_2M.table(sigmas)
        result = rollout(table, model, [80 * noise])[0]
        return surrogate.error(table), float((result - target).square().mean())

    standard = [errors(karras(5, 0.03, 80.0, rho)) for rho in (1.0, 3.0, 7.0, 50.0)]
    starts = [errors(PARAMETERS.sigmas(u)) for u in found]
    for on_surrogate_or_model in (0, 1):
        best = min(s[on_surrogate_or_model] for s in starts)
        assert best < min(s[on_surrogate_or_model] for s in standard)
