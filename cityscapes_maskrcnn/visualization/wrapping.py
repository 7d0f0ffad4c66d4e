"""Names of any length as labels of a picture."""

from __future__ import annotations

import re


def wrapped(name: str, width: int, lines: int = 3) -> str:
    """Break a name where its words end; leave out the middle of one that is too long.

    Args:
        name: of a parameter or a category; words end at spaces, underscores and the like.
        width: letters in a line.
        lines: how many, about, that a name may fill.

    Returns:
        Lines of at most ``width`` letters, in which matplotlib sees no formula.
    """
    text = " ".join(name.split())
    # Lines that end with a word are not full: of so many letters that all fit, however they break.
    most = width * lines * 2 // 3
    if len(text) > most:
        text = f"{text[: most // 2]}…{text[len(text) - most // 2 :]}"
    broken = [""]
    for word in re.findall(r"[^\W_]*(?:[\W_]+|$)", text):
        for part in (word[start : start + width] for start in range(0, len(word), width)):
            if len(broken[-1]) + len(part.rstrip()) > width:
                broken.append("")
            broken[-1] += part
    # A dollar sign would begin a formula.
    return "\n".join(line.strip() for line in broken).replace("$", r"\$")
