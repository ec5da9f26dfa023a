"""Refs that are read without libgit2 say what libgit2 says of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coral.errors import CoralError, RepositoryNotFoundError
from coral.history.history import History
from coral.history.libgit import Handle
from coral.history.plain import NotPlainError, PlainRefs
from tests.history.conftest import Git
from tests.history.helpers import commit_on

ROOT = Path(__file__).parents[2]
OID = "0123456789abcdef0123456789abcdef01234567"
WORDS = [
    "a",
    "b",
    "v1.0",
    "-x",
    "_",
    "7",
    "a.lock",
    ".a",
    "a.",
    "a..b",
    "a b",
    "a~1",
    "@",
    "@{1}",
    "HEAD",
    "é",
    "A",
    "\n",
]
NAMES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map("/".join)
SAID = st.one_of(
    st.sampled_from([f"{OID}\n", "ref: refs/heads/a\n", "ref: refs/heads/b\n"]),
    st.sampled_from([OID, OID.upper() + "\n", OID[1:] + "\n", f"{OID}0\n", f"{OID} x\n", f" {OID}\n", "0" * 40 + "\n"]),
    st.sampled_from(["", "\n", "ref: ", "ref:refs/heads/a\n", "ref: refs/heads/a", "ref: refs/heads/a \n", "ref: a\n"]),
    st.sampled_from(["ref: ../../x\n", "ref: refs/heads/a.lock\n", "ref: refs/heads/\n", "ref: HEAD\n", f"{OID}\r\n"]),
    st.sampled_from(["ref: refs/heads/a\nb\n", "ref: refs/heads/a\n\n", f"{OID}\nb\n"]),
    st.text("0aF: /\nref", max_size=45),
)
PACKED = st.none() | st.sampled_from([f"# pack-refs with: peeled fully-peeled sorted \n{OID} refs/heads/a\n", "?", ""])


def outcome(ask: Callable[[str], object], name: str) -> object:
    """What a call returns, or the class of its error."""
    try:
        return ask(name)
    except (CoralError, NotPlainError) as error:
        return type(error)


def by_libgit2(git_dir: Path) -> Handle:
    """The same refs in a repository whose config is not the one that coral writes."""
    with (git_dir / "config").open("a") as file:
        file.write("# mine\n")
    with pytest.raises(NotPlainError):
        PlainRefs(git_dir).ref("HEAD")
    return Handle(git_dir)


@settings(max_examples=100, deadline=None)
@given(files=st.dictionaries(NAMES, SAID, max_size=5), head=SAID, packed=PACKED, asked=st.lists(NAMES, max_size=3))
def test_libgit2_says_the_same(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, str], head: str, packed: str | None, asked: list[str]
) -> None:
    """Of whatever files there are, what is read as plain is what libgit2 reads, and no ref is left out."""
    git_dir = tmp_path_factory.mktemp("plain") / ".git"
    History.create(git_dir)
    (git_dir / "HEAD").write_text(head)
    for name, said in files.items():
        path = git_dir / "refs/heads" / name
        if not any(parent.is_file() for parent in path.parents) and not path.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(said)
    if packed is not None:
        (git_dir / "packed-refs").write_text(packed)
    plain = PlainRefs(git_dir)
    names = ["HEAD", *(f"refs/heads/{name}" for name in [*files, *asked, "a"]), *asked]
    found = {name: outcome(plain.ref, name) for name in names}
    listed = {prefix: outcome(plain.refs, prefix) for prefix in ("refs/heads/", "refs/heads/a/", "refs/tags/", "refs/")}
    judge = by_libgit2(git_dir)
    assert all(said is NotPlainError or said == outcome(judge.ref, name) for name, said in found.items())
    assert all(said is NotPlainError or said == outcome(judge.refs, prefix) for prefix, said in listed.items())


def test_what_coral_writes_is_plain(history: History) -> None:
    """The refs of a repository that coral made, and nobody else touched, need no libgit2."""
    tip = commit_on(history, "main", "one").commit_hash
    history.create_branch("feature/v1.0", tip)
    history.create_tag("v1.0", tip)
    plain = PlainRefs(history.git_dir)
    assert plain.refs("refs/") == {"heads/feature/v1.0": tip, "heads/main": tip, "tags/v1.0": tip}
    assert plain.ref("refs/heads/none") is None
    found = plain.ref("HEAD")
    assert found is not None and found.ref == "refs/heads/main"


def test_packed_refs_are_read(history: History, git: Git) -> None:
    """Refs that git has packed meanwhile are found by an object that was opened before."""
    tip = commit_on(history, "main", "one").commit_hash
    assert history.branches() == {"main": tip}
    git("pack-refs", "--all")
    assert not (history.git_dir / "refs/heads/main").exists()
    assert history.branches() == {"main": tip} and history.head().commit == tip


OTHER = ["[core]\n\trepositoryformatversion = 9\n", "[extensions]\n\trefstorage = reftable\n", "[core\n"]


@pytest.mark.parametrize("text", OTHER)
def test_a_repository_of_another_format_is_refused(history: History, text: str) -> None:
    """What the config forbids to read is not read: the refs may lie elsewhere."""
    commit_on(history, "main", "one")
    config = history.git_dir / "config"
    config.write_text(config.read_text().replace("version = 0", "version = 1") + text)
    with pytest.raises(RepositoryNotFoundError):
        History(history.git_dir, locks=history.git_dir.parent / "locks").head()


def test_the_options_come_first(history: History) -> None:
    """Whoever makes libgit2 be loaded, many threads at once too, finds its options set before it reads or writes."""
    commit_on(history, "main", "one")
    program = (
        "import sys, threading\nfrom pathlib import Path\nfrom coral.history.libgit import Handle\n"
        "assert 'pygit2' not in sys.modules\n"
        "together, said = threading.Barrier(8), []\n"
        "def look() -> None:\n"
        "    handle = Handle(Path(sys.argv[1]))\n"
        "    together.wait()\n"
        "    handle.with_prefix('0123')\n"
        "    import pygit2\n"
        "    levels = pygit2.enums.ConfigLevel\n"
        "    said.append((pygit2.settings.owner_validation, *(pygit2.settings.search_path[level]\n"
        "        for level in (levels.PROGRAMDATA, levels.SYSTEM, levels.XDG, levels.GLOBAL))))\n"
        "threads = [threading.Thread(target=look) for _ in range(8)]\n"
        "[thread.start() for thread in threads]\n[thread.join() for thread in threads]\n"
        "print(len(said), set(said) <= {(0, '', '', '', '')})\n"
    )
    command = [sys.executable, "-c", program, str(history.git_dir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["8", "True"], done.stderr


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="NOT TESTED: open descriptors; there is no /proc here")
def test_a_name_that_is_a_folder_of_refs_leaves_nothing_open(history: History) -> None:
    """Where a branch is called a/x, a is looked for as often as you like."""
    commit_on(history, "a/x", "text")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        with pytest.raises(CoralError):
            history.resolve("a")
        assert history.branch_tip("a") is None
    assert len(list(Path("/proc/self/fd").iterdir())) == before
