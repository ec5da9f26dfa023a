"""Killed at any write, coral has what it acknowledged, log lines included, and goes on with nothing to unlock."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from coral.testing.processes import Warm
from coral.testing.syscalls import Action, Plan
from coral.testing.trace import Kind
from tests.torture.harness import RACING, age, checked, copy, kill_once, run_in, start
from tests.torture.planted import PLANTED_FOR_KILLS, PLANTED_FOR_RACES
from tests.torture.scenarios import SCENARIOS, Told

KILLS = 300
SEED = 1
ACTIONS: tuple[Action, ...] = ("kill before", "kill half", "kill after")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_kill_loses_nothing(warm: Warm, place: Path, template: Path, scenario: str) -> None:
    """From whatever write on the process is dead, what was acknowledged is there, and the next one goes on."""
    chance = random.Random(SEED)
    count = run_in(warm, "run_with", scenario, copy(template, place / "all"), Plan("short", -1))
    assert isinstance(count, int)
    killed = 0
    for _ in range(KILLS // len(SCENARIOS) + 1):
        plan = Plan(chance.choice(ACTIONS), chance.randrange(count))
        was_killed, wrong = kill_once(warm, scenario, template, place / "killed", plan)
        killed += was_killed
        assert not wrong, (plan, wrong)
    assert killed > KILLS // len(SCENARIOS) // 2


@pytest.mark.parametrize("bug", PLANTED_FOR_KILLS)
def test_kills_find_a_planted_bug(warm: Warm, place: Path, template: Path, bug: str) -> None:
    """A harness that finds nothing proves nothing: each of these bugs is found."""
    scenario, _ = PLANTED_FOR_KILLS[bug]
    kinds: frozenset[Kind] = frozenset({"write", "rename", "unlink", "link"})
    for number in range(150):
        plan = Plan(ACTIONS[number % 3], number, kinds=kinds)
        if kill_once(warm, scenario, template, place / "killed", plan, bug=bug)[1]:
            return
    raise AssertionError("not found")


def test_a_leftover_lock_costs_a_moment(warm: Warm, place: Path, template: Path) -> None:
    """Whoever comes right after a kill waits for the lock file that it left, a few seconds at most."""
    plan = Plan("kill after", 0, kinds=frozenset({"link"}))
    project = copy(template, place / "killed")
    ended = warm.run("tests.torture.harness:run_with", "branch", project, plan)
    assert not ended.finished and list(project.rglob("*.lock"))
    assert not checked(project, ended.told, power=False)


def raced(warm: Warm, project: Path, bug: str | None) -> tuple[int, list[str]]:
    """Have two processes commit to one branch; how many commits landed, and what is wrong."""
    told: list[Told] = []

    def work(process: Warm, number: int) -> None:
        told.extend(process.run("tests.torture.harness:race", project, number, bug).told)

    other = start(project.parent)
    assert other is not None
    with other:
        run_in(other, "nothing")
        threads = [threading.Thread(target=work, args=job) for job in ((warm, 1000), (other, 2000))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    age(project)
    return len(told), checked(project, told, power=False)


def test_processes_that_commit_at_once_lose_nothing(place: Path, template: Path, warm: Warm) -> None:
    """Two processes commit to one branch; every commit is there."""
    assert raced(warm, copy(template, place / "race"), None) == (2 * RACING, [])


def test_a_race_finds_a_planted_bug(place: Path, template: Path, warm: Warm) -> None:
    """Without compare-and-swap commits are lost, and it shows: at the latest when the two do meet."""
    (bug,) = PLANTED_FOR_RACES
    assert any(raced(warm, copy(template, place / "race"), bug)[1] for _ in range(10))
