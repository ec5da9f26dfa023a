"""Fuzz that is led by what the code does: ``python -m tests.torture.guided READER [OPTIONS OF LIBFUZZER]``.

Needs atheris, which is no dependency of coral's (``pip install atheris``; Linux): it counts the branches that each
input takes, and goes on from those that take new ones. ``-runs=100000`` ends it; an input that fails is written to
the current folder. ``python -m tests.torture --only guided`` does so in slices, for all readers; ``--only fuzz`` needs
nothing else, and draws changes by chance.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

_LIMITS = ["-timeout=5", "-rss_limit_mb=800", "-max_len=65536"]


def main() -> None:
    """Fuzz a reader until it fails, or the options say so; the process ends with it."""
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: pip install atheris")
    with atheris.instrument_imports(include=["coral"], enable_loader_override=False):
        from tests.torture.fuzz import READERS, Fuzzed
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:
        sys.exit(f"usage: python -m tests.torture.guided READER [OPTIONS]; a reader is one of: {', '.join(READERS)}")
    reader = Fuzzed(sys.argv[1])
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="coral-") as corpus:
        for number, data in enumerate(reader.sound):
            Path(corpus, str(number)).write_bytes(data)
        atheris.Setup([sys.argv[0], *_LIMITS, *sys.argv[2:], corpus], reader.read)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
