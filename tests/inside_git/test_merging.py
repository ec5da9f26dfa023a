"""Merging branches of models with the real git, with the driver and without, and settling what is left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from coral.format.manifest import Manifest
from tests.inside_git.helpers import ATTRIBUTES, Project, Tensors, safe, tensors, torch_file

PATH = "model.safetensors"


def branches(project: Project, base: bytes, ours: bytes, theirs: bytes, name: str = PATH) -> None:
    """A branch ``other`` with their version; HEAD is at ours."""
    for branch, data in (("main", base), ("other", theirs), ("main", ours)):
        project.git("checkout", "-q", *(["-b", branch] if branch == "other" else [branch]))
        project.write(name, data)
        project.git("add", "-A")
        project.git("commit", "-q", "--allow-empty", "-m", branch)


def changed(values: Tensors, **by: float) -> dict[str, np.ndarray]:
    """The model with numbers added to the layers named, as ``layer_0=1.0``."""
    found = dict(values)
    for key, amount in by.items():
        name = f"layer.{key[-1]}.weight"
        found[name] = (found[name] + np.float32(amount)).astype("<f4")
    return found


def test_different_layers(project: Project) -> None:
    """Each side's changes are in the merged model, byte for byte."""
    values = tensors()
    branches(project, safe(values), safe(changed(values, layer_0=1)), safe(changed(values, layer_2=2)))
    project.git("merge", "-q", "-m", "merged", "other")
    assert project.read(PATH) == safe(changed(values, layer_0=1, layer_2=2))
    assert project.status() == ""


def test_a_clone_without_coral_merges(project: Project, tmp_path: Path) -> None:
    """A person, or a forge, without coral merges different layers with git alone."""
    values = tensors()
    branches(project, safe(values), safe(changed(values, layer_0=1)), safe(changed(values, layer_2=2)))
    clone = Project(tmp_path / "clone")
    subprocess.run(["git", "clone", "-q", project.folder, clone.folder], check=True)
    clone.git("merge", "-q", "-m", "merged", "origin/other")
    project.git("pull", "-q", clone.folder, "main")
    assert project.read(PATH) == safe(changed(values, layer_0=1, layer_2=2))


def conflict(project: Project) -> dict[str, np.ndarray]:
    """A merge that stopped: layers 0 and 1 changed on both sides, layer 2 on theirs alone."""
    values = tensors()
    ours, theirs = changed(values, layer_0=1, layer_1=1), changed(values, layer_0=2, layer_1=3, layer_2=4)
    branches(project, safe(values), safe(ours), safe(theirs))
    done = project.run("git", "merge", "other", check=False)
    assert done.returncode == 1
    assert b"layer.0.weight, layer.1.weight" in done.stderr + done.stdout
    return values


def test_conflicts_are_listed_and_settled_by_name(project: Project) -> None:
    """What both sides changed is left to the user, tensor by tensor; all else is merged already."""
    values = conflict(project)
    assert b"<<<<<<< ours" in project.read(PATH)
    assert json.loads(project.coral("resolve", "--list", "--json")) == {PATH: ["layer.0.weight", "layer.1.weight"]}
    assert json.loads(project.coral("resolve", "--json", PATH)) == ["layer.0.weight", "layer.1.weight"]
    assert "layer.0.weight" in project.coral("resolve", "--list", PATH)
    project.coral("resolve", "--ours", PATH, "layer.0.*")
    assert json.loads(project.coral("resolve", "--json", PATH)) == ["layer.1.weight"]
    assert b"<<<<<<< ours" in project.read(PATH)
    project.coral("resolve", "--theirs", PATH)
    assert project.read(PATH) == safe(changed(values, layer_0=1, layer_1=3, layer_2=4))
    project.git("add", PATH)
    project.git("commit", "-q", "-m", "merged")
    assert project.status() == ""


@pytest.mark.parametrize("rule", ["ours", "theirs", "average"])
@pytest.mark.parametrize("where", ["attribute", "setting", "command"])
def test_rules(project: Project, rule: str, where: str) -> None:
    """A rule settles only what both sides changed; it may be named by attribute, by setting, or afterwards."""
    values = tensors()
    ours, theirs = changed(values, layer_0=1, layer_1=1), changed(values, layer_0=2, layer_2=4)
    if where == "attribute":
        project.write(".gitattributes", f"{ATTRIBUTES}*.safetensors coral-merge={rule}\n".encode())
    branches(project, safe(values), safe(ours), safe(theirs))
    if where == "setting":
        project.git("config", "coral.merge", rule)
    if where == "command":
        project.run("git", "merge", "other", check=False)
        project.coral("resolve", f"--{rule}", PATH)
        project.git("add", PATH)
        project.git("commit", "-q", "-m", "merged")
    else:
        project.git("merge", "-q", "-m", "merged", "other")
    found = safetensors.numpy.load(project.read(PATH))
    mean = (ours["layer.0.weight"].astype("f8") + theirs["layer.0.weight"].astype("f8")) / 2
    wanted = {"ours": ours["layer.0.weight"], "theirs": theirs["layer.0.weight"], "average": mean.astype("<f4")}[rule]
    assert found["layer.0.weight"].tobytes() == wanted.tobytes()
    assert found["layer.1.weight"].tobytes() == ours["layer.1.weight"].tobytes()
    assert found["layer.2.weight"].tobytes() == theirs["layer.2.weight"].tobytes()
    assert project.status() == ""


def test_no_mean(project: Project) -> None:
    """Integers, and tensors whose shape changed, have no mean: they stay in conflict, and the user is told."""
    base = {"w": np.zeros(64, "<f4"), "count": np.zeros(64, "<i8"), "grown": np.zeros((64, 2), "<f4")}
    ours = {"w": base["w"] + np.float32(1), "count": base["count"] + 1, "grown": np.ones((65, 2), "<f4")}
    theirs = {"w": base["w"] + np.float32(2), "count": base["count"] + 2, "grown": np.ones((64, 2), "<f4")}
    branches(project, safe(base), safe(ours), safe(theirs))
    project.git("config", "coral.merge", "average")
    assert project.run("git", "merge", "other", check=False).returncode == 1
    assert json.loads(project.coral("resolve", "--json", PATH)) == ["count", "grown"]
    project.coral("resolve", "--ours", PATH)
    found = safetensors.numpy.load(project.read(PATH))
    assert found["w"].tolist() == [1.5] * 64
    assert found["count"].tobytes() == ours["count"].tobytes()
    assert found["grown"].tobytes() == ours["grown"].tobytes()


def test_torch_files_use_the_driver(project: Project) -> None:
    """Two sides that tune different tensors of a torch file merge, though its container is a zip."""
    values = tensors()
    ours, theirs = changed(values, layer_0=1), changed(values, layer_2=2)
    branches(project, torch_file(values), torch_file(ours), torch_file(theirs), "model.pt")
    project.git("merge", "-q", "-m", "merged", "other")
    assert project.read("model.pt") == torch_file(changed(values, layer_0=1, layer_2=2))


def test_opaque_files_conflict_as_a_whole(project: Project) -> None:
    """Files that coral does not understand conflict when both sides changed them, and are settled whole."""
    noise = [np.random.default_rng(seed).bytes(100_000) for seed in range(3)]
    branches(project, noise[0], noise[1], noise[2], "net.onnx")
    assert project.run("git", "merge", "other", check=False).returncode == 1
    project.coral("resolve", "--theirs", "net.onnx")
    assert project.read("net.onnx") == noise[2]


def test_conflicts_of_git_s_own_making(project: Project) -> None:
    """A file that git merged without the driver, with conflicts, is settled by tensor all the same."""
    project.git("config", "--unset", "merge.coral.driver")
    values = tensors()
    ours, theirs = changed(values, layer_0=1), changed(values, layer_0=2, layer_2=4)
    branches(project, safe(values), safe(ours), safe(theirs))
    assert project.run("git", "merge", "other", check=False).returncode == 1
    project.coral("resolve", "--ours", PATH, "layer.0.weight")
    assert project.read(PATH) == safe(changed(values, layer_0=1, layer_2=4))


def test_a_model_from_before_it_was_tracked(project: Project) -> None:
    """A version that git holds whole, because it was committed before it was tracked, is merged by tensor, too."""
    values = tensors()
    project.write("base", safe(values))
    project.write("ours", safe(changed(values, layer_0=1)))
    project.write("theirs", safe(changed(values, layer_2=2)))
    project.coral("git-merge", "base", "ours", "theirs", "7", PATH)
    merged = project.read("ours")
    assert Manifest.from_bytes(merged).container == "safetensors"
    project.write(PATH, merged)
    project.git("add", PATH)
    (project.folder / PATH).unlink()
    project.git("checkout", "--", PATH)
    assert project.read(PATH) == safe(changed(values, layer_0=1, layer_2=2))


def test_an_unknown_rule_loses_nothing(project: Project) -> None:
    """A rule that does not exist is an error, the file stays ours, and git says that it conflicts."""
    values = tensors()
    branches(project, safe(values), safe(changed(values, layer_0=1)), safe(changed(values, layer_0=2)))
    project.git("config", "coral.merge", "best")
    done = project.run("git", "merge", "other", check=False)
    assert done.returncode == 1
    assert b"no merge rule 'best'" in done.stderr
    assert project.read(PATH) == safe(changed(values, layer_0=1))


def test_wrong_uses_of_merge(project: Project) -> None:
    """Files without a conflict, names that are none, and folders without git are refused, each with a word."""
    for arguments, said in (
        ([PATH], "no conflict"),
        (["--ours"], "which file"),
        (["/elsewhere/model.safetensors"], "outside"),
    ):
        done = project.run(sys.executable, "-m", "coral", "resolve", *arguments, check=False)
        assert done.returncode in (2, 3)
        assert said in done.stderr.decode()
    conflict(project)
    done = project.run(sys.executable, "-m", "coral", "resolve", "--ours", PATH, "no.such", check=False)
    assert done.returncode == 3
    assert b"<<<<<<< ours" in project.read(PATH)
