"""The same as ``coral.testing.disks``, at the system calls: so that what libgit2 writes is seen as well.

A small library in C is loaded before the C library of a process (Linux, ``LD_PRELOAD``); it is compiled when it is
first wanted. ``coral.testing.processes`` starts such processes.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coral.errors import StorageError
from coral.testing.trace import CHANGES, Kind, mask

Action = Literal["nothing", "kill before", "kill half", "kill after", "fail", "short"]
_ACTIONS: tuple[Action, ...] = ("nothing", "kill before", "kill half", "kill after", "fail", "short")
_SOURCE = Path(__file__).with_name("shim.c")
NAME = "coral_shim.so"


@dataclass(frozen=True)
class Plan:
    """What is to happen at which call.

    Attributes:
        action: ``half`` and ``short`` write the first half of the bytes.
        at: the number of the call, from 0, among those of ``kinds``.
        errno: what a call that fails says.
        forever: whether every later one fails too.
    """

    action: Action = "nothing"
    at: int = 0
    errno: int = 0
    forever: bool = False
    kinds: frozenset[Kind] = CHANGES


def compiler() -> str | None:
    """The C compiler of this machine; None where there is none, or where a library cannot be put in front."""
    return (shutil.which("gcc") or shutil.which("cc")) if Path("/proc/self/fd").is_dir() else None


def build(folder: Path) -> Path:
    """Compile the library into a folder; returns its path. Raises StorageError."""
    program, library = compiler(), folder / NAME
    if program is None:
        raise StorageError("there is no C compiler here, or this is not Linux")
    command = [program, "-O2", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl", "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StorageError(f"{_SOURCE.name} does not compile: {done.stderr[:400]}")
    return library


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    library.coral_count.restype = ctypes.c_long
    library.coral_mark.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    library.coral_plan.argtypes = [ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_uint]
    return library


def watch(folder: Path, *, log: int = -1) -> None:
    """Watch what is changed below a folder from now on; write what succeeds to a file descriptor."""
    _library().coral_watch(os.fsencode(folder.resolve()), log)


def environment(library: Path, folder: Path, log: int) -> dict[str, str]:
    """What to put into the environment of another program, so that it and all it starts are watched as well.

    Args:
        library: what :func:`build` made.
        log: a descriptor that the program must inherit.
    """
    return {"LD_PRELOAD": str(library), "CORAL_SHIM": f"{log}:{folder.resolve()}"}


def arm(plan: Plan) -> None:
    """Carry out a plan from now on, counting from 0."""
    which = mask(plan.kinds)
    _library().coral_plan(_ACTIONS.index(plan.action), plan.at, plan.errno, plan.forever, which)


def lie(pattern: str) -> None:
    """Say yes to each fsync of a path that matches (``*`` matches slashes too), and do nothing."""
    _library().coral_lie(os.fsencode(pattern))


def count() -> int:
    """How many calls were counted since :func:`arm` with a plan other than to do nothing."""
    return int(_library().coral_count())


def mark(data: bytes) -> None:
    """Write a mark into the log, in its place among the calls."""
    _library().coral_mark(data, len(data))
