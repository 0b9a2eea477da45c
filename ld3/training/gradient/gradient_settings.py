"""Constants of the descent by gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class GradientSettings:
    """Constants of the descent.

    Attributes:
        radius: r of soft teacher forcing; None is the paper's 0.001 d / NFE^2, 0 is hard.
        adam: Adam with a decreasing rate for everything; False is the paper's RMSprop for the steps
            and SGD for decoupled times and start noises.
        steps_rounds, extra_rounds: passes over the training noises in each phase.
        batch: noises per update.
        steps_rate, extra_rate, noise_rate: learning rates; the last is a share of the radius
            with Adam, and divided by the number of model calls with the paper's optimizers.
        patience: validations without progress after which the paper's rates decrease by a fifth.
    """

    radius: float | None = None
    adam: bool = False
    steps_rounds: int = 2
    extra_rounds: int = 5
    batch: int = 2
    steps_rate: float = 5e-3
    extra_rate: float = 0.1
    noise_rate: float = 12.0
    patience: int = 5

    @property
    def soft(self) -> bool:
        """Whether start noises move too."""
        return self.radius != 0

    def with_rounds(self, rounds: int) -> GradientSettings:
        """The same with this number of rounds for the steps, a third more for decoupled times."""
        return replace(self, steps_rounds=rounds, extra_rounds=rounds + rounds // 3)


PAPER = GradientSettings()
ADAM = GradientSettings(
    adam=True, steps_rounds=10, extra_rounds=13, batch=4, steps_rate=0.1, extra_rate=0.05,
    noise_rate=0.25,
)  # fmt: skip
