"""The commands about commits, branches and tags: what they do, say, and print as JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from safetensors.numpy import save_file

Call = Callable[..., Result]
Ask = Callable[..., Any]
Write = Callable[..., bytes]


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


@pytest.mark.parametrize(
    "command", [["add"], ["rm"], ["reset"], ["checkout", "HEAD"], ["commit", "-m", "x"]], ids=" ".join
)
def test_an_empty_path_is_refused(history: list[str], call: Call, project: Path, command: list[str]) -> None:
    """`coral rm "$UNSET"` does not mean every file."""
    assert "path is empty" in call(*command, "", code=2).stderr
    assert (project / "model.safetensors").exists()


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
