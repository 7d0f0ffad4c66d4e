"""Which images a model has seen: what it and its ancestors were trained or tuned on.

Every checkpoint of this project carries such a history. It holds a short digest of each image id,
so that an overlap with a dataset to score on is found, and its images are named, on a machine that
has nothing of the training data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cityscapes_maskrcnn.utils.errors import InputError

TRAINED: Final = "trained"
TUNED: Final = "tuned"

# 48 bits: 20,000 seen images and 500 to score collide once in 28 million models.
_DIGITS: Final = 12


@dataclass(frozen=True)
class UsedData:
    """A dataset and what it was used for.

    Attributes:
        dataset: its registered name.
        role: ``"trained"``: losses on its images changed the weights. ``"tuned"``: scores or losses
            on its images decided something (when to stop, which learning rate, which thresholds).
        digests: :func:`image_digest` of every image.
    """

    dataset: str
    role: str
    digests: frozenset[str]


@dataclass(frozen=True)
class SeenImages:
    """Images of a dataset to score on that a model has seen.

    Attributes:
        scored: name of the dataset to score on.
        used: name of the dataset in which the model has seen them.
        role: what for, see :class:`UsedData`.
        images: their ids, sorted.
        total: number of images of ``scored``.
    """

    scored: str
    used: str
    role: str
    images: tuple[str, ...]
    total: int

    def __str__(self) -> str:
        """Say it in words."""
        some = ", ".join(self.images[:3]) + (", ..." if len(self.images) > 3 else "")
        return (
            f"{len(self.images)} of the {self.total} images of {self.scored} were {self.role} on, "
            f"as {self.used} ({some})"
        )


def image_digest(image_id: str) -> str:
    """Twelve hexadecimal digits of an image id's SHA-256; the same on every machine.

    Coarse and fine annotations of one image have one id: seen with either, it is seen.
    """
    return hashlib.sha256(image_id.encode("utf-8", "surrogateescape")).hexdigest()[:_DIGITS]


def used_data(dataset: str, role: str, image_ids: Iterable[str]) -> UsedData:
    """Note that a dataset was used.

    Args:
        dataset: its registered name.
        role: ``"trained"`` or ``"tuned"``.
        image_ids: of all its images.
    """
    return UsedData(dataset, role, frozenset(map(image_digest, image_ids)))


def merge(*histories: Iterable[UsedData]) -> tuple[UsedData, ...]:
    """Join histories, oldest first; what is in several is kept once."""
    return tuple(dict.fromkeys(used for history in histories for used in history))


def find_seen(
    history: Iterable[UsedData],
    dataset: str,
    image_ids: Sequence[str],
    roles: Collection[str] = (TRAINED, TUNED),
) -> list[SeenImages]:
    """Find the images of a dataset that a model has seen.

    Args:
        history: of the model.
        dataset: name of the dataset to score on.
        image_ids: of all its images.
        roles: the uses to look for.

    Returns:
        One entry for each used dataset that shares images with ``dataset``, in the order of the
        history.
    """
    by_digest = {image_digest(image_id): image_id for image_id in image_ids}
    found = []
    for used in history:
        shared = used.digests & by_digest.keys()
        if shared and used.role in roles:
            images = tuple(sorted(by_digest[digest] for digest in shared))
            found.append(SeenImages(dataset, used.dataset, used.role, images, len(by_digest)))
    return found


def to_plain(history: Iterable[UsedData]) -> list[dict[str, Any]]:
    """Turn a history into what a checkpoint holds: strings and numbers, which load safely.

    Returns:
        For every dataset ``dataset``, ``role``, ``images`` (their number) and ``digests``, all of
        them in one string, sorted.
    """
    return [
        {
            "dataset": used.dataset,
            "role": used.role,
            "images": len(used.digests),
            "digests": "".join(sorted(used.digests)),
        }
        for used in history
    ]


def from_plain(content: Any, source: str) -> tuple[UsedData, ...]:
    """Read what :func:`to_plain` made.

    Args:
        content: from a file; None, as in files of other programs, means that nothing is known.
        source: the file, for the message.

    Raises:
        InputError: it is something else.
    """
    if content is None:
        return ()
    try:
        history = tuple(_entry(item) for item in content)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{source}: its list of images that the model has seen is damaged ({error}); load "
            "another copy of the file"
        ) from error
    return history


def _entry(item: Any) -> UsedData:
    text, role = item["digests"], item["role"]
    digests = frozenset(text[i : i + _DIGITS] for i in range(0, len(text), _DIGITS))
    if len(digests) * _DIGITS != len(text) or len(digests) != item["images"]:
        raise ValueError(f"{item['images']} images, {len(text)} digits")
    if role not in (TRAINED, TUNED):
        raise ValueError(f"role {role!r}")
    return UsedData(str(item["dataset"]), role, digests)
