"""What a training reports: while it runs, and about its result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from ..json_types import built, has_type
from ..model import Model
from ..table import Discretization

FILE_NAMES = {  # in files, where they differ
    "test_error": "heldout_error", "ranking_error": "screening_error", "comparable": "counted",
}  # fmt: skip
Pair = tuple[Tensor, Tensor]
"""The teacher's sample and the student's of one noise, each (1, *latent)."""
PARTS: dict[str, Any] = {"baselines": {}, "history": [], "compared": []}


@dataclass(frozen=True)
class Baseline:
    """A standard schedule that competes; errors are means over noises, None where not measured."""

    sigmas: list[float]
    model_calls: int
    comparable: bool  # no more model calls than the student
    ranking_error: float | None = None  # mean score on the validation noises, of the likely ones
    test_error: float | None = None  # RMSE to the teacher, of the best of them


@dataclass(frozen=True)
class StepsCurve:
    """Errors (mean RMSE to the teacher) of another sampler and scheduler by number of steps.

    Attributes:
        name: of sampler and scheduler.
        steps, errors: ascending steps, and their errors.
        learned_error: of what was learned, on the same noises.
    """

    name: str
    steps: list[int]
    errors: list[float]
    learned_error: float

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.errors) or any(n < 1 for n in self.steps):
            raise ValueError("a curve has an error for each number of steps")
        if any(error < 0 for error in (*self.errors, self.learned_error)):
            raise ValueError("errors are not negative")

    def equal_steps(self) -> tuple[int, bool]:
        """The number of steps with the learned error, and whether it is only a lower bound.

        (0, False) if even the fewest steps measured are at least as close to the teacher.
        """
        reached = [i for i, error in enumerate(self.errors) if error <= self.learned_error]
        if not reached:
            return (self.steps[-1], True) if self.steps else (0, True)
        i = reached[0]
        if not i:
            return (self.steps[0] if self.errors[0] == self.learned_error else 0), False
        # the error as a power of the steps between the two points around it
        high, low = math.log(self.errors[i - 1]), math.log(max(self.errors[i], 1e-300))
        share = (high - math.log(max(self.learned_error, 1e-300))) / max(high - low, 1e-12)
        ratio = self.steps[i] / self.steps[i - 1]
        return round(self.steps[i - 1] * ratio**share), False


@dataclass(frozen=True)
class ValidationEntry:
    """One validation of a descent from `start`, after this number of model calls in all."""

    start: str
    calls: int
    error: float | None


@dataclass(frozen=True)
class Report:
    """The result of a training in plain numbers; it is saved with the schedule.

    A number that is not known, infinite or undefined is None, in memory as in files.

    Attributes:
        start: name of the best start before any descent.
        chosen: "learned", or the name of the baseline that won on the test noises; "interpolated"
            between learned numbers of steps, where nothing was measured.
        test_error: mean RMSE to the teacher on the test noises, of what was learned.
        gain: bootstrap interval (90 %) of the mean score (`ld3.metrics.Distance.score`) of what was
            learned over that of the best standard schedule on the test noises; empty without one.
        steps_sigmas, steps_error: the schedule for the plain sampler that was learned beside a full
            solver, and its mean RMSE to the teacher on the test noises; empty and None without.
        spread: mean distance between the student's test samples, relative to the teacher's; well
            below 1 the student makes all samples alike.
        unrelated_error: the same to the teacher's samples of *other* test noises; a student whose
            `test_error` is no smaller does not make a noise into the image its teacher makes of it.
        stream_errors: of nested latents, the error of each stream in its own standard deviations on
            the test noises, by "learned" and the names of baselines; else empty.
        extras: what was learned besides steps, values of `ld3.table.Extra`.
        initial_sigmas, sigmas: the schedules before and after.
        eval_sigmas: where the network is evaluated, per call; empty without decoupled times.
        lambdas: of D-ODE, per call; empty without. baselines: by scheduler.
        compared: the user's own sampler and scheduler, and the best standard one, in more steps.
        teacher_calls, training_calls, report_calls: model calls spent on targets, on learning, and
            on measuring the result (targets of the test noises included).
    """

    start: str = ""
    chosen: str = "learned"
    test_error: float | None = None
    gain: list[float] = field(default_factory=list)
    steps_sigmas: list[float] = field(default_factory=list)
    steps_error: float | None = None
    spread: float | None = None
    unrelated_error: float | None = None
    stream_errors: dict[str, list[float | None]] = field(default_factory=dict)
    extras: list[str] = field(default_factory=list)
    initial_sigmas: list[float] = field(default_factory=list)
    sigmas: list[float] = field(default_factory=list)
    eval_sigmas: list[float] = field(default_factory=list)
    lambdas: list[float] = field(default_factory=list)
    baselines: dict[str, Baseline] = field(default_factory=dict)
    compared: list[StepsCurve] = field(default_factory=list)
    history: list[ValidationEntry] = field(default_factory=list)
    teacher_calls: int = 0
    training_calls: int = 0
    report_calls: int = 0

    @property
    def returned_error(self) -> float | None:
        """The test error of what is returned: a standard schedule where that has won."""
        returned = self.baselines.get(self.chosen)
        return returned.test_error if returned else self.test_error

    def best_baseline(self) -> str | None:
        """The comparable baseline with the least error: on the test noises, else in the ranking."""
        tested = best_baseline(self.baselines, "test_error")
        return tested or best_baseline(self.baselines, "ranking_error")

    def as_json(self) -> dict[str, Any]:
        """For a file: numbers, lists and strings; baselines without what is not known."""
        baselines = {
            name: {key: value for key, value in _named(b).items() if value is not None}
            for name, b in self.baselines.items()
        }
        return _named(self) | {"baselines": baselines}

    @staticmethod
    def from_json(found: dict[str, Any]) -> Report:
        """The report of a file; what an older version did not write has its default.

        ValueError if it is none.
        """
        if not has_type(found, dict[str, Any]):
            raise ValueError("the report is not an object")
        parts = {key: found.get(key, empty) for key, empty in PARTS.items()}
        for key, part in parts.items():
            if not isinstance(part, type(PARTS[key])):
                raise ValueError(f"{key} has the wrong type")
        return _of(
            Report,
            found
            | {
                "baselines": {n: _of(Baseline, b) for n, b in parts["baselines"].items()},
                "history": [_of(ValidationEntry, entry) for entry in parts["history"]],
                "compared": [_of(StepsCurve, curve) for curve in parts["compared"]],
            },
        )


class Learned(NamedTuple):
    """The result of a training: a solver, its report, and the same in other numbers of steps."""

    solver: Discretization
    report: Report
    others: Mapping[int, Learned] = MappingProxyType({})


def _named(value: Any) -> dict[str, Any]:
    return {FILE_NAMES.get(key, key): part for key, part in asdict(value).items()}


def _of(kind: Any, found: Any) -> Any:
    if not isinstance(found, dict):
        raise ValueError(f"{kind.__name__} is not an object")
    names = {name: FILE_NAMES.get(name, name) for name in kind.__dataclass_fields__}
    return built(kind, {name: found[key] for name, key in names.items() if key in found})


def best_baseline(baselines: dict[str, Baseline], error: str) -> str | None:
    """The comparable baseline with the smallest error of this kind; None if none was measured."""
    measured = {
        name: getattr(baseline, error)
        for name, baseline in baselines.items()
        if baseline.comparable and getattr(baseline, error) is not None
    }
    return min(measured, key=lambda name: measured[name]) if measured else None


def finite(value: float) -> float | None:
    """A number as reports have it: None for infinite and undefined ones."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Progress:
    """One event of a running training; calls are model calls so far and in all."""

    stage: str
    calls: int
    planned_calls: int
    report: Report  # what is known so far
    best: Discretization | None = None  # the best student so far
    pair: Pair | None = None  # the teacher's and its sample of one noise


class ProgressReporter:
    """Sends an event for every stage, and counts the model's calls from now on.

    `on_progress` receives the events; it may raise an interrupt.
    """

    def __init__(
        self, model: Model, planned_calls: int, on_progress: Callable[[Progress], None]
    ) -> None:
        self._model, self._planned, self._on_progress = model, planned_calls, on_progress
        self._before, self._known = model.calls, Report()
        self.best: Discretization | None = None
        self.pair: Pair | None = None

    @property
    def calls(self) -> int:
        """Model calls so far."""
        return self._model.calls - self._before

    def stage(self, stage: str) -> None:
        """Send an event."""
        planned = max(self._planned, self.calls)
        event = Progress(stage, self.calls, planned, self._known, self.best, self.pair)
        self._on_progress(event)

    def know(self, **changes: Any) -> None:
        """From now on events carry these attributes of the report."""
        self.show(replace(self._known, **changes))

    def show(self, report: Report) -> None:
        """From now on events carry this report."""
        self._known = report
