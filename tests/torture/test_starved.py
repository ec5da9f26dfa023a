"""With too little memory whatever fails is an error, and what was acknowledged is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coral.testing.processes import Warm
from tests.torture.harness import MODULES, ROOT
from tests.torture.starved import starve, why_not

SEEDS = range(6)
# Commits beside the caller, and whatever else needs a thread, are in the long form.
SCENARIOS = ("branch", "checkout")


@pytest.fixture(scope="module")
def plain() -> Iterator[Warm]:
    """A process that has all that scenarios need."""
    if (why := why_not()) is not None:
        pytest.skip(f"NOT TESTED: {why}")
    with Warm(None, (*MODULES, "tests.torture.starved"), folder=ROOT) as warm:
        yield warm


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_too_little_memory(plain: Warm, place: Path, template: Path, scenario: str) -> None:
    """Nothing acknowledged is lost; with enough memory what was open and what is opened anew both work."""
    assert not [one for seed in SEEDS for one in starve(plain, scenario, template, place / "starved", seed)[1]]
