"""Does teacher_scheduler "auto" choose a good teacher, and is its start better than a scheduler?

Exact denoisers, with the noise levels of Stable Diffusion (eps) and of flow models at the shifts
that people use. The error of a teacher is the mean RMSE of dpmpp_2m in 20 steps over 256 noises to
the solution (Heun, 200 beta steps). Auto chooses from 8 noises, or 16 if another than its start
seems better; it is run with 16 sets of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.comparison import geometric_mean
from benchmarks.problems import mixtures
from benchmarks.problems.live_model import LiveModel
from benchmarks.problems.registry import MIXTURES
from ld3.metrics import rmse
from ld3.model import Model
from ld3.parameters import LOG_SIGMA, LOGIT_SIGMA
from ld3.table import Discretization

TITLE = "Automatic teachers: mean RMSE of 20 steps of dpmpp_2m to the solution, 256 noises"
KEYS = ("problem", "kind")
COLUMNS = {
    "problem": 10, "kind": 6, "best": 12, "best_error": 10, "start_error": 11,
    "auto_error": 10, "auto_worst": 10, "changed": 7, "student_error": 13,
}  # fmt: skip
PROBLEMS = ("digits", "gmm16", "mixture-2d", "heavy16", "gmm8", "moons", "power")
KINDS = ("eps", "flow 1", "flow 3", "flow 7")
SCHEDULERS = (
    "beta", "simple", "sgm_uniform", "kl_optimal", "normal", "karras", "exponential",
)  # fmt: skip
NOISES, SEED, STEPS, STUDENT_STEPS, REFERENCE = 256, 700, 20, 5, ("heun", "beta", 200)
CHECKS, CHECKED = 16, 8


def cells() -> Iterator[dict[str, Any]]:
    """Every combination measured."""
    for problem in PROBLEMS:
        for kind in KINDS:
            yield {"problem": problem, "kind": kind}


def row(problem: str, kind: str) -> dict[str, Any]:
    """All schedulers' errors, and what auto chooses from 16 sets of noises.

    Returns:
        Errors: of every scheduler, of the best, of auto's start, of auto's choices (geometric mean
        and the worst); the share of checks that change the start; the best 5-step student's.
    """
    live, shape = _live(problem, kind)
    noise = torch.randn(NOISES, *shape, generator=torch.Generator().manual_seed(SEED))
    exact = live.samples(live.standard(*REFERENCE), noise)

    def error(solver: Discretization) -> float:
        return float(rmse(live.samples(solver, noise) - exact).mean())

    schedulers = {name: error(live.standard("dpmpp_2m", name, STEPS)) for name in SCHEDULERS}
    auto = _auto(live, kind)
    errors = {name: error(solver) for name, solver in auto.items()}
    chosen = [_choice(live, kind, part) for part in noise.split(NOISES // CHECKS)]
    start, best = next(iter(auto)), min(schedulers, key=lambda name: schedulers[name])
    students = (live.standard("dpmpp_2m", name, STUDENT_STEPS) for name in SCHEDULERS)
    return {
        "problem": problem,
        "kind": kind,
        "errors": schedulers | errors,
        "best": best,
        "best_error": schedulers[best],
        "start_error": errors[start],
        "auto_error": geometric_mean([errors[name] for name in chosen]),
        "auto_worst": max(errors[name] for name in chosen),
        "changed": sum(name != start for name in chosen) / len(chosen),
        "student_error": min(error(student) for student in students),
    }


def _auto(live: LiveModel, kind: str, steps: int = STEPS) -> dict[str, Discretization]:
    """Auto's candidates, the start first."""
    from ld3.comfy import auto_teacher
    from ld3.training.teacher_choice import mean_sigmas

    levels = live.schedules("dpmpp_2m", steps)
    karras, beta = levels["karras"], levels["beta"]
    mean = mean_sigmas(karras, beta, live.model.coordinate)
    levels = levels | {auto_teacher.KARRAS_BETA: mean}
    flow = kind.startswith("flow")
    names = auto_teacher.FLOW_TEACHERS if flow else auto_teacher.OTHER_TEACHERS
    return {name: live.discretization("dpmpp_2m", levels[name]) for name in names}


def _choice(live: LiveModel, kind: str, noise: Tensor) -> str:
    """The scheduler that auto chooses by these noises."""
    from ld3.training.teacher_choice import Candidate, check_teachers, rounds_of

    candidates = {name: Candidate(solver) for name, solver in _auto(live, kind).items()}
    reference = next(iter(_auto(live, kind, 2 * STEPS).values()))
    rounds = rounds_of(noise, torch.zeros_like(noise), CHECKED)
    with torch.no_grad():
        return check_teachers(live.model, candidates, reference, rounds).best


def _live(problem: str, kind: str) -> tuple[LiveModel, tuple[int, ...]]:
    """The model and the shape of one sample."""
    import comfy.model_sampling as core

    flow = kind.startswith("flow")
    bases = (
        (core.ModelSamplingDiscreteFlow, core.CONST)
        if flow
        else (core.ModelSamplingDiscrete, core.EPS)
    )
    sampling = type("Sampling", bases, {})()
    if flow:
        sampling.set_parameters(shift=float(kind.split()[1]), multiplier=1000)
    denoise, shape = _denoiser(problem, flow)
    limits = float(sampling.sigma_min), float(sampling.sigma_max)
    model = Model(denoise, LOGIT_SIGMA if flow else LOG_SIGMA, *limits, batch_size=NOISES)
    if flow:
        model.scale_noise = lambda noise, latent, sigma: sigma * noise + (1 - sigma) * latent
    return LiveModel(model, sampling), shape


def _denoiser(problem: str, flow: bool) -> tuple[Callable[..., Tensor], tuple[int, ...]]:
    if problem == "power":
        return _power_denoiser(flow), (64,)
    more = {"gmm8": (_gmm8, (8,)), "moons": (_moons, (2,))}
    components, shape = more[problem] if problem in more else MIXTURES[problem][:2]
    return mixtures.mixture_denoiser(*components(), flow=flow), shape


def _gmm8() -> mixtures.Components:
    """Eight components of equal size in eight dimensions."""
    means = torch.randn(8, 8, generator=torch.Generator().manual_seed(8))
    return means, torch.full((8,), 0.2), torch.zeros(8)


def _moons() -> mixtures.Components:
    """Two interleaved half circles, 64 components each."""
    t = (torch.arange(64) + 0.5) / 64 * math.pi
    upper = torch.stack([t.cos() - 0.5, t.sin() - 0.25], 1)
    lower = torch.stack([0.5 - t.cos(), 0.25 - t.sin()], 1)
    return 1.2 * torch.cat([upper, lower]), torch.full((128,), 0.1), torch.zeros(128)


def _power_denoiser(flow: bool) -> Callable[..., Tensor]:
    """One Gaussian in 64 dimensions whose variances decrease as those of images, k^-2."""
    variance = torch.arange(1, 65).float() ** -2

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.reshape(-1, 1)
        keep = (1 - level).clamp_min(1e-8) if flow else torch.ones_like(level)
        return x / keep * variance / (variance + (level / keep) ** 2)

    return denoise


def summary(rows: list[dict[str, Any]]) -> str:
    """Error over that of the best scheduler, for the fixed schedulers, the start and auto."""
    lines = ["error over that of the best of seven schedulers: geometric mean, worst"]
    for flow in (False, True):
        part = [row for row in rows if row["kind"].startswith("flow") == flow]
        if not part:
            continue
        lines.append("flow models" if flow else "eps models")
        found = {
            name: [row["errors"][name] / row["best_error"] for row in part] for name in SCHEDULERS
        }
        found["auto's start"] = [row["start_error"] / row["best_error"] for row in part]
        found["auto"] = [row["auto_error"] / row["best_error"] for row in part]
        found["auto, worst"] = [row["auto_worst"] / row["best_error"] for row in part]
        for name, ratios in found.items():
            lines.append(f"{name:>12} {geometric_mean(ratios):6.2f} {max(ratios):6.2f}")
    return "\n".join(lines)
