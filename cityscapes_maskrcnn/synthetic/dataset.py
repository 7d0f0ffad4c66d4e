"""A stand-in for Cityscapes: generated street scenes in the complete official layout.

The scenes come from :mod:`.scene`; this file writes them as ``leftImg8bit``, ``gtFine`` and
``gtCoarse`` trees, with the names and formats of the official zips.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from cityscapes_maskrcnn.data.tree import CITIES, MANIFEST
from cityscapes_maskrcnn.synthetic.label_images import (
    Annotation,
    coarsen,
    colors_of_labels,
    draw_instance_ids,
    labels_of_instances,
    withheld,
)
from cityscapes_maskrcnn.synthetic.scene import render_scene
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import read_json, write_json
from cityscapes_maskrcnn.utils.parallel import map_in_parallel

VERSION: Final = 1
SMALLEST: Final = (64, 128)
LARGEST: Final = (4096, 8192)


def image_name(split: str, index: int) -> tuple[str, str]:
    """Get city and file stem (``city_sequence_frame``) of image ``index`` of a split.

    Image i belongs to city i modulo their number.
    """
    cities = CITIES[split]
    city = cities[index % len(cities)]
    return city, f"{city}_{index // len(cities):06d}_000019"


def generate_dataset(
    root: str | os.PathLike[str],
    counts: Mapping[str, int],
    *,
    height: int,
    width: int,
    seed: int,
    num_workers: int | None = None,
) -> Path:
    """Write a set of scenes to ``root/cityscapes``, unless the same one is already there.

    Equal arguments give equal bytes, with any number of processes. An incomplete set is written
    again.

    Args:
        root: the value to use for ``DETECTRON2_DATASETS``.
        counts: number of images of ``train``, ``val``, ``test`` and ``train_extra``; 0 if missing.
        height: height of the images in pixels, 64 to 4096.
        width: width of the images in pixels, 128 to 8192.
        seed: random seed, 0 or more.
        num_workers: number of processes; None for one per available core.

    Returns:
        ``root/cityscapes``.

    Raises:
        InputError: an argument is out of range, or the folder holds something else.
    """
    if num_workers is not None and num_workers < 1:
        raise InputError(f"number of workers is {num_workers}: must be 1 or more")
    arguments = _check_arguments(counts, height, width, seed)
    folder = Path(root) / "cityscapes"
    if _is_finished(folder, arguments):
        return folder
    _write_manifest(folder, arguments, finished=False)
    write = partial(_write_image, folder=folder, height=height, width=width, seed=seed)
    images = [
        (split, index) for split, count in arguments["counts"].items() for index in range(count)
    ]
    map_in_parallel(write, images, "street scenes", num_workers)
    _write_manifest(folder, arguments, finished=True)
    return folder


def _check_arguments(
    counts: Mapping[str, int], height: int, width: int, seed: int
) -> dict[str, Any]:
    """Verify the arguments of a set; returns them as its manifest holds them."""
    for split, count in counts.items():
        if split not in CITIES:
            raise InputError(f"unknown split {split!r}: must be one of {', '.join(CITIES)}")
        if count < 0:
            raise InputError(f"number of {split} images is {count}: must be 0 or more")
    if not any(counts.values()):
        raise InputError("no images requested: give a number of train, val, test or train_extra")
    if not (SMALLEST[0] <= height <= LARGEST[0] and SMALLEST[1] <= width <= LARGEST[1]):
        raise InputError(
            f"image size {height}x{width} (height x width) is out of range: must be from "
            f"{SMALLEST[0]}x{SMALLEST[1]} to {LARGEST[0]}x{LARGEST[1]}"
        )
    if seed < 0:
        raise InputError(f"seed is {seed}: must be 0 or more")
    return {
        "version": VERSION,
        "counts": {split: int(counts.get(split, 0)) for split in CITIES},
        "height": height,
        "width": width,
        "seed": seed,
    }


def _is_finished(folder: Path, arguments: dict[str, Any]) -> bool:
    """Whether the finished set is in the folder; False if it may be written.

    Raises:
        InputError: the folder holds something else.
    """
    advice = "choose another root, or remove the folder first"
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: {advice}")
    manifest = folder / MANIFEST
    if not manifest.exists():
        if any(folder.iterdir()):
            raise InputError(f"{folder} holds data that is not synthetic: {advice}")
        return False
    found = read_json(manifest, form={"arguments": dict, "finished": bool}, advice=advice)
    if found["arguments"] != arguments:
        raise InputError(f"{folder} holds a synthetic set of other arguments: {advice}")
    finished: bool = found["finished"]
    return finished


def _write_manifest(folder: Path, arguments: dict[str, Any], finished: bool) -> None:
    content = {"made_by": "make_synthetic_cityscapes", "arguments": arguments, "finished": finished}
    write_json(folder / MANIFEST, content)


def _write_image(
    image: tuple[str, int], *, folder: Path, height: int, width: int, seed: int
) -> None:
    """Render the scene of a split and index, and write it and all its annotation files."""
    split, index = image
    sequence = np.random.SeedSequence([seed, list(CITIES).index(split), index])
    scene = render_scene(np.random.default_rng(sequence), height, width)
    city, stem = image_name(split, index)
    _write_png(folder / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", scene.image)
    if split != "train_extra":
        fine = withheld(scene.annotation) if split == "test" else scene.annotation
        _write_annotation(folder / "gtFine" / split / city, f"{stem}_gtFine", fine)
    if split != "test":
        coarse = coarsen(scene.annotation)
        _write_annotation(folder / "gtCoarse" / split / city, f"{stem}_gtCoarse", coarse)


def _write_annotation(folder: Path, stem: str, annotation: Annotation) -> None:
    """The four files of one annotation."""
    instance_ids = draw_instance_ids(annotation)
    label_ids = labels_of_instances(instance_ids)
    _write_png(folder / f"{stem}_instanceIds.png", instance_ids)
    _write_png(folder / f"{stem}_labelIds.png", label_ids)
    _write_png(folder / f"{stem}_color.png", colors_of_labels(label_ids))
    text = json.dumps(annotation, indent=1, sort_keys=True)
    (folder / f"{stem}_polygons.json").write_text(text + "\n", encoding="utf-8")


def _write_png(path: Path, pixels: npt.NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG", compress_level=1)
