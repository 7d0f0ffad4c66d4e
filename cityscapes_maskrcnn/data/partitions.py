"""Cut a split into parts, the same way on every machine.

Nothing here draws random numbers: a library's generator may change between versions, sorted names
and SHA-256 do not.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from itertools import count, groupby

from cityscapes_maskrcnn.utils.errors import InputError


def partition(image_ids: Iterable[str], part: int, parts: int) -> list[str]:
    """Take one part of a split.

    Frames of one drive lie seconds apart and look alike. Therefore each city is cut into runs of
    neighbouring frames, one run a part, and only the frames at the cuts have a neighbour in another
    part. Every part has images of every city that has at least ``parts`` of them.

    Args:
        image_ids: the images of the whole split as ``city/image.png``, or their names alone, which
            then begin with the city and ``_``; in any order. Sequence and frame follow in six
            digits each: sorted as text they are in that order.
        part: which part, 1 to ``parts``.
        parts: number of parts.

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
    # The places of the whole split are numbered 1, 2, ..., parts, 1, 2, ... How often a number
    # occurs in a city is the length of that part's run there: sizes differ by one at most, in every
    # city and in total, because a city's remainder continues that of the city before it.
    chosen = []
    place = count()
    for _, group in groupby(ids, key=_city):
        city = list(group)
        lengths = Counter(next(place) % parts + 1 for _ in city)
        start = sum(lengths[earlier] for earlier in range(1, part))
        chosen += city[start : start + lengths[part]]
    return chosen


def _city(image_id: str) -> str:
    # A city's name may contain "_", as new_york.
    return image_id.rpartition("/")[0] or image_id.partition("_")[0]


def subset(image_ids: Iterable[str], size: int, seed: int = 0) -> list[str]:
    """Take a deterministic sample of a split.

    Args:
        image_ids: the ids of the whole split, in any order.
        size: number of images to take.
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

    def order(image_id: str) -> tuple[bytes, str]:
        text = f"{seed} {image_id}".encode("utf-8", "surrogateescape")
        return hashlib.sha256(text).digest(), image_id

    return sorted(sorted(ids, key=order)[:size])
