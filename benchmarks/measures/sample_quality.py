"""How close one set of samples is to another: several measures, because each misses something.

A Frechet distance depends only on means and covariances, precision does not detect collapse, recall
and coverage do not detect blurred samples near the data, and an inception score uses no data at
all. All compare sets of feature vectors (n, d): flattened images, or their `Projection`. Values
depend on the sizes of the sets, so compare only numbers from sets of the same sizes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from sklearn.decomposition import PCA
from sklearn.metrics import DistanceMetric
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from ld3.metrics import spread


def measures(
    real: Tensor, fake: Tensor, projection: Projection | None = None, seed: int = 0
) -> dict[str, float]:
    """Every measure of this module that needs no classifier.

    Args:
        real, fake: (n, d) and (m, d) sets, their elements in any shape after the first axis.
        projection: applied to both sets before anything is measured.
        seed: of the directions of the sliced Wasserstein distance.

    Returns:
        "frechet", "sliced_wasserstein" (0 is best); "precision", "recall", "coverage" (1 is best);
        "spread", that of the fakes over that of the real ones (1 is best, below: collapse).
    """
    real, fake = _features(real.flatten(1), fake.flatten(1))
    if projection:
        real, fake = projection(real), projection(fake)
    return {
        "frechet": frechet_distance(real, fake),
        "sliced_wasserstein": sliced_wasserstein(real, fake, seed=seed),
        **precision_recall_coverage(real, fake),
        "spread": spread(fake) / spread(real),
    }


class Projection:
    """Principal components of data, for sets of tensors.

    With fewer samples than a covariance matrix needs, a Frechet distance is mostly its own bias;
    a few components with nearly all of the variance are estimated well.

    Args:
        data: (n, d) set that the components are fitted to, usually the real one.
        components: their number, at most the smaller of n - 1 and d.

    Attributes:
        explained: their share of the data's variance, 0 to 1.
    """

    def __init__(self, data: Tensor, components: int) -> None:
        (data,) = _features(data)
        most = min(len(data) - 1, data.shape[1])
        if not 1 <= components <= most:
            raise ValueError(
                f"{components} components of data of shape {tuple(data.shape)}; choose 1 to {most}"
            )
        self._pca = PCA(components, svd_solver="full").fit(data.cpu().numpy())
        self.explained = float(self._pca.explained_variance_ratio_.sum())

    def __call__(self, samples: Tensor) -> Tensor:
        """Coordinates along the components: (n, d) -> (n, components) float64."""
        (samples,) = _features(samples)
        return torch.from_numpy(self._pca.transform(samples.cpu().numpy())).to(samples.device)


def frechet(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Squared 2-Wasserstein distance of two Gaussians.

    |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^1/2)

    Args:
        mean_a, mean_b: (d,).
        cov_a, cov_b: (d, d), symmetric and positive semi-definite, of any rank.

    Source: Dowson & Landau 1982; Heusel et al. 2017 (arXiv 1706.08500), eq. 6.
    """
    mean_a, cov_a, mean_b, cov_b = (t.double() for t in (mean_a, cov_a, mean_b, cov_b))
    # The trace of the product's square root is the sum of these singular values, which need no
    # general matrix square root and lose no digits by squaring.
    root = torch.linalg.svdvals(_symmetric_root(cov_a) @ _symmetric_root(cov_b)).sum()
    squared = (mean_a - mean_b).pow(2).sum() + cov_a.trace() + cov_b.trace() - 2 * root
    return float(squared.clamp_min(0))


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """`frechet` of the Gaussians fitted to two sets (n, d) and (m, d); symmetric, 0 is best.

    On Inception features this is the FID. Biased upwards for few samples, the more the larger d.
    """
    a, b = _features(a, b)
    return frechet(a.mean(0), _covariance(a), b.mean(0), _covariance(b))


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 128, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance: sqrt(mean over directions of W_2^2 of the sets' projections).

    In the unit of the samples; a shift by v gives |v| / sqrt(d) on average over directions. The
    sets may have different sizes: W_2 is exact, the L2 distance of the quantile functions.

    Args:
        a, b: (n, d) and (m, d).
        projections: number of random unit directions.
        seed: of the directions; use the same for all sets that are compared.

    Source: Bonneel et al. 2015, Sliced and Radon Wasserstein Barycenters of Measures.
    """
    a, b = _features(a, b)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(a.shape[1], projections, generator=generator, dtype=torch.float64)
    directions = (directions / directions.norm(dim=0)).to(a)
    sorted_a, sorted_b = ((t @ directions).sort(dim=0).values for t in (a, b))
    # Both quantile functions are constant between these edges, in units of 1 / (n m).
    steps_a = torch.arange(1, len(a) + 1, device=a.device) * len(b)
    steps_b = torch.arange(1, len(b) + 1, device=a.device) * len(a)
    edges = torch.cat([steps_a, steps_b]).unique()
    widths = edges.diff(prepend=edges.new_zeros(1)).to(a) / (len(a) * len(b))
    gaps = sorted_a[(edges - 1) // len(b)] - sorted_b[(edges - 1) // len(a)]
    return float((widths @ gaps**2).mean().sqrt())


def precision_recall_coverage(real: Tensor, fake: Tensor, k: int = 5) -> dict[str, float]:
    """Shares of samples that lie within the other set's neighbourhoods, each 0 to 1.

    A point's ball extends to its k-th nearest neighbour in its own set, itself not counted.

    Args:
        real, fake: (n, d) and (m, d), more than k each.
        k: larger smooths more.

    Returns:
        "precision": share of fakes inside the ball of some real sample (they look real).
        "recall": share of real samples inside the ball of some fake (the fakes are diverse). One
            fake that is an outlier has a huge ball, and can raise it.
        "coverage": share of real samples whose own ball contains a fake. Robust to such outliers;
            for two large sets of the same size and distribution about 1 - 2^-k, not 1.

    Source: Kynkaanniemi et al. 2019 (arXiv 1904.06991), eqs. 1-2; Naeem et al. 2020
    (arXiv 2002.09797), section 3.
    """
    real, fake = _features(real, fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(
            f"k = {k} for sets of {len(real)} and {len(fake)} samples; choose at least 1 and "
            "fewer than either set has"
        )
    points = real.cpu().numpy(), fake.cpu().numpy()
    # Both compute distances by differences: by a matrix product, equal points have a distance.
    distance = DistanceMetric.get_metric("euclidean").pairwise(*points)
    radius_real, radius_fake = (
        NearestNeighbors(n_neighbors=k, algorithm="kd_tree").fit(x).kneighbors()[0][:, -1]
        for x in points
    )
    return {
        "precision": float((distance <= radius_real[:, None]).any(0).mean()),
        "recall": float((distance <= radius_fake).any(1).mean()),
        "coverage": float((distance.min(1) <= radius_real).mean()),
    }


def inception_score(probabilities: Tensor) -> float:
    """exp(E_x KL(p(y|x) || p(y))): 1 to the number of classes, larger is better.

    High when each sample is classified with confidence and the classes are equally frequent. Over
    the whole set, not averaged over ten splits.

    Args:
        probabilities: (n, classes), of a classifier; each row adds up to 1.

    Source: Salimans et al. 2016 (arXiv 1606.03498), section 4.
    """
    p = probabilities.double()
    if p.ndim != 2 or not torch.allclose(p.sum(1), p.new_ones(len(p)), atol=1e-3):
        raise ValueError(
            f"probabilities of shape {tuple(p.shape)} whose rows do not all add up to 1; pass "
            "(n, classes) after the softmax"
        )
    marginal = p.mean(0, keepdim=True)
    # xlogy: a class of probability 0 contributes 0
    divergence = (torch.xlogy(p, p) - torch.xlogy(p, marginal)).sum(1)
    return float(divergence.mean().exp())


def digits_classifier() -> Callable[[Tensor], Tensor]:
    """Train a classifier of scikit-learn's digits, for their `inception_score`.

    One hidden layer of 64, always from the same seed: accuracy 98 % on held-out digits, with
    well-calibrated probabilities (log loss 0.06; logistic regression: 0.11). Takes about 1 s.

    Returns:
        Function from samples (n, 1, 8, 8), scaled as `mixtures.digits_data`, to
        probabilities (n, 10) float64.
    """
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    from benchmarks.problems.mixtures import digits_data

    network = MLPClassifier((64,), solver="lbfgs", alpha=1.0, max_iter=500, random_state=0)
    network.fit(digits_data().flatten(1).double().numpy(), load_digits().target)

    def probabilities(samples: Tensor) -> Tensor:
        (flat,) = _features(samples.flatten(1))
        return torch.from_numpy(network.predict_proba(flat.cpu().numpy()))

    return probabilities


def _features(*sets: Tensor) -> list[Tensor]:
    """The sets in float64, if they are finite matrices of one width."""
    for t in sets:
        if t.ndim != 2 or t.shape[1] != sets[0].shape[1]:
            shapes = " and ".join(str(tuple(s.shape)) for s in sets)
            raise ValueError(f"sets of shape {shapes}; pass (n, d) and (m, d)")
        if not bool(torch.isfinite(t).all()):
            raise ValueError("a set of samples contains infinite or undefined (NaN) values")
    return [t.double() for t in sets]


def _covariance(samples: Tensor) -> Tensor:
    if len(samples) < 2:
        raise ValueError(f"{len(samples)} samples have no covariance; pass at least 2")
    centred = samples - samples.mean(0)
    return centred.T @ centred / (len(samples) - 1)


def _symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    # Rounding may turn an eigenvalue of 0 into a negative one, or into one with a large root.
    rounding = len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    return vectors * values.where(values > rounding, 0).sqrt() @ vectors.T
