from __future__ import annotations

import json
import math
import os
import sys
import types
import warnings
from pathlib import Path

import cityscapesscripts.helpers.labels
import numpy as np
import pytest
from detectron2.structures import BoxMode

from cityscapes_maskrcnn.data.annotations import (
    load_images,
    load_instances,
    load_semantic,
    read_instances,
)
from cityscapes_maskrcnn.utils.errors import InputError


def box(x0: int, y0: int, x1: int, y1: int) -> list[list[int]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


SQUARE = box(10, 10, 20, 20)

# Name of a scene -> its objects from back to front. The image is 64 high and 128 wide.
SCENES: dict[str, list] = {
    "nothing": [],
    "stuff only": [("road", box(0, 40, 127, 63)), ("sky", SQUARE)],
    "group": [("cargroup", SQUARE), ("persongroup", [[40, 40], [60, 40], [50, 60]])],
    "group of its own label": [("polegroup", SQUARE), ("car", SQUARE)],
    "deleted": [
        {"label": "car", "polygon": SQUARE, "deleted": 1},
        {"label": "bus", "polygon": SQUARE, "deleted": 0},
        ("train", SQUARE),
        {"label": "no such thing", "polygon": SQUARE, "deleted": 1},
    ],
    "over the border": [("truck", [[-9, -7], [140, 5], [128, 70], [60, 64], [-3, 80]])],
    "cut in two": [("bus", box(5, 20, 110, 40)), ("pole", box(50, 0, 55, 63))],
    "cut in three by things": [
        ("train", box(5, 20, 120, 40)),
        ("person", box(30, 10, 35, 50)),
        ("rider", box(80, 10, 85, 50)),
        ("bicycle", box(78, 35, 90, 55)),
    ],
    "hidden": [("car", SQUARE), ("person", box(12, 12, 18, 18)), ("building", box(5, 5, 30, 30))],
    "hole": [("car", box(5, 5, 60, 60)), ("person", box(20, 20, 30, 40))],
    "void": [
        ("car", box(5, 30, 60, 60)),
        ("static", box(30, 30, 40, 45)),
        ("ego vehicle", box(0, 50, 127, 63)),
    ],
    "ignored instance classes": [("caravan", SQUARE), ("trailer", [[40, 5], [60, 5], [60, 30]])],
    "licence plate": [("car", SQUARE), ("license plate", [[12, 12], [18, 12], [18, 16]])],
    "crossing itself": [("car", [[10, 10], [50, 50], [50, 10], [10, 50]]), ("bus", SQUARE)],
    "without area": [("car", [[10, 10], [50, 10], [30, 10]]), ("person", SQUARE)],
    "points twice": [("car", [[10, 10], [10, 10], [50, 10], [50, 40], [50, 40], [10, 10]])],
    "touching": [("car", SQUARE), ("car", box(20, 10, 30, 20))],
    "same place": [("car", SQUARE), ("car", SQUARE)],
    "fractions": [("person", [[10.25, 10.1], [20.3, 11], [15.7, 30.9]]), ("pole", SQUARE)],
}


def folders(root: Path, split: str = "val", kind: str = "gtFine") -> tuple[str, str]:
    tree = root / "cityscapes"
    return str(tree / "leftImg8bit" / split), str(tree / kind / split)


@pytest.fixture
def load_with_detectron2(monkeypatch):
    """Detectron2's function, its Meta-internal import pointed at the public package."""
    name = "deeplearning"
    for part in ["projects", "cityscapesApi", "cityscapesscripts", "helpers", ""]:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        name = f"{name}.{part}"
    labels = "deeplearning.projects.cityscapesApi.cityscapesscripts.helpers.labels"
    monkeypatch.setitem(sys.modules, labels, cityscapesscripts.helpers.labels)
    from detectron2.data.datasets.cityscapes import load_cityscapes_instances

    def load(root: Path) -> list[dict]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            images = load_cityscapes_instances(*folders(root), from_json=True, to_polygons=True)
        return sorted(images, key=lambda image: image["file_name"])

    return load


def test_same_as_detectron2_on_every_special_case(tmp_path, write_scene, load_with_detectron2):
    for number, objects in enumerate(SCENES.values()):
        write_scene(tmp_path, "val", ["ulm", "bonn"][number % 2], number, objects)
    images = load_instances(*folders(tmp_path))
    assert images == load_with_detectron2(tmp_path)
    # That the scenes are what their names say:
    by_number = sorted(images, key=lambda image: image["image_id"].split("_")[1])
    found = {name: image["annotations"] for name, image in zip(SCENES, by_number, strict=True)}
    assert found["nothing"] == found["stuff only"] == found["ignored instance classes"] == []
    assert [a["iscrowd"] for a in found["group"]] == [True, True]
    assert [a["category_id"] for a in found["deleted"]] == [5]
    assert found["over the border"][0]["bbox"][0] < 0
    assert len(found["cut in two"][0]["segmentation"]) == 2
    assert [len(a["segmentation"]) for a in found["cut in three by things"]] == [1, 1, 1, 3]
    assert found["hidden"] == []
    assert [a["category_id"] for a in found["same place"]] == [2]


def random_scene(rng: np.random.Generator) -> list:
    labels = [
        *["car", "person", "rider", "bicycle", "bus", "cargroup", "bicyclegroup", "train"] * 2,
        *["building", "pole", "vegetation", "static", "ego vehicle", "license plate", "trailer"],
    ]
    objects = []
    for _ in range(rng.integers(0, 25)):
        count = int(rng.integers(3, 30))
        centre, radius = rng.uniform((-10, -10), (138, 74)), rng.uniform(1, 60)
        angle = rng.uniform(0, 2 * math.pi, count)
        if rng.random() < 0.8:  # else it crosses itself
            angle.sort()
        spoke = np.stack([np.cos(angle), np.sin(angle)], 1) * rng.uniform(0.3, 1, (count, 1))
        points = np.rint(centre + radius * spoke).astype(int).tolist()
        objects.append((str(rng.choice(labels)), points))
    return objects


def test_same_as_detectron2_on_random_scenes(tmp_path, write_scene, load_with_detectron2):
    rng = np.random.default_rng(5)
    for number in range(40):
        write_scene(tmp_path, "val", ["ulm", "bonn", "jena"][number % 3], number, random_scene(rng))
    images = load_instances(*folders(tmp_path))
    assert images == load_with_detectron2(tmp_path)
    pieces = [len(a["segmentation"]) for image in images for a in image["annotations"]]
    assert len(pieces) > 100 and max(pieces) > 1


def test_values_of_one_square(tmp_path, write_scene):
    write_scene(tmp_path, "val", "ulm", 3, [("cargroup", SQUARE)])
    image_dir, gt_dir = folders(tmp_path)
    # Plain Python numbers only, which json accepts.
    (image,) = json.loads(json.dumps(load_instances(image_dir, gt_dir)))
    polygon = image["annotations"][0].pop("segmentation")[0]
    assert image == {
        "file_name": f"{image_dir}/ulm/ulm_000003_000019_leftImg8bit.png",
        "image_id": "ulm_000003_000019_leftImg8bit.png",
        "height": 64,
        "width": 128,
        "annotations": [
            # Pixels 10 to 20 reach from 10 to 21.
            {
                "iscrowd": True,
                "category_id": 2,
                "bbox": [10, 10, 21, 21],
                "bbox_mode": BoxMode.XYXY_ABS,
            }
        ],
    }
    # Corners are rounded with four segments, five points, each: 4 x 5 points and the first one
    # again, two numbers a point.
    assert len(polygon) == (4 * 5 + 1) * 2


def test_cities_and_selection(tmp_path, write_scene):
    for city, number in [("ulm", 1), ("bonn", 5), ("ulm", 0)]:
        write_scene(tmp_path, "val", city, number, [("car", SQUARE)] * (number == 5))
    # What is not selected is not parsed.
    write_scene(tmp_path, "val", "jena", 2, []).write_text("damaged")
    ulm = load_instances(*folders(tmp_path), cities=["ulm"])
    assert [image["image_id"][:10] for image in ulm] == ["ulm_000000", "ulm_000001"]
    last_and_first = load_instances(*folders(tmp_path), select=lambda ids: [ids[-1], ids[0]])
    assert [image["image_id"][:11] for image in last_and_first] == ["ulm_000001_", "bonn_000005"]
    assert [len(image["annotations"]) for image in last_and_first] == [0, 1]
    with pytest.raises(InputError, match="jena_000002_000019_gtFine_polygons"):
        load_instances(*folders(tmp_path))


def test_semantic_and_unlabelled_images(tmp_path, write_scene):
    write_scene(tmp_path, "train_extra", "erlangen", 0, [], "gtCoarse", size=(32, 48))
    image_dir, gt_dir = folders(tmp_path, "train_extra", "gtCoarse")
    name = "erlangen_000000_000019"
    image = {
        "file_name": f"{image_dir}/erlangen/{name}_leftImg8bit.png",
        "image_id": f"{name}_leftImg8bit.png",
        "height": 32,
        "width": 48,
    }
    assert load_images(image_dir) == [image]
    labels = f"{gt_dir}/erlangen/{name}_gtCoarse_labelIds.png"
    assert load_semantic(image_dir, gt_dir, "gtCoarse") == [{**image, "sem_seg_file_name": labels}]


def test_only_changed_and_new_annotations_are_parsed(tmp_path, write_scene):
    paths = [write_scene(tmp_path, "val", "ulm", number, [("car", SQUARE)]) for number in range(3)]
    first = load_instances(*folders(tmp_path))
    # Size and time stay: reading these again would fail.
    for path in paths[1:]:
        status = path.stat()
        path.write_bytes(b"?" * status.st_size)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    bus = {**GOOD, "objects": [{"label": "bus", "polygon": SQUARE}]}
    paths[0].write_text(json.dumps(bus))
    (tmp_path / "cityscapes/leftImg8bit/val/ulm/ulm_000002_000019_leftImg8bit.png").unlink()
    write_scene(tmp_path, "val", "aachen", 0, [("train", SQUARE)])
    new, changed, same = load_instances(*folders(tmp_path))
    assert [image["annotations"][0]["category_id"] for image in (new, changed)] == [5, 4]
    assert same == first[1]
    # A change that keeps the size is noticed by its time.
    paths[0].write_text(json.dumps(bus).replace("bus", "car"))
    os.utime(paths[0], ns=(1, 1))
    assert load_instances(*folders(tmp_path))[1]["annotations"][0]["category_id"] == 2


# Bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_instances, load_semantic])
def test_image_without_annotation(tmp_path, write_scene, load):
    write_scene(tmp_path, "val", "ulm", 1, [])
    annotation = write_scene(tmp_path, "val", "ulm", 3, [])
    for name in (annotation.name, annotation.name.replace("polygons.json", "labelIds.png")):
        (annotation.parent / name).unlink()
        (annotation.parent / name).symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=r"ulm_000003_000019_leftImg8bit.png: this image has no"):
        load(*folders(tmp_path))
    # Other images of the split do not need it.
    assert len(load(*folders(tmp_path), select=lambda ids: ids[:1])) == 1
    with pytest.raises(InputError, match=r"gtFine/nowhere: no such folder \("):
        load(folders(tmp_path)[0], folders(tmp_path, "nowhere")[1])


GOOD = {"imgHeight": 64, "imgWidth": 128, "objects": []}
SIZE = "imgHeight and imgWidth must be"
OTHER = "not a Cityscapes annotation"
POLYGON = f"(polygon of 'car' is not a list of three or more|{OTHER})"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a complete JSON file"),
        ("\udcff", "not a complete JSON file"),
        (json.dumps(GOOD)[:-3], "not a complete JSON file"),
        ([], OTHER),
        (None, OTHER),
        ({"imgHeight": 1, "imgWidth": 1}, OTHER),
        *[({**GOOD, "imgHeight": value}, SIZE) for value in ("64", 0, True)],
        *[({**GOOD, "objects": value}, OTHER) for value in (3, ["car"], [{"label": "car"}])],
        ({**GOOD, "objects": [{"label": ["car"], "polygon": SQUARE}]}, OTHER),
        *[
            ({**GOOD, "objects": [{"label": name, "polygon": SQUARE}]}, f"unknown label '{name}'")
            for name in ("zebra", "zebragroup")
        ],
        *[
            ({**GOOD, "objects": [{"label": "car", "polygon": polygon}]}, POLYGON)
            for polygon in (
                *([], SQUARE[:2], [[1, 2, 3]] * 4, [[1, 2], [3]], [["a", "b"]] * 3, "abc"),
                *([[0, 0], [1, float("nan")], [5, 5]], {"x": 1}),
            )
        ],
    ],
)
def test_damaged_annotation_is_named(tmp_path, content, message):
    path = tmp_path / "ulm_000003_000019_gtFine_polygons.json"
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=rf"^{path}: .*{message}") as error:
        read_instances(str(path))
    assert str(error.value).count(str(path)) == 1
    assert "\n" not in str(error.value)


def test_label_image_that_is_no_png(tmp_path, write_scene):
    annotation = write_scene(tmp_path, "val", "ulm", 3, [])
    labels = annotation.parent / annotation.name.replace("polygons.json", "labelIds.png")
    labels.write_bytes(labels.read_bytes()[:20])
    with pytest.raises(InputError, match=f"{labels}: not a PNG file"):
        load_semantic(*folders(tmp_path))
