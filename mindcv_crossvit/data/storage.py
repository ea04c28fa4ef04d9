"""Bytes of files that may be anything, on storage that may stumble: no picture hangs a run, none is lost by it."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from typing import TypeVar

from ..errors import MachineError
from .images import BadImage

T = TypeVar("T")
LARGEST = 1 << 30
"""Bytes of a picture's file; Pillow refuses more pixels than 0.7 GB hold in any of its formats."""
WAITS = (0.2, 1.0, 4.0)
"""Seconds before each further try of storage that gave an error."""
OF_THE_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM}
OF_THE_FILE |= {errno.ENXIO, errno.ENODEV}
"""Errors that say something about the file; all others, EIO and ESTALE for example, about what it lies on."""
KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def read_picture(path: str) -> bytes:
    """The bytes of a picture's file. Raises BadImage for one that can be none, MachineError for its storage."""
    return patiently(lambda: _read(path), path)


def patiently(read: Callable[[], T], name: str) -> T:
    """What `read` gives, asked again when it raises an OSError of the storage.

    Raises BadImage with the name for an error of the file, MachineError when the last try failed, too.
    """
    waits = list(WAITS)
    while True:
        try:
            return read()
        except OSError as error:
            said = error.strerror or str(error)
            if error.errno in OF_THE_FILE:
                raise BadImage(name, said) from error
            if not waits:
                tries = f"{len(WAITS) + 1} times in {sum(WAITS):g} s"
                raise MachineError(f"{name}: {said}, {tries}: the storage fails") from error
        time.sleep(waits.pop(0))


def _read(path: str) -> bytes:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for somebody to write
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise BadImage(
                path, f"no file with a picture, but {KINDS.get(stat.S_IFMT(status.st_mode), 'something else')}"
            )
        if status.st_size > LARGEST:
            raise BadImage(path, f"{status.st_size:,} bytes, more than {LARGEST:,}")
        return file.read(status.st_size + 1)  # what is no file on a disk, /proc/self/mem for example, has the size 0
