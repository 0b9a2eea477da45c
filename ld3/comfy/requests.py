"""What a user requests, checked in the words of the nodes' widgets."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from ..metrics import DISTANCES
from ..shown_text import shown
from ..training.budget import QUALITIES, calls_of
from ..training.gradient.gradient_settings import ADAM, PAPER, GradientSettings
from ..training.settings import TrainingSettings
from . import core_samplers

GAUSS_NEWTON = "gauss-newton (fast, no autograd)"
OPTIMIZERS: dict[str, GradientSettings | None] = {
    GAUSS_NEWTON: None,
    "gradient (LD3 paper)": PAPER,
    "gradient (Adam, thorough)": ADAM,
}
STEPS, FULL = "time steps", "time steps + full solver"
LEARN: dict[str, dict[str, Any]] = {
    STEPS: {},
    "time steps + decoupled times": {"decoupled": True},
    "time steps + D-ODE": {"dode": True},
    FULL: {"decoupled": True, "order": 1, "output_mix": True},
}
PUBLISHED_RADIUS = -1.0
GRADIENT_NOISES, GRADIENT_TEST_NOISES, GRADIENT_ITERATIONS = 32, 16, 12
"""Of the gradient optimizers, which have no quality."""
ALSO_SHARE = 0.12
"""Model calls of each number in also_steps, as a share of the quality's."""
MOST_STEPS, MOST_OTHERS = 50, 12  # in also_steps
AUTO = "auto"
"""Of a teacher's scheduler: chosen by prediction type and a short test; of others: by the first."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The widgets that both training nodes have, by their names.

    `iterations`, `training_noises` and `heldout_noises` are 0 where `quality` decides.
    """

    steps: int
    seed: int
    distance: str
    iterations: int
    training_noises: int
    heldout_noises: int
    batch_size: int
    optimizer: str = GAUSS_NEWTON
    learn: str = FULL
    soft_radius: float = PUBLISHED_RADIUS
    quality: str = "normal"
    minutes: float = 0.0
    also_steps: str = ""

    def settings(self) -> TrainingSettings:
        """The constants of the training; ValueError for a value that cannot work."""
        choices = {"distance": DISTANCES, "optimizer": OPTIMIZERS, "learn": LEARN}
        choices["quality"] = QUALITIES
        for name, options in choices.items():
            check_choice(name, getattr(self, name), options)
        if not (0 <= self.soft_radius < math.inf or self.soft_radius == PUBLISHED_RADIUS):
            raise ValueError(
                f"soft_radius is {self.soft_radius}; use 0 (none) or more, or -1 for the paper's"
            )
        for name in ("iterations", "training_noises", "heldout_noises"):
            check_at_least(0, name, getattr(self, name))
        check_at_least(0, "batch_size", self.batch_size)
        if not 0 <= self.minutes < math.inf:
            raise ValueError(f"minutes is {self.minutes}; use 0 (as quality says) or more")
        settings = TrainingSettings(
            steps=self.steps,
            distance=self.distance,
            seed=self.seed % 2**63,
            gradient=self.gradient,
            also_steps=self.other_steps,
            also_calls=round(ALSO_SHARE * QUALITIES[self.quality]),
            **LEARN[self.learn],
        )
        if settings.also_steps and (self.gradient or settings.dode):
            raise ValueError(
                f"also_steps is {self.also_steps!r}, which needs the optimizer {GAUSS_NEWTON!r} "
                "and something else to learn than D-ODE; leave also_steps empty or change these"
            )
        return self.with_numbers(settings)

    def calls(self, seconds_per_call: float) -> int:
        """Model calls of the training in all: those of `minutes`, or of `quality`."""
        if self.minutes:
            return int(60 * self.minutes / seconds_per_call)
        others = sum(round(ALSO_SHARE * calls_of(self.quality, n)) for n in self.other_steps)
        return calls_of(self.quality, self.steps) + others

    @property
    def other_steps(self) -> tuple[int, ...]:
        """The numbers in also_steps, ascending, without `steps`; ValueError for anything else."""
        words = self.also_steps.replace(",", " ").split()
        if not all(word.isdecimal() and 2 <= int(word) <= MOST_STEPS for word in words):
            raise ValueError(
                f"also_steps is {shown(self.also_steps, 80)!r}; write numbers of steps from 2 "
                f"to {MOST_STEPS} with commas between them, such as 3, 6, 8, or leave it empty"
            )
        numbers = {int(word) for word in words} - {self.steps}
        if len(numbers) > MOST_OTHERS:
            raise ValueError(
                f"also_steps has {len(numbers)} numbers; {MOST_OTHERS} are the most, and steps "
                "between them are interpolated"
            )
        return tuple(sorted(numbers))

    def check_other_steps(self, teacher_steps: int, name: str) -> None:
        """Raise ValueError for a number in also_steps that the teacher does not exceed.

        Args:
            name: of the input that decides the teacher's steps.
        """
        too_many = [n for n in self.other_steps if n >= teacher_steps]
        if too_many:
            raise ValueError(
                f"also_steps contains {too_many[0]}, and the teacher takes {teacher_steps} steps "
                f"({name}); use smaller numbers or more steps of the teacher"
            )

    @property
    def all_numbers(self) -> bool:
        """Whether the user chose all numbers that quality or minutes would."""
        return all((self.iterations, self.training_noises, self.heldout_noises))

    def with_numbers(self, settings: TrainingSettings) -> TrainingSettings:
        """Settings with the numbers that the user chose."""
        numbers = {"training_noises": self.training_noises, "test_noises": self.heldout_noises}
        numbers["iterations"] = self.iterations
        if self.gradient:
            numbers = {
                "training_noises": self.training_noises or GRADIENT_NOISES,
                "test_noises": self.heldout_noises or GRADIENT_TEST_NOISES,
            }
            numbers["validation_noises"] = max(16, numbers["training_noises"])
        elif self.training_noises:
            numbers["validation_noises"] = max(4, self.training_noises // 3)
        return replace(settings, **{name: value for name, value in numbers.items() if value})

    @property
    def gradient(self) -> GradientSettings | None:
        """The constants of the gradient optimizer; None for Gauss-Newton."""
        preset = OPTIMIZERS[self.optimizer]
        if preset is None:
            return None
        if preset.adam:
            preset = preset.with_rounds(self.iterations or GRADIENT_ITERATIONS)
        if self.soft_radius == PUBLISHED_RADIUS:
            return preset
        return replace(preset, radius=self.soft_radius)

    @property
    def method(self) -> str:
        """One word for the file."""
        return self.optimizer.split(" ")[0]


@dataclass(frozen=True, kw_only=True)
class TrainingRequest(TrainingOptions):
    """The widgets of LD3 Train Schedule, by their names."""

    sampler_name: str
    cfg: float
    denoise: float
    teacher_sampler: str
    teacher_scheduler: str
    teacher_steps: int
    compare_sampler: str = AUTO
    compare_scheduler: str = AUTO

    def settings(self) -> TrainingSettings:
        """The constants of the training; ValueError for a value that cannot work."""
        check_cfg(self.cfg)
        if not 0 < self.denoise <= 1:
            raise ValueError(f"denoise is {self.denoise}; use a value above 0 and up to 1")
        settings = super().settings()
        settings.check(self.teacher_steps)
        self.check_other_steps(self.teacher_steps, "teacher_steps")
        return settings

    def check(self) -> None:
        """Raise ValueError, naming the widget, for what is wrong with any model."""
        self.settings()
        for widget in ("sampler_name", "teacher_sampler", "compare_sampler"):
            if getattr(self, widget) != AUTO:
                core_samplers.check_sampler(widget, getattr(self, widget))
        for widget in ("teacher_scheduler", "compare_scheduler"):
            known = AUTO, *core_samplers.scheduler_names()
            check_choice(widget, getattr(self, widget), known)

    def teacher_facts(self) -> dict[str, Any]:
        """What decides the teacher's samples (the batch size in their last bits)."""
        names = ("teacher_sampler", "teacher_scheduler", "teacher_steps", "cfg", "denoise")
        return {name: getattr(self, name) for name in (*names, "batch_size")}


@dataclass(frozen=True)
class DistillRequest:
    """The widgets of LD3 Distill Solver, by their names."""

    cfg: float
    seed: int
    teacher_sampler: str
    training_noises: int
    batch_size: int

    def check(self) -> None:
        """Raise ValueError, naming the widget, for a value that no model can be used with."""
        check_cfg(self.cfg)
        check_at_least(2, "training_noises", self.training_noises)
        check_at_least(0, "batch_size", self.batch_size)


def check_cfg(cfg: float) -> None:
    """Raise ValueError unless cfg is a guidance scale."""
    if not 0 <= cfg < math.inf:
        raise ValueError(f"cfg is {cfg}; use 0 or more, 1 for no guidance")


def check_choice(name: str, value: Any, options: Collection[str]) -> None:
    """Raise ValueError, naming the widget, unless value is one of its options."""
    if value not in options:
        given = shown(str(value), 80)
        raise ValueError(f"{name} is {given!r}; choose one of {', '.join(options)}")


def check_at_least(least: int, name: str, value: int) -> None:
    """Raise ValueError, naming the widget, unless value is at least `least`."""
    if value < least:
        raise ValueError(f"{name} is {value}; use {least} or more")
