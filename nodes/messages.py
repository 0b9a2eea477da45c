"""What the learning nodes say of their results."""

from __future__ import annotations

from ..ld3.comfy.distilling_job import DistillResult
from ..ld3.comfy.training_job import TrainingResult
from ..ld3.schedule import ScheduleInfo
from ..ld3.table import Extra
from ..ld3.training.report import Report

LEAST_SPREAD = 0.9  # of the teacher's; below it samples are visibly alike
OVERFITTED = 0.5  # training error over test error, below which the noises were overfitted
POOR_FLOW_SCHEDULERS = ("karras", "exponential")  # docs/benchmarks.md, "Which teacher"


def training_summary(result: TrainingResult) -> str:
    """One line: what was learned."""
    info, report = result.schedule.info, result.report
    how = "loaded: already saved for these settings"
    if result.trained:
        how = f"learned in {result.seconds:.0f} s"
    parts = [f"{result.path.name}: {info.steps} steps of {info.sampler}, {how}"]
    if report.test_error is not None:
        parts.append(f"error to the teacher {report.test_error:.4g}")
    if report.training_error is not None:
        parts.append(f"on the training noises {report.training_error:.4g}")
    standard = _best_standard(report)
    if standard:
        parts.append(f"best standard schedule ({standard[0]}) {standard[1]:.4g}")
    if report.chosen != "learned":
        parts.append(f"the standard schedule {report.chosen} has a lower error and is returned")
    return "; ".join(parts)


def training_warnings(info: ScheduleInfo) -> list[str]:
    """What a user should know before relying on the result."""
    report, found = Report.from_json(info.report), []
    learned, trained = report.test_error, report.training_error
    scheduler = info.teacher.get("scheduler")
    if info.prediction_type == "flow" and scheduler in POOR_FLOW_SCHEDULERS:
        found.append(
            f"teacher_scheduler is {scheduler}: for many flow models its samples have large "
            "errors, and the schedule learns to reproduce them; use simple or beta"
        )
    standard = _best_standard(report)
    if standard and learned is not None and standard[1] < learned:
        found.append(
            f"on the test noises the standard schedule {standard[0]} is closer to the teacher "
            f"({standard[1]:.4g}, learned {learned:.4g}): use it, or raise training_noises"
        )
    known = trained is not None and learned is not None and report.chosen == "learned"
    if known and trained < OVERFITTED * learned:
        found.append(
            f"the error is {trained:.4g} on the training noises and {learned:.4g} on the test "
            "noises: the schedule is overfitted to the training noises; raise training_noises"
        )
    if report.spread is not None and report.spread < LEAST_SPREAD:
        found.append(
            f"images differ from one another only {report.spread:.0%} as much as the teacher's: "
            "with too few steps results become similar. Use more steps, or a teacher with fewer "
            "steps (lower teacher_steps)"
        )
    return found


def _best_standard(report: Report) -> tuple[str, float] | None:
    """The best standard schedule and its test error."""
    name = report.best_baseline()
    error = report.baselines[name].test_error if name else None
    return None if name is None or error is None else (name, error)


def distilling_summary(result: DistillResult) -> str:
    """One line: what was distilled."""
    info, report = result.schedule.info, result.schedule.info.report
    start = f"{result.path.name}: {info.steps} steps of {info.sampler}"
    if Extra.D_ODE not in info.extras:
        return f"{start}; D-ODE does not reduce the error: the original sampler is returned"
    plain = "not finite" if report["plain_error"] is None else f"{report['plain_error']:.4g}"
    return (
        f"{start} with {', '.join(info.extras)}; error to the teacher {report['error']:.4g}, "
        f"without D-ODE {plain} (validation noises)"
    )
