from __future__ import annotations

import numpy as np
import pytest

from cityscapes_maskrcnn.evaluation.masks import mask_from_bitmap
from cityscapes_maskrcnn.visualization.drawing import RgbImage
from cityscapes_maskrcnn.visualization.outcome_drawing import draw_outcomes, outcome_object
from cityscapes_maskrcnn.visualization.outcome_legend import GROUND_TRUTH_EDGES, PREDICTION_EDGES

CAR = 2
YELLOW = (240, 228, 66)
GREY = np.full((64, 128, 3), 100, np.uint8)
# Columns 40 to 79, rows 20 to 49.
MASK = mask_from_bitmap(np.ones((30, 40)), x0=40, y0=20, height=64, width=128)


def draw(outcome: str, title: str = "Prediction") -> RgbImage:
    item = outcome_object(MASK, CAR, outcome, PREDICTION_EDGES, score=0.871)
    return draw_outcomes(GREY, [item], PREDICTION_EDGES, title)


@pytest.mark.parametrize(
    ("outcome", "label"),
    [("found", "car 87%"), ("not counted", "car 87%"), ("poor mask", "car 87% poor mask")],
)
def test_labels(outcome: str, label: str) -> None:
    item = outcome_object(MASK, CAR, outcome, PREDICTION_EDGES, score=0.871)
    assert item.label == label
    np.testing.assert_array_equal(item.box, [40, 20, 80, 50])
    assert (item.edge is None) == (outcome == "found")


def test_groups_are_named() -> None:
    group = outcome_object(MASK, CAR, "not counted", GROUND_TRUTH_EDGES, is_group=True)
    assert (group.label, group.is_group) == ("car group", True)


def test_outline_and_strip() -> None:
    wrong, found = draw("background"), draw("found", "Another title")
    # Enlarged eight times; the strip has 4.2 letters of 16 pixels.
    assert wrong.shape == found.shape == (512 + 67, 1024, 3)
    # On the lower border, away from the label.
    border = (slice(8 * 50 - 4, 8 * 50 + 4), 8 * 45)
    assert (abs(wrong[border].astype(int) - YELLOW).max(axis=1) < 40).any()
    assert not (abs(found[border].astype(int) - YELLOW).max(axis=1) < 40).any()
    # A car is (0, 0, 142), half of it over the grey.
    np.testing.assert_allclose(wrong[8 * 46, 8 * 45].astype(int), (50, 50, 121), atol=2)
    # The samples of the strip do not depend on what is drawn; the title above them is not.
    assert (wrong[-28:] == found[-28:]).all()
    assert (wrong[512:540] != found[512:540]).any()
