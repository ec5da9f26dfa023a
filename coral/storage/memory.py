"""How much memory this process may still take."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_memory() -> int:
    """Bytes that could be taken without swapping, as the kernel and the process's container tell; 0 if neither does."""
    found = [_available()]
    for limit, usage in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # no such container, or no limit ("max")
            found.append(int(Path(limit).read_text()) - int(Path(usage).read_text()))
    return max(0, min(found))


def _available() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(ValueError, OSError):  # macOS: half of what the machine has
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return 0
