"""Annotations and images, compared with the official painter, Detectron2 and Pillow."""

from __future__ import annotations

import json
import os
import random
import struct
import zlib
from collections import Counter
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from cityscapesscripts.evaluation.instances2dict import instances2dict
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from detectron2.data.detection_utils import read_image as detectron2_read_image
from harness import Context
from mutators import (
    PNG_MAGIC,
    mutate_bytes,
    mutate_png,
    mutate_tree,
    without_remarks,
)
from PIL import ExifTags, Image, ImageDraw
from variants import Kind

from cityscapes_maskrcnn.data.annotations import annotation_dicts, read_instances
from cityscapes_maskrcnn.data.cache import CACHE_VARIABLE
from cityscapes_maskrcnn.data.image_cache import ImageCache
from cityscapes_maskrcnn.data.images import (
    read_image,
    read_image_size,
    read_instance_ids,
    read_label_image,
)
from cityscapes_maskrcnn.data.labels import CONTIGUOUS_TO_ID, ID_TO_CONTIGUOUS
from cityscapes_maskrcnn.data.tree_check import check_tree
from cityscapes_maskrcnn.evaluation.instance_ap import ground_truth
from cityscapes_maskrcnn.utils.errors import InputError

SIZE = (64, 128)
STEM = "ulm_000000_000019"


def scene(folder: Path) -> Path:
    """Write a split of one image with its annotations; the folder of ``leftImg8bit``."""
    objects = [
        ("road", [[0, 30], [127, 30], [127, 63], [0, 63]]),
        ("car", [[10, 30], [50, 30], [50, 50], [10, 50]]),
        ("license plate", [[20, 40], [24, 40], [24, 43], [20, 43]]),
        ("person", [[60, 20], [70, 20], [72, 55], [58, 55]]),
        ("persongroup", [[90, 20], [120, 20], [120, 40], [90, 40]]),
        ("car", [[40, 35], [80, 35], [80, 60], [40, 60]]),
        ("bicycle", [[100, 45], [115, 45], [110, 60]]),
    ]
    content = {
        "imgHeight": SIZE[0],
        "imgWidth": SIZE[1],
        "objects": [{"label": label, "polygon": polygon} for label, polygon in objects],
    }
    content["objects"][2]["deleted"] = 0
    content["objects"][4]["id"] = 4
    images, labels = (
        folder / "cityscapes" / kind / "val/ulm" for kind in ("leftImg8bit", "gtFine")
    )
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(noise).save(images / f"{STEM}_leftImg8bit.png")
    stem = f"{labels}/{STEM}_gtFine"
    Path(f"{stem}_polygons.json").write_text(json.dumps(content))
    annotation = Annotation()
    annotation.fromJsonText(json.dumps(content))
    instances = np.array(createInstanceImage(annotation, "ids"))
    Image.fromarray(instances.astype(np.uint16)).save(f"{stem}_instanceIds.png")
    classes = np.where(instances < 1000, instances, instances // 1000)
    Image.fromarray(classes.astype(np.uint8)).save(f"{stem}_labelIds.png")
    return folder / "cityscapes"


def annotation(context: Context) -> Kind:
    """``*_polygons.json``, against what the official painter draws."""
    tree = scene(context.folder)
    (file,) = tree.rglob("*_polygons.json")
    content = file.read_bytes()

    def write(rng: random.Random) -> None:
        if rng.random() < 0.25:
            file.write_bytes(mutate_bytes(rng, content))
            return
        text = json.dumps(mutate_tree(rng, json.loads(content)))
        if rng.random() < 0.05:
            text = text.replace('"imgWidth"', f'"x": {"[" * 50_000}, "imgWidth"', 1)
        file.write_text(text)

    def read() -> Any:
        (checked,) = [c for c in check_tree(tree, True, num_workers=1) if c.name == "gtFine/val"]
        try:
            return read_instances(str(file))
        except InputError as error:
            if not checked.problems:
                raise RuntimeError("the check finds this file in order") from error
            raise

    return Kind(write, read, partial(compare_with_painter, file))


def compare_with_painter(file: Path, record: Any) -> str:
    """Every instance that the painter draws large is read, and the other way round."""
    painted = Annotation()
    try:
        painted.fromJsonFile(str(file))
        pixels = np.array(createInstanceImage(painted, "ids"))
    except Exception:
        return ""  # it has no opinion
    height, width = record["size"].tolist()
    if pixels.shape != (height, width):
        return f"size {(height, width)}, the painter's {pixels.shape}"
    ids, areas = np.unique(pixels, return_counts=True)
    drawn, large_drawn, read, large_read = Counter(), Counter(), Counter(), Counter()
    for number, area in zip(ids.tolist(), areas.tolist(), strict=True):
        label = (number // 1000 if number >= 1000 else number), number < 1000
        if label[0] in ID_TO_CONTIGUOUS:
            # A class has one id for all its groups.
            drawn[label] += 1
            large_drawn[label] += area > 40
    for found in annotation_dicts(record):
        label = CONTIGUOUS_TO_ID[found["category_id"]], found["iscrowd"]
        mask = Image.new("1", (width, height))
        for ring in found["segmentation"]:
            ImageDraw.Draw(mask).polygon([round(v - 0.5) for v in ring], fill=1)
        area = int(np.asarray(mask).sum())
        read[label] += 1
        large_read[label] += area > 40
    for label in {*drawn, *read}:
        most = 1 if label[1] else read[label]
        if large_drawn[label] > min(read[label], most) or (
            large_read[label] > drawn[label] and not label[1]
        ):
            return f"instances of {label}: read {read[label]}, drawn {drawn[label]}"
    return ""


def annotation_png(context: Context) -> Kind:
    """``*_labelIds.png`` and ``*_instanceIds.png``, against Pillow and the official reader."""
    tree = scene(context.folder)
    files = [next(tree.rglob(f"*_{kind}Ids.png")) for kind in ("label", "instance")]
    contents = [file.read_bytes() for file in files]
    chosen: list[int] = [0]

    def write(rng: random.Random) -> None:
        chosen[0] = rng.randrange(2)
        files[chosen[0]].write_bytes(mutate_png(rng, contents[chosen[0]]))

    def read() -> Any:
        if chosen[0] == 0:
            return read_label_image(files[0])
        return ground_truth(read_instance_ids(files[1]))

    def compare(found: Any) -> str:
        try:
            pixels = np.array(Image.open(BytesIO(without_remarks(files[chosen[0]].read_bytes()))))
        except Exception as error:
            return f"accepted, but Pillow says: {error}"
        if chosen[0] == 0:
            return "" if np.array_equal(pixels, found) else "other pixels than Pillow's"
        try:
            official = instances2dict([str(files[1])])[str(files[1].resolve())]
        except Exception:
            return ""
        expected = sorted(
            (each["instID"], each["pixelCount"])
            for instances in official.values()
            for each in instances
            if each["labelID"] in ID_TO_CONTIGUOUS
        )
        read = sorted(zip(found.ids.tolist(), found.areas.tolist(), strict=True))
        return "" if read == expected else f"instances {read}, the official script's {expected}"

    return Kind(write, read, compare)


def image(context: Context) -> Kind:
    """``*_leftImg8bit.png``, against Detectron2's reader."""
    (file,) = scene(context.folder).rglob("*_leftImg8bit.png")
    content = file.read_bytes()

    def compare(found: Any) -> str:
        data, plain = file.read_bytes(), file.with_name("plain.png")
        if not data.startswith(PNG_MAGIC):
            return ""  # decoders of lossy formats differ
        plain.write_bytes(without_remarks(data))
        try:
            expected = detectron2_read_image(str(plain), "BGR")
        except Exception as error:
            return f"accepted, but Detectron2 says: {error}"
        return "" if np.array_equal(found, expected) else "other pixels than Detectron2's"

    return Kind(
        lambda rng: file.write_bytes(mutate_png(rng, content)), lambda: read_image(file), compare
    )


def photo(context: Context) -> Kind:
    """A JPEG, WebP or TIFF file for an image, against Detectron2's reader.

    Decoders of lossy formats differ in single grey levels, and in what they do with damaged data.
    """
    (png,) = scene(context.folder).rglob("*_leftImg8bit.png")
    smooth = Image.open(png).resize((32, 16)).resize(SIZE[::-1])
    file = context.folder / "image"
    whole = [False]

    def write(rng: random.Random) -> None:
        kind = rng.choice(("JPEG", "JPEG", "WEBP", "WEBP", "TIFF"))
        mode = rng.choice(("RGB", "RGB", "RGB", "L", "CMYK", "RGBA", "1"))
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = rng.choice((0, 1, 3, 6, 8, 9, 65535))
        options = {"progressive": rng.random() < 0.3, "lossless": rng.random() < 0.3}
        packed = BytesIO()
        try:
            smooth.convert(mode).save(packed, kind, exif=exif, quality=90, **options)
        except OSError:  # not every mode becomes every kind of file
            packed = BytesIO()
            smooth.save(packed, kind, exif=exif, quality=90, **options)
        whole[0] = rng.random() < 0.2
        data = packed.getvalue()
        file.write_bytes(data if whole[0] else mutate_bytes(rng, data))

    def read() -> Any:
        size = read_image_size(file)
        pixels = read_image(file)
        if pixels.shape != (*size, 3):
            raise RuntimeError(f"its size is said to be {size}, and is {pixels.shape}")
        return pixels

    def compare(found: Any) -> str:
        try:
            expected = detectron2_read_image(str(file), "BGR")
        except Exception as error:
            return f"accepted, but Detectron2 says: {error}"
        if found.shape != expected.shape:
            return f"{found.shape} pixels, Detectron2's {expected.shape}"
        most = int(np.abs(found.astype(int) - expected.astype(int)).max())
        return f"pixels differ from Detectron2's by {most}" if whole[0] and most > 16 else ""

    return Kind(write, read, compare)


def image_cache(context: Context) -> Kind:
    """A file of ``INPUT.CACHE``: what is read is what the image has, unless it is forged."""
    (png,) = scene(context.folder).rglob("*_leftImg8bit.png")
    folder = context.folder / "cache"
    os.environ[CACHE_VARIABLE] = str(folder)
    expected = ImageCache("disk", "BGR").read(str(png))
    (file,) = folder.rglob("*.pixels")
    content = file.read_bytes()
    # Magic, height, width, a checksum of both and the pixels, a digest; pixels from byte 64 on.
    forged = [False]

    def write(rng: random.Random) -> None:
        forged[0] = rng.random() < 0.3
        data = mutate_bytes(rng, content)
        if forged[0]:
            size = struct.pack("<II", *rng.choice(((0, 0), (1, 1), (64, 64), (2**32 - 1, 2**16))))
            size = rng.choice((size, content[8:16]))
            pixels = rng.choice((content[64:], content[64:] + bytes(9), b"", bytes(3)))
            checksum = zlib.crc32(pixels, zlib.crc32(size)).to_bytes(4, "little")
            data = content[:8] + size + checksum + content[20:64] + pixels
        file.write_bytes(data)

    def compare(found: Any) -> str:
        # A forged file is right by its own rules.
        return "" if forged[0] or np.array_equal(found, expected) else "other pixels than it has"

    return Kind(write, lambda: ImageCache("disk", "BGR").read(str(png)), compare, may_refuse=False)
