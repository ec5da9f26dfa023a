"""``coral completion``: the script that makes a shell complete coral's commands, refs, files and runs."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL; it is to be evaluated when the shell starts.

    \b
    Examples:
      eval "$(coral completion bash)"                            in ~/.bashrc
      eval "$(coral completion zsh)"                             in ~/.zshrc
      coral completion fish > ~/.config/fish/completions/coral.fish
    """
    completion = get_completion_class(shell)
    if completion is None:
        raise click.UsageError(f"{shell} cannot complete")
    click.echo(completion(ctx.find_root().command, {}, "coral", "_CORAL_COMPLETE").source())
