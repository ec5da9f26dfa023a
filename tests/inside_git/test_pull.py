"""Models in the place of the manifests that git checked out."""

from __future__ import annotations

import json
import sys

import pytest

from tests.inside_git.helpers import Project, safe, tensors, torch_file

SKIP = {"CORAL_SKIP_SMUDGE": "1"}


@pytest.fixture
def skipped(project: Project) -> Project:
    """A working tree of three models, all of them manifests."""
    project.write("sub folder/net.pt", torch_file(tensors(3)))
    project.commit("one", model=safe(tensors(1)), other=safe(tensors(2)))
    for name in ("model.safetensors", "other.safetensors", "sub folder/net.pt"):
        (project.folder / name).unlink()
    project.git("checkout", "--", ".", **SKIP)
    return project


def test_all_or_some(skipped: Project) -> None:
    """Files and folders are written on demand, and the tree is clean all the time."""
    assert json.loads(skipped.coral("pull", "--json", "model.safetensors")) == {
        "model.safetensors": len(safe(tensors(1))) - 8 - int.from_bytes(safe(tensors(1))[:8], "little")
    }
    assert skipped.read("model.safetensors") == safe(tensors(1))
    assert skipped.read("other.safetensors").startswith(b"coral manifest")
    assert skipped.status() == ""
    skipped.coral("checkout", "sub folder/net.pt")
    assert skipped.read("sub folder/net.pt") == torch_file(tensors(3))
    assert skipped.read("other.safetensors").startswith(b"coral manifest")
    skipped.coral("pull")
    assert skipped.read("other.safetensors") == safe(tensors(2))
    assert skipped.status() == ""
    assert "nothing to write" in skipped.coral("pull")


def test_what_the_user_changed_is_left_alone(skipped: Project) -> None:
    """A file that is not just what the index holds is not overwritten, and nothing is staged for it."""
    skipped.write("model.safetensors", safe(tensors(7)))
    skipped.write("other.safetensors", skipped.read("other.safetensors") + b"\n")
    skipped.coral("pull")
    assert skipped.read("model.safetensors") == safe(tensors(7))
    assert skipped.read("other.safetensors").endswith(b"\n\n")
    assert skipped.git("diff", "--cached", "--name-only") == ""


def test_permissions_stay(project: Project) -> None:
    """The executable bit, which git keeps, is kept."""
    project.write("model.safetensors", safe(tensors(1))).chmod(0o755)
    project.git("add", "-A")
    project.git("commit", "-q", "-m", "one")
    (project.folder / "model.safetensors").unlink()
    project.git("checkout", "--", ".", **SKIP)
    project.coral("pull")
    assert project.read("model.safetensors") == safe(tensors(1))
    assert project.status() == ""


def test_errors(skipped: Project) -> None:
    """Unknown paths and absent tensors are named; what is here is written all the same."""
    done = skipped.run(sys.executable, "-m", "coral", "pull", "nowhere.pt", check=False)
    assert (done.returncode, b"nowhere.pt" in done.stderr) == (3, True)
    packs = sorted((skipped.folder / ".coral" / "packs").glob("*"), key=lambda path: path.stat().st_size)
    for path in packs:
        if path.suffix == ".idx" and path.with_suffix(".pack").stat().st_size == packs[-1].stat().st_size:
            path.unlink()
            path.with_suffix(".pack").unlink()
            break
    done = skipped.run(sys.executable, "-m", "coral", "pull", check=False)
    assert done.returncode == 5
    assert b"not here" in done.stderr
    written = [name for name in ("model.safetensors", "other.safetensors") if skipped.read(name)[:5] != b"coral"]
    assert written
    assert skipped.status() == ""
