"""``coral`` itself: its options, its list of subcommands, and what becomes of an error."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

import coral
from coral.cli.group import HELP_NAMES, LazyGroup, Section
from coral.cli.look.terminal import guarded, visible
from coral.cli.session import Session
from coral.errors import CoralError, StorageError, UsageError

INTERRUPTED, BROKEN_PIPE, BUG = 130, 141, 70

SECTIONS = {
    "Start": Section(
        "coral.cli.commands",
        {
            "init": "Make a repository in a folder.",
        },
    ),
    "Keep weights": Section(
        "coral.cli.commands",
        {
            "add": "Stage files for the next commit.",
            "rm": "Remove files, and stage the removal.",
            "status": "Show what is staged, modified and untracked.",
            "commit": "Record what is staged, or the files named.",
        },
    ),
    "Look": Section(
        "coral.cli.commands",
        {
            "log": "Show the commits that led here.",
            "show": "Show one commit and what it changed.",
            "blame-code": "Show which code made a commit.",
            "diff": "Compare two commits, tensor by tensor.",
            "ls": "List a commit's files and tensors.",
            "cat": "Show one tensor's statistics or values.",
            "reflog": "Show where HEAD or a branch has been.",
        },
    ),
    "Move": Section(
        "coral.cli.commands",
        {
            "checkout": "Write a commit's files, and go there.",
            "switch": "Go to a branch.",
            "branch": "List, make, rename or delete branches.",
            "tag": "List, make or delete tags.",
            "reset": "Unstage files, or point the branch elsewhere.",
            "undo": "Take the last operation back.",
        },
    ),
    "Experiments": Section(
        "coral.cli.commands",
        {
            "exp": "Record runs, compare them, find the best.",
        },
    ),
    "Care": Section(
        "coral.cli.care",
        {
            "fsck": "Check that all that was committed is there.",
            "verify": "Check who signed a commit, and what.",
            "repack": "Make commits quick to read.",
            "gc": "Collect tensors that nothing names any more.",
        },
    ),
    "Inside git": Section(
        "coral.cli.sharing",
        {
            "install": "Set coral up in a git repository.",
            "uninstall": "Take coral out of a git repository.",
            "track": "Have git keep files by coral.",
            "untrack": "Have git keep files itself again.",
            "tracked": "List the patterns, and the files in git.",
            "pull": "Write the models that git checked out as manifests.",
            "push": "Send tensors to a remote.",
            "remote": "Name the folders that tensors are shared through.",
            "resolve": "Settle the conflicts in a model.",
            "import-lfs": "Have coral keep what git-LFS keeps.",
            "export": "Write plain files, without git and coral.",
        },
    ),
    "Called by git": Section(
        "coral.cli.called_by_git",
        {
            "git-filter": "Turn models into manifests, and back.",
            "git-diff": "Show how far two versions of a model are apart.",
            "git-merge": "Merge two versions of a model.",
            "git-pre-push": "Send the tensors of what git pushes.",
        },
    ),
    "Shell": Section(
        "coral.cli.commands",
        {
            "completion": "Print a shell's completion script.",
        },
    ),
}

EPILOG = """\b
Exit codes:
  0 done                    5 stored bytes are damaged
  1 other error             6 an input file is malformed
  2 wrong usage             7 made by a newer coral
  3 no such name            8 the file system refused
  4 conflict                9 repaired (fsck --repair)
  10 not signed by a trusted key
  70 a bug in coral       130 interrupted
  141 the reader of the output went away

\b
Environment: CORAL_AUTHOR     who commits ('Name <email>')
             CORAL_RUN        the run that 'coral exp' and 'coral commit' mean
             CORAL_SKIP_PUSH  let 'git push' send no tensors
             NO_COLOR         no colours
"""


class Coral(LazyGroup):
    """The top of the command line: errors become one line and an exit code here."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and exit, unless ``standalone_mode`` is off."""
        name = prog_name or _program_name()
        if not standalone_mode:
            return super().main(args, name, complete_var, standalone_mode=False, **extra)
        try:
            result = super().main(args, name, complete_var, standalone_mode=False, **extra)
            sys.exit(result if isinstance(result, int) else 0)
        except click.Abort:
            sys.exit(INTERRUPTED)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse the options before the subcommand."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            raise click.exceptions.Exit(_report_usage(error, "coral")) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; whatever goes wrong in it becomes an exit code."""
        with guarded():
            return self._invoke(ctx)

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except (click.exceptions.Exit, click.Abort):
            raise
        except click.UsageError as error:
            code = _report_usage(error, f"coral {ctx.invoked_subcommand or ''}".strip())
        except click.ClickException as error:
            code = _report(CoralError(error.format_message()))
        except CoralError as error:
            code = _report(error)
        except (KeyboardInterrupt, EOFError):
            click.echo(err=True)
            code = INTERRUPTED
        except BrokenPipeError:
            # Python flushes standard output once more at exit, which would fail again, aloud, unless it is closed.
            with contextlib.suppress(BrokenPipeError):
                sys.stdout.close()
            code = BROKEN_PIPE
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            code = _report(StorageError(f"{where}{error.strerror or error}"))
        except Exception:
            code = _report_bug()
        raise click.exceptions.Exit(code)


def _show_warning(message: Warning | str, *_where: object, **_more: object) -> None:
    click.echo(f"warning: {visible(str(message))}", err=True)


def _program_name() -> str:
    return "git coral" if Path(sys.argv[0]).name == "git-coral" else "coral"


def _report(error: CoralError) -> int:
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(visible(error.message), err=True)
    if error.hint:
        click.secho("hint: ", fg="cyan", nl=False, err=True)
        click.echo(visible(error.hint), err=True)
    return error.exit_code


def _report_usage(error: click.UsageError, called: str) -> int:
    path = error.ctx.command_path if error.ctx is not None else called
    message = error.format_message().rstrip(".")
    # An option's name keeps its case; a sentence starts small, as all our messages do.
    message = message[:1].lower() + message[1:] if message[1:2].islower() else message
    return _report(UsageError(message, hint=f"see '{path} --help'"))


def _report_bug() -> int:
    import traceback

    traceback.print_exc()
    click.echo("error: this is a bug in coral; please report it with the lines above", err=True)
    return BUG


@click.group(
    cls=Coral,
    sections=SECTIONS,
    context_settings=HELP_NAMES,
    epilog=EPILOG,
)
@click.option("-C", "folder", metavar="DIR", type=click.Path(), help="Work as if started in DIR.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but what was asked for, and errors.")
@click.version_option(coral.__version__, "--version", prog_name="coral", help="Print the version and exit.")
@click.pass_context
def main(ctx: click.Context, folder: str | None, quiet: bool) -> None:
    """Git for the weights of neural networks, and the experiments they came from.

    \b
    Example:
      coral init
      coral commit -m "first model" model.safetensors
      coral log
    """
    if os.environ.get("NO_COLOR"):
        ctx.color = False
    started_as = os.path.abspath(sys.argv[0])  # before the folder changes
    if folder is not None:
        if not os.path.isdir(folder):
            raise UsageError(f"cannot go to {folder!r}: no such folder")
        ctx.with_resource(contextlib.chdir(folder))
    ctx.obj = Session(quiet=quiet, started_as=started_as)
