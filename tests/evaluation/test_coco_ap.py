"""COCO-style scores: pycocotools' numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cityscapes_maskrcnn.data.labels import THING_CLASSES
from cityscapes_maskrcnn.evaluation.coco_ap import (
    CocoImage,
    coco_image,
    coco_scores,
    format_coco_scores,
)
from cityscapes_maskrcnn.evaluation.instance_ap import Prediction, ground_truth
from cityscapes_maskrcnn.evaluation.masks import RunMask, mask_from_bitmap

HEIGHT, WIDTH = 180, 240
LABEL_IDS = (24, 25, 26, 27, 28, 31, 32, 33)
CAR = 2


def filled(y0: int, y1: int, x0: int, x1: int) -> RunMask:
    full = np.zeros((HEIGHT, WIDTH), dtype=bool)
    full[y0:y1, x0:x1] = True
    return mask_from_bitmap(full)


def random_image(random: np.random.Generator) -> tuple[np.ndarray, list[Prediction]]:
    """Instances and groups of 4 classes, and predictions that resemble some of them."""
    ids = np.full((HEIGHT, WIDTH), 7, dtype=np.uint16)
    for number in range(random.integers(0, 9)):
        y0, x0 = random.integers(0, 120), random.integers(0, 180)
        label = int(random.choice([24, 26, 31, 33]))
        value = label if random.random() < 0.2 else label * 1000 + number
        ids[y0 : y0 + random.integers(4, 160), x0 : x0 + random.integers(4, 200)] = value
    predictions = []
    for value in np.unique(ids)[1:].tolist() * 2:
        found = np.roll(ids == value, random.integers(-6, 7, size=2).tolist(), axis=(0, 1))
        x0, y0 = random.uniform(0, 80, size=2).tolist()
        box = (x0, y0, x0 + random.uniform(5, 60), y0 + random.uniform(5, 40))
        category = LABEL_IDS.index(value if value < 1000 else value // 1000)
        predictions.append(
            Prediction(
                mask_from_bitmap(found),
                category,
                random.random(),
                box if random.random() < 0.3 else None,
            )
        )
    return ids, predictions


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_equals_pycocotools(iou_type: Any) -> None:
    """Full-frame masks encoded by pycocotools, its ``loadRes``, its matching in Python."""
    random = np.random.default_rng(3)
    images = [random_image(random) for _ in range(12)]
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image_id, (ids, predictions) in enumerate(images):
        for value in np.unique(ids)[1:].tolist():
            rle = coco_mask.encode(np.asfortranarray(ids == value, dtype=np.uint8))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": LABEL_IDS.index(value if value < 1000 else value // 1000) + 1,
                    "segmentation": rle,
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "area": int((ids == value).sum()),
                    "iscrowd": int(value < 1000),
                }
            )
        for prediction in predictions:
            rle = coco_mask.encode(np.asfortranarray(prediction.mask.frame()))
            x0, y0, width, height = coco_mask.toBbox(rle).tolist()
            if prediction.box is not None:
                x0, y0 = prediction.box[:2]
                width, height = prediction.box[2] - x0, prediction.box[3] - y0
            detections.append(
                {
                    "image_id": image_id,
                    "category_id": prediction.category + 1,
                    "score": prediction.confidence,
                    **({"bbox": [x0, y0, width, height]} if iou_type == "bbox" else {}),
                    **({"segmentation": rle} if iou_type == "segm" else {}),
                }
            )
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(12)],
        "categories": [{"id": i, "name": n} for i, n in enumerate(THING_CLASSES, start=1)],
        "annotations": annotations,
    }
    coco.createIndex()
    expected = COCOeval(coco, coco.loadRes(detections), iou_type)
    expected.evaluate()
    expected.accumulate()
    expected.summarize()
    converted = [coco_image(ground_truth(i), p) for i, p in images]
    before = repr(converted)
    scores = coco_scores(converted, iou_type)
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert [scores[name] for name in names] == expected.stats[:6].tolist()
    assert scores["AR100"] == expected.stats[8]
    assert repr(converted) == before  # COCO's evaluation edits the annotations it is given
    for index, name in enumerate(THING_CLASSES):
        precision = expected.eval["precision"][:, :, index, 0, -1]
        per_class = precision.mean() if (precision > -1).any() else math.nan
        np.testing.assert_allclose(scores[f"AP-{name}"], per_class, rtol=1e-12)
    assert all(0.05 < scores[name] < 0.95 for name in names)


def one_car(predictions: list[Prediction]) -> CocoImage:
    ids = np.full((HEIGHT, WIDTH), 7, dtype=np.uint16)
    ids[0:50, 0:40] = 26000  # 2,000 pixels: between 32 * 32 and 96 * 96, medium
    ids[60:80, 0:40] = 24  # a group of persons
    ids[100:120, :] = 0  # void
    return coco_image(ground_truth(ids), predictions)


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_one_class(iou_type: Any, capsys: pytest.CaptureFixture[str]) -> None:
    scores = coco_scores([one_car([Prediction(filled(0, 50, 0, 40), CAR, 0.9)])], iou_type)
    # Also: pycocotools takes an annotation with the id 0 for none.
    for name in ("AP", "AP50", "AP75", "APm", "AR100", "AP-car"):
        assert scores[name] == pytest.approx(1.0)
    for name in ("APs", "APl", "AP-person"):  # a group alone is no ground truth
        assert math.isnan(scores[name])
    assert capsys.readouterr().out == ""
    for nothing in ([], [Prediction(filled(0, 0, 0, 0), CAR, 0.9)]):
        scores = coco_scores([one_car(nothing)], iou_type)
        assert [scores[name] for name in ("AP", "AP50", "AR100", "AP-car")] == [0.0] * 4
    bare = coco_image(ground_truth(np.full((9, 9), 7, dtype=np.uint16)), [])
    for images in ([bare], []):
        assert all(math.isnan(score) for score in coco_scores(images, iou_type).values())


def test_void_does_not_excuse_a_false_positive_and_a_crowd_does() -> None:
    found = Prediction(filled(0, 50, 0, 40), CAR, 0.5)
    on_void = Prediction(filled(100, 120, 0, 40), CAR, 0.9)
    # Precision 1/2 at every recall; officially the prediction on void would not count.
    assert coco_scores([one_car([found, on_void])], "segm")["AP-car"] == pytest.approx(0.5)
    ids = np.full((HEIGHT, WIDTH), 7, dtype=np.uint16)
    ids[60:80, 0:40], ids[85:95, 0:20] = 24, 24001
    persons = [Prediction(filled(60, 80, 0, 20), 0, 0.9), Prediction(filled(85, 95, 0, 20), 0, 0.5)]
    image = coco_image(ground_truth(ids), persons)
    assert coco_scores([image], "segm")["AP-person"] == pytest.approx(1.0)


def test_size_limits() -> None:
    """A found car of 10 x 20 pixels: small for COCO, large where that begins at 150."""
    ids = np.full((HEIGHT, WIDTH), 7, dtype=np.uint16)
    ids[20:30, 40:60] = 26000
    found = Prediction(filled(20, 30, 40, 60), CAR, 0.9)
    images = [coco_image(ground_truth(ids), [found])]
    for limits, expected in (((32**2, 96**2), "APs"), ((150, 250), "APm"), ((50, 150), "APl")):
        scores = coco_scores(images, "segm", size_limits=limits)
        by_size = {key: scores[key] for key in ("APs", "APm", "APl")}
        assert [key for key, value in by_size.items() if not math.isnan(value)] == [expected]
        assert by_size[expected] == pytest.approx(1.0)


def test_table_names_its_protocol() -> None:
    scores = coco_scores([one_car([Prediction(filled(0, 50, 0, 40), CAR, 0.9)])], "segm")
    lines = format_coco_scores({"masks": scores, "boxes": scores}).splitlines()
    assert "COCO-style protocol (pycocotools)" in lines[0]
    assert lines[1].split() == ["masks", "boxes"]
    assert lines[2].split() == ["AP", "100.00", "100.00"]
