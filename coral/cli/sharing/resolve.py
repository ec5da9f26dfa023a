"""``coral resolve``: settle what a merge of git's left open in a model, tensor by tensor."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import click

from coral.cli.filtering import open_filter
from coral.cli.look.output import count, json_option, print_json, print_table, shape
from coral.cli.session import Session, pass_session
from coral.errors import FormatError, NotFoundError, TensorNotFoundError, UsageError
from coral.verbs.merging.rules import RULES, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from coral.format.manifest import Manifest
    from coral.verbs.inside_git.filter import GitFilter
    from coral.verbs.merging.merge import Merge
    from coral.verbs.merging.rules import Rule

_Command = TypeVar("_Command", bound="Callable[..., object]")


def _rule_options(command: _Command) -> _Command:
    """One option for each rule, in the order of the table."""
    for rule in reversed(list(RULES.values())):
        command = click.option(f"--{rule.name}", "rule", flag_value=rule.name, help=rule.help)(command)
    return command


@click.command()
@click.argument("path", required=False, type=click.Path())
@click.argument("names", nargs=-1, metavar="[TENSOR]...")
@click.option("--list", "lists", is_flag=True, help="List the tensors that are not settled; the default.")
@_rule_options
@json_option
@pass_session
def command(
    session: Session, path: str | None, names: tuple[str, ...], lists: bool, rule: str | None, as_json: bool
) -> None:
    """Settle the conflicts that 'git merge' left in the model at PATH.

    TENSORs are names, or patterns such as 'encoder.*'; without any, all conflicts are meant. Once the last one is
    settled the model itself is written; 'git add PATH' then says so to git.

    \b
    Examples:
      coral resolve --list
      coral resolve --list model.safetensors
      coral resolve --ours model.safetensors 'encoder.*'
      coral resolve --average model.safetensors
    """
    top = _top()
    if path is None:
        if rule is not None:
            raise UsageError("which file is meant?", hint="'coral resolve --list' lists those with conflicts")
        _list_files(session, top, as_json=as_json)
        return
    name = _name_of(top, path)
    found = _read(top, name)
    if rule is None or lists:
        _list_tensors(found.merge, names, as_json=as_json)
        return
    _settle(session, found, RULES[rule], _matching(found.merge, names))


class _Unfinished(NamedTuple):
    """A merge of a file, by its name from the top of the working tree; and what both sides come from, if git says."""

    top: Path
    name: str
    merge: Merge
    base: Manifest | None


def _top() -> Path:
    from coral.git.surroundings import top_of

    top = top_of(Path.cwd())
    if top is None:
        raise NotFoundError("this folder is in no git repository")
    return top


def _name_of(top: Path, path: str) -> str:
    try:
        return (Path(path).parent.resolve() / Path(path).name).relative_to(top.resolve()).as_posix()
    except ValueError:
        raise UsageError(f"{path} is outside of the working tree {top}") from None


def _read(top: Path, name: str) -> _Unfinished:
    """The merge as far as it got: what the file says if coral wrote it, else git's three versions, by tensor."""
    from coral.git.unmerged import stages
    from coral.verbs.merging.merge import merge

    written = _written(top / name)
    found = stages(top).get(name)
    if not found:
        if written is None:
            raise NotFoundError(f"{name} has no conflict", hint="'coral resolve --list' lists the files that have one")
        return _Unfinished(top, name, written, None)
    versions = [_version(top, found.get(stage)) for stage in (1, 2, 3)]
    if versions[1] is None or versions[2] is None:
        raise UsageError(
            f"{name}: one side removed it, or it is no model there", hint="decide with 'git add' or 'git rm'"
        )
    whole = merge(versions[0], versions[1], versions[2])
    got = written if written is not None and set(written.conflicts) <= set(whole.conflicts) else whole
    return _Unfinished(top, name, got, versions[0])


def _written(path: Path) -> Merge | None:
    """What our driver, or this command, wrote; what git itself merged line by line is not relied on."""
    from coral.format.manifest import TEXT_LIMIT
    from coral.verbs.merging.merge import Merge

    if not path.is_file():
        return None
    with path.open("rb") as file:
        text = file.read(min(TEXT_LIMIT, path.stat().st_size))
    try:
        return Merge.from_bytes(text, only_ours=True)
    except FormatError:
        return None


def _version(top: Path, blob: str | None) -> Manifest | None:
    from coral.format.manifest import TEXT_LIMIT
    from coral.git.blobs import read_blob
    from coral.verbs.inside_git.filter import read_manifest

    return read_manifest(read_blob(top, blob, limit=TEXT_LIMIT) or b"") if blob is not None else None


def _matching(merge: Merge, patterns: Sequence[str]) -> list[str]:
    conflicts = merge.conflicts
    for pattern in patterns:
        if not any(name == pattern or fnmatchcase(name, pattern) for name in conflicts):
            raise TensorNotFoundError(f"{pattern!r} is none of the conflicts", hint="'coral resolve --list' lists them")
    wanted = [name for name in conflicts if any(name == one or fnmatchcase(name, one) for one in patterns)]
    return wanted if patterns else list(conflicts)


def _settle(session: Session, unfinished: _Unfinished, rule: Rule, wanted: list[str]) -> None:
    opened, name = open_filter(unfinished.top), unfinished.name
    settled = settle(unfinished.merge, rule, store=lambda: opened.store, base=unfinished.base, names=wanted)
    stay = [one for one in wanted if one in settled.conflicts]
    _write(opened, name, settled)
    session.say(f"{name}: {count(len(wanted) - len(stay), 'conflict')} settled, {len(settled.conflicts)} left")
    if stay:
        raise UsageError(f"{', '.join(stay[:5])}: {rule.why_not}", hint="take --ours or --theirs for them")
    if not settled.conflicts:
        session.advise(f"'git add {name}' concludes it")


def _write(opened: GitFilter, name: str, merge: Merge) -> None:
    """The model once all is settled and here, else the text."""
    if merge.conflicts or opened.lacking([merge.ours]):
        opened.leave_text(name, merge.to_bytes())
    else:
        opened.write_file(name, merge.ours)


def _list_files(session: Session, top: Path, *, as_json: bool) -> None:
    from coral.git.unmerged import stages

    found = {}
    for name in sorted(stages(top)):
        try:
            found[name] = list(_read(top, name).merge.conflicts)
        except (UsageError, FormatError):
            continue  # not a model, or one that a side removed
    if as_json:
        print_json(found)
        return
    for name, conflicts in found.items():
        click.echo(f"{name}: {count(len(conflicts), 'conflict')}")
    if not found:
        session.say("no model has conflicts")


def _list_tensors(merge: Merge, patterns: Sequence[str], *, as_json: bool) -> None:
    from coral.format.manifest import TensorRecord

    wanted = _matching(merge, patterns)
    if as_json:
        print_json(wanted)
        return

    def described(record: TensorRecord | None) -> str:
        return "absent" if record is None else f"{record.dtype} {shape(record.shape)} {record.content[:12]}"

    sides = [{record.name: record for record in one.records} for one in (merge.ours, merge.theirs)]
    rows = [[described(sides[0].get(name)), described(sides[1].get(name)), name] for name in wanted]
    if rows:
        print_table(("ours", "theirs", "tensor"), rows)
    else:
        click.echo("nothing is left to settle")
