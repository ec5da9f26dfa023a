"""``coral add``: stage files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coral.cli.output import count, json_option, print_json, printable, size
from coral.cli.progress import progress_bar
from coral.cli.session import Session, check_path, pass_session
from coral.errors import NotFoundError, UsageError
from coral.verbs.worktree import MODEL_SUFFIXES

if TYPE_CHECKING:
    from coral.repository import Repository


@dataclass(slots=True)
class Found:
    """The files that paths mean, and how many others their folders hold."""

    files: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)


def stage(
    repo: Repository, session: Session, found: Found, *, opaque: bool, name: str | None
) -> list[dict[str, object]]:
    """Stage files under one progress bar; returns what was staged, for JSON."""
    staged: list[dict[str, object]] = []
    total = sum(path.stat().st_size for path in found.files)
    with progress_bar("adding", total, quiet=session.quiet) as progress:
        for path in found.files:
            part = name or repo.worktree.part_name(path)
            manifest = repo.stage_file(path, part, opaque=opaque, progress=progress)
            staged.append(
                {
                    "name": part,
                    "container": manifest.container,
                    "tensors": len(manifest.records),
                    "bytes": manifest.nbytes,
                }
            )
    return staged


def find_files(paths: Sequence[str]) -> Found:
    """Files as they are, and the model files of folders. Raises NotFoundError before anything is staged."""
    found = Found()
    for text in paths:
        path = Path(check_path(text))
        if path.is_dir():
            for file in _walk(path):
                # A link that leads nowhere is no file, nor is a pipe.
                (found.files if file.suffix in MODEL_SUFFIXES and file.is_file() else found.skipped).append(file)
        elif path.exists():
            found.files.append(path)
        else:
            raise NotFoundError(f"no file {text!r}", hint="if it was removed, 'coral rm' stages that")
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        yield from (Path(root, name) for name in sorted(files) if not name.startswith("."))


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(readable=False))
@click.option("--opaque", is_flag=True, help="Keep the bytes whole: do not look for tensors.")
@click.option("--name", metavar="NAME", help="Keep the one file under another name.")
@json_option
@pass_session
def command(session: Session, paths: tuple[str, ...], opaque: bool, name: str | None, as_json: bool) -> None:
    """Put files into the next commit; of folders, the model files in them.

    Model files end in .safetensors, .pt, .pth, .bin, .npz, .npy or .ckpt; any other file is taken when it is named.

    \b
    Examples:
      coral add model.safetensors
      coral add checkpoints/
      coral add --name best.pt runs/7/last.pt
    """
    repo = session.open()
    found = find_files(paths)
    if name is not None and len(found.files) != 1:
        raise UsageError("--name is for one file")
    staged = stage(repo, session, found, opaque=opaque, name=name)
    if as_json:
        print_json({"staged": staged, "skipped": [str(path) for path in found.skipped]})
        return
    for part in staged:
        tensors = "kept whole" if part["container"] == "opaque" else count(int(str(part["tensors"])), "tensor")
        session.say(f"staged {part['name']}  ({tensors}, {size(int(str(part['bytes'])))})")
    if found.skipped:
        names = ", ".join(printable(str(path)) for path in found.skipped[:3])
        more = f" and {len(found.skipped) - 3} more" if len(found.skipped) > 3 else ""
        session.say(f"skipped {names}{more}: not model files (name one to add it)")
    if not staged:
        session.say("nothing to add: no model file there")
