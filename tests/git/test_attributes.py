"""The text of .gitattributes: git reads what coral writes, and what coral did not write stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from coral.errors import UsageError
from coral.git.attributes import add, normal, patterns, quote, remove
from tests.git.conftest import Git

LINE = "*.safetensors filter=coral diff=coral merge=coral -text\n"


def attributes_of(git: Git, folder: Path, text: str, name: str) -> dict[str, str]:
    """What git itself makes of a text, for one file."""
    if not (folder / ".git").exists():
        git(folder, "init", "-q")
    (folder / ".gitattributes").write_bytes(text.encode(errors="surrogateescape"))
    words = git(folder, "check-attr", "-z", "filter", "diff", "merge", "text", "--", name).split("\0")
    return dict(zip(words[1::3], words[2::3], strict=False))


CORAL = {"filter": "coral", "diff": "coral", "merge": "coral", "text": "unset"}


def test_the_line_is_the_one_that_is_documented() -> None:
    """What is written is one line, and it is found again."""
    assert add("", "*.safetensors") == LINE
    assert patterns(LINE) == ["*.safetensors"]


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "my model.pt",
        " leading",
        "trailing ",
        "tab\there",
        'quo"te',
        '"quoted"',
        "it's",
        "-dash.pt",
        "--help",
        "!important.pt",
        "!im portant",
        "#hash.pt",
        "# hash",
        "größe.pt",
        "权重 🪸.pt",
        "a\nb",
        "bell\a",
        "rub\x7fout",
        "byte\udcff.pt",
        "non breaking.pt",
        "sub/folder/m.pt",
        "percent%41",
        "~tilde",
    ],
)
def test_git_understands_every_name(git: Git, tmp_path: Path, name: str) -> None:
    """Whatever a file is called, git gives it coral's attributes, and no other file; listing names it alike."""
    pattern = normal(name)
    text = add("# first\n", pattern)
    assert attributes_of(git, tmp_path, text, name) == CORAL
    assert attributes_of(git, tmp_path, text, f"other-{name}".replace("/", ""))["filter"] == "unspecified"
    assert patterns(text) == [pattern]
    assert add(text, pattern) == text
    assert remove(text, pattern) == "# first\n"


@pytest.mark.parametrize("pattern", ["a\\*b", "[ab]*.pt", "**/x/**", "/top.pt", "back\\\\slash", "star * blank\\?"])
def test_globs_stay_globs(git: Git, tmp_path: Path, pattern: str) -> None:
    """Stars, brackets and backslashes mean what they mean to git, quoted or not."""
    quoted = f'"{pattern.replace(chr(92), chr(92) * 2)}"'
    by_hand, ours = f"{quoted} filter=coral\n", add("", normal(pattern))
    names = ["a*b", "aXb", "a.pt", "q/x/y", "top.pt", "sub/top.pt", "back\\slash", "star any blank?", "star a blankX"]
    seen = [attributes_of(git, tmp_path, by_hand, name)["filter"] for name in names]
    assert [attributes_of(git, tmp_path, ours, name)["filter"] for name in names] == seen
    assert "coral" in seen and "unspecified" in seen


def test_a_leading_dot_is_the_folder_itself() -> None:
    """./model.pt is model.pt, which git would not match otherwise; no other folder is left out."""
    assert normal("./model.pt") == normal(".//./model.pt") == "model.pt"
    assert normal(".hidden") == ".hidden" and normal("a/.b/c.pt") == "a/.b/c.pt"
    with pytest.raises(UsageError, match="is no pattern"):
        normal("./")


@pytest.mark.parametrize("given", ["", "\0", "models/", "./", ".", "..", "../x.pt", "a/../b", "[attr]x", "x" * 3000])
def test_what_git_cannot_match_is_refused(given: str) -> None:
    """A pattern that would silently match nothing is an error."""
    with pytest.raises(UsageError):
        normal(given)


@pytest.mark.parametrize(
    "given", ["*", "**", "*.*", ".git*", "/*", "**/*", "**/.gitattributes", ".gitignore", ".gitm*"]
)
def test_files_that_git_reads_itself_are_not_tracked(git: Git, tmp_path: Path, given: str) -> None:
    """A pattern that takes one of git's own files along is refused; one for a folder below is not."""
    names = (".gitattributes", ".gitignore", ".gitmodules")
    assert any(attributes_of(git, tmp_path, f"{given} filter=coral\n", name)["filter"] == "coral" for name in names)
    with pytest.raises(UsageError, match="git reads itself"):
        normal(given)
    assert normal("models/**") == "models/**"


KEPT = [
    "",
    "# a comment\n",
    "# no last newline",
    "*.txt text",
    "*.txt text\r\n*.bin binary\r\n",
    "*.txt text\r\n*.bin binary",
    "\ufeff*.txt text\n",
    "\n\n  \t\n*.txt    text\t \n\n",
    "a\x0bb text\n\x85 text\n",
    'broken "quote\n[attr]mine -diff\n!negative x\n',
    "*.safetensors filter=lfs diff=lfs merge=lfs -text\n",
    "bytes\udcff text\n",
]


@pytest.mark.parametrize("text", KEPT)
def test_other_lines_stay_as_they_are(text: str) -> None:
    """Tracking adds one line and untracking takes it out again: line ends, blanks and a missing last newline stay."""
    tracked = add(text, "*.safetensors")
    assert tracked.startswith(text) and tracked != text
    assert tracked.endswith("\n") == (not text or text.endswith("\n"))
    assert tracked.count("\r\n") == text.count("\r\n") + ("\r" in text)
    assert remove(tracked, "*.safetensors") == text


_TEXTS = st.text(st.sampled_from('ab*"\\# \t\r\n!-=.\ufeffé\x0b') | st.characters(codec="utf-8"), max_size=60)
_PATTERNS = st.text(st.sampled_from('ab*"\\# \t\r\n!-=.é[]') | st.characters(codec="utf-8"), min_size=1, max_size=12)


def usable(given: str) -> str | None:
    """A pattern that attributes can hold, or None."""
    try:
        return normal(given)
    except UsageError:
        return None


@given(_TEXTS, _PATTERNS.map(usable).filter(lambda pattern: pattern is not None))
def test_track_and_untrack_cancel_out(text: str, pattern: str) -> None:
    """Whatever the text and the pattern: tracking twice is tracking once, and untracking gives the text back."""
    assume(pattern not in patterns(text) and not text.endswith("\r"))
    tracked = add(text, pattern)
    assert pattern in patterns(tracked)
    assert add(tracked, pattern) == tracked
    assert remove(tracked, pattern) == text


@given(_PATTERNS.map(usable).filter(lambda pattern: pattern is not None))
def test_quoting_is_reversible(pattern: str) -> None:
    """A quoted pattern is read back as it was."""
    assert patterns(f"{quote(pattern)} filter=coral") == [pattern]


def test_quotes_are_cs() -> None:
    """Blanks, quotes and controls are escaped as C does; what needs no quotes has none."""
    assert quote('a "b"\t\x01\\') == '"a \\"b\\"\\t\\001\\\\"'
    assert quote("a\x1f") == '"a\\037"' and quote("a\x7f") == '"a\\177"'
    assert quote("größe*[a-z]\\?.pt") == "größe*[a-z]\\?.pt"


def test_untrack_leaves_the_attributes_of_others() -> None:
    """A line that says more loses only what is coral's, and stays where it is."""
    text = "a\n*.pt  filter=coral lockable diff=coral\tmerge=coral -text eol=lf  \r\nb\n"
    assert remove(text, "*.pt") == "a\n*.pt lockable eol=lf  \r\nb\n"
    assert patterns(remove(text, "*.pt")) == []
    assert remove("*.pt\rfilter=coral\rlockable\r\n", "*.pt") == "*.pt\rlockable\r\n"


def test_the_line_before_loses_one_line_break() -> None:
    """Where the last line goes, and had no line break, the one before it has none either, and keeps all else."""
    for end in ("\n", "\r\n"):
        assert remove(f"*.txt text{end}*.pt filter=coral", "*.pt") == "*.txt text"
    assert remove("*.txt text\r\r\n*.pt filter=coral", "*.pt") == "*.txt text\r"


def test_untrack_leaves_the_lines_of_others() -> None:
    """Lines for other patterns, and lines that do not filter by coral, are not ours to remove."""
    text = "*.pt diff=coral\n*.pt filter=lfs -text\n*.bin filter=coral\n# *.pt filter=coral\n*.pt filter=coralx\n"
    assert remove(text, "*.pt") == text
    assert remove(text, "*.nothing") == text


def test_track_again_after_somebody_overrode_it(git: Git, tmp_path: Path) -> None:
    """A later line for the same pattern wins in git; tracking then adds a line after it."""
    for later in (
        "*.safetensors filter=lfs\n",
        "*.safetensors binary\n",
        "*.safetensors !diff\n",
        "*.safetensors text\n",
        "*.safetensors binary merge=coral\n",
        "*.safetensors binary diff=coral\n",
    ):
        text = LINE + later
        assert attributes_of(git, tmp_path, text, "m.safetensors") != CORAL
        again = add(text, "*.safetensors")
        assert again == text + LINE
        assert attributes_of(git, tmp_path, again, "m.safetensors") == CORAL
        assert add(again, "*.safetensors") == again
    assert patterns(LINE + "*.safetensors filter=lfs\n") == []


@pytest.mark.parametrize(
    "line",
    [
        '"*.safetensors" -text merge=coral diff=coral filter=coral lockable\n',
        '  "\\052.safetensors"filter=coral diff=coral merge=coral -text\r\n',
        "*.safetensors filter=lfs filter=coral diff=coral merge=coral -text",
        "\t\r*.safetensors filter=coral\rdiff=coral\tmerge=coral -text\r\n",
        "*.safetensors filter=coral binary diff=coral merge=coral\n",
    ],
)
def test_a_line_that_says_the_same_is_enough(git: Git, tmp_path: Path, line: str) -> None:
    """Order, quotes and blanks do not matter: what git reads as tracked is tracked."""
    assert attributes_of(git, tmp_path, line, "m.safetensors") == CORAL
    assert add(line, "*.safetensors") == line
    assert patterns(line) == ["*.safetensors"]


def test_a_byte_order_mark_hides_nothing(git: Git, tmp_path: Path) -> None:
    """Git skips a byte order mark before the first line."""
    text = f"\ufeff{LINE}"
    assert attributes_of(git, tmp_path, text, "m.safetensors") == CORAL
    assert patterns(text) == ["*.safetensors"] and add(text, "*.safetensors") == text
    named = "\ufeffmodel.pt"
    assert attributes_of(git, tmp_path, add("", named), named) == CORAL


@pytest.mark.parametrize(
    "line",
    ["#*.pt filter=coral", "!*.pt filter=coral", "[attr]weights filter=coral", "*.pt", "*.pt filter", "*.pt -filter"],
)
def test_what_git_does_not_filter_is_not_listed(line: str) -> None:
    """Comments, negative patterns, macros and other states of the attribute are no patterns of coral's."""
    assert patterns(line) == []


@pytest.mark.parametrize("word", ['"open', '"\\q"', '"\\12"', '"\\189"', '"\\477"', "\x0b*.pt", "\x0c#.pt"])
def test_what_git_takes_literally_is_taken_literally(git: Git, tmp_path: Path, word: str) -> None:
    """Quotes that C would not close or read, and blanks that are none to git, are part of the pattern."""
    line = f"{word} filter=coral\n"
    name = word.replace("\\", "").replace("*", "m")
    assert attributes_of(git, tmp_path, line, name)["filter"] == "coral"
    assert patterns(line) == [word]


def test_the_longest_pattern_is_read_by_git(git: Git, tmp_path: Path) -> None:
    """The longest one that is taken git still reads, and that from its index with the carriage return it leaves on."""
    longest = max(filter(usable, ("x" * length for length in range(1900, 2100))), key=len)
    text = add("# first\r\n", longest)
    assert text.endswith("\r\n")
    assert attributes_of(git, tmp_path, text, longest) == CORAL
    git(tmp_path, "add", ".gitattributes")
    assert git(tmp_path, "check-attr", "--cached", "filter", "--", longest).endswith("filter: coral\n")
