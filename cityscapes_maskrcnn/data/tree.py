"""The Cityscapes tree on disk: where it is, its cities and images, and whether it was generated."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from cityscapes_maskrcnn.utils.errors import InputError

IMAGE_SUFFIX: Final = "_leftImg8bit.png"

_HELP: Final = (
    "(set DETECTRON2_DATASETS to the folder that holds cityscapes/; datasets/README.md shows the "
    "expected tree and where to get the data)"
)

# Written into ``cityscapes/`` by :mod:`cityscapes_maskrcnn.synthetic.dataset`.
MANIFEST: Final = "synthetic.json"

#: The cities of every split of the official release. Those of the recipe's stage 0 stand first, so
#: that a small generated set has them: Bremen is a city of train, the others are of train_extra.
CITIES: Final[Mapping[str, tuple[str, ...]]] = {
    "train": (
        "bremen", "aachen", "bochum", "cologne", "darmstadt", "dusseldorf", "erfurt", "hamburg",
        "hanover", "jena", "krefeld", "monchengladbach", "strasbourg", "stuttgart", "tubingen",
        "ulm", "weimar", "zurich",
    ),
    "val": ("frankfurt", "lindau", "munster"),
    "test": ("berlin", "bielefeld", "bonn", "leverkusen", "mainz", "munich"),
    "train_extra": (
        "augsburg", "dortmund", "dresden", "wuppertal", "erlangen", "bad-honnef", "bamberg",
        "bayreuth", "duisburg", "freiburg", "heidelberg", "heilbronn", "karlsruhe", "konigswinter",
        "konstanz", "mannheim", "muhlheim-ruhr", "nuremberg", "oberhausen", "saarbrucken",
        "schweinfurt", "troisdorf", "wurzburg",
    ),
}  # fmt: skip


def dataset_root() -> str:
    """Return the folder of ``cityscapes/``: ``$DETECTRON2_DATASETS``, else ``./datasets``."""
    return str(Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser())


def is_generated(image_dir: str | os.PathLike[str]) -> bool:
    """Whether a folder such as ``cityscapes/leftImg8bit/val`` belongs to a generated set."""
    # Either the folder or all of the set may be a link into another one.
    folders = (Path(image_dir), Path(image_dir).resolve())
    return any((folder.parent.parent / MANIFEST).is_file() for folder in folders)


def tree_folder(root: str | os.PathLike[str]) -> Path:
    """Return the folder with ``leftImg8bit``: ``root`` or ``root/cityscapes``.

    Raises:
        InputError: neither exists.
    """
    root = Path(root)
    folder = root if (root / "leftImg8bit").is_dir() else root / "cityscapes"
    require_folder(folder)
    return folder


def require_folder(path: str | Path) -> None:
    """Raise an InputError that names the first folder missing on the way to ``path``."""
    path = Path(path)
    if path.is_dir():
        return
    missing = path
    while not missing.parent.is_dir():
        missing = missing.parent
    place = "" if missing == path else f", on the way to {path}"
    raise InputError(f"{missing}: no such folder{place} {_HELP}")


def image_name(file: str | os.PathLike[str], image_suffix: str = IMAGE_SUFFIX) -> str:
    """Return the identity of an image: the name of its file without folder and suffix.

    All that belongs to an image is found by it: annotations bear it with another suffix, result
    files begin with it.

    Args:
        file: any file of the image, such as ``ulm_000003_000019_leftImg8bit.png``.
        image_suffix: the end of its name, such as ``_leftImg8bit_foggy_beta_0.02.png`` or ``.JPG``.

    Raises:
        InputError: the name ends otherwise.
    """
    name = Path(file).name.removesuffix(image_suffix)
    if name in ("", Path(file).name):
        raise InputError(
            f"{file}: its name does not end in {image_suffix}; register its dataset with the "
            "image_suffix that its images have (datasets/README.md)"
        )
    return name


def check_distinct(names: Iterable[str], where: str) -> None:
    """Verify that no two images have one name.

    Args:
        names: as :func:`image_name` gives them.
        where: what the names belong to, for the message.

    Raises:
        InputError: one of them occurs twice.
    """
    for name, count in Counter(names).most_common(1):
        if count > 1:
            raise InputError(f"{where}: {count} images have the name {name}; keep or rename one")


def find_images(
    image_dir: str, cities: Sequence[str] | None = None, image_suffix: str = IMAGE_SUFFIX
) -> list[str]:
    """List the images of a split.

    Args:
        image_dir: folder that holds one folder per city.
        cities: look into these city folders only; default all.
        image_suffix: the end of their names; other files are left alone.

    Returns:
        ``city/image.png`` for every image, sorted by city, then by name.

    Raises:
        InputError: a folder or images at all are missing, or an image is in two city folders.
    """
    require_folder(image_dir)
    if cities is None:
        cities = [path.name for path in Path(image_dir).glob("[!.]*") if path.is_dir()]
    images = []
    for city in sorted(set(cities)):
        folder = Path(image_dir, city)
        require_folder(folder)
        # Archives packed on a Mac leave "._aachen_..." files beside the real ones.
        names = (path.name for path in folder.iterdir() if not path.name.startswith("."))
        images += [f"{city}/{name}" for name in sorted(names) if name.endswith(image_suffix)]
    if not images:
        raise InputError(f"{image_dir}: no images; expected CITY/*{image_suffix} in it {_HELP}")
    name, count = Counter(image.partition("/")[2] for image in images).most_common(1)[0]
    if count > 1:
        raise InputError(f"{image_dir}: {name} is in several city folders; keep one of them")
    return images
