"""Reading small files that may be anything: no pipe is waited for, and no more is read than could be meant."""

from __future__ import annotations

import os
import stat

from coral.errors import CorruptionError
from coral.storage.files import translate_errors
from coral.storage.folder import Folder


def read_bounded(folder: Folder, key: str, limit: int) -> bytes:
    """The bytes of a regular file.

    Raises:
        NotFoundError: there is none.
        CorruptionError: a device, a pipe or a folder stands there, or the file is longer than ``limit``.
    """
    path = folder.path(key)
    with translate_errors(path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb", buffering=0) as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise CorruptionError(f"{path} is not a regular file")
            if status.st_size > limit:
                raise CorruptionError(f"{path} has {status.st_size:,} bytes; at most {limit:,} can be meant")
            pieces = []
            left = limit
            while left and (piece := file.read(min(left, 1 << 20))):
                pieces.append(piece)
                left -= len(piece)
            return b"".join(pieces)
