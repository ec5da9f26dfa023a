"""Eight processes commit to one branch while four read and one collects in a loop: all is reachable, in order.

Run ``python -m tests.torture --only races`` for two hundred commits each.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture.races import COLLECTING, race


@pytest.mark.parametrize("how", COLLECTING)
def test_collecting_beside_writers_and_readers(place: Path, how: str) -> None:
    """No process meets an error, and every commit is there with its bytes, in the order in which it was made."""
    assert not race(place / f"beside, {how}", how, 20)
