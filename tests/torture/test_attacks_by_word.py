"""Attacks by name: whatever runs, commits and names say, the terminal obeys none of it, and it costs little."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coral import Repository
from coral.experiments import ExperimentTracker
from coral.history.commit import CommitObject
from coral.ids import CommitHash
from tests.torture.hostile import attempt, nested, run_cli, watched

# -- what is shown

ESCAPES = "\x1b]0;pwned\x07\x1b[2J\x9b31m\u202etxt.exe\x1b[8m\r"
_COLOURS = re.compile("\x1b\\[(?:[012]|3[0-7]|9[0-7])?m")


def obeyed(text: str) -> list[str]:
    """The characters of a text that a terminal would obey, colours and line breaks left aside."""
    return [char for char in _COLOURS.sub("", text) if not (char.isprintable() or char in "\n\t")]


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_escape_sequences_are_shown(
    repo: Repository, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    """Messages, authors, names of tensors, branches, runs, metrics, tags and artifacts, and reflogs: no command sends
    what a terminal would obey; the text around it is readable."""
    repo.stage_weights({f"w{ESCAPES}": np.ones(9, "f4")}, metadata={ESCAPES: ESCAPES})
    made = repo.commit(f"message {ESCAPES}", author=f"{ESCAPES} <x@y>").commit_hash
    (repo.folder.root / ".git/refs/heads" / "b\x9b31m\u202etxt").write_text(made + "\n")
    with ExperimentTracker(repo).start("a run", f"why {ESCAPES}", {ESCAPES: ESCAPES}, [f"t{ESCAPES}"]) as run:
        run.log(f"loss{ESCAPES}", 1.0)
        run.set_notes(ESCAPES)
    if terminal:
        monkeypatch.setattr("click._compat.should_strip_ansi", lambda *_: False)
        monkeypatch.setattr("click.utils.should_strip_ansi", lambda *_: False)
    commands = [
        *(["log"], ["log", "--oneline"], ["log", "--json"], ["show"], ["diff", "HEAD~1"], ["ls", "-l"], ["reflog"]),
        *(["branch", "-v"], ["status"], ["cat", f"w{ESCAPES}"], ["checkout", "HEAD"], ["log", ESCAPES]),
        *(["exp", "list"], ["exp", "show", run.experiment_id], ["exp", "best", f"loss{ESCAPES}", "--mode", "min"]),
        *(["exp", "summary"], ["exp", "params", run.experiment_id], ["exp", "lineage", run.experiment_id]),
        *(["exp", "best", f"none{ESCAPES}"], ["fsck"], ["switch", f"x{ESCAPES}"], ["exp", "show", ESCAPES]),
    ]
    for words in commands:
        run_cli(*words, folder=repo.path)
        told = capfd.readouterr()
        assert told.out + told.err, words
        assert not obeyed(told.out) and not obeyed(told.err), (words, told)


# -- forged experiments


def forge(repo: Repository, run: str, **changes: object) -> None:
    """Rewrite fields of a run's file, in a file that somebody formatted anew."""
    path = repo.folder.root / "experiments" / f"{run}.json"
    data = json.loads(path.read_text())
    for place, fields in changes.items():
        data[place].update(fields)
    path.write_text(json.dumps(data, indent=1))


FORGED: dict[str, dict[str, dict[str, object]]] = {
    "an id that is a path": {"summary": {"id": "../../x"}, "experiment": {"experiment_id": "../../x"}},
    "a parent that is itself": {"summary": {"parent": "SELF"}, "experiment": {"parent_experiment": "SELF"}},
    "a parent that is a path": {"experiment": {"parent_experiment": "../../../outside/precious"}},
    "a commit that is an option": {"experiment": {"commit_hash": "--all"}},
    "a time beyond the calendar": {"experiment": {"parameter_history": [{"t": 10**300, "params": {}}]}},
    "a count of a thousand digits": {"experiment": {"dropped_points": 10**4000}},
    "an artifact elsewhere": {
        "experiment": {"artifacts": [{"name": "../x", "kind": "file", "nbytes": 1, "ref": "hex:00", "t": 1}]}
    },
    "an artifact of exabytes": {
        "experiment": {"artifacts": [{"name": "x", "kind": "file", "nbytes": 1 << 60, "ref": "b3:" + "0" * 64, "t": 1}]}
    },
    "a run of 2**62 steps": {
        "history": {"series": {"loss": {"steps": [[0, 1 << 62, 1]], "times": [1], "values": [1.0]}}}
    },
    "an order of 2**62 points": {"history": {"order": [[[0], 1 << 62]]}},
    "a metric that is text": {"history": {"series": {"loss": {"steps": [[0, 1, 0]], "times": [1], "values": ["x"]}}}},
    "a status of its own": {"experiment": {"status": "glorious"}},
    "params that are a list": {"experiment": {"params": [1]}},
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_run(repo: Repository, outside: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A run's file from elsewhere is read as what it says or refused; nothing it names is looked up as a path."""
    with ExperimentTracker(repo).start("a run") as run:
        run.log("loss", 1.0, step=1)
    run_id = run.experiment_id
    forge(repo, run_id, **json.loads(json.dumps(FORGED[kind]).replace("SELF", run_id)))
    tracker = ExperimentTracker(repo)
    calls: list[Callable[[], object]] = [
        lambda: tracker.get(run_id).to_dict(history=True),
        lambda: tracker.find_best("loss", "min"),
        lambda: str(tracker.lineage(run_id)),
        lambda: tracker.get(run_id).load_artifact("x"),
        lambda: tracker.get(run_id).download_artifact("../x", outside),
        lambda: tracker.resume(run_id).end(),
        lambda: tracker.compare([run_id, run_id]),
        lambda: run_cli("exp", "show", run_id, folder=repo.path),
        lambda: tracker.delete(run_id),
        lambda: tracker.trash(),
    ]
    with watched(outside, seconds=6):
        for call in calls:
            attempt(call)


@pytest.mark.parametrize("circle", [True, False], ids=["in a circle", "in a row"])
def test_a_thousand_runs_that_descend_from_each_other(repo: Repository, outside: Path, circle: bool) -> None:
    """A forged family, in a circle or in a row, is drawn as far as families go."""
    tracker = ExperimentTracker(repo)
    with tracker.start("a run") as run:
        run.log("loss", 1.0)
    source = (repo.folder.root / "experiments" / f"{run.experiment_id}.json").read_text().replace('"check"', '"chalk"')
    for number in range(1200):
        parent = f'"{(number + 1) % 1200:012x}"' if circle or number < 1199 else "null"
        text = source.replace(run.experiment_id, f"{number:012x}").replace('"parent":null', f'"parent":{parent}')
        text = text.replace('"parent_experiment":null', f'"parent_experiment":{parent}')
        (repo.folder.root / "experiments" / f"{number:012x}.json").write_text(text)
    with watched(outside, seconds=30):
        for number in (0, 600, 1199):
            family = ExperimentTracker(repo).lineage(f"{number:012x}")
            assert len(family.ancestors) == (200 if circle else min(200, 1199 - number))
            assert 200 <= len(str(family).splitlines()) <= 402


# -- forged trailers

TRAILERS = {
    "steps": f"Coral-Step: {'9' * 5000}",
    "metrics": "Coral-Metrics: " + nested(100_000),
    "numbers": 'Coral-Metrics: {"a": 1e999, "b": ' + "9" * 5000 + "}",
    "metadata": 'Coral-Metadata: {"a": ' + "[" * 5000,
    "a run that is a path": "Coral-Run: ../../outside/precious",
    "escapes": "Coral-Run: %ZZ%1B%F0",
    "a root": "Coral-Root: " + "0" * 64,
    "a thousand": "\n".join(f"Coral-X{number}: y" for number in range(5000)),
    "spaces": "Coral-Step:" + " " * 100_000 + "1",
}


@pytest.mark.parametrize("kind", TRAILERS)
def test_forged_trailers(repo: Repository, outside: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A commit that another program wrote says what it says; what makes no sense is no step, metric or run."""
    tip = repo.history.commit(repo.resolve("HEAD"))
    text = f"subject\n\n{TRAILERS[kind]}\n"
    tree = repo.history._object(tip.commit_hash).tree
    data = CommitObject(tree, (tip.commit_hash,), "A <a@x>", 1, 0, 1, text).to_bytes()
    made = CommitHash(repo.history._handle.write("commit", data))
    repo.history.create_branch("forged", made)
    with watched(outside, seconds=4):
        found = next(iter(repo.log("forged")))
        assert found.subject == "subject" and (found.step is None or kind == "spaces")
        assert found.metrics.keys() <= {"a"} and (kind == "numbers" or not found.metrics)
        assert isinstance(found.metadata, dict)
        attempt(lambda: ExperimentTracker(repo).runs_for("forged"))
        for words in (["log", "forged"], ["show", "forged"], ["log", "--json", "forged"]):
            assert run_cli(*words, folder=repo.path) == 0
