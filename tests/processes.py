"""Python programs in processes of their own, for what one process cannot show."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start_python(code: str, *arguments: object, under: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A fresh Python that runs this code with these arguments."""
    return subprocess.Popen(
        [*under, sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_python(code: str, *arguments: object, under: tuple[str, ...] = ()) -> str:
    """What that Python printed; it has to end well."""
    process = start_python(code, *arguments, under=under)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out


_NO_THREADS = """
    import resource, sys, threading
    def no_threads():
        size = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 20), resource.RLIM_INFINITY))
        try:
            threading.Thread(target=print).start()
        except RuntimeError:
            return
        raise SystemExit("threads can be had all the same")
    def again():
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""


def without_threads(code: str, *arguments: object) -> str:
    """What code prints that may call `no_threads` and `again`."""
    return run_python(textwrap.dedent(_NO_THREADS) + textwrap.dedent(code), *arguments)
