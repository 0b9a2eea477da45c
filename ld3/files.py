"""Files read with bounds and written whole, in folders that others use too.

A folder of models is shared with other programs, other servers and the remains of crashes: names
may be folders or pipes, sizes anything, and a file may change while it is read.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

LEFTOVER_SECONDS = 600.0  # a write takes milliseconds; clocks of shared folders differ
PROBE_BYTES = 65_536  # more than a schedule has
TEMPORARY = ".ld3-{}.tmp"
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK}
"""Errors of file systems without hard links, such as FAT and some network drives."""


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """A regular file's contents, copied; nothing of a larger one is read.

    Raises:
        OSError: no such file, too large, or a folder, pipe or device.
    """
    # opening a pipe would wait for its writer
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a file")
        data = file.read(most_bytes + 1) if status.st_size <= most_bytes else b""
        size = max(status.st_size, len(data))
        if size > most_bytes:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, {most_bytes:,} are allowed")
        return data


def write_new(folder: Path, name: str, extension: str, data: bytes) -> Path:
    """Write a file under the first free name of name, name_2, name_3, ..; returns its path.

    It appears complete or not at all, and never replaces another, whoever else writes there. What
    crashes left in the folder is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder, extension)
    temporary = _written(folder, data)
    try:
        number = 1
        while True:
            path = folder / f"{name}{'' if number == 1 else f'_{number}'}{extension}"
            try:
                _move_to_new(temporary, path)
                return path
            except FileExistsError:
                number += 1
    finally:
        temporary.unlink(missing_ok=True)


def rename(path: Path, new: Path) -> None:
    """Rename a file; FileExistsError if there is one of the new name, whoever made it when."""
    _move_to_new(path, new)
    path.unlink(missing_ok=True)


def replace(path: Path, data: bytes) -> None:
    """Write a file, or all of its contents anew; readers see the old contents or the new.

    Whoever is killed in between: only a power cut can leave part of it, which is why such files
    have checksums.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _written(path.parent, data, sync=False)
    try:
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raise OSError unless a file can be written there now."""
    folder.mkdir(parents=True, exist_ok=True)
    _written(folder, bytes(PROBE_BYTES)).unlink()


def remove_leftovers(folder: Path, extension: str) -> None:
    """Remove what crashes left: temporary files, and names that were reserved but never filled."""
    for path in folder.iterdir():
        with suppress(OSError):
            status = path.lstat()
            temporary = path.match(TEMPORARY.format("*"))
            reserved = path.suffix == extension and not status.st_size
            # whatever the clock did in between
            old = abs(time.time() - status.st_mtime) > LEFTOVER_SECONDS
            if stat.S_ISREG(status.st_mode) and old and (temporary or reserved):
                path.unlink()


def _written(folder: Path, data: bytes, sync: bool = True) -> Path:
    """A temporary file with these contents; with `sync` on the disk itself."""
    path = folder / TEMPORARY.format(uuid4().hex)
    try:
        with path.open("xb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _move_to_new(temporary: Path, path: Path) -> None:
    """Rename, or raise FileExistsError."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        path.open("xb").close()  # reserves the name
        try:
            os.replace(temporary, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
