"""Merging manifests: by our rules, and by git's own three-way merge of their text, which must never err silently."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coral.errors import FormatError
from coral.format.manifest import SKELETON_NAME, Manifest, Skeleton, TensorRecord
from coral.ids import ContentRef
from coral.verbs.merging.merge import Merge, common, merge

NAMES = ["a", "a.b", "layer.0.bias", "layer.0.weight", "layer.1.weight", "<<<<<<< x", "z z", "=======", "ü"]


def content(number: int) -> ContentRef:
    return ContentRef(f"b3:{number:064x}")


def manifest(values: dict[str, int], **metadata: str) -> Manifest:
    """A safetensors manifest of tensors whose contents are numbers."""
    records = tuple(TensorRecord(name, "F32", (64,), content(value)) for name, value in values.items())
    return Manifest("safetensors", records, None, tuple(metadata.items()))


def torch_manifest(values: dict[str, int], skeleton: int) -> Manifest:
    """A torch manifest with a skeleton."""
    return Manifest("torch", manifest(values).records, Skeleton(content(skeleton), 100))


VALUES = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 2), max_size=len(NAMES))


def expected(base: dict[str, int], ours: dict[str, int], theirs: dict[str, int]) -> tuple[dict[str, int], set[str]]:
    """What a person would say: the settled tensors, and the names in conflict."""
    settled, conflicts = {}, set()
    for name in base.keys() | ours.keys() | theirs.keys():
        before, one, other = base.get(name), ours.get(name), theirs.get(name)
        if one != other and one != before and other != before:
            conflicts.add(name)
            continue
        value = other if one == before else one
        if value is not None:
            settled[name] = value
    return settled, conflicts


@given(VALUES, VALUES, VALUES)
def test_by_tensor(base: dict[str, int], ours: dict[str, int], theirs: dict[str, int]) -> None:
    """Only tensors that both sides changed, and differently, conflict; all others are what either side made them."""
    merged = merge(manifest(base), manifest(ours), manifest(theirs))
    settled, conflicts = expected(base, ours, theirs)
    assert set(merged.conflicts) == conflicts
    for side, values in ((merged.ours, ours), (merged.theirs, theirs)):
        chosen = {name: values[name] for name in conflicts if name in values}
        assert side == manifest({**settled, **chosen})
    assert merged.take("ours").conflicts == merged.take("theirs").conflicts == ()
    assert merged.take("ours").ours == merged.take("ours").theirs == merged.ours


@given(VALUES, VALUES, VALUES, st.integers(7, 20))
def test_conflicts_as_text(base: dict[str, int], ours: dict[str, int], theirs: dict[str, int], size: int) -> None:
    """The text with markers says all there is to say; without conflicts it is the manifest."""
    merged = merge(manifest(base), manifest(ours), manifest(theirs))
    text = merged.to_bytes(marker_size=size)
    assert Merge.from_bytes(text) == merged
    assert (text == merged.ours.to_bytes()) == (not merged.conflicts)
    assert text.count(b"<" * size + b" ours\n") == len(merged.conflicts)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(VALUES, VALUES, VALUES, st.sampled_from([[], ["--diff3"]]))
def test_git_merges_the_text(
    tmp_path: Path, base: dict[str, int], ours: dict[str, int], theirs: dict[str, int], style: list[str]
) -> None:
    """Plain 'git merge-file' never errs silently: it gives what we would, or a conflict, or what is no manifest.

    The last two are for 'coral resolve', which goes back to git's three versions of the file.
    """
    paths = [tmp_path / name for name in ("ours", "base", "theirs")]
    for path, values in zip(paths, (ours, base, theirs), strict=True):
        path.write_bytes(manifest(values).to_bytes())
    done = subprocess.run(["git", "merge-file", "-p", *style, *paths], capture_output=True, check=False)
    settled, conflicts = expected(base, ours, theirs)
    try:
        found = Merge.from_bytes(done.stdout)
    except FormatError:
        return
    assert bool(found.conflicts) == bool(done.returncode)
    if not found.conflicts:
        assert done.stdout == manifest(settled).to_bytes()
        assert not conflicts


def test_different_layers_merge_without_conflict(tmp_path: Path) -> None:
    """Two sides that change neighbouring tensors merge by git alone."""
    before = {f"layer.{number}": 0 for number in range(8)}
    sides = [{**before, "layer.3": 1}, before, {**before, "layer.4": 2}]
    paths = [tmp_path / str(number) for number in range(3)]
    for path, values in zip(paths, sides, strict=True):
        path.write_bytes(manifest(values).to_bytes())
    done = subprocess.run(["git", "merge-file", "-p", *paths], capture_output=True, check=True)
    assert done.stdout == manifest({**before, "layer.3": 1, "layer.4": 2}).to_bytes()


def test_metadata_merges_by_key() -> None:
    """A key that one side changed is taken; one that both changed is a conflict of the rest of the file."""
    base = manifest({"a": 1}, step="1", epoch="1")
    one, other = manifest({"a": 1}, step="2", epoch="1"), manifest({"a": 2}, step="1", epoch="1", new="n")
    merged = merge(base, one, other)
    assert merged.conflicts == ()
    assert merged.ours == manifest({"a": 2}, step="2", epoch="1", new="n")
    clash = merge(base, one, manifest({"a": 2}, step="3", epoch="1"))
    assert clash.conflicts == (SKELETON_NAME,)
    assert Merge.from_bytes(clash.to_bytes()) == clash
    assert clash.take("theirs").ours == manifest({"a": 2}, step="3", epoch="1")


def test_skeletons() -> None:
    """A file whose structure one side changed takes that structure, if the merged tensors fit it; else it conflicts."""
    base = torch_manifest({"a": 1, "b": 1}, 1)
    tuned, grown = torch_manifest({"a": 2, "b": 1}, 1), torch_manifest({"a": 1, "b": 1, "c": 1}, 2)
    merged = merge(base, tuned, grown)
    assert merged.conflicts == ()
    assert merged.ours == torch_manifest({"a": 2, "b": 1, "c": 1}, 2)
    both = merge(base, torch_manifest({"a": 1, "b": 1, "d": 1}, 3), grown)
    assert SKELETON_NAME in both.conflicts
    assert both.ours == torch_manifest({"a": 1, "b": 1, "d": 1}, 3)
    assert both.theirs == grown
    assert both.take("theirs").ours == grown


def test_a_base_with_conflicts_is_what_both_agree_on() -> None:
    """A merge of merges: what the ancestor's two sides did not agree on counts as changed on both sides."""
    base = common(merge(manifest({"a": 1, "b": 1}), manifest({"a": 2, "b": 1}), manifest({"a": 3, "b": 1})))
    assert base == manifest({"b": 1})
    assert merge(base, manifest({"a": 2, "b": 1}), manifest({"a": 3, "b": 1})).conflicts == ("a",)


@pytest.mark.parametrize(
    "text",
    [
        b"<<<<<<< ours\n",
        b"=======\n",
        b"<<<<<<< ours\n<<<<<<< ours\n=======\n>>>>>>> theirs\n",
        b"<<<<<<< ours\nrubbish\n=======\n>>>>>>> theirs\n",
        b"<<<<<<< ours\n=======\n=======\n>>>>>>> theirs\n",
    ],
)
def test_nonsense(text: bytes) -> None:
    """Markers out of order, and sides that are no manifests, are refused."""
    with pytest.raises(FormatError):
        Merge.from_bytes(manifest({"a": 1}).to_bytes() + text)
