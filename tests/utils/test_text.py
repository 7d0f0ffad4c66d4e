from __future__ import annotations

import sys

import pytest

from cityscapes_maskrcnn.utils.text import (
    brief,
    counted,
    message_of,
    message_with_type,
    printable,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("aachen/aachen_000000_000019.png: truncated", None),
        ("düsseldorf 京都 🚗 a\\b", None),
        ("\x1b]0;title\x07\x9b2J\x7f", r"\x1b]0;title\x07\x9b2J\x7f"),
        ("a\tb\r\nc\x00", r"a\tb\r\nc\x00"),
        # Line ends that are none for a terminal, but for str.splitlines and a page.
        ("a\x85b\u2028c\x0bd", r"a\x85b\u2028c\x0bd"),
        # Zero-width space, right-to-left override, byte order mark, soft hyphen, tag letter.
        ("\u200b\u202e\ufeff\xad\U000e0041", r"\u200b\u202e\ufeff\xad\U000e0041"),
        # Spaces that are not the usual one, and letters that show nothing.
        ("\xa0\u3000\u3164\u2800\ufe0f", r"\xa0\u3000\u3164\u2800\ufe0f"),
        ("new  york   x ", r"new \x20york \x20\x20x "),
        ("caf\udce9", r"caf\udce9"),
        (26, "26"),
    ],
)
def test_invisible_characters_are_shown(text: object, shown: str | None) -> None:
    shown = text if shown is None else shown
    assert printable(text) == shown
    assert printable(shown) == shown


def test_of_every_character_something_is_seen() -> None:
    for code in range(sys.maxunicode + 1):
        shown = printable(chr(code))
        assert shown.isprintable()
        assert shown == chr(code) or shown.isascii()


def test_long_text_is_cut_in_the_middle() -> None:
    assert printable("a" * 600 + "b" * 600, max_length=10) == "aaaaa ... bbbbb"
    assert printable("\x00" * 60_000_000, max_length=4) == r"\x00\x00 ... \x00\x00"


def test_a_large_value_in_brief() -> None:
    assert brief([1, "a"]) == "[1, 'a']"
    assert brief(list(range(10**6))) == "[0, 1, 2, 3, 4, 5, ...]"
    assert len(brief({"a" * 100: "b" * 100})) == 40


def test_numbers_of_things() -> None:
    assert [counted(number, "object") for number in (0, 1, 2)] == [
        "no objects",
        "1 object",
        "2 objects",
    ]


def test_messages_of_errors_are_one_line() -> None:
    error = ValueError("first\n\t second")
    assert message_of(error) == "first second"
    assert message_of(ValueError()) == "ValueError"
    assert message_with_type(error) == "ValueError: first second"
