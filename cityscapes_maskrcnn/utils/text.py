"""Text from outside (names of files, cities, labels) on its way to a terminal, log or page."""

from __future__ import annotations

import re
import reprlib
from typing import Final

# Unicode counts these as letters or marks, so that str.isprintable accepts them; they show nothing.
_BLANK: Final = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
    + "".join(map(chr, [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]))
)


def printable(text: object, max_length: int = 1000) -> str:
    r"""Show text on one line, its invisible characters as escapes.

    What a terminal would obey or not show becomes what Python writes for it in a string: control
    characters and line ends (``\x1b``, ``\n``), zero-width and direction marks (``\u200b``), spaces
    other than the usual one (``\xa0``), bytes of a name that are not UTF-8 (``\udcff``). A space
    after another is ``\x20``, so that ``"new  york"`` is seen to differ from ``"new york"``. Text
    that went through this, or through ``repr``, stays as it is; so do all visible characters.

    Args:
        text: anything that ``str`` takes; of lists and dictionaries the beginning is shown.
        max_length: characters of ``text`` to show; of longer text its beginning and its end.
    """
    # Lists of a file may be any number of times in each other.
    is_nested = isinstance(text, (list, tuple, dict, set, frozenset))
    shown = reprlib.repr(text) if is_nested else str(text)
    if len(shown) > max_length:
        half = max_length // 2
        shown = f"{shown[:half]} ... {shown[-half:]}"
    shown = re.sub(r"(?<= ) ", r"\\x20", shown)
    if shown.isprintable() and _BLANK.isdisjoint(shown):
        return shown
    return "".join(map(_escape, shown))


def brief(value: object) -> str:
    """Show the beginning of a value of any kind as Python writes it, however much it holds."""
    return f"{reprlib.repr(value):.40}"


def counted(number: int, noun: str) -> str:
    """``no objects``, ``1 object`` or ``2 objects``."""
    return f"{number or 'no'} {noun}{'s' * (number != 1)}"


def message_of(error: BaseException) -> str:
    """Show the message of any library's error on one line; of an error without one its type."""
    return printable(" ".join(str(error).split()) or type(error).__name__, 400)


def message_with_type(error: BaseException) -> str:
    """Show the type and the message of any library's error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _escape(character: str) -> str:
    """One character as it is, or as its escape."""
    if character.isprintable() and character not in _BLANK:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
