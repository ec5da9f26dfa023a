"""git's ways to show a difference, on models: how far tensors are apart, and readable text without coral."""

from __future__ import annotations

import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coral.format.dtypes import NUMPY_NAMES
from coral.tensors.numpy import numpy_dtype
from coral.verbs.merging.compare import measure
from tests.inside_git.helpers import Project, safe, tensors, torch_file

PATH = "model.safetensors"


@given(st.sampled_from(sorted(NUMPY_NAMES)), st.integers(0, 2**32), st.integers(1, 300), st.integers(1, 300))
def test_distances(dtype: str, seed: int, size: int, cut: int) -> None:
    """The numbers are those that numpy computes in one go, in float64, whatever the pieces."""
    random, kind = np.random.default_rng(seed), numpy_dtype(NUMPY_NAMES[dtype])
    old, new = (np.frombuffer(random.bytes(size * kind.itemsize), np.uint8).view(kind) for _ in range(2))
    if dtype == "BOOL":
        old, new = (side.view(np.uint8) % 2 == 1 for side in (old, new))
    keep = random.random(size) < 0.5
    new = np.where(keep, old, new)
    pieces = [(old[at : at + cut].tobytes(), new[at : at + cut].tobytes()) for at in range(0, size, cut)]
    found = measure(dtype, pieces)
    bits = np.dtype(f"u{kind.itemsize}")
    assert found.share == np.count_nonzero(old.view(bits) != new.view(bits)) / size
    wide = np.complex128 if dtype == "C64" else np.float64
    with np.errstate(all="ignore"):
        good = np.isfinite(old.astype(wide)) & np.isfinite(new.astype(wide))
        one, other = old.astype(wide)[good], new.astype(wide)[good]
        norm = float(np.sqrt(np.vdot(other - one, other - one).real))
    if np.isfinite(norm) and norm < 1e150:
        assert found.l2 == pytest.approx(norm, rel=1e-4)
        assert found.largest == pytest.approx(float(np.abs(other - one).max(initial=0.0)), rel=1e-4)


def test_known_distances() -> None:
    """L2, largest, cosine and share of a difference that a person can compute."""
    old, new = np.array([3, 0, 0, 0], "<f4"), np.array([0, 4, 0, -0.0], "<f4")
    found = measure("F32", [(old.tobytes(), new.tobytes())])
    assert (found.l2, found.largest, found.cosine, found.share) == (5.0, 4.0, 0.0, 0.75)
    nothing = measure("F32", [(new.tobytes(), np.zeros(4, "<f4").tobytes())])
    assert nothing.cosine is None
    inf = np.array([np.inf, 1], ml_dtypes.bfloat16)
    assert measure("BF16", [(inf.tobytes(), np.array([1, 3], ml_dtypes.bfloat16).tobytes())]).l2 == 2.0


def versions(project: Project) -> None:
    """Two commits: a tensor added, one removed, one of other dtype, one of other shape, two changed."""
    values = tensors()
    project.commit("one", model=safe(values, step="1"))
    changed = dict(values)
    changed["layer.0.weight"] = values["layer.0.weight"] + np.float32(1e-3)
    changed["layer.1.weight"] = values["layer.1.weight"] + np.float32(1)
    changed["layer.1.bias"] = values["layer.1.bias"].astype("<f2")
    changed["layer.2.weight"] = np.vstack([values["layer.2.weight"]] * 2)
    changed["new"] = np.zeros(100, "<f4")
    del changed["layer.2.bias"]
    project.commit("two", model=safe(changed, step="2"))


def test_the_difference_of_two_commits(project: Project) -> None:
    """Each tensor that differs is a line, the largest change first, and within 100 columns; metadata too."""
    versions(project)
    lines = project.git("diff", "HEAD~1", "HEAD", "--", PATH).splitlines()
    assert lines[0] == f"diff --git a/{PATH} b/{PATH}"
    kinds = [(line.split()[0], line.split()[-1]) for line in lines[3:9]]
    assert sorted(kinds[:4]) == [
        ("added", "new"),
        ("dtype", "layer.1.bias"),
        ("removed", "layer.2.bias"),
        ("shape", "layer.2.weight"),
    ]
    assert kinds[4:] == [("changed", "layer.1.weight"), ("changed", "layer.0.weight")]
    assert "0.001" in lines[8]
    assert "100 %" in lines[8]
    assert "metadata step: 1 -> 2" in lines
    assert max(map(len, lines)) <= 100


def test_the_working_tree(project: Project) -> None:
    """What is not added yet is compared as the file it is."""
    values = tensors()
    project.commit("one", model=safe(values), other=safe(tensors(5)))
    values["layer.0.bias"] = values["layer.0.bias"] + np.float32(0.5)
    project.write(PATH, safe(values))
    said = project.git("diff")
    assert "layer.0.bias" in said
    assert "0.5" in said
    assert "layer.1" not in said
    project.write(PATH, b"not a model any more")
    assert "removed" in project.git("diff")


def test_new_and_deleted_files(project: Project) -> None:
    """A new file is all added, a deleted one all removed; an archive is compared by its tensors, too."""
    project.commit("one", model=safe(tensors()))
    project.write("net.pt", torch_file(tensors()))
    project.git("add", "-A")
    assert project.git("diff", "--cached").count("added") >= 6
    project.git("commit", "-q", "-m", "two")
    project.git("rm", "-q", PATH)
    said = project.git("diff", "--cached")
    assert "deleted file mode 100644" in said
    assert said.count("removed ") >= 6


def test_the_list_is_bounded(project: Project) -> None:
    """Twenty tensors are listed, or as many as coral.diffMax says, and a word on the rest."""
    project.commit("one", model=safe(tensors(1, layers=30)))
    project.commit("two", model=safe(tensors(2, layers=30)))
    said = project.git("diff", "HEAD~1", "HEAD")
    assert sum(line.startswith("changed ") for line in said.splitlines()) == 20
    assert "... and 40 tensors more" in said
    project.git("config", "coral.diffMax", "3")
    assert "... and 57 tensors more" in project.git("diff", "HEAD~1", "HEAD")


def test_texts(project: Project) -> None:
    """log -p, show and diff --stat show the text that git keeps; with --ext-diff log shows numbers."""
    versions(project)
    for words in (["log", "-p", "-1"], ["show"], ["diff", "--no-ext-diff", "HEAD~1"]):
        said = project.git(*words)
        assert "+new\tF32\t[100]" in said
        assert "-layer.2.bias\tF32\t[32]" in said
    assert "model.safetensors |" in project.git("diff", "--stat", "HEAD~1", "HEAD")
    assert "cosine" in project.git("log", "-p", "-1", "--ext-diff")


def test_without_coral(project: Project, tmp_path: Path) -> None:
    """Who has no coral sees readable text in a clone."""
    versions(project)
    clone = Project(tmp_path / "clone")
    subprocess.run(["git", "clone", "-q", project.folder, clone.folder], check=True)
    assert "+layer.1.bias\tF16\t[32]" in clone.git("diff", "HEAD~1", "HEAD")
    assert clone.read(PATH).startswith(b"coral manifest 1\ncontainer safetensors\n")


def test_absent_tensors_are_listed(project: Project, tmp_path: Path) -> None:
    """Without the tensors the difference is still listed, without numbers, and says so."""
    versions(project)
    clone = Project(tmp_path / "clone")
    subprocess.run(["git", "clone", "-q", project.folder, clone.folder], check=True)
    clone.configure()
    said = clone.git("diff", "HEAD~1", "HEAD", "--", PATH)
    assert "layer.0.weight" in said
    assert "could not be compared" in said


def test_a_rename_and_a_mode(project: Project) -> None:
    """A renamed model that changed is compared with what it was; a mode change is shown."""
    values = tensors()
    project.commit("one", model=safe(values))
    values["layer.0.bias"] = values["layer.0.bias"] + np.float32(0.5)
    project.git("mv", PATH, "moved.safetensors")
    project.write("moved.safetensors", safe(values))
    project.git("add", "-A")
    said = project.git("diff", "--cached", "-M")
    assert "changed" in said
    assert "layer.1.weight" not in said
    project.git("commit", "-q", "-m", "moved")
    (project.folder / "moved.safetensors").chmod(0o755)
    assert "old mode 100644\nnew mode 100755" in project.git("diff")


def test_a_merge_that_is_not_settled(project: Project) -> None:
    """A file with conflicts in it is not mistaken for a model."""
    project.commit("one", model=safe(tensors()))
    text = project.blob(PATH).replace(b"layer.0.bias", b"<<<<<<< ours\nlayer.0.bias")
    project.write(PATH, text)
    assert "not settled" in project.git("diff")
