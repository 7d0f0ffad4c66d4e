from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances, ROIMasks

from cityscapes_maskrcnn.data.images import read_label_image
from cityscapes_maskrcnn.data.labels import train_id_lookup
from cityscapes_maskrcnn.engine.evaluation_pictures import SampledPredictions
from cityscapes_maskrcnn.engine.event_writers import RunStorage

VAL = "cityscapes_instance_val"
SEMANTIC = "cityscapes_fine_semantic_val"
Config = Callable[..., CfgNode]


def found(*scores: float) -> Instances:
    """One box in the middle of the image a score, its mask unpasted."""
    number = len(scores)
    return Instances(
        (96, 192),
        pred_boxes=Boxes(torch.tensor([[60.0, 30.0, 120.0, 70.0]]).repeat(number, 1)),
        pred_classes=torch.full((number,), 2),
        scores=torch.tensor(scores),
        pred_masks=ROIMasks(torch.ones(number, 28, 28)),
    )


def test_pictures_are_of_the_same_images_in_every_evaluation(config: Config) -> None:
    cfg = config("TRACKING.NUM_PICTURES", 2)
    records = DatasetCatalog.get(VAL)
    samples = SampledPredictions(cfg, VAL)
    shown = []
    for evaluation in range(2):
        samples.reset()
        for record in records:
            samples.process([record], [{"instances": found(0.9, 0.4, 0.7)}])
        with RunStorage(evaluation) as storage:
            samples.put_pictures(storage, "predictions")
        shown.append({name: picture for name, picture, _ in storage._vis_data})
        assert {iteration for _, _, iteration in storage._vis_data} == {evaluation}
    first, second = shown
    names = [
        f"predictions/{Path(record['file_name']).stem}"
        for record in records
        if record["annotations"]
    ]
    assert (len(records), len(names)) == (6, 5)
    assert [*first] == [*second] == [names[0], names[2]]
    for name, picture in first.items():
        assert picture.dtype == np.uint8
        assert np.array_equal(picture, second[name])
        channels, height, width = picture.shape
        assert (channels, width) == (3, 1600)
        # The detections are in the right half. What was below the threshold is not drawn.
        left, right = picture[:, :, :780], picture[:, :, 820:]
        box = np.s_[:, height // 2 - 40 : height // 2 + 40, 300:400]
        assert not np.array_equal(left[box], right[box])


def test_no_pictures(config: Config) -> None:
    samples = SampledPredictions(config("TRACKING.NUM_PICTURES", 0), VAL)
    samples.process([DatasetCatalog.get(VAL)[0]], [{"instances": found()}])
    with RunStorage() as storage:
        samples.put_pictures(storage, "predictions")
    assert not storage._vis_data


def test_semantic_labels_are_drawn_too(config: Config) -> None:
    cfg = config("TRACKING.NUM_PICTURES", 1, stage="stage_0_backbone")
    samples = SampledPredictions(cfg, SEMANTIC)
    (record,) = DatasetCatalog.get(SEMANTIC)[:1]
    labels = train_id_lookup()[read_label_image(record["sem_seg_file_name"])]
    scores = torch.nn.functional.one_hot(torch.from_numpy(labels % 19).long(), 19)
    samples.process([record], [{"sem_seg": scores.permute(2, 0, 1).float()}])
    with RunStorage() as storage:
        samples.put_pictures(storage, "predictions")
    ((_, picture, _),) = storage._vis_data
    # A perfect prediction looks as the ground truth, but where that has no class.
    left, right = picture[:, 40:, :780].astype(int), picture[:, 40:, -780:].astype(int)
    assert np.median(np.abs(left - right)) < 8


def test_a_damaged_image_costs_its_picture_alone(
    config: Config, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    samples = SampledPredictions(config("TRACKING.NUM_PICTURES", 2), VAL)
    records = DatasetCatalog.get(VAL)
    first, other = list(samples._records)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    samples._records[first] = {**samples._records[first], "file_name": str(broken)}
    for record in records:
        samples.process([record], [{"instances": found(0.9)}])
    with RunStorage() as storage:
        samples.put_pictures(storage, "predictions")
    assert [name for name, _, _ in storage._vis_data] == [f"predictions/{Path(other).stem}"]
    assert "No picture of the predictions: " in caplog.text
