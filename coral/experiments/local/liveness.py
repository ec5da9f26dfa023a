"""Who runs a run, and whether that process still lives: its lock, its pid and start time, the machine's boot.

The lock says it: it dies with the process, and a forked child does not inherit it. The pid with its start time
stands in where locks fail (some network file systems), and the boot id tells a reused pid from an old one.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from coral.experiments.experiment import Owner
from coral.experiments.local.record import Identity
from coral.storage.locks import ProcessLock, is_held

# Asking for a lock that this very process holds would drop it (POSIX), so the holder remembers: by the file's real
# name, because a repository may be opened by two paths.
_held: dict[str, tuple[int, ProcessLock]] = {}


@functools.cache
def boot_id() -> str:
    """The id of the machine's boot; empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def start_time(pid: int) -> str:
    """The kernel's start time of a living process; empty when there is none, or the system does not say."""
    try:
        # The command's name may hold spaces and parentheses; the state and the times follow the last one.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


def myself(owner: Owner) -> Identity:
    """This process's identity."""
    pid = os.getpid()
    return Identity(owner, pid, start_time(pid), boot_id(), os.uname().nodename)


def hold(path: Path) -> None:
    """Say "this process lives" on a lock file until :func:`release`. Raises LockedError, StorageError."""
    if not holds(path):
        _held[os.path.realpath(path)] = os.getpid(), ProcessLock(path)


def holds(path: Path) -> bool:
    """Whether this process holds the lock file; a forked child does not."""
    held = _held.get(os.path.realpath(path))
    return held is not None and held[0] == os.getpid()


def release(path: Path) -> None:
    """Drop the lock; harmless when it is not held by this process."""
    if holds(path):
        _held.pop(os.path.realpath(path))[1].release()


def is_alive(who: Identity, lock: Path) -> bool:
    """Whether the run's owner lives, as far as this machine can know.

    A run of the shell has no owner that could die; a run of another machine is taken to live.
    """
    if who.owner == "shell" or holds(lock):
        return True
    same_host = who.host == os.uname().nodename
    same_boot = bool(who.boot) and who.boot == boot_id()
    if not same_boot and not same_host:
        return True
    try:
        if is_held(lock):
            return True
    except OSError:  # a file system without locks: the pid has to say it, which means nothing in another container
        if not same_host:
            return True
    if not same_host or (who.boot and not same_boot):
        return False
    return who.start == start_time(who.pid) if who.start else _exists(who.pid)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
