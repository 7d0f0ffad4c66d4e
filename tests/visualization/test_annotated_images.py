"""The ground truth of an image that lies in a Cityscapes tree."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from PIL import Image

from cityscapes_maskrcnn.data.annotations import load_instances
from cityscapes_maskrcnn.data.copy_paste import Window, outline
from cityscapes_maskrcnn.data.registration import register_dataset
from cityscapes_maskrcnn.data.tree import MANIFEST
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.annotated_images import (
    draw_captioned,
    draw_example,
    draw_record,
    ground_truth_of,
    scene_mark,
)
from cityscapes_maskrcnn.visualization.drawing import side_by_side


def write_scene(root: Path, split: str) -> Path:
    """Two cars, the first behind a pole that cuts it in two, and a group of persons."""
    stem = "ulm_000000_000019"
    image = root / "leftImg8bit" / split / "ulm" / f"{stem}_leftImg8bit.png"
    annotation = root / "gtFine" / split / "ulm" / f"{stem}_gtFine_polygons.json"
    for path in (image, annotation):
        path.parent.mkdir(parents=True)
    Image.fromarray(np.zeros((60, 100, 3), np.uint8)).save(image)
    objects = [
        {"label": "car", "polygon": [[5, 20], [60, 20], [60, 40], [5, 40]]},
        {"label": "pole", "polygon": [[30, 0], [34, 0], [34, 59], [30, 59]]},
        {"label": "car", "polygon": [[70, 20], [90, 20], [90, 40], [70, 40]]},
        {"label": "persongroup", "polygon": [[1, 1], [9, 1], [9, 9], [1, 9]]},
    ]
    annotation.write_text(json.dumps({"imgHeight": 60, "imgWidth": 100, "objects": objects}))
    return image


def test_ground_truth_is_what_the_dataset_holds(tmp_path, monkeypatch):
    monkeypatch.setenv("CITYSCAPES_MASKRCNN_CACHE", str(tmp_path / "cache"))
    image = write_scene(tmp_path, "val")
    (expected,) = load_instances(f"{tmp_path}/leftImg8bit/val", f"{tmp_path}/gtFine/val")
    found = ground_truth_of(image)
    assert found is not None
    assert (found["height"], found["width"]) == (60, 100)
    assert len(found["annotations"]) == 3
    assert sorted(len(each["segmentation"]) for each in found["annotations"]) == [1, 1, 2]
    assert found["annotations"] == expected["annotations"]


def test_images_of_ones_own_have_the_ground_truth_that_their_dataset_names(tmp_path):
    scene = write_scene(tmp_path, "val")
    image, gt_dir = tmp_path / "photos/ulm/street 1_rgb.jpg", tmp_path / "labels"
    for folder in (image.parent, gt_dir / "ulm"):
        folder.mkdir(parents=True)
    image.touch()
    shutil.copy(
        tmp_path / "gtFine/val/ulm/ulm_000000_000019_gtFine_polygons.json",
        gt_dir / "ulm/street 1_mine_polygons.json",
    )
    kinds = {"image_suffix": "_rgb.jpg", "gt_kind": "mine"}
    register_dataset("photos", str(tmp_path / "photos"), str(gt_dir), **kinds)
    register_dataset("unlabelled", str(tmp_path / "photos"), **kinds)
    names = ("unlabelled", "photos")
    assert ground_truth_of(image, names) == ground_truth_of(scene)
    assert ground_truth_of(scene, names) == ground_truth_of(scene)
    assert ground_truth_of(image) is None
    assert ground_truth_of(image, ["unlabelled"]) is None
    assert ground_truth_of(image.with_name("street 2_rgb.jpg"), names) is None
    assert ground_truth_of(image.with_name("street 1.jpg"), names) is None


def test_no_ground_truth(tmp_path, monkeypatch):
    # Of the test split the official files are placeholders.
    assert ground_truth_of(write_scene(tmp_path, "test")) is None
    assert ground_truth_of("somewhere.png") is None
    assert ground_truth_of("/somewhere.png") is None
    image = write_scene(tmp_path, "val")
    monkeypatch.chdir(image.parent)
    assert ground_truth_of(image.name) is not None  # a relative path
    annotation = tmp_path / "gtFine/val/ulm/ulm_000000_000019_gtFine_polygons.json"
    annotation.write_text(annotation.read_text()[:50])
    with pytest.raises(InputError, match="ulm_000000_000019_gtFine_polygons"):
        ground_truth_of(image)
    annotation.unlink()
    assert ground_truth_of(image) is None


@pytest.mark.parametrize("kind", [PolygonMasks, BitMasks])
def test_a_hole_of_a_training_example_is_drawn_without_its_seam(kind):
    """Grey 100 under blue (0, 0, 142) of half a weight: (50, 50, 121)."""
    mask = np.zeros((512, 1024), np.bool_)
    mask[100:400, 200:800] = True
    mask[200:300, 400:600] = False
    instances = Instances((512, 1024))
    instances.gt_boxes = Boxes(torch.tensor([[200.0, 100.0, 800.0, 400.0]]))
    instances.gt_classes = torch.tensor([0])
    instances.gt_masks = (
        BitMasks(mask[None])
        if kind is BitMasks
        else PolygonMasks([outline(mask, Window(0, 0, 1024, 512))])
    )
    example = {
        "file_name": "street.png",
        "image": torch.full((3, 512, 1024), 100, dtype=torch.uint8),
        "instances": instances,
    }
    metadata = SimpleNamespace(thing_classes=["car"], thing_colors=[(0, 0, 142)])
    # Below a caption: letters of 1024 / 45 = 23 pixels, 1.8 times that is 41.
    picture = draw_example(example, "RGB", metadata)[41:].astype(int)
    inside = np.zeros_like(mask)
    inside[102:398, 202:798] = True
    inside[198:302, 398:602] = False
    blue = (abs(picture - (50, 50, 121)) <= 2).all(axis=2)
    # All but the label, "car" in letters of 18 pixels.
    assert (inside & ~blue).sum() < 40 * 24
    assert (picture[202:298, 402:598] == 100).all()


@pytest.mark.parametrize(
    ("annotations", "caption"),
    [
        ([], "ground truth: no objects"),
        ([{"iscrowd": False}], "ground truth: 1 object"),
        (
            [{"iscrowd": False}, {}, {"iscrowd": True}],
            "ground truth: 2 objects, 1 group (hatched: several in one outline)",
        ),
        ([{"iscrowd": True}] * 2, "ground truth: 2 groups (hatched: several in one outline)"),
    ],
)
def test_a_caption_says_how_many_objects_and_what_is_hatched(annotations, caption):
    metadata = SimpleNamespace(thing_classes=["car"], thing_colors=[(0, 0, 142)])
    outline_of_a_car = {"category_id": 0, "segmentation": [[9, 9, 99, 9, 99, 99]]}
    record = {"annotations": [{**outline_of_a_car, **each} for each in annotations]}
    image = np.zeros((512, 1024, 3), np.uint8)
    what, picture = draw_captioned("ground truth", image, record, metadata)
    assert what == caption
    assert picture.shape == image.shape
    # It ends within its picture, and not over the next one.
    assert (side_by_side([(what, picture)])[:41, -20:] == 255).all()


def test_pictures_of_generated_scenes_say_so(tmp_path, monkeypatch):
    image = tmp_path / "leftImg8bit" / "val" / "lindau" / "street.png"
    image.parent.mkdir(parents=True)
    monkeypatch.chdir(image.parent)
    assert scene_mark(image) == scene_mark(image.name) == ""
    (tmp_path / MANIFEST).write_text("{}")
    assert scene_mark(image) == scene_mark(image.name) == "GENERATED SCENE"
    Image.fromarray(np.full((512, 1024, 3), 100, np.uint8)).save(image)
    record = {"file_name": str(image), "height": 512, "width": 1024, "annotations": []}
    picture = draw_record(record, SimpleNamespace(thing_classes=[], thing_colors=[]))
    # The colour of warnings, (213, 94, 0), at the right end of the caption.
    assert (picture[:41, -300:] == (213, 94, 0)).all(axis=2).any()
    assert not (picture[:41, :-300] == (213, 94, 0)).all(axis=2).any()
