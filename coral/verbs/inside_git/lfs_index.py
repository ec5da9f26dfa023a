"""From git-LFS to coral, in the index and the working tree: what is staged are manifests, and coral's attributes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from coral.errors import ConflictError, UsageError
from coral.format.manifest import TEXT_LIMIT
from coral.git import index
from coral.git.blobs import BlobReader, read_blob, write_blob
from coral.git.index import Entry
from coral.git.lfs import (
    ATTRIBUTES,
    ATTRIBUTES_LIMIT,
    POINTER_LIMIT,
    LfsObjects,
    Pointer,
    lfs_lines,
    parse_pointer,
    with_coral,
    with_marks,
)
from coral.verbs.inside_git.filter import GitFilter, read_manifest
from coral.verbs.inside_git.lfs import Report, is_likely_here, keep, missing_error, shorten

if TYPE_CHECKING:
    from coral.storage.folder import Folder

_MARK = "lfs-line-"
_EVERY_ATTRIBUTES = f":(top,glob)**/{ATTRIBUTES}"


class PointerFile(NamedTuple):
    """A file of the index whose blob is a pointer."""

    entry: Entry
    pointer: Pointer


@dataclass(frozen=True, slots=True)
class Plan:
    """What an import would do.

    Attributes:
        files: pointers that become manifests.
        missing: pointers that stay, since their bytes are not here.
        attributes: each ``.gitattributes`` that changes, and its new text.
        left: pointers that are files like any other, for git is to use no filter on them.
    """

    files: tuple[PointerFile, ...]
    missing: tuple[str, ...]
    attributes: Mapping[Entry, bytes]
    left: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes behind the pointers."""
        return sum(file.pointer.size for file in self.files)


class _Line(NamedTuple):
    """A line of a ``.gitattributes`` that hands files to git-LFS."""

    entry: Entry
    text: bytes
    number: int
    pattern: str


def plan(top: Path, chosen: Collection[str] | None, objects: LfsObjects, scratch: Folder) -> Plan:
    """What an import would do.

    Args:
        top: of the working tree.
        chosen: the files that are meant; None for all.
        scratch: an empty folder.

    Raises:
        ConflictError: what would be changed is in conflict, or has changes of its own.
        UsageError: a line of attributes also stands for files that are not meant.
    """
    entries = index.index_entries(top)
    with BlobReader(top) as blobs:
        pointers, lines = _pointers(entries, blobs), _lines(entries, blobs)
    _refuse_conflicts(entries, {*pointers, *(line.entry.name for line in lines)})
    filters = _filters(top, entries, lines, scratch) if pointers else {}
    meant = {name for name in pointers if chosen is None or name in chosen}
    ours = {name for name in meant if filters[name] == "coral" or filters[name].startswith(_MARK)}
    here = {name for name in ours if is_likely_here(pointers[name], [top / name, objects.path(pointers[name])])}
    attributes = _edited(lines if chosen is None else _lines_for(lines, filters, ours, chosen))
    _refuse_changes(top, {*ours, *(entry.name for entry in attributes)})
    return Plan(
        tuple(PointerFile(entry, pointers[entry.name]) for entry in entries if entry.name in here),
        tuple(sorted(ours - here)),
        attributes,
        tuple(sorted(meant - ours)),
    )


def _pointers(entries: Iterable[Entry], blobs: BlobReader) -> dict[str, Pointer]:
    """The files whose blobs are pointers."""
    names = defaultdict(list)
    for entry in entries:
        if entry.is_file:
            names[entry.blob].append(entry.name)
    parsed = ((blob, parse_pointer(data)) for blob, data in blobs.small(names, limit=POINTER_LIMIT))
    return {name: pointer for blob, pointer in parsed if pointer is not None for name in names[blob]}


def _lines(entries: Iterable[Entry], blobs: BlobReader) -> list[_Line]:
    found = []
    for entry in filter(_is_attributes, entries):
        for _, text in blobs.small([entry.blob], limit=ATTRIBUTES_LIMIT):
            found += [_Line(entry, text, number, pattern) for number, pattern in lfs_lines(text).items()]
    return found


def _is_attributes(entry: Entry) -> bool:
    return entry.is_file and entry.name.rpartition("/")[2] == ATTRIBUTES


def _filters(top: Path, entries: Sequence[Entry], lines: Sequence[_Line], scratch: Folder) -> dict[str, str]:
    """The filter of each file; of those that a line hands to git-LFS a mark with the line's place among ``lines``.

    git itself says which line that is: it is shown other attributes, in an index of their own.
    """
    marks: dict[Entry, dict[int, str]] = defaultdict(dict)
    texts = {line.entry: line.text for line in lines}
    for place, line in enumerate(lines):
        marks[line.entry][line.number] = f"{_MARK}{place}"
    blobs = {entry: write_blob(top, with_marks(text, marks[entry])) for entry, text in texts.items()}
    shown = [entry._replace(blob=blobs.get(entry, entry.blob)) for entry in entries if _is_attributes(entry)]
    own = scratch.path("index")
    index.stage(top, (entry for entry in shown if entry.stage == 0), index=own)
    return index.attribute(top, "filter", (entry.name for entry in entries if entry.is_file), index=own)


def _lines_for(
    lines: Sequence[_Line], filters: Mapping[str, str], ours: Collection[str], chosen: Collection[str]
) -> list[_Line]:
    """The lines that hand files of ours to git-LFS, and only such as are meant. Raises UsageError."""
    governed = defaultdict(set)
    for name, mark in filters.items():
        if mark.startswith(_MARK):
            governed[int(mark.removeprefix(_MARK))].add(name)
    wanted = [place for place, names in sorted(governed.items()) if not names.isdisjoint(ours)]
    for place in wanted:
        others = sorted(governed[place] - set(chosen))
        if others:
            raise UsageError(
                f"{lines[place].pattern!r} in {lines[place].entry.name} also stands for {shorten(others)}",
                hint="name all of them, or give those a line of their own there",
            )
    return [lines[place] for place in wanted]


def _edited(lines: Iterable[_Line]) -> dict[Entry, bytes]:
    numbers = defaultdict(set)
    texts = {}
    for line in lines:
        numbers[line.entry].add(line.number)
        texts[line.entry] = line.text
    return {entry: with_coral(text, numbers[entry]) for entry, text in texts.items()}


def _refuse_conflicts(entries: Iterable[Entry], names: Collection[str]) -> None:
    found = sorted({entry.name for entry in entries if entry.stage and entry.name in names})
    if found:
        raise ConflictError(f"a merge left conflicts in {shorten(found)}", hint="settle them, and commit")


def _refuse_changes(top: Path, names: Collection[str]) -> None:
    """What is staged already could not be told from what is imported; and attributes count as they are in the index."""
    found = sorted(index.staged(top).intersection(names))
    if found:
        raise ConflictError(
            f"changes of {shorten(found)} are staged", hint="commit them, or unstage them with 'git reset'"
        )
    changed = index.changed(top, [_EVERY_ATTRIBUTES], staged=False) if names else []
    if changed:
        raise ConflictError(
            f"{shorten(changed)} is not as git has it", hint="commit the change, or undo it with 'git checkout'"
        )


def execute(
    top: Path,
    planned: Plan,
    objects: LfsObjects,
    opened: GitFilter,
    *,
    skip_missing: bool = False,
    report: Report | None = None,
) -> tuple[str, ...]:
    """Do as planned; nothing of it is seen before all is stored.

    Returns:
        The files whose bytes turned out not to be those of their pointers, and which therefore stay pointers.

    Raises:
        NotFoundError: there are such, and nothing was said of leaving them out.
        ConflictError: a file changed while it was read.
        GitCommandError: git refuses to change the index.
    """
    stored, missing = [], []
    for entry, pointer in planned.files:
        text = keep(opened, entry.name, pointer, [top / entry.name, objects.path(pointer)])
        if text is not None:
            stored.append(PointerFile(entry._replace(blob=write_blob(top, text)), pointer))
        else:
            missing.append(entry.name)
        if report is not None:
            report(pointer.size)
    if missing and not skip_missing:
        raise missing_error(missing, bring="git lfs pull")
    edited = [entry._replace(blob=write_blob(top, text)) for entry, text in planned.attributes.items()]
    index.stage(top, [*(file.entry for file in stored), *edited])
    index.write_files(top, [entry.name for entry in edited if not entry.sparse])
    for file in stored:
        _write_real(top, file, opened)
    index.refresh(top)
    return tuple(missing)


def _write_real(top: Path, file: PointerFile, opened: GitFilter) -> None:
    """Put the file itself where its pointer lies in the working tree; whatever else lies there stays."""
    name, blob = file.entry.name, file.entry.blob
    try:
        with (top / name).open("rb") as lying:
            found = parse_pointer(lying.read(POINTER_LIMIT + 1))
    except OSError:
        return
    if found != file.pointer:
        return
    text = read_blob(top, blob, limit=TEXT_LIMIT) or b""
    manifest = read_manifest(text)
    if manifest is None:
        opened.leave_text(name, text)
    else:
        opened.write_file(name, manifest)
