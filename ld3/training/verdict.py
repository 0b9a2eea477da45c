"""What a report says of a schedule in one sentence, for somebody who knows steps and samplers."""

from __future__ import annotations

from .report import Report, StepsCurve

LEAST_GAIN = 0.005  # smaller ones are printed as none


def verdict(steps: int, sampler: str, teacher_steps: int, report: Report) -> str:
    """Which steps the schedule replaces, and how much nearer it is than the best standard one.

    Args:
        steps, sampler: the schedule's.
        teacher_steps: the reference's.

    Returns:
        One sentence without a full stop; "" if nothing was measured.
    """
    best = report.best_baseline()
    if report.chosen != "learned":
        return (
            f"{sampler} + {report.chosen} is nearer to the {teacher_steps}-step reference than "
            f"what was learned: that standard schedule is returned"
        )
    standard = f"{sampler} + {best}"
    replaced = [_replaced(curve, curve.name == standard) for curve in report.compared]
    replaced = [text for text in replaced if text]
    parts = []
    if replaced:
        as_near = f"{steps} steps are as near to the {teacher_steps}-step reference as"
        parts.append(f"{as_near} {', or '.join(replaced)}")
    gain = _gain(report, best)
    if gain is not None:
        counted = any(standard in text for text in replaced)
        than = "it" if counted else f"the best standard schedule ({standard})"
        less = f"{gain:.0%}".replace("%", " %") + " less" if gain > LEAST_GAIN else "no less"
        parts.append(f"{less} error than {than} at {steps} steps")
    return "; ".join(parts)


def _replaced(curve: StepsCurve, is_best: bool) -> str:
    count, more = curve.equal_steps()
    if not count:
        return ""
    count_text = f"{'more than ' if more else ''}{count}"
    return (
        f"{count_text} of the best standard ({curve.name})"
        if is_best
        else (f"{count_text} steps of {curve.name}")
    )


def _gain(report: Report, best: str | None) -> float | None:
    """1 - error / error of the best standard schedule, both on the test noises."""
    error = report.baselines[best].test_error if best else None
    if not error or report.test_error is None:
        return None
    return 1 - report.test_error / error
