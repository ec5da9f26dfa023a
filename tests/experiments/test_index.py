"""The query cache may be deleted, cut or stale at any time: the answers are the files'."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from coral.errors import CoralError
from coral.experiments import Experiment, ExperimentTracker
from coral.experiments.local.index import CACHE_KEY, Index
from coral.experiments.local.record import summaries
from coral.experiments.seams import Query
from coral.repository import Repository

SUMMARY = (
    b'{"summary": {"format":1,"id":"aaaaaaaaaaaa","name":"x","status":"completed","created":1,"branch":null,'
    b'"group":null,"tags":[],"commit":null,"parent":null,"objective":{},"points":0,"metrics":{}},\n'
)


def finished(tracker: ExperimentTracker, name: str, value: float) -> Experiment:
    """A run with one loss."""
    tracker.start(name, tags=[name]).log("loss", value, step=1)
    return tracker.end()


def age(repo: Repository, seconds: float = 60) -> None:
    """Let the files look older than the clock of any file system is coarse."""
    folder = repo.folder.root / "experiments"
    for path in [*folder.iterdir(), folder]:
        before = path.stat().st_mtime_ns - int(seconds * 1e9)
        os.utime(path, ns=(before, before))


def best(repo: Repository) -> list[object]:
    """The best names, asked by a fresh tracker, so that nothing is remembered in memory."""
    return [one["name"] for one in ExperimentTracker(repo).find_best("loss", "min")]


def test_the_cache_may_be_deleted_at_any_time(repo: Repository, tracker: ExperimentTracker) -> None:
    """With it, without it, and with it deleted under an open tracker, the answer is the same."""
    finished(tracker, "a", 2.0)
    finished(tracker, "b", 1.0)
    assert best(repo) == ["b", "a"] == best(repo)
    cache = repo.folder.root / CACHE_KEY
    assert cache.exists()
    cache.unlink()
    assert [one["name"] for one in tracker.find_best("loss", "min")] == ["b", "a"] == best(repo)
    shutil.rmtree(cache.parent)
    finished(tracker, "c", 0.0)
    assert best(repo) == ["c", "b", "a"]


def test_a_damaged_cache_is_not_believed(repo: Repository, tracker: ExperimentTracker) -> None:
    """Cut at many places, or with a bit flipped, it is rebuilt."""
    finished(tracker, "a", 2.0)
    assert best(repo) == ["a"]
    cache = repo.folder.root / CACHE_KEY
    sound = cache.read_bytes()
    for cut in [*range(0, len(sound), 97), len(sound) - 1]:
        cache.write_bytes(sound[:cut])
        assert best(repo) == ["a"]
    for place in range(0, len(sound), 89):
        cache.write_bytes(sound[:place] + bytes([sound[place] ^ 4]) + sound[place + 1 :])
        assert best(repo) == ["a"]


def unsealed(text: str) -> str:
    """A run's file as corals wrote it that knew no checksums, whose word is taken."""
    return text.replace('"check"', '"chalk"')


def test_a_file_that_is_replaced_added_or_removed_is_noticed(repo: Repository, tracker: ExperimentTracker) -> None:
    """As git pull does it, also when everything looks old and the size stays the same."""
    a, b = finished(tracker, "a", 2.0), finished(tracker, "b", 1.0)
    age(repo)
    assert best(repo) == ["b", "a"] == best(repo)
    path = repo.folder.root / "experiments" / f"{b.experiment_id}.json"
    text = path.read_text()
    other = path.with_suffix(".new")
    other.write_text(unsealed(text).replace("1.0", "9.0"))
    os.utime(other, ns=(path.stat().st_mtime_ns, path.stat().st_mtime_ns))
    other.rename(path)
    assert best(repo) == ["a", "b"]
    path.unlink()
    assert best(repo) == ["a"]
    path.write_text(text)
    assert best(repo) == ["b", "a"]
    assert {one.experiment_id for one in tracker.list()} == {a.experiment_id, b.experiment_id}


def test_a_change_within_the_clocks_tick_is_noticed(repo: Repository, tracker: ExperimentTracker) -> None:
    """A file rewritten in place, at once, with the same size and time, is read again while it is that young."""
    run = finished(tracker, "a", 2.0)
    assert best(repo) == ["a"]
    path = repo.folder.root / "experiments" / f"{run.experiment_id}.json"
    status = path.stat()
    text = path.read_text()
    path.write_text(unsealed(text).replace('"name":"a"', '"name":"z"'))
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert [run.name for run in ExperimentTracker(repo).list(name="z")] == ["z"]


def test_an_unchanged_folder_is_not_read_again(repo: Repository, tracker: ExperimentTracker) -> None:
    """Once everything is older than a tick, a query looks at the folder only."""
    finished(tracker, "a", 2.0)
    age(repo)
    index = Index(repo.folder)
    index.refresh()
    hidden = repo.folder.root / "experiments"
    status = hidden.stat()
    index._scan = None  # type: ignore[assignment, method-assign]
    index.refresh()
    assert hidden.stat().st_mtime_ns == status.st_mtime_ns
    assert len(index.select(Query())) == 1


def test_replaced_rows_do_not_pile_up(repo: Repository, tracker: ExperimentTracker) -> None:
    """A thousand rewrites of one run leave a small table and right answers."""
    run = finished(tracker, "a", 2.0)
    path = repo.folder.root / "experiments" / f"{run.experiment_id}.json"
    index = Index(repo.folder)
    for number in range(300):
        text = path.read_text()
        path.unlink()
        path.write_text(text + " " * (number % 3))
        index.refresh()
    index.refresh()
    assert len(index.select(Query())) == 1
    index.refresh()
    assert index._table is None or len(index._table.text["ids"]) < 100


def test_many_young_runs_are_all_there_at_every_query(repo: Repository, tracker: ExperimentTracker) -> None:
    """Files too young to be trusted are read at each query, and their rows replaced: no answer is without them."""
    finished(tracker, "a", 2.0)
    for number in range(100):
        text = SUMMARY.replace(b"aaaaaaaaaaaa", b"%012x" % number)
        (repo.folder.root / "experiments" / f"{number:012x}.json").write_bytes(text)
    index = Index(repo.folder)
    for _ in range(6):
        index.refresh()
        assert len(index.select(Query())) == 101


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'{"summary": {}}',
        b'{"summary": {},\n"experiment": {},\n"history": {}}',
        b'{"summary": {"format": 1, "id": "aaaaaaaaaaaa"},\n',
        b"\xff\xfe\x00",
        b'{"summary": ' + b"[" * 100_000,
        b'{"summary": {"format": 99, "id": "aaaaaaaaaaaa"},\n"experiment": {},\n',
        SUMMARY.replace(b'"created":1', b'"created":1' + b"0" * 30),
        SUMMARY.replace(b'"metrics":{}', b'"metrics":{"loss":[1,"x","y","z",0.5,"w",1]}'),
        SUMMARY.replace(b'"metrics":{}', b'"metrics":{"loss":[1,1,1,1' + b"0" * 400 + b',1,1,1]}'),
        SUMMARY.replace(b'"metrics":{}', b'"metrics":{"loss":[1,1,1,1.0,true,1.0,1]}'),
        SUMMARY.replace(b'"metrics":{}', b'"metrics":[]'),
        SUMMARY.replace(b'"objective":{}', b'"objective":["loss"]'),
        SUMMARY.replace(b'"tags":[]', b'"tags":null'),
        SUMMARY.replace(b'"name":"x"', b'"name":"\xed\xa0\x80"'),
    ],
)  # fmt: skip
def test_hostile_files_are_left_out_with_a_warning(
    repo: Repository, tracker: ExperimentTracker, content: bytes
) -> None:
    """One bad file never hides the others, and is named once."""
    finished(tracker, "a", 2.0)
    (repo.folder.root / "experiments" / "aaaaaaaaaaaa.json").write_bytes(content)
    fresh = ExperimentTracker(repo)
    with pytest.warns(RuntimeWarning, match="aaaaaaaaaaaa.json"):
        assert [one["name"] for one in fresh.find_best("loss", "min")] == ["a"]
    assert [run.name for run in fresh.list()] == ["a"]
    assert fresh.get_summary()["total_experiments"] == 1
    with pytest.raises(Exception, match="aaaaaaaaaaaa"):
        fresh.get("aaaaaaaaaaaa")
    with pytest.warns(RuntimeWarning, match="aaaaaaaaaaaa.json"):  # and so is whoever finds the cache
        assert [run.name for run in ExperimentTracker(repo).list()] == ["a"]


def test_hostile_files_among_many_are_the_only_ones_left_out(repo: Repository, tracker: ExperimentTracker) -> None:
    """Files are read many at a time: a bad one costs none of its neighbours, and a long one is read whole."""
    finished(tracker, "a", 2.0)
    folder, bad = repo.folder.root / "experiments", set(range(0, 300, 41))
    for number in range(300):
        name = b"x" * 9000 if number == 7 else b"n%d" % number
        loss = b'"metrics":{"loss":[1,%d.5,null,%d.5,null,%d.5,3]}' % (number, number, number)
        text = SUMMARY.replace(b"aaaaaaaaaaaa", b"%012x" % number).replace(b'"metrics":{}', loss)
        text = text.replace(b'"name":"x"', b'"name":"%b"' % name)
        (folder / f"{number:012x}.json").write_bytes(text.replace(b"3]", b"3.5]") if number in bad else text)
    index = Index(repo.folder)
    with pytest.warns(RuntimeWarning) as warned:
        index.refresh()
    assert len([one for one in warned if "left out" in str(one.message)]) == len(bad)
    found = index.best("loss", "min", Query(), None)
    assert [(value, run) for value, _, run, _ in found if value != 2.0] == [
        (number + 0.5, f"{number:012x}") for number in range(300) if number not in bad
    ]
    assert {step for value, _, _, step in found if value != 2.0} == {None}
    assert {step for _, _, _, step in index.best("loss", "max", Query(), None)} == {1, 3}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (b'{"format":1},{"format":1,"x":[1', b"2]}"),
        (b'{"format":1},{"format":1,"x":"', b'"}'),
        (b'{"format":1},{"format":1}', b""),
        (b'{"format":1},"mark",{"format":1,"x":[1', b"2]}"),
        (b'{"format":1}', b'{"format":99}'),
    ],
)
def test_two_lines_do_not_pass_for_values_together(first: bytes, second: bytes) -> None:
    """What is parsed at once is refused at once, unless each line is one value by itself."""
    with pytest.raises(CoralError):
        summaries([b'{"summary": ' + line + b",\n" for line in (first, second)])
    sound = [b'{"summary": {"format":1,"n":%d},\n' % number for number in range(3)]
    assert [one["n"] for one in summaries(sound)] == [0, 1, 2] and len(summaries(sound[:1])) == 1


def test_an_experiment_file_cut_at_any_byte(repo: Repository, tracker: ExperimentTracker) -> None:
    """Never a wrong value: the whole run, or a clear error."""
    run = finished(tracker, "a", 2.0)
    path = repo.folder.root / "experiments" / f"{run.experiment_id}.json"
    sound = path.read_bytes()
    for cut in range(0, len(sound), 7):
        path.write_bytes(sound[:cut])
        try:
            loaded = ExperimentTracker(repo)._backend.load(run.experiment_id)
            values = [point.value for point in loaded.metrics]
        except Exception as error:
            assert type(error).__name__ in ("CorruptionError", "ExperimentNotFoundError")
        else:
            assert values == [2.0] and loaded.name == "a"


def test_links_pipes_and_other_names_are_not_followed(
    repo: Repository, tracker: ExperimentTracker, tmp_path: Path
) -> None:
    """Only regular files named by an id are runs; a pipe is not waited for."""
    folder = repo.folder.root / "experiments"
    finished(tracker, "a", 1.0)
    (folder / "bbbbbbbbbbbb.json").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "cccccccccccc.json")
    (folder / "README.md").write_text("x")
    (folder / "AAAAAAAAAAAA.json").write_text("x")
    assert len(ExperimentTracker(repo).list()) == 1


def test_two_peoples_runs_merge_and_a_reformatted_file_is_read(repo: Repository, tracker: ExperimentTracker) -> None:
    """One file a run, its text depending on the run alone; a pretty-printer does no harm."""
    import json

    run = finished(tracker, "a", 2.0)
    path = repo.folder.root / "experiments" / f"{run.experiment_id}.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2))
    loaded = ExperimentTracker(repo).get(run.experiment_id)
    assert [point.value for point in loaded.metrics] == [2.0] and best(repo) == ["a"]
