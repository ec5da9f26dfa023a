"""A command group that knows its commands' names and one-line helps, and imports each only when it is called."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from coral.errors import UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

HELP_NAMES = {"help_option_names": ["-h", "--help"]}


class Section(NamedTuple):
    """Some commands of a group: the package of their modules, and their one-line helps, by name."""

    package: str
    commands: Mapping[str, str]


class LazyGroup(click.Group):
    """A group whose command ``name`` is ``command`` in its section's ``package.name``, ``-`` written as ``_``.

    Args:
        sections: headings of the help to sections, in the order they are shown.
    """

    def __init__(self, *, sections: Mapping[str, Section], **options: Any) -> None:
        super().__init__(**options)
        self._sections = sections
        self._packages = {name: section.package for section in sections.values() for name in section.commands}
        self._helps = {name: text for section in sections.values() for name, text in section.commands.items()}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options before the command; without any argument show the help, as an answer to wrong usage."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(UsageError.exit_code)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every name, in the order of the help."""
        return list(self._helps)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in self._helps:
            return None
        command: click.Command = import_module(f"{self._packages[cmd_name]}.{cmd_name.replace('-', '_')}").command
        command.short_help = self._helps[cmd_name]
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is called. Raises UsageError with near misses."""
        name = args[0]
        if name not in self._helps and not name.startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches

            near = get_close_matches(name, self._helps, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"'{ctx.command_path} --help' lists the commands"
            raise UsageError(f"{name!r} is not a {ctx.command_path} command", hint=hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by section, without importing one."""
        width = max(map(len, self._helps))
        for title, section in self._sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in section.commands.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name, without importing one."""
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name, help=text) for name, text in self._helps.items() if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]
