"""Learn a 4-step solver for a mixture with `ld3` alone: python docs/examples/learn_mixture.py

The mixture's denoiser is known exactly, so no network and no ComfyUI are needed.
"""

import sys
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ld3.model import Model
from ld3.parameters import LOG_SIGMA
from ld3.plots import report_picture
from ld3.tracing import TracedSampler
from ld3.training.settings import TrainingSettings
from ld3.training.train import TrainingProblem, train

MEANS, STD = torch.tensor([[-4.0, 0.0], [3.0, 2.0], [2.0, -3.0]]), 0.5


def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """E[x0 | x = x0 + sigma noise] for equal components N(mean, STD^2)."""
    variance = STD**2 + sigma[:, None] ** 2
    share = torch.softmax(-(torch.cdist(x, MEANS) ** 2) / (2 * variance), dim=1)
    return (STD**2 * x + sigma[:, None] ** 2 * (share @ MEANS)) / variance


def euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Any deterministic sampler with k-diffusion's signature can be used."""
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        x = x + (x - model(x, sigma.expand(len(x)))) * (following - sigma) / sigma
    return x


def karras(steps: int) -> torch.Tensor:
    """Karras et al. 2022, equation 5, for sigma from 20 to 0.02, then 0."""
    return torch.cat([torch.linspace(20 ** (1 / 7), 0.02 ** (1 / 7), steps) ** 7, torch.zeros(1)])


def main(picture: Path = Path("output/learn_mixture.png")) -> None:
    """Learn, print the noise levels and errors, and save the report's picture."""
    model, sampler = Model(denoise, LOG_SIGMA, 0.02, 20.0, batch_size=64), TracedSampler(euler)
    task = TrainingProblem(
        model, sampler, sampler.discretization(karras(100)), 20.0, baselines={"karras": karras(4)}
    )
    settings = TrainingSettings(steps=4, validation_noises=64, decoupled=True, order=1)
    noise = torch.randn(settings.noises, 2, generator=torch.Generator().manual_seed(0))
    solver, report, _ = train(task, settings, noise, torch.zeros_like(noise))
    print("noise levels:", ", ".join(f"{sigma:.3f}" for sigma in solver.sigmas.tolist()))
    print(f"error of karras {report.baselines['karras'].test_error:.4f}")
    print(f"error of the learned solver {report.test_error:.4f}")
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(
        report_picture(report, "Euler in 4 steps, with decoupled times and corrected coefficients")
    ).save(picture)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:2]))
