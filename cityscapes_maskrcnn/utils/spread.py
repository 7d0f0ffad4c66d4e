"""Choose a few items spread evenly over many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def spread(items: Sequence[Item], number: int) -> list[Item]:
    """Take items at even distances, the first one among them.

    Args:
        items: in order.
        number: how many to take; more than there are: some are taken several times.
    """
    return [items[index * len(items) // number] for index in range(number)]
