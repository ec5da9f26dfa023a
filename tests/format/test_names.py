"""Names of branches, tags and parts, and the escaping of everything else."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coral.errors import FormatError, InvalidNameError
from coral.format.names import check_part_name, check_ref_name, escape, escape_all, unescape

pieces = st.sampled_from(
    [
        *"ab/.@-{}~^:?*[\\ \t\n\x7f\x01é🪸",
        ".lock",
        "..",
        "@{",
        "//",
        "/.",
        "HEAD",
        "-x",
        "runs/",
        "refs/heads/",
        "\u2028",
    ]
)
ref_names = st.lists(pieces, max_size=5).map("".join) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8
)


def allowed(name: str) -> bool:
    """Whether coral takes this for a branch's name."""
    try:
        return check_ref_name(name) == name
    except InvalidNameError:
        return False


def git_allows(name: str) -> bool:
    """Whether git does."""
    return (
        subprocess.run(["git", "check-ref-format", "--branch", name], capture_output=True, check=False).returncode == 0
    )


@given(ref_names)
@settings(max_examples=120)
def test_never_looser_than_git(name: str) -> None:
    """A name that coral takes is a name that git takes."""
    if allowed(name):
        assert git_allows(name)


@pytest.mark.parametrize(
    "name",
    [
        *("a.lock", "a.lock/b", "a/b.lock", ".a", "a/.b", "a..b", "a.", "a/", "/a", "a//b", "a@{b", "-a", "a b", "a~b"),
        *("a^b", "a:b", "a?b", "a*b", "a[b", "a\\b", "a\x7fb", "a\x01b", "a\nb", "a\n"),
    ],
)
def test_each_rule_of_git(name: str) -> None:
    """Each rule of ``git check-ref-format``, one by one."""
    assert not git_allows(name)
    assert not allowed(name)


@given(ref_names.filter(lambda name: name not in ("", "HEAD", "@") and len(name.encode()) <= 250))
@settings(max_examples=80)
def test_as_liberal_as_git(name: str) -> None:
    """A name that git takes is refused only for a reason of coral's own."""
    if git_allows(name):
        assert allowed(name)


@pytest.mark.parametrize(
    "name",
    ["", "HEAD", "@", "a\0b", "\ud800", "a" * 40, "A" * 40, "0123456789abcdef" * 2 + "01234567", "x" * 251, "é" * 126],
)
def test_refused_for_reasons_of_our_own(name: str) -> None:
    """What looks like a commit or like HEAD, what no file system could hold, and what is not unicode."""
    assert not allowed(name)


def test_a_lock_fits_beside_the_longest_name() -> None:
    """git writes a ref through ``<name>.lock``, which a file system has to hold."""
    assert allowed("x" * 250)
    assert len("x" * 250 + ".lock") <= 255


@pytest.mark.parametrize(
    "name", ["model.safetensors", "checkpoints/last.pt", "a b", "ß/é🪸.npz", ".hidden", "%41", "-x", "a..b"]
)
def test_part_names(name: str) -> None:
    """Any relative path is a part's name."""
    assert check_part_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "/", "/etc/passwd", "a//b", "a/", "./a", "../a", "a/../b", "a/..", "a\0b", "a\nb", "a\\b", "a\x7fb"),
        *("\ud800", ".git", ".coral/x", "a/.git/hooks/post-commit", ".GIT/config", ".cor\u200bal/x", "x" * 256),
        *(
            "a/" * 600 + "b",
            ".git./x",
            ".git /x",
            "git~1/config",
            ".git::$INDEX_ALLOCATION/x",
            "\uff0egit/config",
            "\u2028",
            "a\x85",
        ),
    ],
)
def test_part_names_that_leave_or_hide(name: str) -> None:
    """A part is never a path out of the project, into git's or coral's own folders, or with control characters."""
    with pytest.raises(InvalidNameError):
        check_part_name(name)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_escaping_round_trip(text: str) -> None:
    """Any unicode text becomes one line without tabs, and comes back."""
    escaped = escape(text)
    assert len(escaped.splitlines()) <= 1
    assert "\t" not in escaped
    assert unescape(escaped) == text
    assert escape_all([text, "plain"]) == [escaped, "plain"]


@given(st.text(st.sampled_from("%0123456789ABCDEFabc\t\n\x85é"), max_size=12))
def test_one_escape_only(text: str) -> None:
    """Text is unescaped only when it is exactly what escaping would have written."""
    try:
        raw = unescape(text)
    except FormatError:
        return
    assert escape(raw) == text
