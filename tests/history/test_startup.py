"""Reading the history stays light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from coral.history import history as history_module


def test_imports() -> None:
    """The history loads none of the heavy libraries."""
    program = (
        "import sys, coral.history.history\n"
        "print([name for name in ('numpy', 'torch', 'git', 'asyncio', 'difflib', 'rich') if name in sys.modules])"
    )
    root = Path(history_module.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    program = "import sys, coral.git.enclosing; print('pygit2' in sys.modules, 'git' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
