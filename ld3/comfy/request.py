"""What a user asks the training for, checked in the words of the node's widgets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..metrics import DISTANCES
from ..training.gradient import ADAM, PAPER, GradientSettings
from ..training.settings import TrainingSettings

GAUSS_NEWTON = "gauss-newton (fast, no autograd)"
OPTIMIZERS: dict[str, GradientSettings | None] = {
    GAUSS_NEWTON: None,
    "gradient (LD3 paper)": PAPER,
    "gradient (Adam, thorough)": ADAM,
}
STEPS = "time steps"
LEARN: dict[str, dict[str, Any]] = {
    STEPS: {},
    "time steps + decoupled times": {"decoupled": True},
    "time steps + D-ODE": {"dode": True},
    "time steps + full solver": {"decoupled": True, "order": 1, "output_mix": True},
}
PUBLISHED_RADIUS = -1.0


@dataclass(frozen=True)
class TrainingRequest:
    """What the node was asked for; names are its widgets'."""

    sampler_name: str
    steps: int
    cfg: float
    denoise: float
    seed: int
    teacher_sampler: str
    teacher_scheduler: str
    teacher_steps: int
    distance: str
    iterations: int
    training_noises: int
    heldout_noises: int
    batch_size: int
    optimizer: str = GAUSS_NEWTON
    learn: str = STEPS
    soft_radius: float = PUBLISHED_RADIUS

    def check(self) -> None:
        """Raise ValueError, naming the widget, for what no model can make sense of."""
        if self.cfg < 0 or self.cfg != self.cfg:
            raise ValueError(
                f"cfg is {self.cfg}; guidance below 0 pushes away from the prompt: use 1 or more"
            )
        if self.steps < 2:
            raise ValueError(
                f"steps is {self.steps}; one step has no noise level to learn: use 2 or more"
            )
        if self.teacher_steps <= self.steps:
            raise ValueError(
                f"teacher_steps is {self.teacher_steps} and steps {self.steps}; the teacher must "
                "take more steps than the student (20 is typical)"
            )
        if not 0 < self.denoise <= 1:
            raise ValueError(f"denoise is {self.denoise}; use a value above 0 and up to 1")
        if self.distance not in DISTANCES:
            raise ValueError(f"distance is {self.distance!r}; choose one of {', '.join(DISTANCES)}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer is {self.optimizer!r}; choose one of {', '.join(OPTIMIZERS)}"
            )
        if self.learn not in LEARN:
            raise ValueError(f"learn is {self.learn!r}; choose one of {', '.join(LEARN)}")
        if not (self.soft_radius >= 0 or self.soft_radius == PUBLISHED_RADIUS):
            raise ValueError(
                f"soft_radius is {self.soft_radius}; use 0 (none) or more, or -1 for the paper's"
            )
        for name in ("iterations", "training_noises", "heldout_noises", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use 1 or more")

    def teacher_facts(self) -> dict[str, Any]:
        """What decides the teacher's targets for a noise (the batch size in their last bits)."""
        names = (
            "teacher_sampler",
            "teacher_scheduler",
            "teacher_steps",
            "cfg",
            "denoise",
            "batch_size",
        )
        return {name: getattr(self, name) for name in names}

    def settings(self) -> TrainingSettings:
        """The constants of the training loop."""
        return TrainingSettings(
            steps=self.steps,
            training_noises=self.training_noises,
            validation_noises=max(16, self.training_noises),
            test_noises=self.heldout_noises,
            iterations=self.iterations,
            distance=self.distance,
            batch_size=self.batch_size,
            seed=self.seed % 2**63,
            gradient=self.gradient,
            **LEARN[self.learn],
        )

    @property
    def gradient(self) -> GradientSettings | None:
        """The constants of the gradient optimiser; None for Gauss-Newton."""
        preset = OPTIMIZERS[self.optimizer]
        if preset is None:
            return None
        if preset.adam:
            preset = preset.with_rounds(self.iterations)
        if self.soft_radius == PUBLISHED_RADIUS:
            return preset
        return replace(preset, radius=self.soft_radius)

    @property
    def method(self) -> str:
        """One word for the file."""
        return self.optimizer.split(" ")[0]
