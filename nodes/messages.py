"""What the learning nodes say of their results."""

from __future__ import annotations

from typing import Any

from ..ld3.comfy.distilling_job import DistillResult
from ..ld3.comfy.progress import duration
from ..ld3.comfy.requests import AUTO
from ..ld3.comfy.training_job import TrainingResult
from ..ld3.schedule import Schedule, ScheduleInfo
from ..ld3.table import Extra
from ..ld3.training.other_steps import INTERPOLATED
from ..ld3.training.report import Report
from ..ld3.training.teacher_choice import TeacherCheck
from ..ld3.training.verdict import verdict

LEAST_SPREAD = 0.9  # of the teacher's; below it samples are visibly alike
POOR_MATCH = 0.9  # of the error to the teacher's samples of other noises
POOR_FLOW_SCHEDULERS = ("karras", "exponential")  # docs/benchmarks.md, "Which teacher"
ARCHITECTURES = {  # ComfyUI's classes in words, where they say little
    "BaseModel": "a model of Stable Diffusion's kind",
    "SDXL": "an SDXL model",
    "SD3": "a Stable Diffusion 3 model",
    "Flux": "a Flux model",
    "WAN21": "a Wan model",
}
FAR_TEACHER = 0.2  # error over the samples' standard deviation, above which images differ visibly


def training_summary(result: TrainingResult) -> str:
    """Two lines for the node: the verdict, then the file."""
    report = result.report
    how = "saved before with the same settings"
    if result.trained:
        calls = report.teacher_calls + report.training_calls + report.report_calls
        how = f"learned in {duration(result.seconds)}, {calls:,} model calls"
        if result.continued:
            how += f", {result.continued:,} of them before an interruption"
    return _sentences(_verdict(result), f"{result.path.name}: {how}")


def report_title(result: TrainingResult) -> str:
    """Above the report: the file, then the verdict."""
    info = result.schedule.info
    found = _verdict(result)
    name = f"{result.path.name}: {info.steps} steps of {info.sampler} at cfg {info.cfg:g}"
    return f"{name}\n{found}" if found else name


def report_details(result: TrainingResult) -> list[str]:
    """Below the report, for those who want to know: errors, their interval, and the teacher."""
    info, report, parts = result.schedule.info, result.report, []
    if report.test_error is not None:
        parts.append(f"error to the teacher on the test noises {report.test_error:.4g}")
    standard = _best_standard(report)
    if standard:
        parts.append(f"best standard schedule ({standard[0]}) {standard[1]:.4g}")
    if info.boundary:
        parts.append(f"{info.high_steps} of {info.steps} steps with the high-noise model")
    if report.steps_error is not None:
        parts.append(f"time steps alone (the sigmas output) {report.steps_error:.4g}")
    if len(report.gain) == 2:
        low, high = report.gain
        parts.append(f"ratio of errors {low:.2f} to {high:.2f} (90 % interval)")
    if standard and standard[0] in report.stream_errors:
        learned, others = (report.stream_errors[key] for key in ("learned", standard[0]))
        pairs = [
            f"{_number(a)} ({standard[0]} {_number(b)})"
            for a, b in zip(learned, others, strict=True)
        ]
        parts.append(f"error of each stream in its standard deviations {', '.join(pairs)}")
    summaries = others_summary(result.schedule), teacher_summary(info.teacher)
    return [text for text in ("; ".join(parts), *summaries) if text]


def others_summary(schedule: Schedule) -> str:
    """The other numbers of steps in a file, and their errors; "" without any."""
    found = []
    for other in schedule.others:
        report = Report.from_json(other.info.report)
        text = f"{other.info.steps} steps ({report.chosen})"
        standard, error = _best_standard(report), report.returned_error
        if error is not None and standard:
            text += f" {error:.4g}, best standard {standard[1]:.4g}"
        found.append(text)
    return f"also {', '.join(found)}" if found else ""


def schedule_summary(info: ScheduleInfo) -> str:
    """What a saved schedule is, and what it is for."""
    with_extras = f" with {', '.join(info.extras)}" if info.extras else ""
    made_for = f"for {model_words(info)}, cfg {info.cfg:g}"
    if info.denoise < 1:
        made_for += f", denoise {info.denoise:g}"
    between = (
        ", interpolated from the nearest learned number" if info.method == INTERPOLATED else ""
    )
    two = f", the first {info.high_steps} with the high-noise model" if info.boundary else ""
    what, found = f"{info.steps} steps{between} of {info.sampler}{with_extras}, {made_for}{two}", ""
    if info.method not in ("d-ode", INTERPOLATED):
        report = Report.from_json(info.report)
        found = verdict(info.steps, info.sampler, info.teacher.get("steps", 0), report)
    return _sentences(what, found, f"Note: {info.note}" if info.note else "")


def model_words(info: ScheduleInfo) -> str:
    """The model a schedule was learned for: its file, or else its kind."""
    if info.model_file:
        return info.model_file
    if not info.model_name:
        return "an unknown model"
    return ARCHITECTURES.get(info.model_name, f"a model of the kind {info.model_name}")


def _sentences(*parts: str) -> str:
    """Each on a line; with full stops, because Nodes 2.0 shows no line breaks."""
    return "\n".join(f"{part}." for part in parts if part)


def _verdict(result: TrainingResult) -> str:
    info = result.schedule.info
    return verdict(info.steps, info.sampler, info.teacher["steps"], result.report)


def teacher_summary(teacher: dict[str, Any]) -> str:
    """What the teacher is and how far its samples are from those of more steps; "" if not known.

    Args:
        teacher: of a `ScheduleInfo`; files of older versions lack its test.
    """
    check = TeacherCheck.of_teacher(teacher)
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
    found += _other_teacher_warnings(info, report)
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


def _other_teacher_warnings(info: ScheduleInfo, report: Report) -> list[str]:
    """Whether a teacher that is another model cannot be matched by any schedule."""
    error, unrelated = report.test_error, report.unrelated_error
    if "guider" not in info.teacher or error is None or not unrelated:
        return []
    if error < POOR_MATCH * unrelated:
        return []
    return [
        "no schedule comes close to teacher_guider's samples: the error to the sample of the same "
        f"noise is {error:.2g}, to those of other noises {unrelated:.2g}. This model does not turn "
        "a noise into the image its teacher does (as with distribution matching, DMD), so matching "
        "them is ill-posed: disconnect teacher_guider, and connect sigmas of this model's own "
        "sampling in many steps"
    ]


def _teacher_warnings(info: ScheduleInfo, learned: float | None) -> list[str]:
    """What is wrong with the teacher; `learned` is the schedule's error to it."""
    teacher, check, found = info.teacher, TeacherCheck.of_teacher(info.teacher), []
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
