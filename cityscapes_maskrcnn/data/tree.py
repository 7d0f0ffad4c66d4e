"""The Cityscapes tree on disk: where it is, its cities and images, and whether it was generated."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from cityscapes_maskrcnn.data.images import IMAGE_EXTENSIONS, UNREAD_EXTENSIONS
from cityscapes_maskrcnn.utils.errors import InputError

IMAGE_SUFFIX: Final = "_leftImg8bit.png"

_README: Final = "datasets/README.md shows the expected tree and where to get the data"

# The archive that a folder below ``cityscapes/`` comes in.
_PACKAGES: Final = {
    "leftImg8bit": "leftImg8bit_trainvaltest.zip",
    "leftImg8bit/train_extra": "leftImg8bit_trainextra.zip",
    "gtFine": "gtFine_trainvaltest.zip",
    "gtCoarse": "gtCoarse.zip",
}

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


def tree_folder(root: str | os.PathLike[str], image_folder: str = "leftImg8bit") -> Path:
    """Return ``root/cityscapes``, where training looks with ``DETECTRON2_DATASETS=root``.

    Raises:
        InputError: it has no ``image_folder``.
    """
    folder = Path(root, "cityscapes")
    require_folder(folder / image_folder)
    return folder


def require_folder(path: str | Path) -> None:
    """Raise an InputError that names the first folder missing on the way to ``path``."""
    path = Path(path)
    if path.is_dir():
        return
    missing = path
    while not missing.parent.is_dir():
        missing = missing.parent
    place = "" if missing == path else f", so {path} cannot be read"
    raise InputError(f"{missing}: no such folder{place} ({_advice(path, missing)})")


def _advice(path: Path, missing: Path | None = None) -> str:
    """Advise what to do about a folder of data that is missing, or empty."""
    folders = path.parts
    if "cityscapes" not in folders:
        return _README
    # The last one, which is the tree's: DETECTRON2_DATASETS itself may be called cityscapes.
    depth = len(folders) - folders[::-1].index("cityscapes")
    tree = Path(*folders[:depth])
    if missing is not None and (missing == tree / "leftImg8bit" or tree.is_relative_to(missing)):
        return f"{_root_advice(tree.parent)}; {_README}"
    inside = "/".join(folders[depth : depth + 2])
    package = _PACKAGES.get(inside) or _PACKAGES.get(inside.partition("/")[0])
    return f"unpack {package} into {tree}; {_README}" if package else _README


def _root_advice(root: Path) -> str:
    """Advise what to set DETECTRON2_DATASETS to where ``root`` holds no tree."""
    root = root.absolute()
    with suppress(OSError):  # a folder that may not be read
        inside = sorted(root.glob("[!.]*"))
        # At most a city's folder: cityscapes/leftImg8bit/train/aachen.
        for folder in (*root.parents[:4], *inside):
            if (folder / "cityscapes" / "leftImg8bit").is_dir():
                return f"set DETECTRON2_DATASETS={shlex.quote(str(folder))}"
        tree = root / "cityscapes"
        for folder in (root, *(each for each in inside if each != tree)):
            if (folder / "leftImg8bit").is_dir():
                parent = shlex.quote(str(folder.parent))
                return f"rename {folder} to cityscapes and set DETECTRON2_DATASETS={parent}"
        for folder in sorted(tree.glob("*/leftImg8bit")):
            return f"move what is in {folder.parent} to {tree}"
        if tree.is_dir():
            return f"unpack {_PACKAGES['leftImg8bit']} into {tree}"
    return "set DETECTRON2_DATASETS to the folder that holds cityscapes/"


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


def unread_images(image_dir: str | os.PathLike[str], image_suffix: str = IMAGE_SUFFIX) -> list[str]:
    """List the image files of a split's folder that :func:`find_images` leaves alone.

    Returns:
        Sorted paths below ``image_dir``: files in no city folder, or whose names end otherwise.
    """
    folder = Path(image_dir)
    files = [*folder.glob("[!.]*"), *folder.glob("[!.]*/[!.]*")]
    extensions = IMAGE_EXTENSIONS | UNREAD_EXTENSIONS
    return sorted(
        str(file.relative_to(folder))
        for file in files
        if file.suffix.lower() in extensions
        and (file.parent == folder or not file.name.endswith(image_suffix))
    )


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
        InputError: a folder or images at all are missing, an image is in two city folders, or the
            names of some end in the suffix but for upper and lower case.
    """
    require_folder(image_dir)
    if cities is None:
        cities = [path.name for path in Path(image_dir).glob("[!.]*") if path.is_dir()]
    images, other_case = [], []
    for city in sorted(set(cities)):
        folder = Path(image_dir, city)
        require_folder(folder)
        # Archives packed on a Mac leave "._aachen_..." files beside the real ones.
        names = (path.name for path in folder.iterdir() if not path.name.startswith("."))
        for name in sorted(names):
            if name.endswith(image_suffix):
                images.append(f"{city}/{name}")
            elif name.lower().endswith(image_suffix.lower()):
                other_case.append(f"{city}/{name}")
    if not images:
        others = unread_images(image_dir, image_suffix)
        found = f", found {others[0]}" if others else ""
        raise InputError(
            f"{image_dir}: no images; expected CITY/*{image_suffix} in it{found} "
            f"({_advice(Path(image_dir))})"
        )
    if other_case:
        raise InputError(
            f"{image_dir}: {len(images)} images end in {image_suffix}, {len(other_case)} in other "
            f"upper and lower case, such as {other_case[0]}; rename these, they would not be read"
        )
    check_distinct((image.partition("/")[2] for image in images), image_dir)
    return images
