from __future__ import annotations

import pytest

from cityscapes_maskrcnn.visualization.wrapping import wrapped


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fg_iou_thresh", "fg_iou_thresh"),
        ("rpn_negative_iou_thresh", "rpn_negative_iou_\nthresh"),
        ("model.backbone.lr_mult", "model.backbone.lr_\nmult"),
        ("a very long parameter name", "a very long\nparameter name"),
        ("two\nlines", "two lines"),
        ("$a$", r"\$a\$"),
        ("", ""),
        # Two thirds of three lines of 20 letters: 20 from either end.
        ("a" * 50 + "b" * 50, "a" * 20 + "\n…\n" + "b" * 20),
    ],
)
def test_names(name: str, expected: str) -> None:
    assert wrapped(name, 20) == expected
