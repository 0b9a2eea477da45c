"""Draw the icon and the banner that the Comfy registry shows: docs/images/icon.png, banner.png.

    python scripts/icon.py

Twenty small steps of the reference, and three large ones that end in the same place.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np  # noqa: E402
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
BACKGROUND, REFERENCE, LEARNED, TEXT = "#14181f", "#5b6b82", "#f5a623", "#f2f4f8"
DPI = 100
ICON, BANNER = (4.0, 4.0), (12.6, 5.4)  # inches; the registry wants at most 400 x 400, and 21:9


def level(time: np.ndarray) -> np.ndarray:
    """A noise level that falls as those of samplers do, from 1 at time 0 to 0 at time 1."""
    return (1 - time) ** 2.2


def draw_steps(axes: Axes, size: float) -> None:
    """The reference's curve with its many points, and the learned steps along it.

    Args:
        size: of the points, in points.
    """
    line = np.linspace(0, 1, 200)
    axes.plot(line, level(line), color=REFERENCE, linewidth=size / 3, solid_capstyle="round")
    many = np.linspace(0, 1, 21)
    axes.plot(many, level(many), "o", color=REFERENCE, markersize=size * 0.75)
    few = np.array([0, 0.22, 0.55, 1])
    axes.plot(few, level(few), "-", color=LEARNED, linewidth=size / 2, solid_joinstyle="round")
    axes.plot(few, level(few), "o", color=LEARNED, markersize=size * 1.8)
    axes.set_xlim(-0.1, 1.1)
    axes.set_ylim(-0.1, 1.1)
    axes.axis("off")


def icon() -> None:
    """Write the square icon."""
    figure = pyplot.figure(figsize=ICON, dpi=DPI, facecolor=BACKGROUND)
    draw_steps(figure.add_axes((0.06, 0.06, 0.88, 0.88)), size=13)
    figure.savefig(IMAGES / "icon.png", facecolor=BACKGROUND)
    pyplot.close(figure)


def banner() -> None:
    """Write the banner: the icon's picture beside the name and what the pack does."""
    figure = pyplot.figure(figsize=BANNER, dpi=DPI, facecolor=BACKGROUND)
    draw_steps(figure.add_axes((0.54, 0.1, 0.43, 0.8)), size=15)
    figure.text(0.05, 0.55, "LD3 Schedules", color=TEXT, fontsize=54, weight="bold")
    says = "Your model's own few-step schedule,\nlearned in minutes inside ComfyUI"
    figure.text(0.05, 0.32, says, color=TEXT, fontsize=22, linespacing=1.4)
    figure.savefig(IMAGES / "banner.png", facecolor=BACKGROUND)
    pyplot.close(figure)


if __name__ == "__main__":
    icon()
    banner()
