"""What the learning nodes say of their results."""

from __future__ import annotations

from typing import Any

from ..ld3.comfy.distilling_job import DistillResult
from ..ld3.comfy.requests import AUTO
from ..ld3.comfy.training_job import TrainingResult
from ..ld3.schedule import ScheduleInfo
from ..ld3.table import Extra
from ..ld3.training.report import Report, StepsCurve
from ..ld3.training.teacher_choice import TeacherCheck

LEAST_SPREAD = 0.9  # of the teacher's; below it samples are visibly alike
POOR_FLOW_SCHEDULERS = ("karras", "exponential")  # docs/benchmarks.md, "Which teacher"
FAR_TEACHER = 0.2  # error over the samples' standard deviation, above which images differ visibly


def training_summary(result: TrainingResult) -> str:
    """What was learned: a verdict, then the file, then details."""
    info, report = result.schedule.info, result.report
    how = "loaded: already saved for these settings"
    if result.trained:
        calls = report.teacher_calls + report.training_calls + report.report_calls
        how = f"learned in {result.seconds:.0f} s, {calls:,} model calls"
    parts = [f"{result.path.name}: {info.steps} steps of {info.sampler}, {how}"]
    parts.append(verdict(info.steps, report))
    if report.test_error is not None:
        parts.append(f"error to the teacher {report.test_error:.4g}")
    standard = _best_standard(report)
    if standard:
        parts.append(f"best standard schedule ({standard[0]}) {standard[1]:.4g}")
    if report.steps_error is not None:
        parts.append(f"time steps alone (the sigmas output) {report.steps_error:.4g}")
    if len(report.gain) == 2:
        low, high = report.gain
        parts.append(f"error ratio {low:.2f} to {high:.2f} (90 % interval)")
    parts.append(teacher_summary(info.teacher))
    return "; ".join(part for part in parts if part)


def picture_title(result: TrainingResult) -> str:
    """The report's title: the file's name and the verdict."""
    info = result.schedule.info
    found = verdict(info.steps, result.report)
    return f"{result.path.name}: {found or f'{info.steps} steps of {info.sampler}'}"


def verdict(steps: int, report: Report) -> str:
    """How many steps are saved; "" if that was not measured."""
    if report.chosen != "learned":
        return (
            f"the standard schedule {report.chosen} is closer to the teacher on the test noises "
            "and is returned"
        )
    found = [_equal_steps(curve) for curve in report.compared]
    found = [text for text in found if text]
    if not found:
        return ""
    return f"{steps} steps come as close to the teacher as {' or '.join(found)}"


def _equal_steps(curve: StepsCurve) -> str:
    count, more = curve.equal_steps()
    if not count:
        return ""
    return f"{'more than ' if more else ''}{count} of {curve.name}"


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
    report = Report.from_json(info.report)
    found = _teacher_warnings(info, report.test_error)
    if len(report.gain) == 2 and report.gain[0] < 1 < report.gain[1]:
        low, high = report.gain
        found.append(
            f"on {low:.2f} to {high:.2f} times the standard schedule's error (90 % interval) it is "
            "not certain which is better: use quality best, or more minutes"
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
