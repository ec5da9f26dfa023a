"""What every test shares: a home folder of its own and patient property tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Who starts the tests in the background may have Ctrl-C ignored, and the processes they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no failure; the examples are counted, not timed.
settings.register_profile("coral", deadline=None)
settings.load_profile("coral")


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads the developer's git identity, git hooks or coral settings."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("GIT_", "CORAL_")):
                patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        yield
