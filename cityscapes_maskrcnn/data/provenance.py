"""The images that a model has seen: those that it and its ancestors were trained or tuned on.

Every checkpoint of this project carries such a history under :data:`SEEN_IMAGES_KEY`. It holds
short digests of each image file, so that an overlap with a dataset to score on is found without the
training data. Where the files lie and which ids they have there does not matter.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from cityscapes_maskrcnn.data.cache import Record, Source, cache_file, file_stamp, load_records
from cityscapes_maskrcnn.data.tree import is_generated
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import open_file
from cityscapes_maskrcnn.utils.text import printable

TRAINED: Final = "trained"
TUNED: Final = "tuned"

SEEN_IMAGES_KEY: Final = "cityscapes_maskrcnn.seen_images"

# 48 bits: 20,000 seen images and 500 to score collide once in 28 million models.
_DIGITS: Final = 12
# In a checkpoint's history: of 200,000 images that were used twice.
_MAX_CHARACTERS: Final = 10_000_000
# Bytes of a file's beginning, middle and end. The end of a PNG has a checksum of all its pixels,
# and reading all of 20,000 images would take minutes.
_BLOCK: Final = 2**14

logger = logging.getLogger(__name__)

DatasetDict = Mapping[str, Any]


@dataclass(frozen=True)
class UsedData:
    """A dataset and what it was used for.

    Attributes:
        dataset: its registered name.
        role: ``"trained"``: losses on its images changed the weights. ``"tuned"``: scores or losses
            on its images decided something (when to stop, which learning rate, which thresholds).
        contents: digests of its image files' contents, see :func:`content_digests`.
        names: digests of their folders and names, see :func:`name_digests`.
        generated: whether all its images are generated scenes.
    """

    dataset: str
    role: str
    contents: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    generated: bool = False


@dataclass(frozen=True)
class SeenImages:
    """Images of a dataset to score on that a model has seen.

    Attributes:
        scored: name of the dataset to score on.
        used: name of the dataset in which the model has seen them.
        role: see :class:`UsedData`.
        images: the names of their files, sorted.
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


def content_digests(files: Sequence[str]) -> list[str]:
    """Compute the digests by which image files are recognised on any machine.

    A digest is the first twelve hexadecimal digits of the SHA-256 of the file's size, beginning,
    middle and end. Coarse and fine annotations of one image share it: seen with either, it is seen.
    Digests are kept in a cache file for each split.

    Args:
        files: paths. What is no file, such as a key that a mapper of the user's own reads by, is
            recognised by its text.

    Returns:
        One for each file, in their order.

    Raises:
        InputError: a file cannot be read.
    """
    by_split: dict[str, list[str]] = {}
    found: dict[str, str] = {}
    for file in files:
        if Path(file).is_file():
            by_split.setdefault(str(Path(file).parent.parent), []).append(file)
        else:
            found[file] = _digest(os.fsencode(f"no file {file}"))
    for split, members in by_split.items():
        records = load_records(
            cache_file(split, "contents"),
            folder=split,
            sources=[Source(os.path.relpath(file, split), file_stamp(file)) for file in members],
            read=_read_content,
            template={"digest": np.zeros(0, np.uint8)},
            signature="contents",
            description=f"Reading the beginnings and ends of the images in {split}",
        )
        digests = (record["digest"].tobytes().hex() for record in records)
        found.update(zip(members, digests, strict=True))
    return [found[file] for file in files]


def name_digests(files: Sequence[str]) -> list[str]:
    """Compute digests of folders and names: of ``ulm/ulm_000003_000019_leftImg8bit.png``.

    Generated images bear the names of real ones: ``generated `` before theirs tells them apart.
    """
    paths = [Path(file) for file in files]
    return [
        _digest(prefix + os.fsencode(Path(*path.parts[-2:])))
        for path, prefix in zip(paths, _prefixes(paths), strict=True)
    ]


def used_data(dataset: str, role: str, images: Iterable[DatasetDict]) -> UsedData:
    """Record the use of a dataset; ``images`` are all its dataset dicts.

    Raises:
        InputError: an image cannot be read.
    """
    files = [str(image["file_name"]) for image in images]
    prefixes = _prefixes([Path(file) for file in files])
    return UsedData(
        dataset=dataset,
        role=role,
        contents=frozenset(content_digests(files)),
        names=frozenset(name_digests(files)),
        generated=bool(prefixes) and all(prefixes),
    )


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

    Logs a warning where that cannot be found out: images that have folder and name of a seen one
    but another content may be copies in another size or format.

    Args:
        history: of the model.
        dataset: name of the dataset to score on.
        images: all its dataset dicts.
        roles: the uses to look for.

    Returns:
        One entry for each used dataset that shares images, in the order of the history.

    Raises:
        InputError: an image of the dataset cannot be read.
    """
    history = [used for used in history if used.role in roles]
    if not history:
        return []
    files = [str(image["file_name"]) for image in images]
    contents, names = content_digests(files), name_digests(files)
    found = []
    for used in history:
        seen = [
            Path(file).name
            for file, content in zip(files, contents, strict=True)
            if content in used.contents
        ]
        if seen:
            found.append(
                SeenImages(
                    scored=dataset,
                    used=used.dataset,
                    role=used.role,
                    images=tuple(sorted(seen)),
                    total=len(files),
                )
            )
        copies = sum(
            name in used.names and content not in used.contents
            for name, content in zip(names, contents, strict=True)
        )
        if copies:
            logger.warning(
                "%d of the %d images of %s have folder and name of images that were %s on, as %s, "
                "but another content; whether they are copies of them is not known",
                copies,
                len(files),
                dataset,
                used.role,
                used.dataset,
            )
    return found


def to_plain(history: Iterable[UsedData]) -> list[dict[str, Any]]:
    """Turn a history into strings and numbers, which a checkpoint loads safely.

    ``images`` is their number; digests are sorted and joined to one string.
    """
    return [
        {
            "dataset": used.dataset,
            "role": used.role,
            "images": len(used.contents),
            "generated": used.generated,
            "contents": "".join(sorted(used.contents)),
            "names": "".join(sorted(used.names)),
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
        return ()
    try:
        if not isinstance(content, (list, tuple)):
            raise TypeError(f"a {type(content).__name__}")
        # A file may hold one text and name it any number of times.
        texts = (each for item in content if isinstance(item, dict) for each in item.values())
        if sum(len(each) for each in texts if isinstance(each, str)) > _MAX_CHARACTERS:
            raise ValueError(f"more than {_MAX_CHARACTERS} characters")
        return tuple(_used_data(item) for item in content)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{source}: its list of images that the model has seen is damaged ({error}); load "
            "another copy of the file"
        ) from error


def _used_data(item: Mapping[str, Any]) -> UsedData:
    if not isinstance(item, dict):
        raise TypeError(f"holds a {type(item).__name__}")
    if not isinstance(item["dataset"], str):
        raise TypeError("a name of a dataset that is no text")
    if not isinstance(item["generated"], bool):
        raise TypeError("a dataset that is neither generated nor not")
    used = UsedData(
        dataset=item["dataset"],
        role=item["role"],
        contents=_split_digests(item["contents"]),
        names=_split_digests(item["names"]),
        generated=item["generated"],
    )
    count, size = item["images"], len(used.contents)
    if type(count) is not int or count != size:
        raise ValueError(f"{count} images, {size} digests")
    if used.role not in (TRAINED, TUNED):
        raise ValueError(f"role {printable(used.role)!r}")
    return used


def _split_digests(text: object) -> frozenset[str]:
    # Bytes, a list or a tensor would equal no digest, so that the check would find nothing.
    if not isinstance(text, str) or not re.fullmatch(f"([0-9a-f]{{{_DIGITS}}})*", text):
        raise ValueError(f"digests of type {type(text).__name__} or not hexadecimal")
    return frozenset(text[i : i + _DIGITS] for i in range(0, len(text), _DIGITS))


def _prefixes(files: Sequence[Path]) -> list[bytes]:
    folders = {file.parent.parent for file in files}
    generated = {folder for folder in folders if is_generated(folder)}
    return [b"generated " * (file.parent.parent in generated) for file in files]


def _read_content(path: str) -> Record:
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        blocks = [f"{size} ".encode()]
        for start in (0, size // 2, size - _BLOCK):
            file.seek(max(0, start))
            blocks.append(file.read(_BLOCK))
    return {"digest": np.frombuffer(bytes.fromhex(_digest(b"".join(blocks))), np.uint8)}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGITS]
