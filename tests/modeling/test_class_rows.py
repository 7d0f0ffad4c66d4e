"""Rows of heads by class: which row of a file becomes which row of a model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cityscapes_maskrcnn.modeling.class_rows import count_classes, match_classes
from cityscapes_maskrcnn.utils.errors import InputError

D2 = (
    "roi_heads.box_predictor.cls_score",
    "roi_heads.box_predictor.bbox_pred",
    "roi_heads.mask_head.predictor",
)
MMDET = ("roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg", "roi_head.mask_head.conv_logits")


def heads(classes: int, start: int, names: tuple[str, ...] = D2, prefix: str = "") -> dict:
    """Biases whose values are their row, from a number on: scores, boxes, masks."""
    counts = (classes + 1, 4 * classes, classes)
    state: dict[str, Tensor] = {
        f"{prefix}{name}.bias": torch.arange(count) + start + 100.0 * layer
        for layer, (name, count) in enumerate(zip(names, counts, strict=True))
    }
    state[f"{prefix}{names[2]}.weight"] = torch.arange(2.0 * classes).view(classes, 2, 1, 1)
    return state


@pytest.mark.parametrize("names", [D2, MMDET])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_rows_follow_the_names(names: tuple[str, ...], prefix: str) -> None:
    """Of person, bicycle, car and background: car, a rider from person, and a bus that is new."""
    file = {**heads(3, 0, names, prefix), "neck.bias": torch.zeros(3)}
    result, missing, table = match_classes(
        file, "zoo.pkl", ["person", "bicycle", "car"], ["car", "rider", "bus"], heads(3, 500)
    )
    assert missing == ["bus"]
    scores, boxes, masks = (result[f"{prefix}{name}.bias"].tolist() for name in names)
    assert scores == [2, 0, 502, 3]
    # Boxes are 100 and more: four rows a class.
    assert boxes == [108, 109, 110, 111, 100, 101, 102, 103, 608, 609, 610, 611]
    assert masks == [202, 200, 702]
    weights = result[f"{prefix}{names[2]}.weight"]
    assert weights.shape == (3, 2, 1, 1)
    assert weights.flatten().tolist() == [4, 5, 0, 1, 4, 5]
    assert result["neck.bias"] is file["neck.bias"]
    assert table.splitlines()[:5] == [
        "zoo.pkl: its heads by class, of 3:",
        "  car         row   2  car",
        "  rider       row   0  person",
        "  bus         starts from scratch",
        "  background  row   3",
    ]
    assert f"\n  {prefix}{names[1]}.bias (12,) -> (12,)" in table


def test_patches_have_three_kinds_and_six_frequencies_of_each_class() -> None:
    kind, vector = (f"roi_heads.mask_head.patch_{name}.bias" for name in ("kind", "vector"))
    file = {kind: torch.arange(6.0), vector: torch.arange(12.0)}
    initial = {kind: torch.arange(9.0) + 500, vector: torch.arange(18.0) + 500}
    theirs, ours = ["person", "car"], ["car", "bus", "person"]
    result, missing, _ = match_classes(file, "own.pth", theirs, ours, initial)
    assert missing == ["bus"]
    assert result[kind].tolist() == [3, 4, 5, 503, 504, 505, 0, 1, 2]
    assert result[vector].tolist() == [*range(6, 12), *range(506, 512), *range(6)]


def test_riders_of_the_file_come_first() -> None:
    result, _, _ = match_classes(heads(2, 0), "f", ["person", "rider"], ["rider"], heads(1, 500))
    assert result[f"{D2[0]}.bias"].tolist() == [1, 2]


def test_cascades_and_class_agnostic_layers() -> None:
    name = "roi_heads.box_predictor.1.cls_score.weight"
    agnostic = "roi_heads.box_predictor.1.bbox_pred.weight"
    file = {name: torch.arange(4.0)[:, None], agnostic: torch.zeros(4, 1)}
    own = {name: torch.zeros(3, 1), agnostic: torch.zeros(4, 1)}
    assert count_classes(file) == 3
    result, _, _ = match_classes(file, "f", ["a", "b", "car"], ["car", "b"], own)
    assert result[name].flatten().tolist() == [2, 1, 3]
    assert result[agnostic] is file[agnostic]


def test_other_numbers_are_refused_and_other_widths_stay() -> None:
    with pytest.raises(InputError, match=r"f: .*cls_score\.bias has 4 rows, which are not .* 2 cl"):
        match_classes(heads(3, 0), "f", ["person", "car"], ["car"], heads(1, 0))
    assert count_classes({"backbone.weight": torch.zeros(3)}) is None
    name = f"{D2[0]}.weight"
    wide, narrow = {name: torch.zeros(3, 9)}, {name: torch.zeros(2, 5)}
    result, missing, _ = match_classes(wide, "f", ["cat", "dog"], ["bus"], narrow)
    assert result[name] is wide[name]
    assert missing == ["bus"]
