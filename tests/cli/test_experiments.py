"""The commands about runs: which run is meant, what is printed, and what is linked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

import coral
from coral.experiments import ExperimentTracker

Call = Callable[..., Result]
Ask = Callable[..., Any]
Write = Callable[..., bytes]


def start(call: Call, *arguments: str) -> str:
    """Start a run; its id is all of standard output."""
    text = call("exp", "start", *arguments).stdout
    assert text.endswith("\n") and text.count("\n") == 1
    return str(text.strip())


def test_a_run_keeps_what_it_was_started_with(project: Path, call: Call, ask: Ask) -> None:
    """Parameters that are JSON are parsed, others are strings; tags, labels, group and objective are kept."""
    run = start(
        call,
        *("bert", "-p", "lr=1e-3", "-p", "layers=4", "-p", "opt=adam", "-p", "on=true", "-p", 'd={"a": [1]}'),
        *("-t", "nlp", "-t", "big", "-d", "why", "--group", "text/bert", "--objective", "loss:min", "--label", "k=v=w"),
    )
    found = ask("exp", "show", run)
    assert found["params"] == {"lr": 1e-3, "layers": 4, "opt": "adam", "on": True, "d": {"a": [1]}}
    assert (found["tags"], found["labels"], found["group"]) == (["nlp", "big"], {"k": "v=w"}, "text/bert")
    assert (found["objective"], found["description"], found["status"]) == ({"loss": "min"}, "why", "running")
    assert found["owner"] == "shell"


@pytest.mark.parametrize(
    "arguments",
    [["-p", "lr"], ["-p", "=1"], ["-p", "a=1", "-p", "a=2"], ["--objective", "loss"], ["--objective", "loss:up"]],
    ids=" ".join,
)
def test_a_malformed_pair_starts_no_run(project: Path, call: Call, ask: Ask, arguments: list[str]) -> None:
    """What is not NAME=VALUE is refused before a run exists."""
    call("exp", "start", "x", *arguments, code=2)
    assert ask("exp", "list") == []


def test_a_run_that_cannot_be_written_is_not_started(project: Path, call: Call) -> None:
    """The shell keeps nothing in memory: no id is printed of a run that is on no disk."""
    shutil.rmtree(project / ".coral" / "experiments")
    (project / ".coral" / "experiments").write_text("in the way")
    result = call("exp", "start", "x", code=8)
    assert result.stdout == "" and "could not be written" in result.stderr


def test_log_takes_both_forms(project: Path, call: Call, ask: Ask) -> None:
    """`loss 0.5` and `loss=0.5 acc=1`, negative and non-finite values included; anything else is refused."""
    run = start(call, "a")
    call("exp", "log", "loss", "0.5", "--step", "3")
    call("exp", "log", "loss=-0.25", "acc=1", "--step", "4")
    call("exp", "log", "loss", "-1e-3")
    call("exp", "log", "loss", "nan")
    points = ask("exp", "show", run, "--metric", "loss")
    assert [(point["step"], point["value"]) for point in points] == [(3, 0.5), (4, -0.25), (None, -1e-3), (None, "NaN")]
    for wrong in (["loss"], ["loss", "x"], ["loss", "1", "2"], ["loss", "1", "--stpe", "3"], ["loss=1", "--stpe=3"]):
        call("exp", "log", *wrong, code=2)
    call("exp", "show", run, "--metric", "los", code=3)


def test_the_run_that_is_meant(project: Path, call: Call, ask: Ask) -> None:
    """--run, else CORAL_RUN, else the only one open; several are listed, none is an error."""
    call("exp", "log", "loss", "1", code=3)
    one, two = start(call, "one"), start(call, "two")
    errors = call("exp", "log", "loss", "1", code=4).stderr
    assert one in errors and two in errors and "--run" in errors
    call("exp", "log", "loss", "1", env={"CORAL_RUN": one})
    call("exp", "log", "loss", "2", "--run", two, env={"CORAL_RUN": one})
    assert ask("exp", "show", one)["metrics"]["loss"]["latest"] == 1
    assert ask("exp", "show", two)["metrics"]["loss"]["latest"] == 2
    call("exp", "end", "--run", one)
    call("exp", "log", "loss", "3")
    assert ask("exp", "show", two)["metrics"]["loss"]["latest"] == 3


def test_runs_end_as_they_are_told(project: Path, call: Call, ask: Ask, write: Write) -> None:
    """end, fail and cancel give the status; end --commit pins the result; an ended run takes no more."""
    write()
    call("commit", "-m", "weights", ".")
    assert (
        ask("exp", "end", "--run", start(call, "a"), "--commit", "main")["commit_hash"] == ask("log")[0]["commit_hash"]
    )
    failed = ask("exp", "fail", "-m", "NaN", "--run", start(call, "b"))
    assert (failed["status"], failed["failure"]["message"]) == ("failed", "NaN")
    run = start(call, "c")
    assert ask("exp", "cancel", "--run", run)["status"] == "cancelled"
    call("exp", "log", "loss", "1", "--run", run, code=4)
    assert [one["name"] for one in ask("exp", "list", "--status", "failed", "--status", "cancelled")] == ["c", "b"]


def test_params_are_shown_and_set(project: Path, call: Call, ask: Ask) -> None:
    """Parameters may be changed while the run is open."""
    start(call, "a", "-p", "lr=1")
    call("exp", "params", "lr=0.5", "warmup=10")
    assert ask("exp", "params") == {"lr": 0.5, "warmup": 10}
    assert call("exp", "params").stdout.splitlines()[1].split() == ["lr", "0.5"]


def test_commits_are_linked_to_the_run_that_is_meant(project: Path, call: Call, ask: Ask, write: Write) -> None:
    """The only open run of the branch is linked; of several, the one that CORAL_RUN or --run names, else none."""
    write()
    assert ask("commit", "-m", "before", ".")["run_id"] is None
    one = start(call, "one")
    assert ask("commit", "-m", "alone", "--allow-empty")["run_id"] == one
    two = start(call, "two")
    assert ask("commit", "-m", "which?", "--allow-empty")["run_id"] is None
    assert ask("commit", "-m", "two", "--allow-empty", "--run", two)["run_id"] == two
    result = call("commit", "-m", "one", "--allow-empty", "--json", env={"CORAL_RUN": one})
    assert json.loads(result.stdout)["run_id"] == one
    assert len(ask("exp", "show", one)["commits"]) == 2


def test_a_run_that_is_over_does_not_keep_anybody_from_committing(project: Path, call: Call) -> None:
    """A CORAL_RUN left over in the shell warns; a wrong --run is an error."""
    run = start(call, "a")
    call("exp", "end")
    result = call("commit", "-m", "x", "--allow-empty", env={"CORAL_RUN": run})
    assert "warning" in result.stderr
    call("commit", "-m", "x", "--allow-empty", "--run", run, code=4)


def test_best_finds_the_step_and_its_commit(project: Path, call: Call, ask: Ask) -> None:
    """The direction comes from --mode or the objective; a metric nobody logged is an error."""
    repo = coral.Repository(project)
    tracker = ExperimentTracker(repo)
    with tracker.run("a", objective={"loss": "min"}) as run:
        for step, loss in enumerate([3.0, 1.0, 2.0]):
            repo.stage_weights({"w": np.full(64, loss, np.float32)})
            repo.commit(f"{step}", step=step)
            run.log({"loss": loss, "acc": loss}, step=step)
    (best,) = ask("exp", "best", "loss")
    assert (best["best_value"], best["best_step"], best["link"]) == (1, 1, "exact")
    assert "--mode" in call("exp", "best", "acc", code=2).stderr
    assert ask("exp", "best", "acc", "--mode", "max")[0]["best_value"] == 3
    call("exp", "best", "bleu", "--mode", "max", code=3)
    call("checkout", "best:loss")
    assert ask("cat", "w")["max"] == 1


def test_compare_shows_what_differs(project: Path, call: Call, ask: Ask) -> None:
    """Parameters that are equal are left out of the table; metrics stand side by side."""
    runs = [start(call, f"r{lr}", "-p", f"lr={lr}", "-p", "same=1") for lr in (1, 2)]
    for run, loss in zip(runs, ("0.5", "0.25"), strict=True):
        call("exp", "log", "loss", loss, "--run", run)
    lines = {line.split("  ")[0]: line.split() for line in call("exp", "compare", *runs).stdout.splitlines()}
    assert lines["lr"] == ["lr", "1", "2"] and "same" not in lines
    assert lines["loss latest"][2:] == ["0.5", "0.25"]
    assert ask("exp", "compare", *runs)["params_same"] == {"same": 1}
    call("exp", "compare", runs[0], code=2)


def test_resume_starts_a_child_of_the_shell(project: Path, call: Call, ask: Ask, write: Write) -> None:
    """The child stays open, on a branch at the parent's last commit, while HEAD stays where it is."""
    parent = start(call, "a", "-p", "lr=1")
    write()
    commit = ask("commit", "-m", "one", ".")["commit_hash"]
    call("exp", "fail")
    result = call("exp", "resume", parent, "-p", "lr=2")
    child = ask("exp", "show", result.stdout.strip())
    assert (child["parent_experiment"], child["status"], child["params"]) == (parent, "running", {"lr": 2})
    assert (child["owner"], child["start_commit"]) == ("shell", commit)
    assert child["branch"] in result.stderr and child["branch"] != "main"
    assert ask("status")["branch"] == "main"
    family = ask("exp", "lineage", child["experiment_id"])
    assert [run["experiment_id"] for run in family["ancestors"]] == [parent]
    assert parent in call("exp", "lineage", parent).stdout


def test_runs_are_listed_deleted_and_brought_back(project: Path, call: Call, ask: Ask) -> None:
    """The newest is first; filters hold all at once; the trash gives back what it took."""
    runs = [start(call, name, "-t", name, "--group", f"g/{name}") for name in ("a", "b")]
    for run in runs:
        call("exp", "end", "--run", run)
    assert [run["name"] for run in ask("exp", "list")] == ["b", "a"]
    assert [run["name"] for run in ask("exp", "list", "-t", "a", "--group", "g")] == ["a"]
    assert [run["name"] for run in ask("exp", "list", "-n", "1")] == ["b"]
    first = call("exp", "list").stdout.splitlines()[1].split()
    assert (first[:2], first[-2:]) == ([runs[1], "completed"], ["main", "b"])
    call("exp", "delete", *runs)
    assert ask("exp", "list") == []
    assert len(ask("exp", "list", "--deleted")) == 2
    call("exp", "restore", runs[0])
    summary = ask("exp", "summary")
    assert (summary["total_experiments"], summary["by_status"]["completed"]) == (1, 1)
    assert "runs:     1 (1 completed)" in call("exp", "summary").stdout


def test_show_is_for_people(project: Path, call: Call) -> None:
    """The text has the status, the parameters and each metric; a prefix of the id will do."""
    run = start(call, "a", "-p", "lr=0.5", "-t", "x")
    call("exp", "log", "loss", "0.125", "--step", "9")
    text = call("exp", "show", run[:6]).stdout
    assert all(words in text for words in ("running", "lr    0.5", "0.125", "tags"))
    call("exp", "show", "0000", code=3)


def test_fsck_names_damaged_runs(project: Path, call: Call) -> None:
    """A run whose file is damaged makes the repository damaged, and is named."""
    with ExperimentTracker(coral.Repository(project)).start("a") as run:
        run.log("loss", 0.375, 1)
    assert "runs 1" in call("fsck").stdout
    path = project / ".coral" / "experiments" / f"{run.experiment_id}.json"
    path.write_bytes(path.read_bytes().replace(b"0.375", b"0.376", 1))
    done = call("fsck", code=5)
    assert f"damaged: run {run.experiment_id}" in done.stdout and "Traceback" not in done.stderr
    (found,) = json.loads(call("fsck", "--json", code=5).stdout)["damaged_runs"]
    assert found["experiment_id"] == run.experiment_id


def test_a_run_is_named_by_its_name_in_the_shell(project: Path, call: Call, ask: Ask) -> None:
    """Wherever a run is given: as an argument, by --run, by CORAL_RUN; what could be two runs lists both."""
    one, two = start(call, "one"), start(call, "two")
    call("exp", "log", "loss", "1", "--run", "one")
    call("exp", "log", "loss", "2", env={"CORAL_RUN": "two"})
    call("exp", "params", "lr=1", "--run", "one")
    assert ask("commit", "-m", "x", "--allow-empty", "--run", "two")["run_id"] == two
    assert ask("exp", "end", "--run", "one")["experiment_id"] == one
    assert ask("exp", "fail", "--run", "two")["experiment_id"] == two
    assert ask("exp", "show", "one")["experiment_id"] == one
    assert [run["name"] for run in ask("exp", "compare", "one", "two")["experiments"]] == ["one", "two"]
    assert ask("exp", "lineage", "two")["experiment"]["experiment_id"] == two
    assert ask("exp", "show", call("exp", "resume", "two").stdout.strip())["parent_experiment"] == two
    assert ask("exp", "delete", "one")["deleted"] == [one] == ask("exp", "restore", "one")["restored"]
    errors = call("exp", "show", "two", code=2).stderr
    assert two in errors and "2 runs" in errors
    again = call("commit", "-m", "x", "--allow-empty", env={"CORAL_RUN": "two"})
    assert "not linked" in again.stderr
    call("commit", "-m", "x", "--allow-empty", "--run", "two", code=2)


def test_show_without_a_run(project: Path, call: Call, ask: Ask) -> None:
    """The run of CORAL_RUN, else the one that is running, else the last one; without any it is an error."""
    call("exp", "show", code=3)
    one, two, three = (start(call, name) for name in ("one", "two", "three"))
    call("exp", "end", "--run", "three")
    assert ask("exp", "show")["experiment_id"] == two
    call("exp", "end", "--run", "two")
    assert ask("exp", "show")["experiment_id"] == one
    call("exp", "end")
    assert ask("exp", "show")["experiment_id"] == three
    shown = json.loads(call("exp", "show", "--json", env={"CORAL_RUN": "one"}).stdout)
    assert shown["experiment_id"] == one


def test_statuses_in_any_case(project: Path, call: Call, ask: Ask) -> None:
    """--status takes Completed and COMPLETED."""
    start(call, "a")
    call("exp", "log", "loss", "1")
    call("exp", "end")
    for status in ("completed", "Completed", "COMPLETED"):
        assert len(ask("exp", "list", "--status", status)) == 1
        assert len(ask("exp", "best", "loss", "--mode", "min", "--status", status)) == 1
    call("exp", "list", "--status", "glorious", code=2)


def test_the_runs_own_commit_is_told_of(project: Path, call: Call, ask: Ask) -> None:
    """'exp best' says link run where no commit is the best step's, and a checkout of it warns."""
    tracker = ExperimentTracker(coral.Repository(project))
    with tracker.run("a", objective={"loss": "min"}) as run:
        for step, loss in enumerate([3.0, 1.0, 2.0]):
            run.log("loss", loss, step=step)
        tracker.repo.stage_weights({"w": np.full(64, 2.0, np.float32)})
        made = tracker.repo.commit("all of it")
    (best,) = ask("exp", "best", "loss")
    assert (best["link"], best["commit_hash"], best["best_step"]) == ("run", made.commit_hash, 1)
    assert call("exp", "best", "loss").stdout.splitlines()[1].split()[3:5] == [made.commit_hash[:10], "run"]
    warned = call("checkout", "best:loss").stderr
    assert warned.count(f"{made.commit_hash[:10]} is the commit of run {run.experiment_id} as a whole") == 1
    assert ask("cat", "w")["max"] == 2


def test_an_unknown_metric_is_told_before_the_direction_is_asked(project: Path, call: Call) -> None:
    """With near misses, whether or not --mode is given."""
    start(call, "a")
    call("exp", "log", "val_loss", "1")
    for more in ((), ("--mode", "min")):
        errors = call("exp", "best", "val_los", *more, code=3).stderr
        assert "no run logged 'val_los'" in errors and "'val_loss'" in errors
    assert "--mode" in call("exp", "best", "val_loss", code=2).stderr


def test_an_empty_name_is_no_run(project: Path, call: Call) -> None:
    """A variable that is not set does not mean the last run, at any door."""
    start(call, "a")
    doors = [["exp", "show", ""], ["exp", "show", " "], ["exp", "end", "--run", ""], ["commit", "--run", "", "-m", "x"]]
    for words in doors:
        assert "empty" in call(*words, code=2).stderr
