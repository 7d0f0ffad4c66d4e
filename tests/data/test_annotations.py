from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
import types
import warnings
from pathlib import Path

import cityscapesscripts.helpers.labels
import cv2
import numpy as np
import pytest
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from detectron2.structures import BoxMode

from cityscapes_maskrcnn.data import annotations
from cityscapes_maskrcnn.data.annotations import (
    load_images,
    load_instances,
    load_semantic,
    read_instances,
)
from cityscapes_maskrcnn.data.labels import CONTIGUOUS_TO_ID, ID_TO_CONTIGUOUS
from cityscapes_maskrcnn.data.tree_check import check_tree
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
        ("train", SQUARE),
        {"label": "no such thing", "polygon": SQUARE, "deleted": 1},
        {"label": "bus", "polygon": SQUARE, "deleted": "0"},
        {"label": "bus", "polygon": SQUARE, "deleted": float("nan")},
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
    "outside": [("car", [[200, 5], [220, 5], [220, 40]]), ("bus", SQUARE)],
    "a thousand": [
        *[("car", [[x, y], [x + 1, y], [x + 1, y + 1]]) for x in range(0, 120, 3) for y in (3, 9)],
    ],
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


# What the official painter draws of an object depends on Python's idea of true.
NOT_DELETED = [0, 0.0, False, None, "", []]


def painted(file: Path) -> np.ndarray:
    annotation = Annotation()
    annotation.fromJsonFile(str(file))
    return np.asarray(createInstanceImage(annotation, "ids"))


def test_same_instances_as_the_official_painter_on_every_special_case(tmp_path, write_scene):
    scenes = {
        **SCENES,
        "not deleted": [
            {"label": "car", "polygon": box(x, 10, x + 9, 50), "deleted": value}
            for x, value in zip(range(0, 120, 20), NOT_DELETED, strict=True)
        ],
    }
    for number, (name, objects) in enumerate(scenes.items()):
        path = write_scene(tmp_path, "val", "ulm", number, objects)
        drawn = painted(path)
        values = set(np.unique(drawn).tolist())
        singles = sorted(value // 1000 for value in values if value // 1000 in ID_TO_CONTIGUOUS)
        groups = values & set(ID_TO_CONTIGUOUS)

        loaded = load_instances(*folders(tmp_path))
        (image,) = [each for each in loaded if f"ulm_{number:06d}_" in each["image_id"]]
        # The painter has no pixels for what lies outside.
        inside = [a for a in image["annotations"] if a["bbox"][0] < 128]
        found = [(CONTIGUOUS_TO_ID[a["category_id"]], a["iscrowd"]) for a in inside]
        assert sorted(label for label, crowd in found if not crowd) == singles, name
        assert {label for label, crowd in found if crowd} == groups, name
        ours = np.zeros(drawn.shape, np.uint8)
        for annotation in reversed(inside):  # what is in front comes first
            for polygon in annotation["segmentation"]:
                points = np.floor(np.reshape(polygon, (-1, 2))).astype(np.int32)
                cv2.fillPoly(ours, [points], CONTIGUOUS_TO_ID[annotation["category_id"]])
        labels = np.where(drawn < 1000, drawn, drawn // 1000).astype(np.uint8)
        square = np.ones((3, 3), np.uint8)
        compared = (cv2.erode(labels, square) == cv2.dilate(labels, square)) & (labels >= 24)
        compared &= (labels != 29) & (labels != 30)  # caravan and trailer
        if name != "crossing itself":  # GEOS keeps one side only, as in Detectron2
            np.testing.assert_array_equal(ours[compared], labels[compared], name)
    assert not check_tree(tmp_path / "cityscapes", allow_subset=True)[1].problems


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
NO_LIST = "not a Cityscapes annotation: it has no list of objects"
NO_OBJECT = r"objects\[1\]: it must have a label and a polygon"
NO_LABEL = r"objects\[1\]: its label must be a name, such as 'car', not"
NO_POINTS = r"objects\[1\]: its polygon must be a list of \(x, y\) points"
TOO_FEW = r"objects\[1\]: the polygon of 'car' is not a list of three or more"
TOO_FAR = r"objects\[1\]: the polygon of 'car' has a point that is not finite or far outside"


def second(**entry: object) -> dict:
    """An annotation whose second object is a car with some other content."""
    car = {"label": "car", "polygon": SQUARE}
    return {**GOOD, "objects": [car, {**car, **entry}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a complete JSON file"),
        ("\udcff", "not a complete JSON file"),
        (json.dumps(GOOD)[:-3], "not a complete JSON file"),
        ("[" * 100_000, "not a complete JSON file"),
        ('{"objects": ' + "9" * 5000, "not a complete JSON file"),
        *[(content, NO_LIST) for content in ([], None, 5, "[]", {"imgHeight": 1, "imgWidth": 1})],
        *[({**GOOD, "objects": value}, NO_LIST) for value in (3, None, {"label": "car"}, "car")],
        *[({**GOOD, "imgHeight": value}, SIZE) for value in ("64", 0, -5, True, None, 64.0)],
        ({**GOOD, "imgWidth": float("nan")}, SIZE),
        ({**GOOD, "imgHeight": 2**63}, "imgHeight and imgWidth say more than 67108864 pixels"),
        ({**GOOD, "imgHeight": 65535, "imgWidth": 65535}, "say more than 67108864 pixels"),
        *[
            ({**GOOD, "objects": [{"label": "car", "polygon": SQUARE}, value]}, NO_OBJECT)
            for value in ("car", None, 5, ["car", SQUARE])
        ],
        *[(second(label=value), NO_LABEL) for value in (None, 26, True, ["car"], {"car": 1})],
        *[
            (second(label=name), rf"objects\[1\]: unknown label '{name}'")
            for name in ("zebra", "zebragroup", "", "Car", "car ")
        ],
        *[
            (second(polygon=polygon), NO_POINTS)
            for polygon in (
                *(None, "abc", {"x": 1}, 5, [[1, 2], [3]], [[1, 2], [3, 4], "56"], "[[1, 2]]"),
                *([["a", "b"]] * 3, [["1", "2"]] * 3, [[1, None]] * 3, [[True, False]] * 3),
                *([[1, 10**40]] * 3, [[1, {}]] * 3),
            )
        ],
        *[
            (second(polygon=polygon), TOO_FEW)
            for polygon in ([], [[]], SQUARE[:2], [[1, 2, 3]] * 4, [1, 2, 3, 4, 5, 6], [[SQUARE]])
        ],
        *[
            (second(polygon=[[0, 0], [1, value], [5, 5]]), TOO_FAR)
            for value in (float("nan"), float("inf"), -float("inf"), 1e300, 2**62, -1_000_001)
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


def tangled(points: int, seed: int) -> list:
    return np.random.default_rng(seed).uniform((0, 0), (2048, 1024), (points, 2)).tolist()


def comb(teeth: int) -> np.ndarray:
    """Teeth that cross nothing of their own."""
    x = np.repeat(np.arange(2 * teeth), 2) * (1000 / teeth)
    return np.stack([x, np.tile([0, 1000, 1000, 0], teeth)], axis=1)  # 2 pixels apart or more


CIRCLE = np.exp(1j * np.linspace(0, 2 * np.pi, 200_000, endpoint=False)) * 500 + 500 + 500j
TOO_MUCH = "(too many or too tangled polygons, from objects|it has 100000 objects; at most 20000)"


@pytest.mark.parametrize(
    "polygons",
    [
        [np.rint(np.stack([CIRCLE.real, CIRCLE.imag], axis=1)).tolist()],
        [tangled(2000, seed=0)],
        [comb(400).tolist(), comb(400)[:, ::-1].tolist()],
        [[[1, 1], [9, 1], [1, 9]]] * 20_000,
        [[[1, 1], [9, 1], [1, 9]]] * 100_000,
    ],
    ids=["long", "tangled", "combs", "many", "too many"],
)
def test_what_would_take_minutes_is_refused_in_seconds(tmp_path, polygons):
    path = tmp_path / "x_polygons.json"
    objects = [{"label": "car", "polygon": polygon} for polygon in polygons]
    path.write_text(json.dumps({"imgHeight": 1024, "imgWidth": 2048, "objects": objects}))
    start = time.process_time()
    with pytest.raises(InputError, match=f"^{path}: {TOO_MUCH}"):
        read_instances(str(path))
    assert time.process_time() - start < 2  # without the limit at least 20


@pytest.mark.parametrize(
    "polygons",
    [
        [tangled(100, seed) for seed in range(30)],
        [box(x, y, x + 4, y + 4) for x in range(0, 300, 9) for y in range(0, 300, 9)],
    ],
    ids=["tangled", "apart"],
)
def test_many_polygons_add_up(tmp_path, monkeypatch, polygons):
    monkeypatch.setattr(annotations, "_MAX_WORK", 400_000)  # of 4 million, which take 2 seconds
    path = tmp_path / "x_polygons.json"
    objects = [{"label": "car", "polygon": polygon} for polygon in polygons]
    path.write_text(json.dumps({"imgHeight": 1024, "imgWidth": 2048, "objects": objects[::6]}))
    assert read_instances(str(path))["size"].tolist() == [1024, 2048]
    path.write_text(json.dumps({"imgHeight": 1024, "imgWidth": 2048, "objects": objects}))
    with pytest.raises(InputError, match=f"^{path}: {TOO_MUCH}"):
        read_instances(str(path))


@pytest.mark.parametrize(
    "polygon",
    [["x" * 500_000] + ["a"] * 300, [1, 2, "x" * 2_000_000] * 2 + [3] * 1_000_000, [[[1]]] * 9],
    ids=["texts", "text among numbers", "deep"],
)
def test_what_is_no_polygon_costs_no_more_than_its_size(tmp_path, polygon):
    """NumPy would store every item of the first as a text of half a million characters, 600 MB."""
    path = tmp_path / "x_polygons.json"
    objects = [{"label": "car", "polygon": polygon}]
    path.write_text(json.dumps({"imgHeight": 1024, "imgWidth": 2048, "objects": objects}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=rf"^{path}: objects\[0\]: (its|the) polygon "):
        read_instances(str(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "x_polygons.json"
    path.touch()
    os.truncate(path, 10**11)
    with pytest.raises(InputError, match=f"^{path}: 10{'0' * 10} bytes; files of this kind have"):
        read_instances(str(path))


def test_large_annotations_are_no_attack(tmp_path):
    """Outlines traced pixel by pixel, and as many objects as a crowd has."""
    path = tmp_path / "x_polygons.json"
    rng = np.random.default_rng(0)
    objects = []
    for radius in rng.uniform(10, 60, 60):
        angles = np.linspace(0, 2 * np.pi, int(6 * radius), endpoint=False)
        outline = radius * np.stack([np.cos(angles), np.sin(angles)], 1)
        points = np.rint(outline + rng.uniform((0, 0), (2048, 1024))).tolist()
        objects.append({"label": "person", "polygon": points})
    path.write_text(json.dumps({"imgHeight": 1024, "imgWidth": 2048, "objects": objects}))
    assert len(read_instances(str(path))["categories"]) >= 55


def test_label_image_that_is_no_png(tmp_path, write_scene):
    annotation = write_scene(tmp_path, "val", "ulm", 3, [])
    labels = annotation.parent / annotation.name.replace("polygons.json", "labelIds.png")
    labels.write_bytes(labels.read_bytes()[:20])
    with pytest.raises(InputError, match=f"{labels}: not a PNG file"):
        load_semantic(*folders(tmp_path))
