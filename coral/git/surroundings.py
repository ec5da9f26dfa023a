"""Where git keeps what belongs to the repository around a folder, by git's own answer.

Unlike :mod:`coral.git.enclosing` this asks git, and is for commands that change something there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from coral.errors import ConflictError, GitCommandError, NotFoundError, UsageError
from coral.git.command import ask, run
from coral.git.enclosing import find_git, is_git_dir, owner


@dataclass(frozen=True, slots=True)
class Surroundings:
    """A folder in a worktree of git's.

    Attributes:
        folder: the folder itself.
        top: the worktree that it is in.
        common: the git folder that all worktrees of the repository share.
        hooks: where git looks for hooks, whether or not it exists.
        attributes: ``info/attributes``, which need not exist.
    """

    folder: Path
    top: Path
    common: Path
    hooks: Path
    attributes: Path

    @property
    def owns_hooks(self) -> bool:
        """Whether no other repository uses the same hooks."""
        return any(self.hooks.resolve().is_relative_to(own.resolve()) for own in (self.common, self.top))

    @property
    def hooks_are_of(self) -> Path | None:
        """Another repository that the hooks lie in, by this one's own settings or a link; None for none."""
        if self.owns_hooks or not (self.hooks.is_symlink() or self._sets_hooks()):
            return None
        hooks = self.hooks.resolve()
        others = (folder for folder in (hooks, *hooks.parents) if is_git_dir(folder))
        return next(others, None) or find_git(hooks)

    def _sets_hooks(self) -> bool:
        try:  # not quiet, as below
            answer = run(self.top, ["config", "--show-scope", "--get", "core.hooksPath"], quiet=False)
        except GitCommandError:
            return False
        return answer.partition(b"\t")[0] in (b"local", b"worktree")


def top_of(folder: Path) -> Path | None:
    """The top of the working tree that a folder lies in; None for none.

    Raises:
        ConflictError: its ``.git`` leads to a repository that does not know of it.
    """
    answer = ask(folder, ["rev-parse", "--show-toplevel"])
    if not answer:
        return None
    top = Path(answer.removesuffix("\n"))
    _refuse_another(folder, top)
    return top


def _refuse_another(folder: Path, top: Path) -> None:
    """Raise ConflictError where what git takes for the worktree, by what may have come with an archive, is not ours."""
    if not folder.resolve().is_relative_to(top.resolve()):
        raise ConflictError(
            f"git's settings say that the files of {folder} are in {top}", hint=f"go there, if that is yours: cd {top}"
        )
    if owner(top) == "another":
        raise ConflictError(
            f"{top / '.git'} leads to another folder's repository, where nothing is changed from here",
            hint="of a linked worktree 'git worktree repair' says that it is one; else make a clone",
        )


def surroundings_of(folder: Path) -> Surroundings:
    """The worktree of git's that a folder is in.

    Raises:
        NotFoundError: there is none.
        UsageError: the folder is in a bare repository, or in a ``.git``.
        ConflictError: its ``.git`` leads to a repository that does not know of it.
        GitCommandError: git is absent, or refuses.
    """
    folder = folder.resolve()
    bare, inside = (_ask(folder, question) == "true" for question in ("--is-bare-repository", "--is-inside-work-tree"))
    if not inside:
        what = "in a bare repository" if bare else "in git's own folder"
        raise UsageError(
            f"{folder} is {what}, where git checks no files out",
            hint="go to a folder whose files git checks out, or see 'coral install --global'",
        )
    top = Path(_ask(folder, "--show-toplevel"))
    _refuse_another(folder, top)
    common, hooks, attributes = (
        Path(os.path.normpath(top / _ask(top, *question)))
        for question in (("--git-common-dir",), ("--git-path", "hooks"), ("--git-path", "info/attributes"))
    )
    return Surroundings(folder, top, common, hooks, attributes)


def _ask(folder: Path, *question: str) -> str:
    # Not quiet: the quiet options would hide where the user's hooks are. rev-parse runs no program.
    try:
        answer = run(folder, ["rev-parse", *question], quiet=False)
    except GitCommandError as error:
        if "not a git repository" in error.message:
            raise NotFoundError(f"{folder} is in no git repository", hint="make one with 'git init'") from None
        raise
    return os.fsdecode(answer).removesuffix("\n")
