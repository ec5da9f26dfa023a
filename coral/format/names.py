"""Which names may stand where: escaping of data, and the checks of branches, tags and parts."""

from __future__ import annotations

import re
import unicodedata

from coral.errors import FormatError, InvalidNameError, UsageError

_UNSAFE = re.compile("[%\x00-\x1f\x7f-\x9f\u2028\u2029]")
_ESCAPE = re.compile(b"%([0-9A-F]{2})")
_FORBIDDEN_IN_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(?:/|$)|^[./-]|[./]$|^@$")
_MAX_NAME_BYTES = 1024
# git writes a ref through "<name>.lock", whose last component has to fit into a file name of 255 bytes.
_MAX_REF_BYTES = 250


def escape(text: str) -> str:
    """Make any text one line without tabs, reversibly. Raises InvalidNameError for lone surrogates."""
    if not _UNSAFE.search(text):
        _utf8(text)
        return text
    return _UNSAFE.sub(lambda match: "".join(f"%{byte:02X}" for byte in _utf8(match[0])), text)


def escape_all(texts: list[str]) -> list[str]:
    """:func:`escape` of each; one look tells whether any of them needs it."""
    together = "".join(texts)
    if together.isprintable() and "%" not in together:
        return texts
    return [escape(text) for text in texts]


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidNameError(f"{text!r} is not valid unicode") from None


def unescape(text: str) -> str:
    """Undo :func:`escape`. Raises FormatError for what :func:`escape` would not have written."""
    if not _UNSAFE.search(text):
        return text
    try:
        raw = _ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()), text.encode()).decode()
    except UnicodeError:
        raise FormatError(f"{text!r} is not a well-formed escaped name") from None
    if escape(raw) != text:
        raise FormatError(f"{text!r} is not a well-formed escaped name")
    return raw


def check_ref(ref: object) -> str:
    """What is given to name a commit, if it is text at all; returns it. Raises UsageError."""
    if isinstance(ref, str):
        return ref
    hint = "name a branch, a tag or a hash; HEAD~2, best:METRIC and run:ID are refs, too"
    raise UsageError(f"{ref!r} is not a ref", hint="give its commit_hash" if hasattr(ref, "commit_hash") else hint)


def check_ref_name(name: str, kind: str = "branch") -> str:
    """Check the name of a branch or tag by git's rules (``git check-ref-format``); returns it.

    Raises:
        InvalidNameError: git would refuse it, or it looks like something else (``HEAD``, a hash, a ``best:`` form).
    """
    is_text = isinstance(name, str) and name not in ("", "HEAD")
    if not is_text or _FORBIDDEN_IN_REF.search(name) or len(_utf8(name)) > _MAX_REF_BYTES:
        raise InvalidNameError(
            f"{name!r} is not a valid {kind} name",
            hint="use letters, digits, '-', '_', '.' and '/'; no spaces, '..', '~', '^', ':' or trailing '.lock'",
        )
    if re.fullmatch(r"[0-9a-fA-F]{40}", name):
        raise InvalidNameError(f"{name!r} looks like a commit hash, so it cannot be a {kind} name")
    return name


def check_part_name(name: str) -> str:
    """Check the name of a part, which is also a relative path for ``coral checkout``; returns it.

    Raises:
        InvalidNameError: an absolute path, ``..``, NUL, control characters, a ``.coral`` or ``.git`` component.
    """
    components = name.split("/")
    bad = (
        not name
        or _UNSAFE.sub("", name.replace("%", "")) != name.replace("%", "")
        or "\\" in name
        or any(part in ("", ".", "..") for part in components)
        or any(_folds_to_dot_git(part) for part in components)
        or any(len(_utf8(part)) > 255 for part in components)
        or len(_utf8(name)) > _MAX_NAME_BYTES
    )
    if bad:
        raise InvalidNameError(
            f"{name!r} is not a valid name for a file in the repository",
            hint="use a relative path such as model.safetensors or checkpoints/last.pt",
        )
    return name


def _folds_to_dot_git(part: str) -> bool:
    # File systems that fold case or ignore zero-width characters would let these reach the metadata folders; on some,
    # ".git::$INDEX_ALLOCATION" is another name of ".git".
    visible = "".join(char for char in part.partition(":")[0] if unicodedata.category(char) != "Cf")
    return unicodedata.normalize("NFKC", visible).casefold().rstrip(". ") in (".git", ".coral", "git~1", "coral~1")
