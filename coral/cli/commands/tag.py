"""``coral tag``: list, make and delete tags."""

from __future__ import annotations

import click

from coral.cli.complete import complete_tag
from coral.cli.look.output import json_option, print_json
from coral.cli.session import Session, pass_session
from coral.errors import UsageError


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME [REF]]", shell_complete=complete_tag)
@click.option("-l", "--list", "listed", is_flag=True, help="List the tags; this is what no NAME does.")
@click.option("-d", "--delete", is_flag=True, help="Delete tags; their commits stay.")
@click.option("-m", "--message", metavar="TEXT", help="Say why, in the tag.")
@click.option("-f", "--force", is_flag=True, help="Move a tag that exists.")
@json_option
@pass_session
def command(
    session: Session,
    names: tuple[str, ...],
    listed: bool,
    delete: bool,
    message: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """List tags, or give the commit REF (or HEAD) the name NAME for good.

    \b
    Examples:
      coral tag
      coral tag v1.0
      coral tag -m "sent to the customer" v1.0 HEAD~2
      coral tag -d v1.0
    """
    repo = session.open()
    if delete:
        if not names:
            raise UsageError("which tag?", hint="coral tag -d NAME")
        for name in names:
            repo.delete_tag(name)
            session.say(f"deleted tag '{name}'")
    elif names and not listed:
        if len(names) > 2:
            raise UsageError("tag takes a NAME and a REF", hint="see 'coral tag --help'")
        repo.tag(names[0], names[-1] if len(names) > 1 else "HEAD", message, force=force)
        session.say(f"tagged {repo.tags()[names[0]][:10]} as '{names[0]}'")
    elif as_json:
        print_json([{"name": name, "commit_hash": commit_hash} for name, commit_hash in repo.tags().items()])
    else:
        for name in repo.tags():
            click.echo(name)
