"""Every merge rule of the table keeps the contract, and so do toys; each fault that is planted in a toy is found."""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import click.testing
import numpy as np
import pytest

from coral.cli.sharing.resolve import command as resolve
from coral.format.dtypes import byte_count
from coral.format.manifest import TensorRecord
from coral.objects import ChunkStore
from coral.storage.folder import Folder
from coral.testing.contracts.rules import RuleContract
from coral.verbs.merging.merge import Read, Side, Versions
from coral.verbs.merging.rules import LEAVE, RULES, Rule

if TYPE_CHECKING:
    from coral.format.tensors import TensorSource


@pytest.fixture
def store(tmp_path: Path) -> ChunkStore:
    return ChunkStore(Folder(tmp_path / "packs"), tmp_path / "lock")


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.name)
class TestEachRule(RuleContract):
    """The members of the table."""


def test_the_options_are_the_rules() -> None:
    """Whatever is in the table can be asked for, and what it does is in the help."""
    offered = {option for parameter in resolve.params for option in parameter.opts}
    assert {f"--{name}" for name in RULES} <= offered and f"--{LEAVE}" not in offered
    shown = " ".join(click.testing.CliRunner().invoke(resolve, ["--help"]).output.split())
    assert all(rule.help in shown for rule in RULES.values())


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_a_side_takes_its_own(side: Side) -> None:
    """Of each tensor, also one that it removed, and of the rest of the file."""
    versions = Versions(None, None, None)
    assert RULES[side].frame == RULES[side].settle(versions, lambda record: iter(())) == side


class Xor:
    """A rule for tests: the bits in which an odd number of the versions has a one."""

    name = "xor"
    help = "Take the bits that differ."
    why_not = "there are no bits of these"
    frame: Side | None = None

    def settle(self, versions: Versions, read: Read) -> Side | TensorSource | None:
        records = [one for one in versions if one is not None]
        if versions.ours is None or versions.theirs is None or len({one[1:3] for one in records}) > 1:
            return None
        return Made(versions.ours, read, records)


class Made:
    """A tensor that is made of others, chunk by chunk."""

    def __init__(self, like: TensorRecord, read: Read, records: list[TensorRecord]) -> None:
        self.name, self.dtype, self.shape = like[:3]
        self._pieces = zip(*map(read, records), strict=True)

    def read(self, start: int, stop: int) -> bytes:
        if start == stop:
            return b""
        made = np.zeros(stop - start, np.uint8)
        for piece in next(self._pieces):
            made ^= np.frombuffer(piece, np.uint8)
        return made.tobytes()


class TestXor(RuleContract):
    """A rule that takes no side, and looks at the base."""

    @pytest.fixture
    def rule(self) -> Rule:
        return Xor()


class Smaller:
    """A rule for tests: the smaller version, so a side that depends on the tensor."""

    name = "smaller"
    help = "Take the smaller version."
    why_not = "these are of one size"
    frame: Side | None = "theirs"

    def settle(self, versions: Versions, read: Read) -> Side | None:
        ours, theirs = (0 if one is None else one.nbytes for one in (versions.ours, versions.theirs))
        return None if ours == theirs else "ours" if ours < theirs else "theirs"


class TestSmaller(RuleContract):
    """A rule that takes one side or the other, or leaves it."""

    @pytest.fixture
    def rule(self) -> Rule:
        return Smaller()


class Shouts(Xor):
    name = "X-OR"


class Renames(Xor):
    def settle(self, versions: Versions, read: Read) -> Side | TensorSource | None:
        found = super().settle(versions, read)
        if isinstance(found, Made):
            found.name = "another"
        return found


class Dice(Xor):
    _counter = itertools.count()

    def settle(self, versions: Versions, read: Read) -> Side | TensorSource | None:
        return ("ours", "theirs")[next(self._counter) % 2]


class Supposes(Xor):
    def settle(self, versions: Versions, read: Read) -> Side | TensorSource | None:
        assert versions.ours is not None and versions.theirs is not None
        return Made(versions.ours, read, [versions.ours, versions.theirs])


class LooksFirst(Xor):
    def settle(self, versions: Versions, read: Read) -> Side | TensorSource | None:
        if versions.ours is not None and b"\0" in b"".join(read(versions.ours)):
            return "ours"
        return super().settle(versions, read)


class Short(Xor):
    def settle(self, versions: Versions, read: Read) -> Side | TensorSource | None:
        found = super().settle(versions, read)
        if isinstance(found, Made):
            found.shape = (byte_count(found.dtype, found.shape),)
            found.dtype = "U8"
        return found


class OfAll(Xor):
    """Remembers the first, and gives that for all."""

    first: TensorRecord | None = None

    def settle(self, versions: Versions, read: Read) -> Side | TensorSource | None:
        self.first = self.first or versions.ours
        assert self.first is not None
        return Made(self.first._replace(name="b"), read, [self.first])


class TakesAnother(Xor):
    frame: Side | None = "mine"  # type: ignore[assignment]


FAULTS: list[tuple[type[Rule], str]] = [
    (Shouts, "it_says_what_it_is"),
    (Renames, "its_tensor_takes_the_place"),
    (Short, "its_tensor_takes_the_place"),
    (Dice, "the_same_versions_give_the_same_tensor"),
    (Supposes, "what_it_cannot_settle_it_leaves"),
    (LooksFirst, "nothing_is_read_before_it_is_wanted"),
    (OfAll, "only_what_is_asked_for_is_settled"),
    (TakesAnother, "the_rest_of_a_file"),
]


@pytest.mark.parametrize(("toy", "rule"), FAULTS, ids=lambda one: getattr(one, "__name__", None))
def test_a_planted_fault_is_found(toy: type[Rule], rule: str, store: ChunkStore) -> None:
    """Each promise of the contract fails a toy that breaks it."""
    test = getattr(RuleContract(), f"test_{rule}")
    with pytest.raises(Exception):  # noqa: B017 - a fault may raise anything
        test(toy(), store) if "store" in inspect.signature(test).parameters else test(toy())


def test_every_promise_has_a_fault() -> None:
    """A promise whose test finds nothing is none."""
    names = [name for name, _ in inspect.getmembers(RuleContract) if name.startswith("test_")]
    assert {name.removeprefix("test_") for name in names} == {rule for _, rule in FAULTS}
