"""``coral git-filter``: git's long-running filter process, which turns models into manifests and back.

git waits for the answer to its greeting before it does anything, so nothing heavy is imported before that.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from coral.cli.session import Session, pass_session
from coral.errors import CoralError
from coral.git.pktline import FilterServer, Request

if TYPE_CHECKING:
    from coral.format.manifest import Manifest
    from coral.verbs.inside_git.filter import GitFilter

_PIPE_BYTES = 1 << 20
_LEAST_DELAYED = 1 << 20


@click.command()
@pass_session
def command(session: Session) -> None:
    """Speak git's long-running filter protocol on standard input and output.

    git calls this where .gitattributes says filter=coral. With CORAL_SKIP_SMUDGE=1 checked out files hold their
    manifests; 'coral pull' then writes those that are wanted.

    \b
    Examples:
      git config filter.coral.process 'coral git-filter'
      CORAL_SKIP_SMUDGE=1 git clone URL
    """
    for descriptor in (0, 1):
        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    # Unbuffered; with PYTHONUNBUFFERED they are already.
    server = FilterServer(_raw(sys.stdin.buffer), _raw(sys.stdout.buffer))
    server.shake_hands(["clean", "smudge", "delay"])
    conversation = _Conversation(server, skips=bool(os.environ.get("CORAL_SKIP_SMUDGE")))
    for request in server.requests():
        conversation.reply(request)
    conversation.finish(session)


def _raw(file: BinaryIO) -> io.FileIO:
    raw = getattr(file, "raw", file)
    assert isinstance(raw, io.FileIO)
    return raw


class _Conversation:
    """What was asked so far, and what is still owed.

    Args:
        skips: files stay manifests.
    """

    def __init__(self, server: FilterServer, *, skips: bool) -> None:
        self._server = server
        self._skips = skips
        self._filter: GitFilter | None = None
        self._owed: dict[bytes, Manifest] = {}
        self._texts: dict[bytes, bytes] = {}
        self._announced = False
        self._absent: list[str] = []

    def reply(self, request: Request) -> None:
        """Answer one request; what goes wrong with one file is told, and the next one is served."""
        name = os.fsdecode(request.pathname)
        try:
            if request.command == "clean":
                self._clean(name)
            elif request.command == "smudge":
                self._smudge(request, name)
            elif request.command == "list_available_blobs":
                self._list_available()
            else:
                self._server.fail()
        except CoralError as error:
            click.echo(f"coral: {name}: {error}", err=True)

    def _open(self) -> GitFilter:
        if self._filter is None:
            from coral.cli.filtering import open_filter

            self._filter = open_filter(Path.cwd())
        return self._filter

    def _clean(self, name: str) -> None:
        try:
            text = self._open().clean(name, self._server.content)
        except CoralError:
            self._server.content.skip_content()
            self._server.fail()
            raise
        self._server.answer(lambda write: write(text))

    def _smudge(self, request: Request, name: str) -> None:
        from coral.verbs.inside_git.filter import read_manifest

        text = self._server.content.read_whole()
        if not text and request.pathname in self._owed:
            manifest, text = self._owed.pop(request.pathname), self._texts.pop(request.pathname)
            self._send(name, manifest, text)
            return
        manifest_or_none = None if self._skips else read_manifest(text)
        if manifest_or_none is None:
            self._server.answer(lambda write: write(text))
        elif request.can_delay and manifest_or_none.nbytes >= _LEAST_DELAYED:
            self._owed[request.pathname], self._texts[request.pathname] = manifest_or_none, text
            self._server.delay()
        else:
            self._send(name, manifest_or_none, text)

    def _send(self, name: str, manifest: Manifest, text: bytes) -> None:
        try:
            absent = self._open().lacking([manifest])
        except CoralError:
            self._server.fail()
            raise
        if absent:
            self._absent.append(name)
            self._server.answer(lambda write: write(text))
        else:
            self._server.answer(lambda write: self._open().smudge(manifest, write))

    def _list_available(self) -> None:
        if not self._announced and self._owed:
            # All at once: a remote is asked once for what several files need.
            with contextlib.suppress(CoralError):
                self._open().lacking(self._owed.values())
        self._announced = True
        self._server.list_available(self._owed)

    def finish(self, session: Session) -> None:
        """Say what could not be written, and tidy up."""
        if self._absent and not session.quiet:
            names = ", ".join(self._absent[:3]) + (f" and {len(self._absent) - 3} more" if self._absent[3:] else "")
            click.echo(f"coral: {names}: tensors are not here, so the manifest was written", err=True)
            click.echo("hint: 'coral pull' brings them, once 'coral remote add' says from where", err=True)
        if self._filter is not None:
            self._filter.finish()
