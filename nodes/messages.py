"""What the learning nodes say of their results."""

from __future__ import annotations

from typing import Any

from ..ld3.comfy.distilling_job import DistillResult
from ..ld3.comfy.requests import AUTO
from ..ld3.comfy.training_job import TrainingResult
from ..ld3.schedule import ScheduleInfo
from ..ld3.table import Extra
from ..ld3.training.report import Report
from ..ld3.training.teacher_choice import TeacherCheck

LEAST_SPREAD = 0.9  # of the teacher's; below it samples are visibly alike
OVERFITTED = 0.5  # training error over test error, below which the noises were overfitted
POOR_FLOW_SCHEDULERS = ("karras", "exponential")  # docs/benchmarks.md, "Which teacher"
FAR_TEACHER = 0.2  # error over the samples' standard deviation, above which images differ visibly


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
    teacher = teacher_summary(info.teacher)
    if teacher:
        parts.append(teacher)
    standard = _best_standard(report)
    if standard:
        parts.append(f"best standard schedule ({standard[0]}) {standard[1]:.4g}")
    if report.chosen != "learned":
        parts.append(f"the standard schedule {report.chosen} has a lower error and is returned")
    return "; ".join(parts)


def teacher_summary(teacher: dict[str, Any]) -> str:
    """What the teacher is and how far its samples are from those of more steps; "" if not known.

    Args:
        teacher: of a `ScheduleInfo`; files of older versions lack its test.
    """
    check = _check(teacher)
    if check is None:
        return ""
    name, error = teacher["scheduler"], check.errors[teacher["scheduler"]]
    text = f"teacher: {teacher['sampler']} + {name}, {teacher['steps']} steps"
    if error is None or not check.deviation:
        return f"{text}; could not be checked"
    text += (
        f"; checked: its samples are within {error:.2g} ({error / check.deviation:.1%} of their "
        f"standard deviation) of {check.reference_steps} steps"
    )
    others = [f"{n} {_number(e)}" for n, e in check.errors.items() if n != name]
    return f"{text}; {', '.join(others)}" if others else text


def training_warnings(info: ScheduleInfo) -> list[str]:
    """What a user should know before relying on the result."""
    report, found = Report.from_json(info.report), []
    learned, trained = report.test_error, report.training_error
    found += _teacher_warnings(info, learned)
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


def _teacher_warnings(info: ScheduleInfo, learned: float | None) -> list[str]:
    """What is wrong with the teacher; `learned` is the schedule's error to it."""
    teacher, check, found = info.teacher, _check(info.teacher), []
    name = teacher.get("scheduler", "")
    if check is None:
        if info.prediction_type == "flow" and name in POOR_FLOW_SCHEDULERS:
            found.append(
                f"teacher_scheduler is {name}: for many flow models its samples have large "
                "errors, and the schedule learns to reproduce them; use auto, simple or beta"
            )
        return found
    error, better = check.errors[name], check.better_than(name)
    steps = check.reference_steps
    if better is not None:
        found.append(
            f"teacher_scheduler is {name}: where they differ most, its samples are "
            f"{_number(error)} from those of {steps} steps, those of {better} "
            f"{_number(check.errors[better])}, and the schedule learns to reproduce its errors; "
            f"choose {AUTO} as teacher_scheduler"
        )
    elif error is not None and check.deviation and error > FAR_TEACHER * check.deviation:
        found.append(
            f"the teacher's samples are {error:.2g} from those of {steps} steps "
            f"({error / check.deviation:.0%} of their standard deviation): raise teacher_steps to "
            "come closer to the exact solution"
        )
    elif error is not None and learned is not None and error > learned:
        found.append(
            f"the teacher's samples are {error:.2g} from those of {steps} steps, the schedule's "
            f"{learned:.2g} from the teacher's: the teacher is the less exact one; raise "
            "teacher_steps"
        )
    return found


def _check(teacher: dict[str, Any]) -> TeacherCheck | None:
    found = teacher.get("check")
    return None if found is None else TeacherCheck(**found)


def _number(error: float | None) -> str:
    return "not finite" if error is None else f"{error:.2g}"


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
