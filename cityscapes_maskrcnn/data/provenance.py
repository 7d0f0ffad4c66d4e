"""Which images a model has seen: what it and its ancestors were trained or tuned on.

Every checkpoint of this project carries such a history under :data:`SEEN_IMAGES_KEY`. It holds a
short digest of each image id, so that an overlap with a dataset to score on is found without the
training data.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cityscapes_maskrcnn.data.tree import is_generated
from cityscapes_maskrcnn.utils.errors import InputError

TRAINED: Final = "trained"
TUNED: Final = "tuned"

SEEN_IMAGES_KEY: Final = "cityscapes_maskrcnn.seen_images"
# Where this project's first checkpoints kept the list; other programs store other things there.
_FORMER_KEY: Final = "history"

# 48 bits: 20,000 seen images and 500 to score collide once in 28 million models.
_DIGITS: Final = 12

DatasetDict = Mapping[str, Any]


@dataclass(frozen=True)
class UsedData:
    """A dataset and what it was used for.

    Attributes:
        dataset: its registered name.
        role: ``"trained"``: losses on its images changed the weights. ``"tuned"``: scores or losses
            on its images decided something (when to stop, which learning rate, which thresholds).
        digests: of its images, see :func:`image_digests`.
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
        role: see :class:`UsedData`.
        images: their ids, sorted.
        total: number of images of ``scored``.
    """

    scored: str
    used: str
    role: str
    images: tuple[str, ...]
    total: int

    def __str__(self) -> str:
        """Describe the overlap in one line."""
        some = ", ".join(self.images[:3]) + (", ..." if len(self.images) > 3 else "")
        return (
            f"{len(self.images)} of the {self.total} images of {self.scored} were {self.role} on, "
            f"as {self.used} ({some})"
        )


def image_digests(images: Iterable[DatasetDict]) -> dict[str, str]:
    """Compute the digests by which images are recognised on any machine.

    A digest is the first twelve hexadecimal digits of the SHA-256 of ``image_id``. Coarse and fine
    annotations of one image share it: seen with either, it is seen. Generated images bear the names
    of real ones; ``generated `` before their id gives them other digests.

    Args:
        images: in Detectron2's dataset-dict format.

    Returns:
        The image id of every digest.
    """
    images = list(images)
    folders = {Path(image["file_name"]).parent for image in images}
    generated = {folder for folder in folders if is_generated(folder.parent)}
    ids = {}
    for image in images:
        image_id = str(image["image_id"])
        prefix = "generated " if Path(image["file_name"]).parent in generated else ""
        text = f"{prefix}{image_id}".encode("utf-8", "surrogateescape")
        ids[hashlib.sha256(text).hexdigest()[:_DIGITS]] = image_id
    return ids


def used_data(dataset: str, role: str, images: Iterable[DatasetDict]) -> UsedData:
    """Record the use of a dataset; ``images`` are all its dataset dicts."""
    return UsedData(dataset=dataset, role=role, digests=frozenset(image_digests(images)))


def merge(*histories: Iterable[UsedData]) -> tuple[UsedData, ...]:
    """Join histories, oldest first; what is in several is kept once."""
    return tuple(dict.fromkeys(used for history in histories for used in history))


def find_seen(
    history: Iterable[UsedData],
    dataset: str,
    images: Iterable[DatasetDict],
    roles: Collection[str] = (TRAINED, TUNED),
) -> list[SeenImages]:
    """Find the images of a dataset that a model has seen.

    Args:
        history: of the model.
        dataset: name of the dataset to score on.
        images: all its dataset dicts.
        roles: the uses to look for.

    Returns:
        One entry for each used dataset that shares images, in the order of the history.
    """
    ids = image_digests(images)
    found = []
    for used in history:
        shared = used.digests & ids.keys()
        if shared and used.role in roles:
            names = tuple(sorted(ids[digest] for digest in shared))
            found.append(
                SeenImages(
                    scored=dataset,
                    used=used.dataset,
                    role=used.role,
                    images=names,
                    total=len(ids),
                )
            )
    return found


def to_plain(history: Iterable[UsedData]) -> list[dict[str, Any]]:
    """Turn a history into strings and numbers, which a checkpoint loads safely.

    ``images`` is their number; ``digests`` are sorted and joined to one string.
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


def read_history(checkpoint: Mapping[str, Any], source: str) -> tuple[UsedData, ...]:
    """Read the history from the content of a checkpoint; a file of another program has none.

    Raises:
        InputError: the list is damaged; the message names ``source``.
    """
    content = checkpoint.get(SEEN_IMAGES_KEY)
    if content is None:
        content = checkpoint.get(_FORMER_KEY)
        if not isinstance(content, (list, tuple)) or not any(
            isinstance(item, dict) and "digests" in item for item in content
        ):
            return ()
    try:
        if not isinstance(content, (list, tuple)):
            raise TypeError(f"a {type(content).__name__}")
        return tuple(_used_data(item) for item in content)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{source}: its list of images that the model has seen is damaged ({error}); load "
            "another copy of the file"
        ) from error


def _used_data(item: Mapping[str, Any]) -> UsedData:
    if not isinstance(item, dict):
        raise TypeError(f"holds a {type(item).__name__}")
    text, role, count = item["digests"], item["role"], item["images"]
    # Bytes, a list or a tensor would equal no digest, so that the check would find nothing.
    if not isinstance(text, str) or not re.fullmatch("[0-9a-f]*", text):
        raise ValueError(f"digests of type {type(text).__name__} or not hexadecimal")
    if type(count) is not int:
        raise TypeError(f"a number of images of type {type(count).__name__}")
    digests = frozenset(text[i : i + _DIGITS] for i in range(0, len(text), _DIGITS))
    if len(digests) * _DIGITS != len(text) or len(digests) != count:
        raise ValueError(f"{count} images, {len(text)} digits")
    if role not in (TRAINED, TUNED):
        raise ValueError(f"role {role!r}")
    return UsedData(dataset=str(item["dataset"]), role=role, digests=digests)
