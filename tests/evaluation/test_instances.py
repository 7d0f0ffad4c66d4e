from __future__ import annotations

import copy

import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances, ROIMasks

from cityscapes_maskrcnn.benchmarks.operation_count import OperationCounter
from cityscapes_maskrcnn.evaluation.instances import to_image_scale

INPUT_SIZE = (96, 192)


def detections(number: int, seed: int) -> Instances:
    """What a network predicts: boxes in its input, some of which leave it or have no area."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(number, 2, generator=generator) * torch.tensor([220.0, 110.0]) - 10
    size = 60 * torch.rand(number, 2, generator=generator) - 2
    instances = Instances(INPUT_SIZE)
    instances.pred_boxes = Boxes(torch.cat([corner, corner + size.clamp(min=0)], dim=1))
    instances.scores = torch.rand(number, generator=generator)
    instances.pred_classes = torch.randint(8, (number,), generator=generator)
    instances.pred_masks = torch.rand(number, 1, 28, 28, generator=generator)
    instances.pred_keypoints = torch.rand(number, 3, 3, generator=generator)
    return instances


RESULTS = [detections(30, seed=0), detections(0, seed=1), detections(40, seed=2)]
SIZES = [(1024, 2048), (96, 192), (77, 301)]


def test_to_image_scale_equals_detectron2() -> None:
    before = copy.deepcopy(RESULTS)
    found = to_image_scale(RESULTS, SIZES)
    kept = 0
    for instances, raw, unchanged, size in zip(found, RESULTS, before, SIZES, strict=True):
        assert torch.equal(raw.pred_boxes.tensor, unchanged.pred_boxes.tensor)
        expected = detector_postprocess(unchanged, *size)
        assert instances.image_size == expected.image_size == size
        for name in ("scores", "pred_classes", "pred_keypoints"):
            assert torch.equal(instances.get(name), expected.get(name))
        assert torch.equal(instances.pred_boxes.tensor, expected.pred_boxes.tensor)
        assert isinstance(instances.pred_masks, ROIMasks)
        pasted = instances.pred_masks.to_bitmasks(instances.pred_boxes, *size).tensor
        assert torch.equal(pasted, expected.pred_masks)
        kept += len(instances)
    assert 20 < kept < sum(map(len, RESULTS)), "some boxes are outside, most are not"


def test_to_image_scale_waits_once_for_all_images() -> None:
    with OperationCounter() as count:
        to_image_scale(RESULTS, SIZES)
    assert count.waiting.total() == 1
    assert to_image_scale([], []) == []


def test_boxes_alone() -> None:
    instances = detections(20, seed=3)
    for name in ("pred_masks", "pred_keypoints"):
        instances.remove(name)
    (found,) = to_image_scale([instances], [(50, 60)])
    expected = detector_postprocess(instances, 50, 60)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.scores, expected.scores)
