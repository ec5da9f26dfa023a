"""``coral remote``: the folders that chunks are sent to and fetched from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from coral.cli.group import HELP_NAMES
from coral.cli.look.output import json_option, print_json, printable
from coral.cli.session import Session, pass_session

if TYPE_CHECKING:
    from collections.abc import Iterable

    from coral.verbs.config import Remote

_verbose = click.option("-v", "--verbose", is_flag=True, help="Show where each one is.")
_private = click.option("--private", is_flag=True, help="Leave .coralconfig as it is: only this machine is concerned.")


@click.group(context_settings=HELP_NAMES, invoke_without_command=True)
@_verbose
@json_option
@click.pass_context
def command(ctx: click.Context, verbose: bool, as_json: bool) -> None:
    """List remotes, or add, remove and adopt them.

    A remote is a folder that several repositories share tensors through, such as one on a network disk. In a git
    project 'add' also writes it to .coralconfig; commit that file, and colleagues can adopt the remote.

    \b
    Examples:
      coral remote
      coral remote add origin /mnt/models
      coral remote adopt
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(show, verbose=verbose, as_json=as_json)


@command.command("list")
@_verbose
@json_option
@pass_session
def show(session: Session, verbose: bool, as_json: bool) -> None:
    """List remotes; with -v also those that .coralconfig offers and nobody here has adopted.

    \b
    Example:
      coral remote list -v
    """
    remotes = session.open().remotes
    own, offered = list(remotes), remotes.offered()
    if as_json:
        print_json([*_data(own, adopted=True), *_data(offered, adopted=False)])
        return
    for remote in own:
        click.echo(f"{remote.name}\t{remote.url}" if verbose else remote.name)
    for remote in offered if verbose else ():
        click.echo(f"{remote.name}\t{printable(remote.url)}\t(offered by .coralconfig)")
    if any(remote.name not in {mine.name for mine in own} for remote in offered):
        session.advise("'coral remote adopt' takes what .coralconfig offers; 'coral remote -v' shows it")


def _data(remotes: Iterable[Remote], *, adopted: bool) -> list[dict[str, object]]:
    return [{"name": remote.name, "url": remote.url, "adopted": adopted} for remote in remotes]


@command.command()
@click.argument("name")
@click.argument("path")
@_private
@json_option
@pass_session
def add(session: Session, name: str, path: str, private: bool, as_json: bool) -> None:
    """Name the remote NAME in the folder PATH, and make the folder ready.

    PATH is absolute, or relative to the project's folder, or file:///path. It is empty or new, or holds a remote.

    \b
    Examples:
      coral remote add origin /mnt/models
      coral remote add usb /media/usb/models --private
    """
    told = session.open().remotes.add(name, path, private=private)
    if as_json:
        print_json({"name": name, "url": path, "offered_in": None if told is None else str(told)})
        return
    session.say(f"added remote '{name}'")
    if told is not None:
        session.say(f"commit {told.name}, so that colleagues can adopt it")


@command.command()
@click.argument("name")
@_private
@json_option
@pass_session
def remove(session: Session, name: str, private: bool, as_json: bool) -> None:
    """Forget the remote NAME; what is stored there stays.

    \b
    Example:
      coral remote remove usb
    """
    changed = session.open().remotes.remove(name, private=private)
    if as_json:
        print_json({"name": name, "no_longer_offered_in": None if changed is None else str(changed)})
        return
    session.say(f"removed remote '{name}'{f', also from {changed.name}' if changed is not None else ''}")


@command.command()
@json_option
@pass_session
def adopt(session: Session, as_json: bool) -> None:
    """Use the remotes that the project's .coralconfig offers, where their names are new.

    Whoever can commit to the project wrote that file: look at what this prints, as tensors will be sent there.

    \b
    Example:
      coral remote adopt
    """
    adopted = session.open().remotes.adopt()
    if as_json:
        print_json(_data(adopted, adopted=True))
        return
    for remote in adopted:
        click.echo(f"adopted remote '{remote.name}': {printable(remote.url)}")
    if not adopted:
        session.say("nothing new to adopt")
