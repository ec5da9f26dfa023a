"""The commands about files, commits and branches: what they do, say, and print as JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.numpy import save_file

from coral.cli import main
from coral.cli.session import Session
from coral.containers import is_model_name
from coral.containers.container import PROMISES

Call = Callable[..., Result]
Ask = Callable[..., Any]
Write = Callable[..., bytes]


@pytest.fixture
def history(project: Path, call: Call, write: Write) -> list[str]:
    """Two commits on main, newest first."""
    write(seed=1)
    call("commit", "-m", "one", ".")
    write(seed=2)
    call("commit", "-m", "two", "-m", "because", "--tag", "v2", ".")
    return [commit["commit_hash"] for commit in json.loads(call("log", "--json").stdout)]


# -- init, and where commands look


def test_init_makes_and_leaves_alone(tmp_path: Path, ask: Ask) -> None:
    """init says whether it made the repository; a second one changes nothing."""
    folder = str(tmp_path / "new")
    assert ask("init", folder) == {"path": folder, "created": True}
    assert ask("init", folder) == {"path": folder, "created": False}


def test_commands_work_from_a_folder_below(
    project: Path, call: Call, ask: Ask, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths are relative to the working folder, as git's are; the part is named from the project's root."""
    write("models/a.safetensors")
    monkeypatch.chdir(project / "models")
    call("commit", "-m", "a", "a.safetensors")
    assert [part["name"] for part in ask("ls")] == ["models/a.safetensors"]
    (project / "models" / "a.safetensors").unlink()
    assert ask("checkout", "HEAD", "a.safetensors")["written"] == ["models/a.safetensors"]


def test_the_folder_option_works_as_if_started_there(
    project: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`-C DIR` finds the repository of DIR; one that does not exist is a usage error."""
    monkeypatch.chdir(project.parent)
    call("status", code=3)
    call("-C", str(project), "status")
    assert Path.cwd() == project.parent
    call("-C", "nowhere", "status", code=2)


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


@pytest.mark.parametrize(
    "command", [["add"], ["rm"], ["reset"], ["checkout", "HEAD"], ["commit", "-m", "x"]], ids=" ".join
)
def test_an_empty_path_is_refused(history: list[str], call: Call, project: Path, command: list[str]) -> None:
    """`coral rm "$UNSET"` does not mean every file."""
    assert "path is empty" in call(*command, "", code=2).stderr
    assert (project / "model.safetensors").exists()


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


# -- commit


def test_commit_keeps_what_it_was_told(history: list[str], call: Call, ask: Ask, write: Write) -> None:
    """Message paragraphs, author, step, metrics and tag are in the commit."""
    write(seed=3)
    arguments = ("--step", "7", "--metric", "loss=0.25", "--author", "Eve <eve@example.org>", "--tag", "best")
    commit = ask("commit", "-m", "three", "-m", "more", *arguments, ".")
    assert commit["message"] == "three\n\nmore"
    assert (commit["step"], commit["metrics"], commit["author"]) == (7, {"loss": 0.25}, "Eve <eve@example.org>")
    assert [tag["name"] for tag in ask("tag")] == ["best", "v2"]


def test_commit_refuses_to_say_nothing(history: list[str], call: Call) -> None:
    """Nothing staged is a conflict (exit 4) unless --allow-empty; an editor is not even opened for it."""
    call("commit", "-m", "again", code=4)
    call("commit", code=4, env={"VISUAL": "false"})
    call("commit", "-m", "again", "--allow-empty")


@pytest.mark.parametrize(("text", "code"), [("why not", 0), ("", 2), ("# only a comment", 2)])
def test_the_message_may_come_from_the_editor(
    project: Path, call: Call, ask: Ask, write: Write, text: str, code: int
) -> None:
    """Without -m the editor is asked; lines with '#' do not count; an empty message commits nothing."""
    write()
    call("add", ".")
    script = f"import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.write_text({text!r} + chr(10) + p.read_text())"
    editor = project / "editor.py"
    editor.write_text(script)
    call("commit", code=code, env={"VISUAL": f"{sys.executable} {editor}"})
    assert len(ask("branch")) == (code == 0)
    if code == 0:
        assert ask("log")[0]["message"] == text


def test_the_author_is_found_in_order(project: Path, call: Call, ask: Ask, write: Write) -> None:
    """--author, else CORAL_AUTHOR, else config.toml's, else git's own, else coral."""

    def author(*arguments: str, **env: str) -> str:
        call("commit", "--allow-empty", "-m", "x", *arguments, env=env)
        return str(ask("log")[0]["author"])

    assert author() == "coral"
    config = project.parent / "gitconfig"
    config.write_text("[user]\nname = Gina\nemail = gina@example.org\n")
    assert author(GIT_CONFIG_GLOBAL=str(config)) == "Gina <gina@example.org>"
    settings = project / ".coral" / "config.toml"
    settings.write_text(settings.read_text() + '\n[user]\nauthor = "Carl"\n')
    assert author(GIT_CONFIG_GLOBAL=str(config)) == "Carl"
    assert author(CORAL_AUTHOR="Env") == "Env"
    assert author("--author", "Opt", CORAL_AUTHOR="Env") == "Opt"


# -- looking


def test_log_shows_names_and_filters(history: list[str], call: Call, ask: Ask) -> None:
    """Branches, tags and HEAD decorate commits; -n and --path limit them; --oneline is one line each."""
    assert call("log", "--oneline").stdout.splitlines() == [
        f"{history[0][:10]} (HEAD -> main, tag: v2) two",
        f"{history[1][:10]} one",
    ]
    assert len(ask("log", "-n", "1")) == 1
    assert len(ask("log", "--path", "model.safetensors")) == 2
    assert ask("log", "--path", "other.pt") == []
    assert "    because" in call("log").stdout
    call("checkout", "HEAD~1")
    assert f"{history[1][:10]} (HEAD) one" in call("log", "--oneline").stdout
    assert call("log", "--oneline", "--branch", "main").stdout.count("\n") == 2


def test_log_of_an_empty_repository_is_an_error(project: Path, call: Call) -> None:
    """There is nothing to show before the first commit, and that is said."""
    assert "commit" in call("log", code=3).stderr


def test_show_and_diff_list_the_largest_changes_first(history: list[str], call: Call, ask: Ask) -> None:
    """Tensors are sorted by changed bytes; --max bounds the list and says how many are left."""
    assert [change["name"] for change in ask("diff", "HEAD~1..HEAD")["tensors"]] == ["layer.weight"]
    text = call("show", "HEAD~1").stdout
    assert text.index("layer.weight") < text.index("layer.bias")
    assert "2 added tensors" in text
    assert "... and 1 tensor more" in call("show", "HEAD~1", "--max", "1").stdout
    assert call("diff", "--stat").stdout.splitlines()[1].split() == ["0", "0", "1", "2.0", "kB", "model.safetensors"]
    assert call("diff", "HEAD", "HEAD").stdout == "no difference\n"
    assert ask("show", "v2")["tags"] == ["v2"]


def test_ls_lists_files_and_tensors(history: list[str], call: Call, ask: Ask) -> None:
    """ls lists the parts; -l their tensors; JSON has both."""
    assert "model.safetensors" in call("ls").stdout
    assert "[32, 16]" in call("ls", "-l", "HEAD", "model.safetensors").stdout
    (part,) = ask("ls")
    assert part["tensors"][1] == {"name": "layer.weight", "dtype": "F32", "shape": [32, 16], "bytes": 2048}


def test_ls_lists_storages_of_no_tensor(project: Path, call: Call) -> None:
    """What a file holds beside the tensors that can be shown is listed as what it is."""
    import torch

    torch.save({"w": torch.ones(3), "z": torch.ones(2, dtype=torch.complex128)}, "m.pt")
    call("commit", "-m", "m", ".")
    lines = call("ls", "-l").stdout.splitlines()
    assert [line.split()[:2] for line in lines[-2:]] == [["F32", "[3]"], ["F64", "[4]"]]
    assert lines[-1].endswith("data/1  (of no tensor that can be shown)")


def test_a_fortran_array_is_shown_as_it_is(project: Path, call: Call, ask: Ask) -> None:
    """cat and ls give the array, in its own shape and order, and say where its bytes are."""
    np.save("m.npy", np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    call("commit", "-m", "m", ".")
    found = ask("cat", "array", "--values")
    assert (found["dtype"], found["shape"], found["values"]) == ("F64", [2, 3], [0, 1, 2, 3, 4, 5])
    assert call("ls", "-l").stdout.splitlines()[-1].split("  ")[-2:] == ["array", "(in array.T)"]
    np.save("m.npy", np.asfortranarray(np.arange(6.0).reshape(2, 3) + 1))
    call("commit", "-m", "m", ".")
    (changed,) = ask("diff", "HEAD~1", "HEAD")["tensors"]
    assert (changed["name"], changed["kind"]) == ("array.T", "changed")


def test_cat_describes_a_tensor(project: Path, call: Call, ask: Ask) -> None:
    """Statistics are of the finite elements; zeros, NaN and infinities are counted; --max bounds the values."""
    values = np.array([0, 3, -4, np.nan, np.inf, 0], np.float32)
    save_file({"t": values, "e": np.zeros((0, 3), np.float32), "c": np.array([3 + 4j], np.complex64)}, "m.safetensors")
    call("commit", "-m", "m", ".")
    found = ask("cat", "t", "--values", "--max", "5")
    assert (found["min"], found["max"], found["mean"], found["l2"]) == (-4, 3, -0.25, 5)
    assert (found["zeros"], found["nan"], found["inf"], found["elements"]) == (2, 1, 1, 6)
    assert found["values"] == [0, 3, -4, "NaN", "Infinity"]
    assert ask("cat", "e")["min"] is None
    assert ask("cat", "c", "--values")["values"] == [[3, 4]]
    assert "NaN, inf  1  1" in call("cat", "t").stdout
    assert "[ 0.  3. -4. nan inf  0.]" in call("cat", "t", "--values").stdout


def test_cat_says_which_file_it_could_be(project: Path, call: Call, ask: Ask, write: Write) -> None:
    """A tensor that two files hold asks for --part; one that is misspelt names its neighbours."""
    write("a.safetensors")
    write("b.safetensors", seed=1)
    call("commit", "-m", "two files", ".")
    assert "--part" in call("cat", "layer.weight", code=2).stderr
    assert ask("cat", "layer.weight", "--part", "b.safetensors")["part"] == "b.safetensors"
    assert "layer.weight" in call("cat", "layer.wieght", code=3).stderr


# -- moving


def test_checkout_says_where_it_went(history: list[str], call: Call, ask: Ask, project: Path) -> None:
    """A commit detaches HEAD, a branch does not; the files that were written are named."""
    text = call("checkout", "HEAD~1").stdout
    assert "HEAD is detached" in text and "model.safetensors" in text
    moved = ask("checkout", "main")
    assert (moved["branch"], moved["detached"], moved["written"]) == ("main", False, ["model.safetensors"])
    assert ask("checkout", "-b", "old", "HEAD~1")["branch"] == "old"


def test_checkout_does_not_lose_bytes(history: list[str], call: Call, ask: Ask, write: Write, project: Path) -> None:
    """A file that no commit holds is not overwritten without --force, and a branch is not left half made."""
    mine = write(seed=9)
    call("checkout", "HEAD~1", code=4)
    call("checkout", "-b", "other", "HEAD~1", code=4)
    assert [branch["name"] for branch in ask("branch")] == ["main"]
    assert (project / "model.safetensors").read_bytes() == mine
    call("checkout", "-f", "HEAD~1")


def test_checkout_of_a_file_alone_says_how(history: list[str], call: Call) -> None:
    """`coral checkout FILE` is a likely slip; the hint has the right words."""
    assert "coral checkout HEAD model.safetensors" in call("checkout", "model.safetensors", code=3).stderr
    assert "coral checkout HEAD ." in call("checkout", ".", code=3).stderr


def test_training_states_stay_in_the_store_until_named(project: Path, call: Call, ask: Ask) -> None:
    """checkout leaves states in the store and says how to get them."""
    import coral

    repo = coral.Repository(project)
    repo.save({"w": np.ones(100, np.float32)}, epoch=3)
    text = call("checkout", "main").stdout
    assert "kept in the store" in text and not list(project.glob("*state*"))
    (state,) = ask("checkout", "main")["states"]
    assert ask("checkout", "HEAD", state)["written"] == [state]
    assert "kept in the store" not in call("checkout", "main").stdout and ask("checkout", "main")["states"] == []


def test_switch_says_which_files_it_did_not_write(history: list[str], call: Call, project: Path) -> None:
    """A file that went away on the other branch does not come back unsaid."""
    call("branch", "old", "HEAD~1")
    call("rm", "model.safetensors")
    call("commit", "-m", "none")
    text = call("switch", "old").stdout
    assert "kept in the store: model.safetensors" in text and "coral checkout HEAD model.safetensors" in text


def test_switch_goes_to_branches_only(history: list[str], call: Call, ask: Ask) -> None:
    """switch -c makes a branch; switching to a hash or an unknown name is refused."""
    assert ask("switch", "-c", "next")["branch"] == "next"
    assert call("switch", "next").stdout == "Already on 'next'\n"
    call("switch", "nxet", code=3)
    call("switch", history[0], code=3)


def test_branches_are_made_renamed_and_deleted(history: list[str], call: Call, ask: Ask) -> None:
    """A branch whose commits nobody else holds is only deleted with -D."""
    call("branch", "old", "HEAD~1")
    assert call("branch").stdout == "* main\n  old\n"
    assert f"{history[1][:10]} one" in call("branch", "-v").stdout
    call("branch", "-m", "old", "older")
    call("branch", "-d", "older")
    call("switch", "-c", "side")
    call("commit", "--allow-empty", "-m", "alone")
    call("switch", "main")
    assert "-D" in call("branch", "-d", "side", code=4).stderr
    call("branch", "-D", "side")
    assert ask("branch") == [{"name": "main", "commit_hash": history[0], "current": True}]


def test_tags_are_made_moved_and_deleted(history: list[str], call: Call, ask: Ask) -> None:
    """A tag that exists is not moved without --force."""
    call("tag", "v2", "HEAD~1", code=4)
    call("tag", "-f", "-m", "moved", "v2", "HEAD~1")
    assert ask("tag", "-l") == [{"name": "v2", "commit_hash": history[1]}]
    call("tag", "-d", "v2")
    assert call("tag").stdout == ""


# -- the frame


def leaves(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name)


assert isinstance(main, click.Group)


@pytest.mark.parametrize("path", list(leaves(main)), ids=" ".join)
def test_every_command_has_an_example_and_fits_80_columns(path: tuple[str, ...], call: Call) -> None:
    """Help names an example that starts as the user would type it, and no line of it is cut by a terminal."""
    text = call(*path, "-h").stdout
    assert f"coral {' '.join(path)}" in text.partition("Example")[2]
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("group", [[], ["exp"]], ids=["coral", "exp"])
def test_a_group_alone_shows_its_help(group: list[str], call: Call) -> None:
    """As git does: the help itself, not as an error, and not as success."""
    assert call(*group, code=2).stderr.startswith(f"Usage: {' '.join(['coral', *group])} [OPTIONS]")


def test_the_top_explains_exit_codes(call: Call) -> None:
    """The codes a script may meet are in `coral --help`, which fits 80 columns."""
    text = call("--help").stdout
    assert "Exit codes" in text and "CORAL_RUN" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["comit"], "did you mean commit"),
        (["exp", "strat", "x"], "did you mean start"),
        (["log", "--onelin"], "coral log --help"),
        (["--nope"], "coral --help"),
        (["log", "-n", "many"], "many"),
        (["commit", "-m"], "coral commit --help"),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(project: Path, call: Call, arguments: list[str], words: str) -> None:
    """A slip of the keyboard is one line and a hint, exit code 2."""
    errors = call(*arguments, code=2).stderr
    assert errors.startswith("error: ") and words in errors


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (ZeroDivisionError("oops"), 70), (PermissionError(13, "Permission denied", "x"), 8)],
    ids=["interrupt", "bug", "disk"],
)
def test_what_nobody_expected_has_its_code(
    project: Path, call: Call, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    """An interrupt, a bug and the operating system's refusal are told apart; only a bug shows a traceback."""

    def fail(session: Session) -> None:
        raise error

    monkeypatch.setattr(Session, "open", fail)
    errors = call("log", code=code).stderr
    assert ("Traceback" in errors) == ("bug in coral" in errors) == (code == 70)


def test_quiet_says_nothing(project: Path, call: Call, write: Write) -> None:
    """-q leaves only what was asked for."""
    write()
    assert call("-q", "add", ".").output == ""
    assert call("-q", "commit", "-m", "one").output == ""
    assert call("-q", "checkout", "HEAD").output == ""
    assert "one" in call("-q", "log").output


def test_pipes_get_no_colours(history: list[str], call: Call) -> None:
    """What does not go to a terminal has no escape sequences."""
    for command in ("log", "status", "branch", "show", "diff", "ls", "reflog"):
        assert "\x1b" not in call(command).output


def test_refs_files_and_commands_complete(history: list[str], call: Call) -> None:
    """The shell completes commands, and refs and files of the repository."""

    def complete(*words: str) -> list[str]:
        env = {
            "_CORAL_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(("coral", *words)),
            "COMP_CWORD": str(len(words)),
        }
        return [line.partition(",")[2] for line in call(env=env).stdout.splitlines()]

    assert complete("che") == ["checkout"]
    assert complete("exp", "l") == ["log", "list", "lineage"]
    assert complete("checkout", "v") == ["v2"]
    assert complete("log", "--path", "mo") == ["model.safetensors"]
    assert complete("switch", "m") == ["main"]
