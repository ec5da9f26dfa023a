"""Damaged and forged files of runs: what they say is right, or there is an error; nothing wrong is returned."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path

import pytest

from coral.errors import CoralError, CorruptionError
from coral.experiments import ExperimentTracker
from coral.experiments.columns import MetricColumns
from coral.experiments.events import Fold
from coral.experiments.experiment import Experiment
from coral.experiments.local.check import damaged_runs
from coral.experiments.local.journal import encode
from coral.experiments.local.record import SUMMARY
from coral.experiments.scalars import Json
from coral.repository import Repository
from coral.testing.memory import little_memory
from coral.testing.processes import Note, Warm
from coral.verbs.runs import run_ids

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ended(repo: Repository, tracker: ExperimentTracker) -> Path:
    """The file of a run that has ended, of which every kind of field says something."""
    with tracker.start("a run", "why", {"lr": 0.5, "opt": {"name": "adam"}}, ["tag"], notes="note") as run:
        for step in range(5):
            run.log("loss", 1.5 / (step + 1), step=step, metadata={"split": "test"} if step == 2 else None)
        run.log_text("text", "note.txt")
    return repo.folder.root / "experiments" / f"{run.experiment_id}.json"


def everything(repo: Repository, path: Path) -> list[object]:
    """All that can be asked of a run: by its id, by a query, and its points. Raises CoralError."""
    tracker = ExperimentTracker(repo)
    best = tracker.find_best("loss", "min")
    if not best:
        raise CorruptionError("left out")
    run = tracker.get(path.stem)
    return [run.to_dict(history=True), dict(best[0]), tracker.get_summary(), [one.name for one in tracker.list()]]


def test_every_flipped_byte_of_a_run_is_noticed(repo: Repository, ended: Path) -> None:
    """Of a run that has ended no byte can change what is returned: values, names, steps, times, commits."""
    sound, data = everything(repo, ended), ended.read_bytes()
    noticed = 0
    for place in range(len(data)):
        ended.write_bytes(data[:place] + bytes([data[place] ^ (1, 4, 0x20)[place % 3]]) + data[place + 1 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = everything(repo, ended)
            except CoralError:
                noticed += 1
            else:
                assert found == sound, place
    assert noticed > len(data) - 30


def ask_with_little_memory(note: Note, project: Path, run: str) -> str:
    """What becomes of a question for a run, by a process that may have 64 MB more."""
    repo = Repository(project)
    ExperimentTracker(repo).list()
    with little_memory(64 << 20), pytest.raises(CorruptionError) as told:
        ExperimentTracker(repo).get(run)
    return str(told.value)


@pytest.mark.skipif(sys.platform != "linux", reason="NOT TESTED: limits on memory are Linux's")
def test_a_damaged_run_costs_what_its_bytes_cost(repo: Repository, ended: Path) -> None:
    """A file that does not begin as it should is read as one that somebody formatted anew, and no more memory is taken
    for that than it has bytes."""
    ended.write_bytes(b"\0" + ended.read_bytes()[1:])
    with Warm(None, [__name__], folder=ROOT) as warm:
        told = warm.run(f"{__name__}:ask_with_little_memory", repo.path, ended.stem)
    assert told.error is None and "is not the file of a run" in str(told.result)


def test_a_run_of_an_older_coral_is_read(repo: Repository, ended: Path) -> None:
    """A file without checksums says what it said when it was written."""
    sound, text = everything(repo, ended), ended.read_text()
    ended.write_text(re.sub(r',"check":"[0-9a-f]{48}"}', "}", text, count=1))
    assert len(ended.read_text()) < len(text)
    assert everything(repo, ended) == sound


def test_a_flipped_byte_of_a_journal_is_told(repo: Repository, tracker: ExperimentTracker) -> None:
    """A point that damage took from a living run is missed: there is a warning, and the run says how many."""
    run = tracker.start("a run")
    for step in range(5):
        run.log("loss", 1.0 - step, step=step)
    path = repo.folder.root / "experiments" / f"{run.experiment_id}.jsonl"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"loss":-1.0', b'"loss":-7.0'))
    with pytest.warns(RuntimeWarning, match="1 lines of the journal"):
        seen = ExperimentTracker(repo).get(run.experiment_id)
    assert [point.value for point in seen.metrics] == [1.0, 0.0, -2.0, -3.0] and seen.dropped_points == 1
    with pytest.warns(RuntimeWarning, match=run.experiment_id):
        run.end()
    assert ExperimentTracker(repo).get(run.experiment_id).dropped_points == 1


@pytest.mark.parametrize("link", [True, False], ids=["link", "pipe"])
def test_a_journal_that_is_no_file(repo: Repository, tracker: ExperimentTracker, tmp_path: Path, link: bool) -> None:
    """A link in a journal's place is not followed and a pipe is not waited for; the other runs are there."""
    import os

    with tracker.start("good") as run:
        run.log("loss", 1.0)
    (repo.folder.root / "experiments" / f"{run.experiment_id}.json").read_text()
    live = tracker.start("live", owner="shell")
    path = repo.folder.root / "experiments" / f"{live.experiment_id}.jsonl"
    live.close()
    path.unlink()
    (tmp_path / "secret").write_bytes(encode({"e": "m", "t": 1, "v": {"loss": -5.0}}))
    path.symlink_to(tmp_path / "secret") if link else os.mkfifo(path)
    found = ExperimentTracker(repo).find_best("loss", "min")
    assert [(one["name"], one["best_value"]) for one in found] == [("good", 1.0)]


def nested(depth: int) -> Json:
    """Lists in lists."""
    value: Json = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "event",
    [
        {"e": "p", "v": {"a": nested(400)}},
        {"e": "m", "v": {"loss": 1.0}, "d": {"a": nested(400)}},
        {"e": "end", "status": "failed", "failure": {"message": nested(400)}},
        {"e": "set", "v": {"add_tags": ["x"], "labels": {"a": nested(400)}, "notes": 5}},
        {"e": "a", "v": {"name": "../../x", "kind": "text", "nbytes": 1, "ref": "hex:00"}},
        {"e": "a", "v": {"name": "/etc/x", "kind": "text", "nbytes": 1, "ref": "hex:00"}},
        {"e": "a", "v": {"name": "x", "kind": "text", "nbytes": -1, "ref": "hex:00"}},
        {"e": "a", "v": {"name": "x", "kind": "text", "nbytes": True, "ref": "hex:00"}},
        {"e": "c", "hash": "a" * 40, "step": None, "metrics": {"loss": 10**400}},
    ],
    ids=lambda event: f"{event['e']} {str(event)[-30:-2]}",
)
def test_events_that_nobody_could_keep_are_left_out(repo: Repository, event: dict[str, Json]) -> None:
    """What is nested deeper than a parameter may be, or names a file elsewhere, changes nothing; the run can end."""
    run = Experiment("a" * 12, "x")
    fold = Fold(run, MetricColumns())
    fold.apply_all([{"t": 5, **event}, {"t": 6, "e": "m", "v": {"acc": 1.0}}])
    assert list(fold.history.series) == ["acc"] or event["e"] == "set"
    assert not run.params and not run.artifacts and not run.commits and not fold.ended


def test_an_artifact_is_downloaded_below_the_folder_named(repo: Repository, ended: Path, tmp_path: Path) -> None:
    """A run's file from elsewhere cannot have an artifact written outside of the folder that it is fetched into."""
    target = tmp_path / "inside"
    target.mkdir()
    run = ExperimentTracker(repo).get(ended.stem)
    assert run.download_artifact("note.txt", target) == target / "note.txt"
    assert run.download_artifact("note.txt", target / "other.md").read_text() == "text"
    text = ended.read_text().replace('"check"', '"chalk"')
    for name in ("../note.txt", str(tmp_path / "note.txt"), ".git/hooks/post-commit"):
        ended.write_text(text.replace('"name":"note.txt"', f'"name":"{name}"'))
        with pytest.raises(CoralError):
            ExperimentTracker(repo).get(ended.stem).download_artifact(name, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside", "project"]
    assert ended.read_bytes().startswith(SUMMARY)


# -- coral fsck


def test_each_damaged_run_is_named(repo: Repository, tracker: ExperimentTracker, ended: Path) -> None:
    """A flipped bit of a run's file, of a deleted one's as well, and a damaged line of a live one's journal."""
    assert list(damaged_runs(repo)) == []
    live = tracker.start("live")
    for step in range(5):
        live.log("loss", step / 7, step=step)
    assert list(damaged_runs(repo)) == []
    journal = ended.with_name(f"{live.experiment_id}.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:2], lines[2][:5] + b"?" + lines[2][6:], *lines[3:]]))
    other = ExperimentTracker(Repository(repo.path))
    with other.start("deleted") as run:
        run.log("loss", 0.125, step=1)
    other.delete(run.experiment_id)
    deleted = repo.folder.root / "trash/experiments" / ended.with_stem(run.experiment_id).name
    deleted.write_bytes(deleted.read_bytes().replace(b"0.125", b"0.126", 1))
    data = ended.read_bytes()
    ended.write_bytes(data.replace(b"0.375", b"0.376", 1))
    assert data != ended.read_bytes()
    found = {one.experiment_id: one.message for one in damaged_runs(Repository(repo.path))}
    assert found.keys() == {ended.stem, live.experiment_id, run.experiment_id}
    assert "journal" in found[live.experiment_id]
    assert [*run_ids(repo.folder), run.experiment_id] == list(found)
    with pytest.warns(RuntimeWarning, match="journal"):
        live.end()


_KINDS = [("object", {"a": 1}), ("list", ["a"]), ("number", 1), ("text", "a")]
_FIELDS = {
    "object": ("identity", "params", "labels", "failure", "code", "environment", "links"),
    "list": ("tags", "artifacts", "commits", "parameter_history"),
    "number": ("dropped_points",),
}


@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind, fields in _FIELDS.items() for field in fields])
def test_a_field_of_another_kind_is_damage(repo: Repository, ended: Path, kind: str, field: str) -> None:
    """A file that somebody wrote by hand, with a list where an object belongs, is not the file of a run."""
    data = json.loads(ended.read_text())
    ended.write_text(json.dumps(data, indent=1))
    assert everything(repo, ended)
    for other, value in _KINDS:
        if other != kind:
            forged = {**data, "experiment": {**data["experiment"], field: value}}
            ended.write_text(json.dumps(forged, indent=1))
            with pytest.raises(CorruptionError):
                ExperimentTracker(repo).get(ended.stem)


def test_what_has_no_id_is_no_run(repo: Repository, tracker: ExperimentTracker) -> None:
    """Whatever else lies in the folder of runs: it is neither counted nor completed, and damages nothing."""
    run = tracker.start("a").end()
    for name in ("notes.json", "0123456789ab.json.bak", "0123456789AB.json", "a.jsonl"):
        (repo.folder.root / "experiments" / name).write_text("{}")
    assert run_ids(repo.folder) == [run.experiment_id] and list(damaged_runs(repo)) == []
