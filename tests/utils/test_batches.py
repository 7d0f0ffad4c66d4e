from __future__ import annotations

from collections.abc import Iterator

import pytest

from cityscapes_maskrcnn.utils.batches import prepared_batches
from cityscapes_maskrcnn.utils.errors import InputError


def prepare(item: str) -> str:
    if item == "?":
        raise InputError("no item")
    return item


def test_neighbours_of_one_shape_are_together_and_what_is_broken_comes_last() -> None:
    taken: list[str] = []

    def items() -> Iterator[str]:
        for item in ("a", "b", "c", "dd", "e", "?", "f"):
            taken.append(item)
            yield item

    batches = prepared_batches(items(), prepare, shape=len, batch_size=2)
    assert next(batches) == ["a", "b"]
    assert taken == ["a", "b"]  # the rest waits
    assert [next(batches) for _ in range(3)] == [["c"], ["dd"], ["e"]]
    with pytest.raises(InputError, match="no item"):
        next(batches)
    assert "f" not in taken


def test_nothing() -> None:
    assert list(prepared_batches([], prepare, shape=len, batch_size=2)) == []
