"""Little memory: a limit on what a process may map, so that whoever wants more than that is refused."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def mapped() -> int:
    """The bytes of address space that this process has mapped; Linux alone says so."""
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmSize:"))
    return int(line.split()[1]) << 10


@contextmanager
def little_memory(more: int) -> Iterator[None]:
    """Let this process map so many more bytes than it has, and no others: what wants them fails, as it would with
    ``ulimit -v``. Afterwards the limit is what it was."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
