"""``coral add``: stage files."""

from __future__ import annotations

import click

from coral.cli.adding import add, failure, find_files, say_added
from coral.cli.look.output import json_option, print_json
from coral.cli.session import Session, pass_session


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(readable=False))
@click.option("--opaque", is_flag=True, help="Keep the bytes whole, also of a file that is damaged.")
@click.option("--name", metavar="NAME", help="Keep the one file under another name.")
@json_option
@pass_session
def command(session: Session, paths: tuple[str, ...], opaque: bool, name: str | None, as_json: bool) -> None:
    """Put files into the next commit; folders with all that is in them.

    Of the project's own folder the model files are taken: those that end in .safetensors, .pt, .pth, .bin, .npz, .npy,
    .ckpt, .gguf, .keras, .onnx, .joblib, .ubj or .distcp, and are in no hidden folder. A file that is plainly not what
    its name promises (cut short, empty, a pointer of git-LFS) is refused, and the others are staged.

    \b
    Examples:
      coral add model.safetensors
      coral add checkpoints/step-300
      coral add --name best.pt runs/7/last.pt
    """
    repo = session.open()
    added = add(repo, session, find_files(repo, paths, name=name), opaque=opaque, partly=True)
    failed = added.staged.failed
    if as_json:
        print_json(added.data())
    else:
        say_added(session, added)
        if not added.staged.parts and not failed:
            session.say("nothing to add" if added.skipped else "nothing to add: no model file there")
    if failed:
        raise failure(failed, "the others are staged" if added.staged.parts else "nothing was staged")
