"""The problems by name."""

from __future__ import annotations

import functools
import re

from . import linear_gaussian, mixtures
from .demo_model import DemoProblem
from .problem import FINE_REFERENCE, REFERENCE, ExactData, ExactProblem, Problem

MIXTURES = {
    "digits": (mixtures.digits_components, (1, 8, 8), 80.0),
    "gmm16": (mixtures.gmm16_components, (16,), 80.0),
    "mixture-1d": (mixtures.mixture_1d, (1,), 20.0),
    "mixture-2d": (mixtures.mixture_2d, (2,), 20.0),
    "heavy16": (mixtures.heavy16, (16,), 20.0),
    "patches": (mixtures.patches_components, (1, 8, 8), 80.0),
    "moons": (mixtures.moons_components, (2,), 80.0),
}
"""Name -> components, shape of a sample, sigma_max."""
DEMOS = {
    "demo": {},
    "demo-cfg4": {"cfg": 4.0},
    "demo-flow": {"model": "flow"},
    "demo-flow-cfg4": {"model": "flow", "cfg": 4.0},
}
"""Name -> arguments of `DemoProblem`."""
EXACT = (*MIXTURES, "gauss")
EARLIER = ("digits", "gmm16", "mixture-1d", "mixture-2d", "heavy16")
"""Measured against a coarser reference since the first results; more steps change it by < 0.001."""


@functools.cache
def load(name: str) -> Problem:
    """The problem of that name, created once in a run.

    NAME-flow is an exact problem as a flow model, NAME-flow-shift3 with its noise levels shifted.
    """
    if name in DEMOS:
        return DemoProblem(name, **DEMOS[name])
    named = re.fullmatch(r"(.+?)(-flow(-shift(\d+(\.\d+)?))?)?", name)
    data, flow, shift = named.group(1, 2, 4) if named else (name, None, None)
    if data not in EXACT:
        raise ValueError(
            f"no problem is called {name!r}; choose one of {[*DEMOS, *EXACT]}, the latter as a "
            "flow model NAME-flow or NAME-flow-shift3"
        )
    if not flow:
        reference = REFERENCE if name in EARLIER else FINE_REFERENCE
        return ExactProblem(name, exact_data(data), None, reference)
    return ExactProblem(name, exact_data(data), float(shift or 1))


def exact_data(name: str) -> ExactData:
    """The data of one of `EXACT`."""
    if name == "gauss":
        size, spectrum = linear_gaussian.SIZE, linear_gaussian.power_law_spectrum()
        denoise = linear_gaussian.linear_denoiser(*spectrum)
        moments = linear_gaussian.gaussian_moments(*spectrum)
        return ExactData(denoise, (1, size, size), moments, 80.0)
    components, shape, sigma_max = MIXTURES[name]
    denoise = mixtures.mixture_denoiser(*components())
    return ExactData(denoise, shape, mixtures.mixture_moments(*components()), sigma_max)
