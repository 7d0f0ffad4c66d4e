from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from cityscapes_maskrcnn.modeling.thresholds import check_matching, check_thresholds
from cityscapes_maskrcnn.utils.errors import InputError

LABELS = [0, -1, 1]


def test_detectron2s_defaults_and_the_recipes_band_pass():
    cfg = get_cfg()
    check_thresholds(cfg)
    foreground = 0.4154
    cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS = [foreground / 2, foreground]
    cfg.MODEL.ROI_HEADS.IOU_LABELS = LABELS
    cfg.MODEL.RPN.IOU_THRESHOLDS = [0.2198, 0.7889]
    check_thresholds(cfg)


@pytest.mark.parametrize(
    ("thresholds", "labels", "message"),
    [
        ([0.7, 0.3], LABELS, r"MODEL\.RPN\.IOU_THRESHOLDS \[0\.7, 0\.3\].*wrong order"),
        ([0.3, 1.2], LABELS, "at most 1"),
        ([0.0, 0.5], LABELS, "above 0"),
        ([float("nan")], [0, 1], "above 0"),
        ([], [1], "at least one"),
        ([0.3, 0.7], [0, 1], r"3 intervals, but MODEL\.RPN\.IOU_LABELS \[0, 1\] names 2"),
        ([0.5], LABELS, "2 intervals"),
        ([0.5], [0, 2], "a label is 0"),
    ],
)
def test_bad_ones_get_one_line(thresholds, labels, message):
    with pytest.raises(InputError, match=message):
        check_matching("MODEL.RPN", thresholds, labels)
    cfg = get_cfg()
    for node in (cfg.MODEL.ROI_HEADS, cfg.MODEL.RPN):
        check_thresholds(cfg)
        node.IOU_THRESHOLDS, node.IOU_LABELS = thresholds, labels
        with pytest.raises(InputError):
            check_thresholds(cfg)
        node.IOU_THRESHOLDS, node.IOU_LABELS = [0.5], [0, 1]


def test_what_passes_is_what_detectron2s_matcher_takes():
    check_matching("MODEL.RPN", [0.2, 0.4], LABELS)
    quality = torch.tensor([[0.1, 0.199, 0.2, 0.3, 0.399, 0.4, 0.9]])
    _, labels = Matcher([0.2, 0.4], LABELS)(quality)
    assert labels.tolist() == [0, 0, -1, -1, -1, 1, 1]


def test_the_box_head_samples_nothing_from_the_ignored_band():
    truth = Instances((100, 100))
    truth.gt_boxes = Boxes([[0.0, 0.0, 10.0, 10.0]])
    truth.gt_classes = torch.tensor([5])
    # Of the same height and corner: the IoU is the smaller width by the larger, 0.8, 0.3, 0.1.
    proposals = Instances((100, 100))
    proposals.proposal_boxes = Boxes([[0.0, 0.0, width, 10.0] for width in (8.0, 3.0, 1.0)])
    proposals.objectness_logits = torch.zeros(3)
    heads = StandardROIHeads.__new__(StandardROIHeads)
    torch.nn.Module.__init__(heads)
    heads.proposal_matcher = Matcher([0.2, 0.4], LABELS)
    heads.num_classes, heads.batch_size_per_image, heads.positive_fraction = 8, 10, 0.5
    heads.proposal_append_gt = False
    with EventStorage():
        (sampled,) = heads.label_and_sample_proposals([proposals], [truth])
    widths = sampled.proposal_boxes.tensor[:, 2].tolist()
    # 8 is background's number.
    assert sorted(zip(widths, sampled.gt_classes.tolist(), strict=True)) == [(1.0, 8), (8.0, 5)]
