"""Reading a split's polygon files: this project against Detectron2's loader, in one run."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.datasets.cityscapes import load_cityscapes_instances
from tabulate import tabulate

from cityscapes_maskrcnn.benchmarks.evaluation import cache_in
from cityscapes_maskrcnn.benchmarks.official_evaluation import runnable_official_code
from cityscapes_maskrcnn.data.annotations import load_instances
from cityscapes_maskrcnn.utils.errors import InputError

_HEIGHT, _WIDTH = 1024, 2048
_VERTICES = 41
# Objects of a street: two objects in five count as instances.
_THINGS = ["car", "person", "car", "bicycle", "rider", "truck", "cargroup", "motorcycle"]
_STUFF = ["road", "sidewalk", "building", "vegetation", "pole", "pole", "traffic sign", "sky"]
_LABELS = [*_THINGS, *_STUFF, "terrain", "fence", "static", "ego vehicle"]


def benchmark_loading(num_images: int, num_objects: int, repeats: int) -> str:
    """Load the same files with both, and compare what they give.

    Args:
        num_images: of 1024x2048 pixels.
        num_objects: of 41 vertices, per image.
        repeats: loads from the cache; the median is reported.

    Returns:
        A table.

    Raises:
        InputError: a number is out of range, or the two loaders differ.
    """
    if min(num_images, num_objects, repeats) < 1:
        raise InputError("--images, --objects and --repeats must be 1 or more")
    with tempfile.TemporaryDirectory(prefix="benchmark_loading_") as name:
        folder = Path(name)
        image_dir, gt_dir = _write_tree(folder, num_images, num_objects)
        seconds: dict[str, float] = {}
        with runnable_official_code(folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _clock(seconds, "theirs"):
                theirs = load_cityscapes_instances(image_dir, gt_dir)
        with cache_in(folder / "cache"):
            with _clock(seconds, "first"):
                load_instances(image_dir, gt_dir)
            for number in range(repeats):
                ours: list[Any] = []  # freeing the last one is no part of loading
                with _clock(seconds, f"warm {number}"):
                    ours = load_instances(image_dir, gt_dir)
    theirs.sort(key=lambda image: image["file_name"])
    if ours != theirs:
        raise InputError("the loaders differ: the times say nothing")
    warm = statistics.median(seconds[f"warm {number}"] for number in range(repeats))
    times = [seconds["theirs"], seconds["first"], warm]
    names = ["Detectron2, four processes", "here, first time", "here, from the cache"]
    rows = [
        [name, f"{time:.3f}", f"{times[0] / time:.0f}x"]
        for name, time in zip(names, times, strict=True)
    ]
    return f"{num_images} images, {num_objects} objects each\n\n" + tabulate(
        rows, ["", "s", "ratio"], "github", disable_numparse=True
    )


@contextmanager
def _clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _write_tree(folder: Path, num_images: int, num_objects: int) -> tuple[str, str]:
    """Write polygon files of their own, and one set of images under many names."""
    random = np.random.default_rng(0)
    image_dir, gt_dir = folder / "leftImg8bit" / "train", folder / "gtFine" / "train"
    (image_dir / "ulm").mkdir(parents=True)
    (gt_dir / "ulm").mkdir(parents=True)
    for index in range(num_images):
        stem = f"ulm_{index:06d}_000019"
        # Both loaders look whether they are there, and neither reads them.
        (image_dir / "ulm" / f"{stem}_leftImg8bit.png").touch()
        for end in ("instanceIds", "labelIds"):
            (gt_dir / "ulm" / f"{stem}_gtFine_{end}.png").touch()
        objects = [
            {"label": str(label), "polygon": draw_polygon(random)}
            for label in random.choice(_LABELS, size=num_objects)
        ]
        content = {"imgHeight": _HEIGHT, "imgWidth": _WIDTH, "objects": objects}
        (gt_dir / "ulm" / f"{stem}_gtFine_polygons.json").write_text(json.dumps(content))
    return str(image_dir), str(gt_dir)


def draw_polygon(random: np.random.Generator) -> list[list[int]]:
    """Draw the corners of a star-shaped object, in pixels of a 1024x2048 image."""
    size = np.exp(random.uniform(np.log(8), np.log(150)))
    centre = random.uniform([0, 300], [_WIDTH, 700])
    angles = np.linspace(0, 2 * np.pi, _VERTICES, endpoint=False)
    radii = size * random.uniform(0.7, 1.0, size=_VERTICES)
    corners = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    limits = [_WIDTH - 1, _HEIGHT - 1]
    return [[int(x), int(y)] for x, y in np.clip(corners, 0, limits)]
