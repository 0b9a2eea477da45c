"""How sure a measured gain is."""

from __future__ import annotations

import torch
from torch import Tensor

RESAMPLED = 2000
SHARE = 0.9


def bootstrap_interval(scores: Tensor, others: Tensor) -> list[float]:
    """Percentile interval (90 %) of mean(scores) / mean(others), paired: both (n,), at least 2.

    The bootstrap of Efron (1979): means over noises drawn anew, with replacement. Seeded. Empty for
    a single noise, or values that are not finite.
    """
    if len(scores) < 2 or not (torch.isfinite(scores).all() and torch.isfinite(others).all()):
        return []
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(scores), (RESAMPLED, len(scores)), generator=generator)
    ratios = scores.double()[drawn].mean(1) / others.double()[drawn].mean(1).clamp_min(1e-300)
    ends = torch.tensor([(1 - SHARE) / 2, (1 + SHARE) / 2], dtype=torch.float64)
    return ratios.quantile(ends).tolist()
