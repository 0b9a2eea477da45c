"""Schedules that could not be saved, kept in memory until they can be.

A result of minutes or hours must not be lost to a full disk: it is returned all the same, and saved
when its workflow runs again.
"""

from __future__ import annotations

from ..schedule import Schedule

MOST_KEPT = 100
_kept: dict[str, tuple[Schedule, str]] = {}


def keep(schedule: Schedule, name: str) -> None:
    """Keep a schedule that belongs under a name; of too many the oldest is dropped."""
    _kept.pop(schedule.info.settings_hash, None)
    while len(_kept) >= MOST_KEPT:
        _kept.pop(next(iter(_kept)))
    _kept[schedule.info.settings_hash] = schedule, name


def taken(key: str) -> tuple[Schedule, str] | None:
    """The schedule of identical work and its name, no longer kept."""
    return _kept.pop(key, None)


def fingerprint() -> float | str:
    """For `fingerprint_inputs`: never the same while something is to be saved."""
    return float("nan") if _kept else ""
