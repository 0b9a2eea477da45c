"""A schedule as one line of text, to paste into a message and back."""

from __future__ import annotations

import base64
import binascii
import zlib

from .schedule import Schedule
from .schedule_file import ScheduleFileError, decoded, encoded

PREFIX = "ld3:1:"
MOST_LETTERS = 2_000_000
MOST_BYTES = 8_000_000  # unpacked; keeps a hostile line from filling memory


def as_line(schedule: Schedule) -> str:
    """All of a schedule's file in letters, digits, "-" and "_"."""
    packed = zlib.compress(encoded(schedule), 9)
    return PREFIX + base64.urlsafe_b64encode(packed).decode().rstrip("=")


def from_line(line: str, name: str) -> Schedule:
    """The schedule of a line; ScheduleFileError says what is wrong with it."""
    line = "".join(line.split())  # messages break long lines
    if not line.startswith(PREFIX) or len(line) > MOST_LETTERS:
        raise ScheduleFileError(
            f"this is no schedule: the line begins with {PREFIX!r}; copy all of it"
        )
    letters = line.removeprefix(PREFIX)
    try:
        packed = base64.b64decode(letters + "=" * (-len(letters) % 4), b"-_", validate=True)
        unpacking = zlib.decompressobj()
        data = unpacking.decompress(packed, MOST_BYTES)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise ScheduleFileError(f"the line is damaged ({error}); copy all of it") from error
    if not unpacking.eof:
        raise ScheduleFileError("the line is cut off; copy all of it")
    return decoded(data, name)
