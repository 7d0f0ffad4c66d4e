"""Small hand-made splits in the official layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from PIL import Image


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test's annotation cache to itself."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CITYSCAPES_MASKRCNN_CACHE", str(folder))
    return folder


def paint(file: Path) -> Image.Image:
    """Draw a polygons file with the official painter."""
    annotation = Annotation()
    annotation.fromJsonFile(str(file))
    return createInstanceImage(annotation, "ids")


@pytest.fixture
def write_scene() -> Callable[..., None]:
    """Write one image and its annotation files: ``write_scene(root, "val", "ulm", 3, objects)``.

    Objects are (label, points) pairs or dicts that go into the JSON as they are.
    """

    def write(
        root: Path,
        split: str,
        city: str,
        number: int,
        objects: list,
        kind: str = "gtFine",
        size: tuple[int, int] = (64, 128),
    ) -> Path:
        stem = f"{city}_{number:06d}_000019"
        images = root / "cityscapes" / "leftImg8bit" / split / city
        gt_dir = root / "cityscapes" / kind / split / city
        images.mkdir(parents=True, exist_ok=True)
        gt_dir.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(images / f"{stem}_leftImg8bit.png")
        Image.fromarray(np.full(size, 7, np.uint8)).save(gt_dir / f"{stem}_{kind}_labelIds.png")
        entries = [o if isinstance(o, dict) else {"label": o[0], "polygon": o[1]} for o in objects]
        content = {"imgHeight": size[0], "imgWidth": size[1], "objects": entries}
        annotation = gt_dir / f"{stem}_{kind}_polygons.json"
        annotation.write_text(json.dumps(content))
        ids = np.asarray(paint(annotation)).astype(np.uint16)
        Image.fromarray(ids).save(gt_dir / f"{stem}_{kind}_instanceIds.png")
        return annotation

    return write
