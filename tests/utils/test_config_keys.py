from __future__ import annotations

import pytest
from detectron2.config import CfgNode

from cityscapes_maskrcnn.utils.config_keys import (
    changed,
    config_items,
    flat_config,
    names_at,
    value_at,
)


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        ({"SOLVER": {"BASE_LR": 0.1}}, "SOLVER.BASE_LR", 0.1),
        ({"SEED": 0}, "SEED", 0),
        ({"SOLVER": {"BASE_LR": 0.1}}, "SOLVER.STEPS", None),
        ({"SOLVER": 5}, "SOLVER.BASE_LR", None),
        ([], "SOLVER.BASE_LR", None),
    ],
)
def test_values_by_their_whole_key(config: object, key: str, value: object) -> None:
    assert value_at(config, key) == value


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"DATASETS": {"TRAIN": ["a", "b"]}}, ["a", "b"]),
        ({"DATASETS": {"TRAIN": ("a", 5)}}, ["a", "5"]),
        ({"DATASETS": {"TRAIN": "a"}}, []),
        ({}, []),
    ],
)
def test_names(config: object, names: list[str]) -> None:
    assert names_at(config, "DATASETS.TRAIN") == names


def test_flat_configs() -> None:
    config = {"SEED": 0, "MODEL": {"RPN": {"IOU_LABELS": [0, -1, 1]}, "PRUNED_WIDTHS": {}}}
    assert [key for key, _ in config_items(config)] == [
        "SEED",
        "MODEL",
        "MODEL.RPN",
        "MODEL.RPN.IOU_LABELS",
        "MODEL.PRUNED_WIDTHS",
    ]
    assert flat_config(config) == {"SEED": 0, "MODEL.RPN.IOU_LABELS": [0, -1, 1]}


@pytest.mark.parametrize("frozen", [False, True])
def test_a_changed_config_is_a_copy(frozen: bool) -> None:
    cfg = CfgNode({"SEED": 0, "MODEL": {"WEIGHTS": "a.pth", "MASK_ON": True}})
    if frozen:
        cfg.freeze()
    copy = changed(cfg, {"MODEL.WEIGHTS": "1e5", "SEED": 3})
    assert copy == {"SEED": 3, "MODEL": {"WEIGHTS": "1e5", "MASK_ON": True}}
    assert cfg == {"SEED": 0, "MODEL": {"WEIGHTS": "a.pth", "MASK_ON": True}}
    assert (copy.is_frozen(), copy.MODEL.is_frozen()) == (frozen, frozen)
    assert cfg.is_frozen() == frozen
    assert changed(cfg, {}) == cfg
    with pytest.raises(KeyError, match=r"MODEL\.WEIGHT"):
        changed(cfg, {"MODEL.WEIGHT": "b.pth"})
