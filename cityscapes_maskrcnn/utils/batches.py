"""Items that fit together, predicted together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

from cityscapes_maskrcnn.utils.errors import InputError

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")


def prepared_batches(
    items: Iterable[Item],
    prepare: Callable[[Item], Prepared],
    *,
    shape: Callable[[Prepared], Hashable],
    batch_size: int,
) -> Iterator[list[Prepared]]:
    """Prepare items and group neighbours of one shape; no more than a batch is held at a time.

    Args:
        items: perhaps without end.
        prepare: called for each.
        shape: of a prepared item; those of a batch are equal.
        batch_size: the most items of a batch.

    Raises:
        InputError: an item cannot be prepared. The batch of those before it has been given by then.
    """
    batch: list[Prepared] = []
    broken = None
    for item in items:
        try:
            prepared = prepare(item)
        except InputError as error:
            broken = error
            break
        if batch and shape(prepared) != shape(batch[0]):
            yield batch
            batch = []
        batch.append(prepared)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch
    if broken is not None:
        raise broken
