"""``coral git-diff``: what git calls to show the difference of two versions of a model."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coral.cli.session import Session, pass_session

if TYPE_CHECKING:
    from coral.verbs.merging.compare import Version

_NO_FILE = "/dev/null"
_SHOWN = 20


@click.command()
@click.argument("path")
@click.argument("version", nargs=-1, metavar="[OLD HEX MODE NEW HEX MODE]")
@pass_session
def command(session: Session, path: str, version: tuple[str, ...]) -> None:
    """Compare two versions of the model at PATH, tensor by tensor: what was added, removed and changed, and how far.

    git calls this where .gitattributes says diff=coral. Of changed tensors it shows the norm of the difference (L2),
    the largest difference, the cosine between old and new, and the share of elements that differ; the largest changes
    come first. 'git diff --no-ext-diff' shows the text that git keeps. git's setting coral.diffMax says how many
    tensors are listed, 20 if nothing is said.

    \b
    Examples:
      git config diff.coral.command 'coral git-diff'
      git log -p --ext-diff model.safetensors
    """
    from coral.cli.look.distances import print_distances, print_head

    if len(version) < 6:
        click.echo(f"* Unmerged path {path}")
        return
    old_file, old_hex, old_mode, new_file, new_hex, new_mode, *renamed = version
    print_head(path, (old_hex, old_mode), (new_hex, new_mode), renamed)
    with ExitStack() as opened:
        old = _open(path, old_file, old_hex, opened)
        new = _open(path, new_file, new_hex, opened)
        if old is None or new is None:
            click.echo("the text of a merge that is not settled: see 'coral resolve --list'")
            return
        print_distances(old, new, limit=_limit())


def _open(path: str, file: str, blob: str, opened: ExitStack) -> Version | None:
    """One version: by its manifest where git has one, else the file; None for a merge that is not settled."""
    from coral import containers
    from coral.cli.filtering import open_filter
    from coral.format.manifest import TEXT_LIMIT, is_manifest
    from coral.git.blobs import read_blob
    from coral.verbs.inside_git.filter import read_manifest
    from coral.verbs.merging.compare import NOTHING, Version

    if file == _NO_FILE:
        return NOTHING
    top = Path.cwd()
    here = open_filter(top)
    text = read_blob(top, blob, limit=TEXT_LIMIT) if blob.strip("0.") else None
    if text is None:
        with open(file, "rb") as start:
            head = start.read(64)
            text = head + start.read(min(TEXT_LIMIT, Path(file).stat().st_size)) if is_manifest(head) else None
    if text == b"":
        return NOTHING
    if text is not None and is_manifest(text):
        manifest = read_manifest(text)
        return Version.stored(manifest, here.store) if manifest is not None else None
    parsed = opened.enter_context(containers.parse_file(containers.OpenFile(Path(file))))
    return Version.in_file(here.describe(parsed), parsed)


def _limit() -> int:
    from coral.git.command import ask

    value = (ask(Path.cwd(), ["config", "--type=int", "--get", "coral.diffMax"], nothing_found=1) or "").strip()
    return max(0, int(value)) if value.isdigit() else _SHOWN
