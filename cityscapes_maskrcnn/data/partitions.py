"""Cutting a split into parts, the same way on every machine.

Nothing here draws random numbers: a library's generator may change between versions, sorted names
and SHA-256 do not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from cityscapes_maskrcnn.utils.errors import InputError


def partition(image_ids: Iterable[str], part: int, parts: int) -> list[str]:
    """Take one part of a split.

    The sorted ids are dealt out like cards. Ids begin with the city, so every part has images of
    every city that has at least ``parts`` of them.

    Args:
        image_ids: the ids of the whole split, in any order.
        part: which part, 1 to ``parts``.
        parts: into how many parts the split is cut.

    Returns:
        The sorted ids of the part. Every id is in exactly one part; the first parts are one longer
        than the last ones where the division leaves a remainder: 2,975 images in 8 parts are seven
        of 372 and one of 371.

    Raises:
        InputError: there is no such part, or it is empty.
    """
    if not 1 <= part <= parts:
        raise InputError(f"there is no part {part} of {parts}; parts are counted from 1 to {parts}")
    ids = sorted(image_ids)
    if len(ids) < part:
        images = f"{len(ids)} image{'s' * (len(ids) != 1)}"
        raise InputError(f"part {part} of {parts} is empty: the split has only {images}")
    return ids[part - 1 :: parts]


def subset(image_ids: Iterable[str], size: int, seed: int = 0) -> list[str]:
    """Take a deterministic sample of a split.

    Args:
        image_ids: the ids of the whole split, in any order.
        size: how many to take.
        seed: another seed takes another sample. With one seed, smaller samples lie inside larger
            ones.

    Returns:
        The sorted ids of the sample.

    Raises:
        InputError: ``size`` is below 1 or larger than the split.
    """
    ids = list(image_ids)
    if not 1 <= size <= len(ids):
        raise InputError(f"a subset of {size} images cannot be taken from {len(ids)}")
    return sorted(sorted(ids, key=lambda name: (_order(name, seed), name))[:size])


def _order(image_id: str, seed: int) -> bytes:
    """A pseudo-random place in the order of sampling."""
    return hashlib.sha256(f"{seed} {image_id}".encode("utf-8", "surrogateescape")).digest()
