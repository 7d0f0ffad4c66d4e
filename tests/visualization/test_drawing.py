from __future__ import annotations

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances

from cityscapes_maskrcnn.data.labels import THING_CLASSES, THING_COLORS
from cityscapes_maskrcnn.visualization.drawing import (
    StreetVisualizer,
    draw_ground_truth,
    draw_predictions,
    draw_semantic_labels,
    side_by_side,
)

METADATA = Metadata(
    name="test",
    thing_classes=list(THING_CLASSES),
    thing_colors=list(THING_COLORS),
    stuff_classes=["road", "sidewalk"],
    stuff_colors=[(128, 64, 128), (244, 35, 232)],
)
PERSON, CAR = 0, 2  # official colours (220, 20, 60) and (0, 0, 142)
CAR_OVER_GREY = (50, 50, 121)  # (100 + 0) / 2, (100 + 0) / 2, (100 + 142) / 2


def grey(height=512, width=1024):
    return np.full((height, width, 3), 100, dtype=np.uint8)


def rectangle(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def annotation(category, *polygons, crowd=False):
    return {"category_id": category, "segmentation": list(polygons), "iscrowd": crowd}


def predictions(height, width, *found):
    """Of (category, score, (x0, y0, x1, y1)): rectangular masks."""
    instances = Instances((height, width))
    masks = torch.zeros((len(found), height, width), dtype=torch.bool)
    for mask, (_, _, (x0, y0, x1, y1)) in zip(masks, found, strict=True):
        mask[y0:y1, x0:x1] = True
    instances.pred_masks = masks
    instances.pred_boxes = Boxes(torch.tensor([f[2] for f in found]).reshape(-1, 4).float())
    instances.scores = torch.tensor([f[1] for f in found], dtype=torch.float32)
    instances.pred_classes = torch.tensor([f[0] for f in found], dtype=torch.int64)
    return instances


def assert_color(pixel, expected):
    # Agg blends in 8 bits, which costs one grey level per layer.
    np.testing.assert_allclose(pixel.astype(int), expected, atol=2)


def test_official_color_over_the_image_at_half_strength():
    record = {"annotations": [annotation(CAR, rectangle(200, 100, 600, 400))]}
    picture = draw_ground_truth(grey(), record, METADATA)
    assert (picture.shape, picture.dtype) == ((512, 1024, 3), np.uint8)
    assert_color(picture[350, 220], CAR_OVER_GREY)
    assert_color(picture[50, 50], (100, 100, 100))


def test_small_objects_lie_over_large_ones():
    small = annotation(PERSON, rectangle(300, 150, 340, 230))
    large = annotation(CAR, rectangle(200, 100, 600, 400))
    for order in ([small, large], [large, small]):
        picture = draw_ground_truth(grey(), {"annotations": order}, METADATA)
        # the person's (220, 20, 60) over the (50, 50, 121) of the car over grey
        assert_color(picture[220, 310], (135, 35, 90.5))


def test_neighbours_of_a_class_differ():
    record = {
        "annotations": [
            annotation(CAR, rectangle(100, 100, 300, 400)),
            annotation(CAR, rectangle(300, 100, 500, 400)),
        ]
    }
    picture = draw_ground_truth(grey(), record, METADATA)
    difference = picture[380, 320].astype(int) - picture[380, 120]
    # The second is mixed with 24 % white: half of 0.24 * 255 on red, 0.24 * (255 - 142) on blue.
    np.testing.assert_allclose(difference, (30.6, 30.6, 13.6), atol=2)


def test_small_images_are_enlarged():
    record = {"annotations": [annotation(CAR, rectangle(50, 20, 300, 150))]}
    picture = draw_ground_truth(grey(192, 384), record, METADATA)
    assert picture.shape == (512, 1024, 3)  # 1024 / 384 * 192 = 512
    # x 50 to 300 becomes 133 to 800
    assert_color(picture[380, 145], CAR_OVER_GREY)
    assert_color(picture[380, 790], CAR_OVER_GREY)
    assert_color(picture[380, 125], (100, 100, 100))
    assert_color(picture[380, 810], (100, 100, 100))


def test_without_objects_the_picture_is_the_image():
    image = np.random.default_rng(0).integers(0, 256, (512, 1024, 3), dtype=np.uint8)
    empty = predictions(512, 1024, (CAR, 0.9, (0, 0, 0, 0)))
    for picture in (
        draw_ground_truth(image, {"annotations": []}, METADATA),
        draw_predictions(image, predictions(512, 1024), METADATA),
        draw_predictions(image, empty, METADATA),
    ):
        np.testing.assert_array_equal(picture, image)


@pytest.mark.parametrize("compressed", [True, False])
def test_run_lengths_are_drawn_like_polygons(compressed):
    mask = np.zeros((512, 1024), dtype=np.uint8, order="F")
    mask[100:400, 200:600] = 1
    run_lengths = coco_mask.encode(mask)
    if not compressed:
        # Column by column: 200 columns and 100 pixels off; 400 columns of 300 on and 212 off, where
        # the last goes on with its 112 and the 424 columns to the right.
        counts = [200 * 512 + 100, *[300, 212] * 399, 300, 112 + 424 * 512]
        run_lengths = {"size": [512, 1024], "counts": counts}
    polygons = [rectangle(200, 100, 600, 400)]
    first, second = (
        draw_ground_truth(
            grey(), {"annotations": [{"category_id": CAR, "segmentation": each}]}, METADATA
        )
        for each in (run_lengths, polygons)
    )
    # Outlines are smoothed differently: three pixels along them are not compared.
    same = (first == second).all(axis=2)
    same[97:403, 197:603] |= np.pad(np.zeros((294, 394), dtype=bool), 6, constant_values=True)
    assert same.all()
    assert_color(first[380, 220], CAR_OVER_GREY)


def test_parts_wound_differently_are_all_filled():
    backwards = [300, 300, 300, 400, 500, 400, 500, 300]
    record = {"annotations": [annotation(CAR, rectangle(200, 100, 600, 350), backwards)]}
    picture = draw_ground_truth(grey(), record, METADATA)
    assert_color(picture[320, 310], CAR_OVER_GREY)  # where they overlap
    assert_color(picture[390, 310], CAR_OVER_GREY)


def test_holes_stay_empty():
    found = predictions(512, 1024, (CAR, 0.9, (100, 100, 700, 400)))
    found.pred_masks[0, 200:300, 200:300] = False
    picture = draw_predictions(grey(), found, METADATA)
    assert_color(picture[250, 250], (100, 100, 100))
    assert_color(picture[380, 120], CAR_OVER_GREY)


def test_threshold_includes_its_own_score():
    found = predictions(
        512, 1024, (CAR, 0.5, (100, 100, 300, 400)), (CAR, 0.49, (600, 100, 800, 400))
    )
    picture = draw_predictions(grey(), found, METADATA, score_thresh=0.5)
    assert_color(picture[380, 120], CAR_OVER_GREY)
    assert_color(picture[380, 620], (100, 100, 100))


def test_boxes_of_a_model_without_masks():
    found = predictions(512, 1024, (CAR, 0.9, (100, 100, 400, 400)))
    found.remove("pred_masks")
    assert_color(draw_predictions(grey(), found, METADATA)[380, 120], CAR_OVER_GREY)


@pytest.fixture
def visualizers(monkeypatch):
    """Every visualizer that was used, to be asked what it drew."""
    used = []

    class Spy(StreetVisualizer):
        def draw_objects(self, objects):
            super().draw_objects(objects)
            used.append(self)

    monkeypatch.setattr("cityscapes_maskrcnn.visualization.drawing.StreetVisualizer", Spy)
    return used


def labels(visualizer):
    return [text.get_text() for text in visualizer.output.ax.texts]


def test_labels_name_class_and_score_and_tiny_objects_have_none(visualizers):
    # At a width of 1024 letters are 18 pixels high, 9 at half the size.
    found = predictions(
        512, 1024, (CAR, 0.934, (500, 300, 520, 318)), (PERSON, 0.8, (500, 50, 520, 67))
    )
    draw_predictions(grey(), found, METADATA)
    assert labels(visualizers[0]) == ["car 93%"]


def test_groups_are_dashed_and_hatched_and_lie_below(visualizers):
    single = annotation(CAR, rectangle(100, 100, 300, 300))
    group = annotation(CAR, rectangle(150, 150, 250, 250), crowd=True)
    draw_ground_truth(grey(), {"annotations": [single, group]}, METADATA)
    lower, upper = visualizers[0].output.ax.patches
    assert (lower.get_linestyle(), upper.get_linestyle()) == ("--", "-")
    assert lower.get_hatch() and not upper.get_hatch()
    assert lower.get_facecolor()[3] < upper.get_facecolor()[3]
    assert sorted(labels(visualizers[0])) == ["car", "car group"]


def test_pictures_stand_below_their_captions():
    row = side_by_side([("one", grey(40, 200) - 90), ("two", grey(30, 100) - 10)])
    # Letters of at least 14 pixels; the bar is 1.8 times as high, 25; the gap half, 7.
    assert row.shape == (25 + 40, 200 + 7 + 100, 3)
    assert (row[25:, :200] == 10).all()
    assert (row[25:55, 207:] == 90).all()
    for white in (row[55:, 207:], row[:, 200:207], row[:2]):
        assert (white == 255).all()
    for caption in (row[:25, :200], row[:25, 207:]):
        assert caption.min() < 60  # ink
    # 2048 / 45 = 45.5, 46 high; 1.8 * 46 = 82.8
    assert side_by_side([("one", grey(10, 2048))]).shape == (83 + 10, 2048, 3)


def test_a_warning_does_not_cover_the_caption():
    red = (213, 94, 0)
    beside = side_by_side([("one", grey(40, 200)), ("two", grey(40, 200))], "NO")
    assert beside.shape == (25 + 40, 200 + 7 + 200, 3)
    assert (beside[:25, -40:] == red).all(axis=2).any()
    above = side_by_side([("a caption as wide as this", grey(40, 200))], "NO")
    assert above.shape == (25 + 25 + 40, 200, 3)
    assert (above[:25] == red).all(axis=2).any()
    assert not (above[25:50] == red).all(axis=2).any()


def test_semantic_labels_leave_out_what_has_no_class():
    train_ids = np.full((512, 1024), 255, dtype=np.uint8)
    train_ids[:, :512] = 0
    picture = draw_semantic_labels(grey(), train_ids, METADATA)
    assert_color(picture[500, 20], (114, 82, 114))  # ((100 + 128) / 2, (100 + 64) / 2, ...)
    assert_color(picture[500, 1000], (100, 100, 100))
