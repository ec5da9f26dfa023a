"""What a modelled disk may lose, and what it may not."""

from __future__ import annotations

import random
from pathlib import Path

from coral.testing.crash import SECTOR, Disk, State, materialise, scan, states
from coral.testing.trace import Operation

ROOT = Path("/root")


def op(kind: str, path: str = "", target: str = "", offset: int = 0, data: bytes = b"") -> Operation:
    """An operation below the root."""
    names = [str(ROOT / name) if name or kind == "sync" else "" for name in (path, target)]
    return Operation(kind, names[0], f"{ROOT}/{target}" if target else "", offset, data)  # type: ignore[arg-type]


def left(*operations: Operation, files: dict[str, bytes] | None = None) -> list[State]:
    """Everything that may be left after all of the operations."""
    disk = Disk(ROOT, files or {}, ["a", "b"])
    for one in operations:
        disk.apply(one)
    chance = random.Random(1)
    return [disk.left(loss, chance) for loss in ["nothing", "everything", "data", "contents", "names"] + ["some"] * 200]  # type: ignore[arg-type]


def contents(found: list[State]) -> set[tuple[tuple[str, bytes], ...]]:
    """The different sets of files."""
    return {tuple(sorted(state.files.items())) for state in found}


CREATED = (op("create", "a/x"), op("write", "a/x", data=b"12"))


def test_what_was_not_synced_may_be_gone() -> None:
    """A name, its bytes, or the bytes but not the length."""
    assert contents(left(*CREATED)) == {(), (("a/x", b""),), (("a/x", b"\0\0"),), (("a/x", b"12"),)}


def test_a_synced_file_without_its_folder_is_nameless() -> None:
    """And with its folder it is there, whole."""
    assert contents(left(*CREATED, op("sync", "a/x"))) == {(), (("a/x", b"12"),)}
    assert contents(left(*CREATED, op("sync", "a/x"), op("sync", "a"))) == {(("a/x", b"12"),)}


def test_a_synced_name_does_not_keep_bytes() -> None:
    """Synced is the folder alone: the file is there, with or without its bytes."""
    assert contents(left(*CREATED, op("sync", "a"))) == {(("a/x", b""),), (("a/x", b"\0\0"),), (("a/x", b"12"),)}


def test_a_rename_is_whole() -> None:
    """The old file or the new one, and never neither; across folders the old name may come back."""
    before = {"a/x": b"new", "a/y": b"old"}
    found = contents(left(op("rename", "a/x", "a/y"), files=before))
    assert found == {(("a/x", b"new"), ("a/y", b"old")), (("a/y", b"new"),)}
    found = contents(left(op("rename", "a/x", "b/x"), op("sync", "b"), files={"a/x": b"1"}))
    assert found == {(("b/x", b"1"),), (("a/x", b"1"), ("b/x", b"1"))}
    assert contents(left(op("rename", "a/x", "b/x"), op("sync", "a"), files={"a/x": b"1"})) == {
        (("a/x", b"1"),),
        (("b/x", b"1"),),
    }


def test_a_later_sector_may_be_there_without_an_earlier_one() -> None:
    """Sectors are written in any order, each of them whole."""
    writes = [op("write", "a/x", offset=n * SECTOR, data=bytes([n + 1]) * SECTOR) for n in range(2)]
    found = {state.files["a/x"] for state in left(*writes, files={"a/x": bytes(2 * SECTOR)})}
    pieces = {tuple({*data[start : start + SECTOR]} for start in (0, SECTOR)) == ({0}, {2}) for data in found}
    assert True in pieces
    assert all(len({*data[start : start + SECTOR]}) == 1 for data in found for start in range(0, len(data), SECTOR))


def test_a_folder_that_is_gone_takes_its_files_along() -> None:
    """What is in a folder whose own name was not synced may be out of reach."""
    made = (op("mkdir", "c"), op("create", "c/x"), op("sync", "c/x"), op("sync", "c"))
    assert contents(left(*made)) == {(), (("c/x", b""),)}


def test_states_differ_and_come_back(tmp_path: Path) -> None:
    """No state is given twice; the seed decides which; what is written to a folder is what was said."""
    operations = [*CREATED, Operation("mark", data=b"told"), op("sync", "a/x"), op("sync", "a")]
    found = states(ROOT, ({}, ["a"]), operations, limit=100, seed=1)
    assert found == states(ROOT, ({}, ["a"]), operations, limit=100, seed=1)
    assert len({tuple(state.files.items()) for state in found}) == len(found) == 4
    assert len(states(ROOT, ({}, ["a"]), operations, limit=2, seed=1)) == 2
    assert next(state for state in found if state.files == {"a/x": b"12"}).marks == (b"told",)
    materialise(found[-1], tmp_path / "state")
    assert scan(tmp_path / "state") == (found[-1].files, sorted(found[-1].folders))
