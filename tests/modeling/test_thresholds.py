from __future__ import annotations

import pytest
from detectron2.config import get_cfg

from cityscapes_maskrcnn.modeling.thresholds import check_thresholds
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
    cfg = get_cfg()
    for name in ("RPN", "ROI_HEADS"):
        node = cfg.MODEL[name]
        node.IOU_THRESHOLDS, node.IOU_LABELS = thresholds, labels
        with pytest.raises(InputError, match=message.replace("RPN", name)):
            check_thresholds(cfg)
        node.IOU_THRESHOLDS, node.IOU_LABELS = [0.5], [0, 1]
