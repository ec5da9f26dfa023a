"""Timings: every moment is in one step, and the steps of a commit tell where its time went."""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from subprocess import run

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coral import Repository
from coral.errors import CoralError, NothingToCommitError
from coral.timings import Stopwatch, step

Tree = list[tuple[str, "Tree"]]
TREES: st.SearchStrategy[Tree] = st.recursive(
    st.just([]), lambda inner: st.lists(st.tuples(st.sampled_from("abc"), inner), max_size=3), max_leaves=20
)


def walk(tree: Tree) -> int:
    """Go through nested steps; returns how many there were."""
    done = 0
    for name, inner in tree:
        with step(name):
            done += 1 + walk(inner)
    return done


@given(tree=TREES)
def test_every_moment_is_in_one_step(tree: Tree) -> None:
    """However steps are nested, each tick of the clock is counted once: the sum is what the outermost took."""
    ticks = itertools.count()
    stopwatch = Stopwatch(clock=lambda: float(next(ticks)))
    with stopwatch.running("outermost"):
        walk(tree)
    taken = stopwatch.take()
    assert taken.total == next(ticks) - 1 and all(seconds > 0 for seconds in taken.steps.values())
    assert stopwatch.take().steps == {}


def test_who_is_not_timed_is_not_noted() -> None:
    """A step outside of a stopwatch, or after it, belongs to nobody; one that fails is counted."""
    stopwatch = Stopwatch()
    with step("before"):
        pass
    with pytest.raises(ZeroDivisionError), stopwatch.running("outer"), step("inner"):
        raise ZeroDivisionError
    with step("after"):
        pass
    assert set(stopwatch.take().steps) == {"outer", "inner"}


def test_two_stopwatches_do_not_mix() -> None:
    """A repository that is committed to while another one commits has its own time."""
    first, second = Stopwatch(), Stopwatch()
    with first.running("a"), second.running("b"), step("c"):
        pass
    assert set(first.take().steps) == {"a"} and set(second.take().steps) == {"b", "c"}


@pytest.mark.parametrize("wait", [True, False])
def test_the_steps_of_a_commit(tmp_path: Path, wait: bool) -> None:
    """They are there, none took longer than all of it, and they are those of the last commit alone."""
    repo = Repository(tmp_path, init=True)
    assert repo.timings is None
    for value in range(2):
        began = time.perf_counter()
        weights = {"w": np.full((1000, 1000), value, "<f4")}
        if wait:
            repo.save(weights, step=value, tags=[f"v{value}"])
        else:
            repo.save(weights, step=value, tags=[f"v{value}"], wait=False).result()
        took = time.perf_counter() - began
    found = repo.timings
    assert found is not None and 0.5 * took < found.total <= took
    wanted = {"read, hash and encode tensors", "write and sync packs", "write git objects", "move the branch", "tag"}
    assert wanted | ({"copy the state"} if not wait else set()) <= set(found.steps)


def test_staging_belongs_to_the_commit_that_follows(tmp_path: Path) -> None:
    """Also where it came some calls before; what failed to be committed does not go over to the next."""
    repo = Repository(tmp_path, init=True)
    repo.stage_weights({"w": np.zeros(1000, "<f4")})
    repo.commit("one")
    assert repo.timings is not None and repo.timings.steps["read, hash and encode tensors"] > 0
    repo.stage_weights({"w": np.zeros(1000, "<f4")})
    with pytest.raises(NothingToCommitError):
        repo.commit("the same")
    repo.commit("two", allow_empty=True)
    assert "read, hash and encode tensors" not in repo.timings.steps


def test_what_failed_before_it_began_is_not_carried_over(tmp_path: Path) -> None:
    """A tag that is taken, or a state that cannot be kept, belongs to no later commit."""
    repo = Repository(tmp_path, init=True)
    repo.save({"w": np.zeros(1000, "<f4")}, step=0, tags=["v1"])
    for wrong in ({"tags": ["v1"]}, {"state": object()}):
        with pytest.raises(CoralError):
            repo.save({"w": np.zeros(1000, "<f4")}, step=1, **wrong)
    repo.commit("two", allow_empty=True)
    assert repo.timings is not None and "take the state apart" not in repo.timings.steps


def test_the_shell_shows_them(tmp_path: Path) -> None:
    """``coral commit --timings`` prints a table that adds up, or JSON."""
    np.save(tmp_path / "a.npy", np.zeros(10))
    coral = [sys.executable, "-m", "coral"]
    run([*coral, "init"], cwd=tmp_path, check=True, capture_output=True)
    commit = [*coral, "commit", "-m", "m", "--timings"]
    table = run([*commit, "a.npy"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    rows = [line.split(" ms")[0].strip() for line in table.splitlines() if " ms" in line]
    *steps, whole = [float(row.replace(",", "")) for row in rows]
    assert "start Python and coral" in table and sum(steps) == pytest.approx(whole, abs=2.0)
    said = run([*commit, "--allow-empty", "--json"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "move the branch" in json.loads(said)["timings"]
