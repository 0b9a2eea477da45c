"""The problems by name."""

from __future__ import annotations

import functools

from ld3.model import Model
from ld3.parameters import LOG_SIGMA

from . import mixtures
from .demo_model import DemoProblem
from .live_model import BATCH
from .problem import MixtureProblem, Problem

MIXTURES = {
    "digits": (mixtures.digits_components, (1, 8, 8), 80.0),
    "gmm16": (mixtures.gmm16_components, (16,), 80.0),
    "mixture-1d": (mixtures.mixture_1d, (1,), 20.0),
    "mixture-2d": (mixtures.mixture_2d, (2,), 20.0),
    "heavy16": (mixtures.heavy16, (16,), 20.0),
}
"""Name -> components, shape of a sample, sigma_max."""
SIGMA_MIN = 0.03


@functools.cache
def load(name: str) -> Problem:
    """The problem of that name, created once in a run."""
    if name == "demo":
        return DemoProblem()
    if name not in MIXTURES:
        raise ValueError(f"no problem is called {name!r}; choose demo or one of {[*MIXTURES]}")
    components, shape, sigma_max = MIXTURES[name]
    denoise = mixtures.mixture_denoiser(*components())
    model = Model(denoise, LOG_SIGMA, SIGMA_MIN, sigma_max, batch_size=BATCH)
    return MixtureProblem(name, model, shape, mixtures.mixture_moments(*components()))
