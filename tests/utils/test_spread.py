from __future__ import annotations

import pytest

from cityscapes_maskrcnn.utils.spread import spread


@pytest.mark.parametrize(
    ("items", "number", "taken"),
    [("abcdefgh", 3, "acf"), ("abc", 3, "abc"), ("ab", 4, "aabb"), ("abc", 0, ""), ("", 0, "")],
)
def test_items_at_even_distances(items: str, number: int, taken: str) -> None:
    # Of 8 items 3: numbers 0, 8 / 3 and 16 / 3, rounded down.
    assert "".join(spread(items, number)) == taken
