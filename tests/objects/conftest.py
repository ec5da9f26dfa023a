"""What the tests of the store share: a disk that does not wait, and an empty store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coral.objects import ChunkStore
from coral.storage import disk
from coral.testing.disks import Unsynced
from tests.objects.helpers import open_store


@pytest.fixture
def no_fsync() -> Iterator[None]:
    """For tests of which what is durable is no matter: hundreds of commits would wait for the disk."""
    with disk.use(Unsynced()):
        yield


@pytest.fixture
def store(tmp_path: Path) -> ChunkStore:
    """An empty store."""
    return open_store(tmp_path)
