"""Every container of the table keeps the contract, and so does a toy; each fault that is planted in a toy is found."""

from __future__ import annotations

import inspect
import io
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from coral.containers.container import CONTAINERS, PROMISES, Container
from coral.containers.file import (
    CutShortError,
    NotThisError,
    Output,
    Parsed,
    ReadRecords,
    TensorView,
    Traits,
    needed,
    plain_views,
    write_record,
)
from coral.containers.promises import Promise, Start
from coral.containers.source import FileRange, FileSource
from coral.errors import FormatError
from coral.format.manifest import CONTAINER_NAMES, Manifest
from coral.testing.contracts.containers import LEAST_LARGE, ContainerContract
from tests.containers.helpers import gguf


def _torch(value: object, **options: Any) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, stream, **options)
    return stream.getvalue()


def _numpy(write: Callable[..., None], *values: Any, **named: Any) -> bytes:
    stream = io.BytesIO()
    write(stream, *values, **named)
    return stream.getvalue()


def _rezipped(data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(stream, "w") as sink:
        for info in source.infolist():
            sink.writestr(info.filename, source.read(info))
    return stream.getvalue()


@cache
def examples() -> Mapping[str, Mapping[str, bytes]]:
    """Sound files of each container, by its name."""
    base = torch.arange(24.0).reshape(4, 6)
    state = {"a": base, "b": torch.ones(3, dtype=torch.bfloat16), "step": torch.tensor(3), "none": torch.zeros(0, 2)}
    fortran = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    plain = save(state, {"format": "pt"})
    return {
        "safetensors": {"plain": plain, "padded": _repadded(plain), "nothing": save({})},
        "torch": {
            "archive": _torch({**state, "view": base[1:3, ::2], "tied": base, "epoch": 1}),
            "archived again": _rezipped(_torch(state)),
            "legacy": _torch({**state, "view": base[1:3]}, _use_new_zipfile_serialization=False),
        },
        "npy": {
            "plain": _numpy(np.save, np.arange(40)),
            "fortran": _numpy(np.save, fortran),
            "texts": _numpy(np.save, np.array(["ab", "c"])),
            "scalar": _numpy(np.save, np.array(2.5)),
        },
        "npz": {"arrays": _numpy(np.savez, a=np.arange(9), b=fortran, c=np.ones(2, ">f4"))},
        "gguf": {
            "plain": gguf({"a": (0, (3, 2), bytes(24)), "b": (1, (5,), b"xy" * 5), "c": (24, (), b"z")}),
            "blocks": gguf(
                {"w": (2, (64, 2), b"ab" * 36), "w.Q4_0": (30, (4,), bytes(8)), "k": (12, (256,), b"k" * 144)}
            ),
            "version 2": gguf({"a": (28, (2, 1, 3), b"d" * 48)}, version=2, alignment=8, pad=b"\x07"),
        },
        "opaque": {"text": b"hello" * 9, "byte": b"x"},
    }


@cache
def large_examples() -> Mapping[str, bytes]:
    """A large file of each container."""
    array = np.zeros(LEAST_LARGE // 8)
    return {
        "safetensors": save({"a": torch.from_numpy(array), "b": torch.ones(3)}),
        "torch": _torch([torch.from_numpy(array), torch.ones(3)]),
        "npy": _numpy(np.save, array),
        "npz": _numpy(np.savez, array, np.ones(3)),
        "gguf": gguf({"a": (24, (LEAST_LARGE + 3,), bytes(LEAST_LARGE + 3)), "b": (0, (2,), bytes(8))}, pad=b"\x07"),
        "opaque": b"x" * LEAST_LARGE,
    }


def _repadded(data: bytes) -> bytes:
    """A safetensors file whose header safetensors would not write so."""
    length = int.from_bytes(data[:8], "little")
    return (length + 8).to_bytes(8, "little") + data[8 : 8 + length] + b" " * 8 + data[8 + length :]


def test_the_table_and_the_format_name_the_same() -> None:
    """What a manifest may name can be restored, and the other way round; no suffix is promised twice."""
    assert sorted(container.name for container in CONTAINERS) == sorted(CONTAINER_NAMES)
    assert len(PROMISES) == sum(len(container.promises) for container in CONTAINERS)
    assert CONTAINERS[-1].recognises(b"")


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda one: one.name)
class TestEachContainer(ContainerContract):
    """The members of the table."""

    @pytest.fixture
    def files(self, container: Container) -> Mapping[str, bytes]:
        return examples()[container.name]

    @pytest.fixture
    def large(self, container: Container) -> bytes:
        return large_examples()[container.name]

    def test_its_suffixes_promise_it(self, container: Container, files: Mapping[str, bytes]) -> None:
        """A sound file under each suffix is taken apart in silence; of formats that are kept whole, none is at hand."""
        if container.name != "opaque":
            super().test_its_suffixes_promise_it(container, files)


class Toy:
    """A container for tests: a count, names and lengths, then tensors; under a name that manifests know."""

    name = "npy"
    traits = Traits(skeleton_limit=4096, flows=True)
    promises: Mapping[str, Promise] = {".toy": Promise("toy file", (Start(b"TOY!"),))}

    def recognises(self, head: bytes) -> bool:
        return head.startswith(b"TOY!")

    def parse(self, data: FileRange) -> Parsed | None:
        spans = list(self._spans(data.read(0, 4096)))
        start = spans[0][1] if spans else 5
        if spans and spans[-1][2] > len(data):
            raise CutShortError("it is cut short")
        if len({name for name, _, _ in spans}) < len(spans) or (spans[-1][2] if spans else 5) != len(data):
            raise NotThisError("it is malformed")
        sources = [FileSource(name, "U8", (stop - at,), data.part(at, stop)) for name, at, stop in spans]
        return Parsed(self.name, data.read(0, start), (), sources)

    def _spans(self, head: bytes) -> Iterator[tuple[str, int, int]]:
        if not self.recognises(head):
            raise NotThisError("it begins as none")
        if len(head) < 5 or len(head) < 5 + 5 * head[4]:
            raise CutShortError("it is cut short")
        at = 5 + 5 * head[4]
        for number in range(head[4]):
            entry = head[5 + 5 * number : 10 + 5 * number]
            length = int.from_bytes(entry[1:], "little")
            yield f"t{entry[0]}", at, at + length
            at += length

    def restore(self, manifest: Manifest, skeleton: bytes | None, read: ReadRecords, out: Output) -> None:
        head = needed(skeleton)
        try:
            spans = list(self._spans(head))
        except NotThisError as error:
            raise FormatError(f"a toy's skeleton is malformed: {error}") from None
        if {name: stop - at for name, at, stop in spans} != {r.name: r.nbytes for r in manifest.records}:
            raise FormatError("a toy's skeleton does not fit its manifest")
        out.write(head)
        order = [manifest[name] for name, _, _ in spans]
        pieces = read(order)
        for record in order:
            write_record(record, pieces, out.write)

    def views(self, manifest: Manifest, skeleton: bytes | None) -> Mapping[str, TensorView]:
        return plain_views(manifest)


def toy_file(*tensors: bytes) -> bytes:
    heads = (bytes([65 + n]) + len(data).to_bytes(4, "little") for n, data in enumerate(tensors))
    return b"TOY!" + bytes([len(tensors)]) + b"".join(heads) + b"".join(tensors)


TOY_FILES = {"two": toy_file(b"hello there", b"general"), "one": toy_file(b"x" * 70), "none": toy_file()}
LARGE_TOY = toy_file(bytes(LEAST_LARGE), b"end")


class TestToy(ContainerContract):
    """A second implementation, so that the contract is not that of the first."""

    @pytest.fixture
    def container(self) -> Container:
        return Toy()

    @pytest.fixture
    def files(self) -> Mapping[str, bytes]:
        return TOY_FILES

    @pytest.fixture
    def large(self) -> bytes:
        return LARGE_TOY


class ForgetsTheEnd(Toy):
    def parse(self, data: FileRange) -> Parsed | None:
        return super().parse(data.part(0, len(data) - 1) if data.read(5, 6) == b"B" else data)

    def restore(self, manifest: Manifest, skeleton: bytes | None, read: ReadRecords, out: Output) -> None:
        super().restore(manifest, skeleton, read, out)
        out.patch(0, b"toy!")


class TrustsLengths(Toy):
    def parse(self, data: FileRange) -> Parsed | None:
        for _, start, stop in self._spans(data.read(0, 4096)):
            bytearray(min(stop - start, 1 << 28))
        return super().parse(data)


class Overruns(Toy):
    def parse(self, data: FileRange) -> Parsed | None:
        assert data.read(0, 5)[4] >= 0
        return super().parse(data)


class GivesOneName(Toy):
    def parse(self, data: FileRange) -> Parsed | None:
        found = super().parse(data)
        assert found is not None
        return found._replace(tensors=[FileSource("t", s.dtype, s.shape, s.data) for s in found.tensors])  # type: ignore[attr-defined]


class ReadsTwice(Toy):
    def parse(self, data: FileRange) -> Parsed | None:
        data.read(0, len(data)), data.read(0, len(data))
        return super().parse(data)


class AsksTwice(Toy):
    def restore(self, manifest: Manifest, skeleton: bytes | None, read: ReadRecords, out: Output) -> None:
        list(read(manifest.records))
        super().restore(manifest, skeleton, read, out)


class Patches(Toy):
    def restore(self, manifest: Manifest, skeleton: bytes | None, read: ReadRecords, out: Output) -> None:
        super().restore(manifest, skeleton, read, out)
        out.patch(0, b"T")


class GoesBack(Toy):
    def parse(self, data: FileRange) -> Parsed | None:
        found = super().parse(data)
        return found and found._replace(tensors=found.tensors[::-1])


class TakesWhatIsCut(Toy):
    def parse(self, data: FileRange) -> Parsed | None:
        try:
            return super().parse(data)
        except CutShortError:
            spans = list(self._spans(data.read(0, 4096)))
            return Parsed(self.name, data.read(0, spans[0][1] if spans else 5), (), [])


class BelievesSkeletons(Toy):
    def restore(self, manifest: Manifest, skeleton: bytes | None, read: ReadRecords, out: Output) -> None:
        names = [name for name, _, _ in self._spans(needed(skeleton))]
        super().restore(manifest, skeleton, read, out) if [manifest[name] for name in names] else out.write(
            skeleton or b""
        )


class SaysNothing(Toy):
    promises: Mapping[str, Promise] = {".TOY": Promise("toy file", (Start(b"TOY!"),))}


class LongSkeleton(Toy):
    traits = Traits(skeleton_limit=3, flows=True)


class WrongView(Toy):
    def views(self, manifest: Manifest, skeleton: bytes | None) -> Mapping[str, TensorView]:
        return {r.name: TensorView(r.name, r.name, r.dtype, (r.nbytes,), (1,), 1) for r in manifest.records}


FAULTS = {
    ForgetsTheEnd: "a_file_restores_byte_for_byte",
    TrustsLengths: "a_file_that_is_changed",
    Overruns: "any_bytes_at_all",
    GivesOneName: "a_part_is_what_it_says",
    ReadsTwice: "a_tensor_is_read_once",
    AsksTwice: "a_tensor_is_read_once",
    Patches: "what_flows_is_as_a_file",
    GoesBack: "a_stream_is_not_remembered",
    TakesWhatIsCut: "a_file_that_is_cut",
    BelievesSkeletons: "a_skeleton_from_elsewhere",
    SaysNothing: "its_suffixes_promise_it",
    LongSkeleton: "a_part_is_what_it_says",
    WrongView: "a_view_lies_in_its_record",
}


@pytest.mark.parametrize("toy", FAULTS, ids=lambda toy: toy.__name__)
def test_a_planted_fault_is_found(toy: type[Toy]) -> None:
    """Each rule of the contract fails a toy that breaks it."""
    with pytest.raises(Exception):  # noqa: B017 - a fault may raise anything
        rule = getattr(ContainerContract(), f"test_{FAULTS[toy]}")
        rule(toy(), LARGE_TOY if "large" in inspect.signature(rule).parameters else TOY_FILES)


def test_every_rule_has_a_fault() -> None:
    """A rule that finds nothing is none."""
    rules = {
        name.removeprefix("test_") for name, _ in inspect.getmembers(ContainerContract) if name.startswith("test_")
    }
    assert rules == set(FAULTS.values())
