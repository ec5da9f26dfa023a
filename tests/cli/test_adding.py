"""What ``coral add``, ``status``, ``rm`` and ``reset`` do with the files of a folder: all that is named, or nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from coral.containers import is_model_name
from coral.containers.container import PROMISES

Call = Callable[..., Result]
Ask = Callable[..., Any]
Write = Callable[..., bytes]


# -- add, status, rm, reset


def test_of_the_project_itself_the_model_files_are_added(project: Path, call: Call, ask: Ask, write: Write) -> None:
    """`.` stands for the model files, those of hidden folders and of Python environments left out; all else is said."""
    for name in ("a.safetensors", "deep/B.SAFETENSORS", ".hidden/c.safetensors", "venv/d.npy", "venv/pyvenv.cfg"):
        write(name)
    (project / "notes.txt").write_text("no model")
    added = ask("add", ".")
    assert [part["name"] for part in added["staged"]] == ["a.safetensors", "deep/B.SAFETENSORS"]
    assert sorted(one["path"] for one in added["skipped"]) == [".hidden", "notes.txt", "venv"]
    assert ask("status")["untracked"] == []
    assert f"skipped {project / 'notes.txt'}: not model files" in call("add", str(project)).stdout
    call("add", "..", code=2)


def test_the_help_of_add_names_what_it_takes(call: Call) -> None:
    """Every suffix that is looked for, and no other, stands in the help."""
    text = call("add", "--help").stdout
    for suffix in PROMISES:
        assert bool(re.search(rf"{re.escape(suffix)}\b", text)) == is_model_name(f"x{suffix}")


def _checkpoint(project: Path, write: Write) -> dict[str, bytes]:
    """A folder as training tools write it, and what must be kept of it."""
    write("ck/model.safetensors")
    files = {
        "ck/model.safetensors.index.json": b"{}",
        "ck/latest": b"step-3",
        "ck/random_states_0.pkl": b"\x80\x04N.",
        "ck/deep/__0_0.distcp": b"",
        "ck/deep/.metadata": b"\x80\x04N.",
        "ck/raw.pt": b"no torch file",
        "ck/tree.ubj": b"{}",
        "ck/.hidden/x": b"x",
    }
    for name, data in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(data)
    return {**files, "ck/model.safetensors": (project / "ck/model.safetensors").read_bytes()}


@pytest.mark.parametrize("command", [["add"], ["commit", "-m", "x"]], ids=" ".join)
def test_a_folder_that_is_named_is_kept_whole(
    project: Path, call: Call, ask: Ask, write: Write, command: list[str]
) -> None:
    """Every file in it, whatever it is and hidden or not; what cannot be kept is said, by both commands alike."""
    files = _checkpoint(project, write)
    (project / "ck/last").symlink_to("gone")
    (project / "ck/newest").symlink_to("deep")
    os.mkfifo(project / "ck/pipe")
    for tool in (".git", ".coral", "__pycache__"):
        (project / "ck/deep" / tool).mkdir()
        (project / "ck/deep" / tool / "x").touch()
    text = call("-q", "add", "ck").stdout + call("add", "ck").stdout
    assert "staged ck/raw.pt  (kept whole: it begins as no torch file does, 13 B)" in text
    assert "8 of 9 files kept whole" in text and "skipped ck/pipe: pipes" in text
    call("reset")
    done = ask(*command, "ck")
    assert sorted(part["name"] for part in done["staged"]) == sorted(files)
    assert {part["name"]: part["reason"] for part in done["staged"] if part["reason"]} == {
        "ck/raw.pt": "it begins as no torch file does"
    }
    passed_over = ["ck/deep/.coral", "ck/deep/.git", "ck/deep/__pycache__", "ck/last", "ck/newest", "ck/pipe"]
    assert sorted(one["path"] for one in done["skipped"]) == passed_over and done["failed"] == []
    if command == ["add"]:
        call("commit", "-m", "x")
    shutil.rmtree(project / "ck")
    call("checkout", "HEAD", "ck")
    assert {name: (project / name).read_bytes() for name in files} == files


def test_a_folder_means_itself_from_within(
    project: Path, ask: Ask, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`.` in a folder below is that folder; a file is taken once, however often it is named."""
    files = _checkpoint(project, write)
    monkeypatch.chdir(project / "ck")
    assert sorted(part["name"] for part in ask("add", ".", "latest", "../ck")["staged"]) == sorted(files)


def _break(project: Path) -> None:
    torch.save({"w": torch.ones(50)}, project / "ck/whole.pt")
    (project / "ck/cut.pt").write_bytes((project / "ck/whole.pt").read_bytes()[:-200])
    (project / "ck/empty.npy").touch()
    (project / "ck/two\nlines").write_text("x")


def test_add_stages_all_that_can_be_kept(project: Path, call: Call, ask: Ask, write: Write) -> None:
    """Files before a broken one and after it are staged, and all broken ones are listed; in JSON too."""
    files = _checkpoint(project, write)
    _break(project)
    done = call("add", "ck", code=6)
    assert all(name in done.stderr for name in ("cut.pt", "empty.npy", "two\\nlines", "the others are staged"))
    staged = [change["name"] for change in ask("status")["staged"]]
    assert staged == sorted([*files, "ck/whole.pt"])
    told = json.loads(call("add", "ck", "--json", code=6).stdout)
    assert [one["name"] for one in told["failed"]] == ["ck/cut.pt", "ck/empty.npy", "ck/two\nlines"]
    assert "cut short" in told["failed"][0]["error"] and "--opaque" in told["failed"][0]["hint"]
    assert sorted(part["name"] for part in told["staged"]) == staged
    assert ask("add", "--opaque", "ck/cut.pt")["staged"][0]["container"] == "opaque"
    assert "nothing was staged" in call("add", "ck/empty.npy", code=6).stderr


def test_commit_wants_all_files_or_none(project: Path, call: Call, ask: Ask, write: Write) -> None:
    """A broken file stops the commit, and leaves what was staged as it was; all broken ones are listed."""
    write("before.safetensors")
    call("add", "before.safetensors")
    _checkpoint(project, write)
    _break(project)
    before = ask("status")["staged"]
    done = call("commit", "-m", "x", "ck", "before.safetensors", code=6)
    assert all(name in done.stderr for name in ("cut.pt", "empty.npy", "two\\nlines", "nothing was committed"))
    told = json.loads(call("commit", "-m", "x", "ck", "before.safetensors", "--json", code=6).stdout)
    assert [one["name"] for one in told["failed"]] == ["ck/cut.pt", "ck/empty.npy", "ck/two\nlines"]
    assert told["staged"] == []
    status = ask("status")
    assert (status["commit"], status["staged"]) == (None, before)


def test_each_failure_says_what_to_do_about_it(project: Path, call: Call) -> None:
    """Where the hints of several files differ each stands with its own; a common one is said once."""
    (project / "cut.npy").write_bytes(b"\x93NUM")
    (project / "lfs.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (project / "empty.npy").touch()
    told = call("add", "cut.npy", "lfs.pt", code=6).stderr
    assert told.count("hint: ") == 2 and told.index("cut.npy") < told.index("save it again") < told.index("lfs.pt")
    assert told.index("lfs.pt") < told.index("git lfs pull")
    assert call("add", "cut.npy", "empty.npy", code=6).stderr.count("hint: ") == 1


def test_a_taken_tag_is_told_of_before_anything_is_added(
    history: list[str], call: Call, ask: Ask, write: Write
) -> None:
    """`--tag` of a name that exists stages nothing, however long the files would take."""
    write(seed=9)
    call("commit", "-m", "x", "--tag", "v2", "model.safetensors", code=4)
    assert ask("status")["staged"] == []


def test_a_folder_without_files_is_said(project: Path, call: Call, ask: Ask) -> None:
    """It is passed over by name, not silently; no half is told of where there is only one."""
    (project / "empty/deep").mkdir(parents=True)
    (project / "full").mkdir()
    for name in "ab":
        (project / "full" / name).write_text(name)
    told = call("add", "empty", "full").stdout
    assert "skipped empty: folders without files" in told
    assert "2 of 2 files kept whole\n" in told
    assert ask("add", "empty")["skipped"] == [{"path": "empty", "reason": "folders without files"}]


class _Closed:
    """A folder that refuses to be looked into; root, as which tests may run, is refused nothing."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = str(folder)
        for name in ("stat", "lstat", "scandir", "listdir", "access"):
            monkeypatch.setattr(os, name, self._guarded(getattr(os, name)))

    def _guarded(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(path: Any = ".", *arguments: Any, **options: Any) -> Any:
            text = os.path.abspath(path) if not isinstance(path, int) else ""
            if text.startswith(f"{self._folder}/") or (
                text == self._folder and real.__name__ in ("scandir", "listdir")
            ):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *arguments, **options)

        return guarded


def test_a_folder_that_may_not_be_entered_hides_itself_alone(
    project: Path, call: Call, ask: Ask, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`.` passes over it and says so, `status` works; as part of a folder that is wanted whole it is a failure."""
    for name in ("a.safetensors", "deep/b.safetensors", "deep/closed/c.safetensors"):
        write(name)
    _Closed(project / "deep/closed", monkeypatch)
    assert ask("status")["untracked"] == ["a.safetensors", "deep/b.safetensors"]
    added = ask("add", ".")
    assert [part["name"] for part in added["staged"]] == ["a.safetensors", "deep/b.safetensors"]
    assert [one["path"] for one in added["skipped"]] == ["deep/closed"]
    told = json.loads(call("add", "deep", "--json", code=2).stdout)
    assert [one["name"] for one in told["failed"]] == ["deep/closed"]
    assert [part["name"] for part in told["staged"]] == ["deep/b.safetensors"]


def test_add_takes_any_file_that_is_named(project: Path, call: Call, ask: Ask, write: Write) -> None:
    """A file that is no model is kept whole; `--opaque` keeps a model whole; `--name` names the part."""
    (project / "notes.txt").write_text("hello")
    write()
    assert ask("add", "notes.txt")["staged"][0]["container"] == "opaque"
    assert ask("add", "--opaque", "model.safetensors")["staged"][0]["container"] == "opaque"
    assert ask("add", "--name", "best.safetensors", "model.safetensors")["staged"][0]["name"] == "best.safetensors"
    call("add", "--name", "", "model.safetensors", code=2)


def test_add_stages_nothing_when_a_path_is_wrong(project: Path, call: Call, ask: Ask, write: Write) -> None:
    """A misspelt path is found before anything is staged."""
    write()
    call("add", "model.safetensors", "modle.safetensors", code=3)
    assert ask("status")["staged"] == []


def test_add_passes_over_what_is_no_file(project: Path, call: Call, ask: Ask, write: Write) -> None:
    """A link that leads nowhere and a pipe do not keep the files beside them from being added."""
    write("a.safetensors")
    (project / "latest.safetensors").symlink_to("gone.safetensors")
    os.mkfifo(project / "pipe.safetensors")
    added = ask("add", ".")
    assert [part["name"] for part in added["staged"]] == ["a.safetensors"]
    assert [one["path"] for one in added["skipped"]] == ["latest.safetensors", "pipe.safetensors"]
    assert "leads nowhere" in call("add", "latest.safetensors", code=3).stderr
    assert "not a regular file" in call("add", "pipe.safetensors", code=2).stderr


def test_status_names_files_as_seen_from_here(
    project: Path, call: Call, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What status lists can be given to add, from any folder; a name that would break the line is quoted."""
    write("sub/a.safetensors")
    write("b.safetensors")
    (project / "two\nlines.npy").touch()
    monkeypatch.chdir(project / "sub")
    text = call("status").stdout
    assert "    a.safetensors\n" in text and "    ../b.safetensors\n" in text and "two\\nlines.npy'" in text
    call("add", "a.safetensors", "../b.safetensors")


def test_status_forgets_no_way_of_describing_a_file(project: Path, call: Call, ask: Ask) -> None:
    """A file that is kept whole, and by its tensors before, is not modified: its stamp is that of either."""
    path = project / "x.pt"
    torch.save({"w": torch.ones(9)}, path)
    os.utime(path, ns=(1, 1))
    time.sleep(0.1)  # until its stamp is settled
    for options in ([], ["--opaque"], []):
        call("add", "x.pt", *options)
        assert ask("status")["modified"] == []
        call("commit", "-m", "x")
        assert ask("status")["modified"] == []


def test_status_tells_the_three_kinds_apart(project: Path, call: Call, ask: Ask, write: Write) -> None:
    """Staged, modified and untracked files are listed apart, with what to do about each."""
    write("a.safetensors")
    write("b.safetensors")
    call("commit", "-m", "a", "a.safetensors", "b.safetensors")
    assert ask("status")["clean"]
    write("a.safetensors", seed=1)
    call("add", "a.safetensors")
    write("b.safetensors", seed=1)
    write("c.safetensors", seed=1)
    status = ask("status")
    assert [(one["name"], one["kind"]) for one in status["staged"]] == [("a.safetensors", "changed")]
    assert (status["modified"], status["untracked"]) == (["b.safetensors"], ["c.safetensors"])
    text = call("status").stdout
    assert all(words in text for words in ("To be committed", "Modified since", "Untracked", "coral add FILE"))


def test_reset_unstages(call: Call, ask: Ask, write: Write, project: Path) -> None:
    """reset forgets the staged files that are named, or all; a name that is neither staged nor a ref is refused."""
    write("a.safetensors")
    write("b.safetensors")
    call("add", ".")
    assert ask("reset", "a.safetensors") == {"unstaged": ["a.safetensors"]}
    call("reset")
    assert ask("status")["staged"] == []
    call("reset", "nothing", code=3)


def test_reset_hard_moves_branch_and_files(history: list[str], call: Call, ask: Ask, project: Path) -> None:
    """reset --hard takes the branch and the files to another commit; the reflog still knows the old one."""
    assert ask("reset", "--hard", "HEAD~1")["commit_hash"] == history[1]
    assert ask("log")[0]["commit_hash"] == history[1]
    assert ask("reflog")[0]["old"] == history[0]
    assert "HEAD@{1}: commit: two" in call("reflog").stdout
    call("rm", "model.safetensors")
    text = call("reset", "--hard").stdout
    assert "unstaged model.safetensors" in text and "kept in the store: model.safetensors" in text


def test_rm_removes_and_stages(history: list[str], call: Call, ask: Ask, project: Path) -> None:
    """rm deletes the file and stages that; --cached keeps the file; an unknown one is refused."""
    call("rm", "nothing.pt", code=3)
    call("rm", "--cached", "model.safetensors")
    assert (project / "model.safetensors").exists()
    assert ask("status")["staged"][0]["kind"] == "removed"
    call("reset")
    call("rm", "model.safetensors")
    assert not (project / "model.safetensors").exists()
