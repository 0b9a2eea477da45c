"""Problems with exact denoisers: the formulas, flow models, references and names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)

from benchmarks.problems import linear_gaussian, mixtures, registry
from benchmarks.problems.live_model import LiveModel, Recipe
from benchmarks.problems.problem import ExactProblem
from ld3.metrics import rmse
from ld3.model import Denoiser
from ld3.table import Discretization

pytestmark = pytest.mark.usefixtures("one_thread")
DATA = ("digits", "gmm16", "patches", "moons", "gauss")
LEVELS = (0.05, 0.4, 3.0, 60.0)
FLOW_LEVELS = (0.02, 0.3, 0.8, 0.99)


def problem(name: str) -> ExactProblem:
    loaded = registry.load(name)
    assert isinstance(loaded, ExactProblem)
    return loaded


def noised(name: str, keep: float, level: float) -> MixtureSameFamily | MultivariateNormal:
    """The density of keep * x0 + level * noise, from the definition of the data, in float64."""
    if name == "gauss":
        axes, variances = linear_gaussian.power_law_spectrum()
        covariance = keep**2 * (axes.T * variances) @ axes
        eye = torch.eye(len(variances), dtype=torch.float64)
        return MultivariateNormal(variances.new_zeros(len(variances)), covariance + level**2 * eye)
    means, stds, log_weights = (t.double() for t in registry.MIXTURES[name][0]())
    scales = (keep**2 * stds**2 + level**2).sqrt()[:, None].expand_as(means)
    return MixtureSameFamily(
        Categorical(logits=log_weights), Independent(Normal(keep * means, scales), 1)
    )


def states(name: str, keep: float, level: float) -> Tensor:
    """A few states that occur at this level, (8, d) float64."""
    torch.manual_seed(3)
    return noised(name, keep, level).sample((8,))


def posterior_mean(name: str, x: Tensor, keep: float, level: float) -> Tensor:
    """Tweedie's formula: E[x0 | x] = (x + level^2 grad log p(x)) / keep."""
    x = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(noised(name, keep, level).log_prob(x).sum(), x)
    return (x.detach() + level**2 * score) / keep


def called(denoise: Denoiser, name: str, x: Tensor, level: float) -> Tensor:
    """The denoiser's output (n, d) for flat states (n, d), which it receives in its own shape."""
    shaped = x.reshape(len(x), *registry.load(name).shape)
    return denoise(shaped, torch.full((len(x),), level, dtype=x.dtype)).reshape(x.shape)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", DATA)
def test_a_denoiser_is_the_state_plus_the_score_of_the_noised_data(name: str, level: float) -> None:
    x = states(name, 1.0, level)
    found = called(problem(name).model.denoise, name, x, level)
    assert torch.allclose(found, posterior_mean(name, x, 1.0, level), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("level", FLOW_LEVELS)
@pytest.mark.parametrize("name", DATA)
def test_a_flow_denoiser_is_the_posterior_mean_of_a_flow_state(name: str, level: float) -> None:
    """From the density of (1 - s) x0 + s noise itself, without the change of variables."""
    x = states(name, 1 - level, level)
    found = called(problem(f"{name}-flow").model.denoise, name, x, level)
    assert torch.allclose(found, posterior_mean(name, x, 1 - level, level), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", DATA)
def test_a_flow_denoiser_without_any_signal_returns_the_mean_of_the_data(name: str) -> None:
    """At s = 1, where sampling starts; in float32, as in sampling."""
    x = states(name, 0.0, 1.0).float()
    mean = problem(name).moments[0].float().expand_as(x)
    found = called(problem(f"{name}-flow").model.denoise, name, x, 1.0)
    assert torch.allclose(found, mean, atol=1e-4)


@pytest.mark.parametrize("level", [0.1, 0.5, 2.0])
def test_the_denoiser_of_moons_is_a_numerical_expectation(level: float) -> None:
    """E[x0 | x] as a sum over a fine grid of x0."""
    axis = torch.linspace(-2.4, 2.4, 161, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    means, stds, _ = (t.double() for t in mixtures.moons_components())
    prior = torch.exp(-0.5 * torch.cdist(grid, means) ** 2 / stds[0] ** 2).sum(1)
    x = states("moons", 1.0, level)
    likelihood = torch.exp(-0.5 * torch.cdist(x, grid) ** 2 / level**2) * prior
    expected = likelihood @ grid / likelihood.sum(1, keepdim=True)
    found = called(problem("moons").model.denoise, "moons", x, level)
    assert torch.allclose(found, expected, atol=1e-4)


def test_the_axes_of_gauss_are_orthonormal_and_its_pixels_have_the_given_spread() -> None:
    axes, variances = linear_gaussian.power_law_spectrum()
    assert torch.allclose(axes @ axes.T, torch.eye(256, dtype=torch.float64), atol=1e-12)
    _, covariance = linear_gaussian.gaussian_moments(axes, variances)
    assert covariance.diagonal().mean() == pytest.approx(linear_gaussian.PIXEL_STD**2)
    # four times the frequency has about a sixteenth of the power
    power = variances.reshape(16, 16)
    assert power[12, 0] / power[3, 0] == pytest.approx(10 / 145)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gauss", "gauss-flow"])
def test_the_reference_of_gauss_is_the_solution_in_closed_form(name: str) -> None:
    """The state's coefficients follow the standard deviations of the noised data.

    Sampling ends with the denoised state at sigma_min, which is 0.0018 from the solution at 0 for
    the variance-exploding model, whatever the number of steps.
    """
    given, (axes, variances) = problem(name), linear_gaussian.power_law_spectrum()
    noise = given.noises(8, 1)
    lowest = given.model.sigma_min
    # a flow model starts without signal, at infinity
    start = 1.0 if name.endswith("flow") else 80.0**2 / (variances + 80.0**2)
    gain = (start * (variances + lowest**2)).sqrt() * variances / (variances + lowest**2)
    expected = (noise.flatten(1).double() @ axes.T * gain) @ axes
    found = given.run(lambda live: live.samples(live.standard(*given.reference), noise))
    assert float(rmse(found.flatten(1) - expected).max()) < 5e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moons", "patches"])
def test_flow_and_variance_exploding_model_have_the_same_trajectories(name: str) -> None:
    """A flow state over 1 - s is a variance-exploding state, at every noise level on the way."""
    exploding, flow = problem(name), problem(f"{name}-flow")
    sigmas = torch.cat([torch.logspace(1.9, -2.9, 200, dtype=torch.float64), torch.zeros(1)])
    noise = exploding.noises(8, 1)

    def result(given: ExactProblem, levels: Tensor) -> Tensor:
        def task(live: LiveModel) -> Tensor:
            solver: Discretization = live.discretization("heun", levels.float())
            return live.samples(solver, noise)

        return given.run(task)

    ratio = sigmas / (1 + sigmas)  # both start from sigma * noise in variance-exploding terms
    difference = rmse(result(exploding, sigmas) - result(flow, ratio))
    assert float(difference.max()) < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "-flow", "-flow-shift3"])
@pytest.mark.parametrize("name", ["patches", "moons", "gauss"])
def test_twice_the_steps_do_not_change_the_reference(name: str, kind: str) -> None:
    given = problem(name + kind)
    noise, (sampler, scheduler, steps) = given.noises(16, 1), given.reference

    def task(live: LiveModel) -> float:
        finer = live.standard(sampler, scheduler, 2 * steps)
        change = live.samples(live.standard(*given.reference), noise) - live.samples(finer, noise)
        return float(rmse(change).mean())

    assert given.run(task) < 2.5e-4


def test_a_flow_problem_has_its_own_reference_teacher_and_levels() -> None:
    plain, flow, shifted = (problem(n) for n in ("digits", "digits-flow", "digits-flow-shift3"))
    assert plain.teacher == plain.run(lambda live: live.recipe) == Recipe("dpmpp_2m", "karras", 20)
    assert flow.run(lambda live: live.recipe) == Recipe("dpmpp_2m", "simple", 20)
    assert shifted.run(lambda live: live.recipe) == Recipe("dpmpp_2m", "beta", 20)
    for given in (flow, shifted):
        assert "karras" not in (given.reference.scheduler, given.teacher.scheduler)
        assert given.model.sigma_max == 1 == float(given.sampling.sigma_max)
        assert given.run(lambda live: live.teacher.table.model_calls) == 20
    middle = [float(p.sampling.sigma(torch.tensor(500.0))) for p in (flow, shifted)]
    assert middle == pytest.approx([0.5, 0.75])


@pytest.mark.parametrize("name", ["digit", "digits-flow3", "demo-flo", "moons-flow-shift"])
def test_an_unknown_name_is_answered_with_all_names(name: str) -> None:
    with pytest.raises(ValueError, match="patches.*NAME-flow"):
        registry.load(name)
