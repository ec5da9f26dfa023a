"""Fuzz: whatever is made of sound input, a reader gives an answer or an error of coral's, soon and in bounded memory.

Hypothesis chooses the changes, the same every time; ``python -m tests.torture --only fuzz`` has chance choose them,
which is faster by far.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.torture.fuzz import MOST_CHANGES, PARTS, READERS, SMALL, Change, Fuzzed, sweep
from tests.torture.hostile import GROWTH

EXAMPLES = 120
_PLACE = st.floats(0, 1, exclude_max=True)
_CHANGE = st.one_of(
    *(st.tuples(st.just(kind), _PLACE, st.integers(*bounds)) for kind, bounds in SMALL.items()),
    *(st.tuples(st.just(kind), _PLACE, st.sampled_from(parts)) for kind, parts in PARTS.items()),
)


@pytest.fixture(scope="module", autouse=True)
def swept() -> Iterator[None]:
    """What was made in memory is removed."""
    yield
    sweep()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", READERS)
def test_a_reader_survives(kind: str) -> None:
    """An answer, or an error of coral's, within a second; and no more memory than an honest file would take."""
    fuzzed = Fuzzed(kind)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 11), st.lists(_CHANGE, min_size=1, max_size=MOST_CHANGES))
    def survives(which: int, changes: list[Change]) -> None:
        fuzzed.survives(which, changes)

    survives()
    assert fuzzed.grown() <= GROWTH
