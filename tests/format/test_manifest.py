"""The manifest's text: round trip, one spelling only, hostile input, and git's own merge."""

from __future__ import annotations

import gc
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coral.errors import FormatError, InvalidNameError, VersionError
from coral.format.dtypes import BITS
from coral.format.manifest import CONTAINER_NAMES, Manifest, Skeleton, TensorRecord, is_manifest
from coral.ids import ContentRef

hexes = st.binary(min_size=32, max_size=32).map(bytes.hex)
contents = st.one_of(
    hexes.map("b3:".__add__), hexes.map("b3l:".__add__), st.binary(max_size=32).map(lambda data: "hex:" + data.hex())
).map(ContentRef)
nasty = st.sampled_from(
    ["\t", "\n", "\r", "%", "%41", " ", "%20", "\x00", "\x7f", "\x85", "\u2028", "\u2029", "é", "🪸"]
)
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.lists(nasty, max_size=6).map("".join)
)
shapes = st.lists(st.integers(0, 50), max_size=4).map(lambda sizes: tuple(2 * size for size in sizes)) | st.just(())
records = st.builds(TensorRecord, texts, st.sampled_from([d for d in BITS if BITS[d] >= 8]), shapes, contents)
manifests = st.builds(
    Manifest,
    st.sampled_from(CONTAINER_NAMES),
    st.lists(records, max_size=8, unique_by=lambda record: record.name).map(tuple),
    st.none() | st.builds(Skeleton, contents, st.integers(0, 10**15)),
    st.lists(st.tuples(texts, texts), max_size=4).map(tuple),
)


@given(manifests)
def test_round_trip(manifest: Manifest) -> None:
    """Any names, shapes, skeleton and metadata come back as they were, and the text has two lines a tensor."""
    data = manifest.to_bytes()
    assert Manifest.from_bytes(data) == manifest
    assert data.count(b"\n") == 3 + len(manifest.metadata) + 2 * len(manifest.records)
    assert is_manifest(data)


@given(manifests)
def test_sorted_by_utf8(manifest: Manifest) -> None:
    """Tensors stand in the order of their names' UTF-8 bytes, and are found by name."""
    names = [record.name for record in manifest.records]
    assert names == sorted(names, key=str.encode)
    assert all(manifest[name].name == name and name in manifest for name in names)
    assert "no such tensor at all" not in manifest


@pytest.mark.parametrize("name", ["\ud800", "a\udfffb"])
def test_lone_surrogates_are_refused(name: str) -> None:
    """What is not unicode cannot be kept, in a name or in metadata; it is refused rather than replaced."""
    content = ContentRef("hex:00")
    with pytest.raises(InvalidNameError):
        Manifest("safetensors", (TensorRecord(name, "U8", (1,), content),)).to_bytes()
    with pytest.raises(InvalidNameError):
        Manifest("safetensors", (), None, ((name, "value"),)).to_bytes()
    with pytest.raises(InvalidNameError):
        Manifest("safetensors", (), None, (("key", name),)).to_bytes()


def test_a_name_twice_is_refused() -> None:
    """A manifest is a mapping: a name stands in it once."""
    record = TensorRecord("a", "U8", (1,), ContentRef("hex:00"))
    with pytest.raises(FormatError):
        Manifest("safetensors", (record, record._replace(shape=(0,))))


def test_an_unknown_container_is_refused() -> None:
    """What could not be read back is not made."""
    with pytest.raises(FormatError):
        Manifest("zip", ())


edits = st.tuples(
    st.sampled_from(["flip", "insert", "delete", "double"]),
    st.floats(0, 1),
    st.sampled_from([bytes([value]) for value in range(256)] + [b"\n\t", b"%20", b"%0A", b"\xc2\x85", b"\xe2\x80\xa8"]),
)


def edit(data: bytes, change: tuple[str, float, bytes]) -> bytes:
    """One small damage to a text."""
    kind, where, what = change
    at = int(where * len(data))
    if kind == "flip":
        return data[:at] + what + data[at + len(what) :]
    if kind == "insert":
        return data[:at] + what + data[at:]
    if kind == "delete":
        return data[:at] + data[at + 1 :]
    start = data.rfind(b"\n", 0, at) + 1
    end = data.find(b"\n", at) + 1 or len(data)
    return data[:end] + data[start:end] + data[end:]


@given(manifests, st.lists(edits, min_size=1, max_size=3))
@settings(max_examples=200)
def test_one_spelling_only(manifest: Manifest, changes: list[tuple[str, float, bytes]]) -> None:
    """Damaged text is refused by a coral error; what is read nevertheless would be written exactly so."""
    data = manifest.to_bytes()
    for change in changes:
        data = edit(data, change)
    try:
        read = Manifest.from_bytes(data)
    except (FormatError, VersionError):
        return
    assert read.to_bytes() == data


HEAD = "coral manifest 1\ncontainer safetensors\nskeleton canonical\n"
TENSOR = "a\tF32\t[2, 3]\n\tb3:" + "0" * 64 + "\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "coral manifest 1",
        HEAD.replace("safetensors", "zip"),
        HEAD.replace("canonical", "b3:00 1"),
        HEAD.replace("canonical", "hex: 01"),
        HEAD.replace("skeleton canonical\n", ""),
        HEAD + "metadata key\n",
        HEAD + "metadata a b\x01\n",
        HEAD + "metadata a b%\n",
        HEAD + "metadata a b%41\n",
        HEAD + "metadata a\x85 b\n",
        HEAD + "unknown line here\n",
        HEAD + TENSOR[:-1],
        HEAD + TENSOR + TENSOR,
        HEAD + TENSOR.replace("a", "b") + TENSOR,
        HEAD + TENSOR.replace("a", "a\x01"),
        HEAD + TENSOR.replace("a", "a\u2028"),
        HEAD + TENSOR.replace("a", "%61"),
        HEAD + TENSOR.replace("a", "%C3"),
        HEAD + TENSOR.replace("a", "%0a"),
        HEAD + TENSOR.replace("F32", "F31"),
        HEAD + TENSOR.replace("[2, 3]", "[2,3]"),
        HEAD + TENSOR.replace("[2, 3]", "[02, 3]"),
        HEAD + TENSOR.replace("[2, 3]", "[2, 3, ]"),
        HEAD + TENSOR.replace("[2, 3]", "[2, ٣]"),
        HEAD + TENSOR.replace("[2, 3]", "[-1]"),
        HEAD + TENSOR.replace("[2, 3]", "[" + ", ".join(["1"] * 65) + "]"),
        HEAD + TENSOR.replace("[2, 3]", "[1000000000000000000, 1000000000000000000]"),
        HEAD + TENSOR.replace("F32\t[2, 3]", "F4\t[3]"),
        HEAD + TENSOR.replace("b3:", "b4:"),
        HEAD + TENSOR.replace("b3:0", "b3:A"),
        HEAD + TENSOR.replace("b3:" + "0" * 64, "hex:0"),
        HEAD + TENSOR.replace("b3:" + "0" * 64, "hex:" + "00" * 33),
        HEAD + TENSOR.replace("\n\t", "\t"),
        HEAD + TENSOR.replace("F32\t", "F32\n\t"),
        HEAD + TENSOR + "a comment\n",
    ],
)
def test_malformed_text_is_refused(text: str) -> None:
    """Each rule of the text is checked."""
    with pytest.raises(FormatError):
        Manifest.from_bytes(text.encode())


def test_bytes_that_are_no_text_are_refused() -> None:
    """Bytes that are not UTF-8 are a malformed manifest."""
    with pytest.raises(FormatError):
        Manifest.from_bytes(HEAD.encode() + b"\xff\tF32\t[]\n\thex:00000000\n")


def test_a_newer_version_says_so() -> None:
    """A manifest of a newer coral asks for an upgrade rather than being called malformed."""
    with pytest.raises(VersionError):
        Manifest.from_bytes(b"coral manifest 2\nanything at all")


def many(count: int) -> Manifest:
    """A manifest of so many tensors."""
    found = (
        TensorRecord(f"layer.{n:06d}.weight", "F32", (n % 500, 8), ContentRef(f"b3:{n:064x}")) for n in range(count)
    )
    return Manifest("safetensors", tuple(found))


def seconds_of_cpu(data: bytes) -> float:
    """The least CPU time of a few readings."""
    times = []
    for _ in range(2):
        start = time.process_time()
        Manifest.from_bytes(data)
        times.append(time.process_time() - start)
    return min(times)


def test_reading_is_linear_and_quick() -> None:
    """40,000 tensors are read in a fraction of a second of CPU, and ten times as many take about ten times as long."""
    small, large = seconds_of_cpu(many(4_000).to_bytes()), seconds_of_cpu(many(40_000).to_bytes())
    assert large < 0.5
    assert large < 40 * small


def test_reading_leaves_the_collector_alone() -> None:
    """Python's garbage collector is as it was after a large manifest, a malformed one, and where it was off."""
    data = many(2_000).to_bytes()
    Manifest.from_bytes(data)
    assert gc.isenabled()
    with pytest.raises(FormatError):
        Manifest.from_bytes(data.replace(b"layer.001999", b"layer.000000"))
    assert gc.isenabled()
    gc.disable()
    try:
        Manifest.from_bytes(data)
        assert not gc.isenabled()
    finally:
        gc.enable()


Tensors = dict[str, tuple[tuple[int, ...], int]]


def manifest_of(tensors: Tensors) -> bytes:
    """The text of tensors given as name: (shape, number of the content)."""
    found = (
        TensorRecord(name, "F32", shape, ContentRef(f"b3:{number:064x}")) for name, (shape, number) in tensors.items()
    )
    return Manifest("safetensors", tuple(found)).to_bytes()


def git_merge(folder: Path, ours: Tensors, base: Tensors, theirs: Tensors) -> bytes | None:
    """What `git merge-file` makes of three manifests; None for a conflict."""
    for name, tensors in (("ours", ours), ("base", base), ("theirs", theirs)):
        (folder / name).write_bytes(manifest_of(tensors))
    done = subprocess.run(
        ["git", "merge-file", "-p", "-q", "ours", "base", "theirs"], cwd=folder, capture_output=True, check=False
    )
    assert 0 <= done.returncode < 128, done.stderr
    return done.stdout if done.returncode == 0 else None


names = st.text("abc.", min_size=1, max_size=4)


@given(st.data())
@settings(max_examples=40)
def test_git_merges_different_tensors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Two sides that change different tensors, neighbours too, merge cleanly under plain git, to the right manifest."""
    ordered = data.draw(st.lists(names, min_size=2, max_size=12, unique=True))
    base: Tensors = {name: ((2, 3), number) for number, name in enumerate(ordered)}
    owners = data.draw(st.lists(st.sampled_from(["ours", "theirs", "none"]), min_size=len(base), max_size=len(base)))
    sides: dict[str, Tensors] = {"ours": dict(base), "theirs": dict(base)}
    merged = dict(base)
    for number, (name, owner) in enumerate(zip(ordered, owners, strict=True)):
        if owner != "none":
            sides[owner][name] = merged[name] = ((2, 3), 100 + number)
    result = git_merge(tmp_path_factory.mktemp("merge"), sides["ours"], base, sides["theirs"])
    assert result == manifest_of(merged)


@given(st.data())
@settings(max_examples=25)
def test_git_conflicts_on_one_tensor(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Two sides that change one tensor differently conflict under plain git."""
    ordered = data.draw(st.lists(names, min_size=1, max_size=12, unique=True))
    base: Tensors = {name: ((2, 3), number) for number, name in enumerate(ordered)}
    name = data.draw(st.sampled_from(ordered))
    result = git_merge(
        tmp_path_factory.mktemp("merge"), base | {name: ((2, 3), 100)}, base, base | {name: ((2, 3), 101)}
    )
    assert result is None


sides_of = st.dictionaries(names, st.tuples(st.sampled_from([(2, 3), (4, 3)]), st.integers(100, 400)), max_size=3)


@given(st.lists(names, max_size=10, unique=True), sides_of, sides_of, st.sets(names), st.sets(names))
@settings(max_examples=60)
def test_git_never_merges_wrongly(
    tmp_path_factory: pytest.TempPathFactory,
    ordered: list[str],
    ours_changes: Tensors,
    theirs_changes: Tensors,
    ours_drops: set[str],
    theirs_drops: set[str],
) -> None:
    """Whatever two sides add, change and remove: what plain git merges is right, and what clashes conflicts."""
    base: Tensors = {name: ((2, 3), number) for number, name in enumerate(ordered)}
    ours = {name: value for name, value in (base | ours_changes).items() if name not in ours_drops}
    theirs = {name: value for name, value in (base | theirs_changes).items() if name not in theirs_drops}
    result = git_merge(tmp_path_factory.mktemp("merge"), ours, base, theirs)
    if result is None:
        return
    merged: Tensors = {}
    for name in ours.keys() | theirs.keys() | base.keys():
        mine, old, other = ours.get(name), base.get(name), theirs.get(name)
        assert mine in (old, other) or other == old, f"{name!r} clashes, and git merged it"
        value = other if mine == old else mine
        if value is not None:
            merged[name] = value
    assert result == manifest_of(merged)
