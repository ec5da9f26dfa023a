"""``coral undo``: taking the last operations back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from coral.cli.look.output import age, json_option, print_json, print_table
from coral.cli.session import Session, pass_session

if TYPE_CHECKING:
    from coral.history import Operation

_LISTED = 30
_SHOWN = 10


@click.command()
@click.argument("number", metavar="[N]", type=click.IntRange(min=1), default=1)
@click.option("--list", "lists", is_flag=True, help="Only show what was done, the newest first.")
@json_option
@pass_session
def command(session: Session, number: int, lists: bool, as_json: bool) -> None:
    """Take the last operation back, or the last N.

    Whatever moved a branch, a tag or HEAD can be taken back: commit, reset, branch, tag, checkout, switch, and gc as
    long as the trash is not emptied. A branch that was deleted comes back with its commits. Files follow where they
    followed before. To undo is an operation as well: 'coral undo' after 'coral undo' does it again.

    \b
    Examples:
      coral undo
      coral undo 3
      coral undo --list
    """
    repo = session.open()
    found = repo.maintenance.operations()[:_LISTED] if lists else repo.undo(number)
    if as_json:
        print_json([_data(one) for one in found])
    elif lists:
        print_table(["id", "when", "who", "what"], [[one.id, age(one.time), one.who, one.command] for one in found])
    else:
        for one in found:
            session.say(f"undone: {one.command}")
            for ref, old, _ in reversed(one.moves):
                session.say(f"  {_short(ref)} is {'gone' if old is None else 'at ' + _short(old)}")


def _data(one: Operation) -> dict[str, Any]:
    return {
        "id": one.id,
        "time": one.time,
        "who": one.who,
        "command": one.command,
        "moves": [move._asdict() for move in one.moves],
        "trash": one.trash,
        "undoes": list(one.undoes),
    }


def _short(name: str) -> str:
    name = name.removeprefix("ref: ")
    if name.startswith("refs/"):
        return name.split("/", 2)[2]
    return name if name == "HEAD" else name[:_SHOWN]
