"""Whatever a power cut leaves, what was acknowledged is there, bit for bit, and work goes on.

Run ``python -m tests.torture`` for many more states; see ``coral.testing.crash`` for what a disk may lose.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from coral.testing.processes import Warm
from tests.torture.harness import bad_states, copy, recorded, run_in
from tests.torture.planted import PLANTED
from tests.torture.scenarios import SCENARIOS

STATES = 170
SEED = 1


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_power_cut_loses_nothing(warm: Warm, place: Path, template: Path, scenario: str) -> None:
    """From every state the repository opens, is sound, holds what was acknowledged, and takes the next commit."""
    project, log = copy(template, place / scenario), place / f"{scenario}.log"
    run_in(warm, "record", scenario, project, log)
    count = 0
    for state, wrong in bad_states(project, template, recorded(log), place / "states", limit=STATES, seed=SEED):
        count += 1
        assert not wrong, (state.cut, state.loss, wrong)
    assert count > 50


@pytest.mark.parametrize("bug", PLANTED)
def test_the_states_find_a_planted_bug(warm: Warm, place: Path, template: Path, bug: str) -> None:
    """A harness that finds nothing proves nothing: each of these bugs is found."""
    scenario, _ = PLANTED[bug]
    project = copy(template, place / "planted")
    assert run_in(warm, "hunt", bug, scenario, project, template, place / "planted.log", 800, SEED) is not None
