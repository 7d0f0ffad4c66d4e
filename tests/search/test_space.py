from __future__ import annotations

import json
from typing import Any

import optuna
import pytest
from detectron2.config import get_cfg

from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.search.space import Parameter, SearchSpace, config_keys
from cityscapes_maskrcnn.utils.errors import InputError


def nodes(**changes: dict[str, Any]) -> dict[str, Any]:
    """SEARCH.PARAMETERS as config.py has them, changed."""
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    for name, change in changes.items():
        cfg.SEARCH.PARAMETERS.setdefault(name, {}).update(change)
    return cfg.SEARCH.PARAMETERS


BEST = {
    "fg_iou_thresh": 0.4154,
    "rpn_positive_iou_thresh": 0.7889,
    "rpn_negative_iou_thresh": 0.2198,
    "fpn_grad_flow": True,
}


def test_the_reference_space() -> None:
    space = SearchSpace.from_config(nodes())
    assert {name: str(parameter) for name, parameter in space.parameters.items()} == {
        "fg_iou_thresh": "float 0.3 to 0.7",
        "rpn_positive_iou_thresh": "float 0.6 to 0.9",
        "rpn_negative_iou_thresh": "float 0.1 to 0.4",
        "fpn_grad_flow": "one of True, False",
    }
    assert space.first == BEST


@pytest.mark.parametrize(
    ("values", "keys", "expected"),
    [
        (
            BEST,
            {},
            {
                # Half of 0.4154, so candidates between 0.2077 and 0.4154 are ignored.
                "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.2077, 0.4154],
                "MODEL.ROI_HEADS.IOU_LABELS": [0, -1, 1],
                "MODEL.RPN.IOU_THRESHOLDS": [0.2198, 0.7889],
                "MODEL.RPN.IOU_LABELS": [0, -1, 1],
                "MODEL.FPN.FREEZE": False,
            },
        ),
        ({}, {}, {}),
        ({"unknown": 3}, {}, {}),
        (
            {"lr": 0.1, "other": 2},
            {"lr": "SOLVER.BASE_LR", "other": ""},
            {"SOLVER.BASE_LR": 0.1},
        ),
        ({"kmeans_anchors": False}, {}, {}),
        (
            {"kmeans_anchors": True},
            {},
            {
                "MODEL.ANCHOR_GENERATOR.NAME": "KMeansAnchorGenerator",
                "MODEL.ANCHOR_GENERATOR.SIZES": [],
            },
        ),
    ],
)
def test_values_become_config_keys(
    values: dict[str, Any], keys: dict[str, str], expected: dict[str, Any]
) -> None:
    assert config_keys(values, keys) == expected


def test_the_threshold_that_is_not_searched_stays_as_it_is() -> None:
    for values, expected in (
        ({"rpn_positive_iou_thresh": 0.8}, [0.4, 0.8]),
        ({"rpn_negative_iou_thresh": 0.2}, [0.2, 0.6]),
    ):
        assert config_keys(values, {}, (0.4, 0.6))["MODEL.RPN.IOU_THRESHOLDS"] == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"rpn_positive_iou_thresh": 0.3, "rpn_negative_iou_thresh": 0.4},
            "thresholds in the wrong order: rpn_negative_iou_thresh 0.4 must be below "
            "rpn_positive_iou_thresh 0.3",
        ),
        ({"rpn_negative_iou_thresh": 0.7}, "thresholds in the wrong order"),
        ({"fg_iou_thresh": 1.2}, "fg_iou_thresh 1.2: an IoU threshold lies between 0 and 1"),
        ({"fpn_grad_flow": "perhaps"}, "fpn_grad_flow 'perhaps': it must be True or False"),
    ],
)
def test_invalid_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_keys(values, {})


def test_a_space_is_widened_by_config() -> None:
    space = SearchSpace.from_config(
        nodes(
            base_lr={"ENABLED": True},
            fg_iou_thresh={"HIGH": 0.4},
            rpn_negative_iou_thresh={"ENABLED": False},
            steps={"KEY": "SOLVER.WARMUP_ITERS", "TYPE": "int", "LOW": 10, "HIGH": 20},
            # Plain yaml reads 1e-4 as text.
            clip={"KEY": "SOLVER.X", "LOW": "1e-4", "HIGH": 1, "LOG": True, "FIRST": 0.5},
        )
    )
    # Its first value, 0.4154, lies outside of the smaller range.
    assert "fg_iou_thresh" not in space.first
    assert space.first["clip"] == 0.5
    assert "rpn_negative_iou_thresh" not in space.parameters
    assert str(space.parameters["base_lr"]) == "float 1e-05 to 0.001, logarithmic"
    assert space.parameters["clip"].low == 1e-4
    values = []
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: float(not values.append(space.suggest(trial))), n_trials=20)
    for each in values:
        assert all(space.parameters[name].contains(value) for name, value in each.items())
        assert isinstance(each["steps"], int)
        assert isinstance(each["fpn_grad_flow"], bool)
    assert len({each["steps"] for each in values}) > 3
    stored = json.loads(json.dumps(space.to_json()))
    assert SearchSpace.from_config(stored).difference(space) == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fg_iou_thresh": {"LOW": 0.8}}, "fg_iou_thresh: LOW 0.8 is above HIGH 0.7"),
        ({"fg_iou_thresh": {"HIGH": 1.5}}, "an IoU threshold lies between 0 and 1"),
        ({"base_lr": {"ENABLED": True, "LOW": 0.0}}, "base_lr: LOG needs a LOW above 0"),
        ({"base_lr": {"ENABLED": True, "LOW": "few"}}, "LOW and HIGH must be numbers"),
        ({"base_lr": {"ENABLED": True, "HIGH": float("nan")}}, "LOW and HIGH must be numbers"),
        ({"x": {"LOW": 1, "HIGH": 2}}, "x.KEY is empty: name the config key that it sets"),
        ({"x": {"KEY": "SEED", "TYPE": "real"}}, "x.TYPE 'real': it must be float, int or"),
        ({"x": {"KEY": "SEED", "LOWER": 1}}, "x.LOWER: there is no such key"),
        ({"x": {"KEY": "SEED", "TYPE": "categorical"}}, "x.CHOICES is empty"),
        ({"x": {"KEY": "SEED", "CHOICES": 5}}, "x.CHOICES must be a list, not 5"),
        ({"x": {"KEY": "SEED", "LOW": "few", "FIRST": 1}}, "LOW and HIGH must be numbers"),
        (
            {"x": {"KEY": "SEED", "TYPE": "categorical", "CHOICES": [[1]]}},
            "x.CHOICES: only numbers, strings, True and False",
        ),
        (
            {"rpn_negative_iou_thresh": {"HIGH": 0.6}},
            "rpn_negative_iou_thresh.HIGH 0.6 must be below rpn_positive_iou_thresh.LOW 0.6: "
            "trials could have their thresholds in the wrong order",
        ),
    ],
)
def test_invalid_spaces(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SearchSpace.from_config(nodes(**changes))


def test_nothing_to_search() -> None:
    with pytest.raises(InputError, match="none is ENABLED"):
        SearchSpace.from_config({"x": {"ENABLED": False}})
    with pytest.raises(InputError, match="x must hold keys such as LOW"):
        SearchSpace.from_config({"x": 3})


def test_what_differs() -> None:
    one = SearchSpace({"fg_iou_thresh": Parameter("float", 0.3, 0.7)})
    flow = Parameter("categorical", choices=(True,))
    two = SearchSpace({**one.parameters, "fpn_grad_flow": flow})
    assert one.difference(two) == "fpn_grad_flow: not searched here, one of True there"
    assert two.difference(one) == "fpn_grad_flow: one of True here, not searched there"


@pytest.mark.parametrize(
    ("parameter", "value", "expected"),
    [
        (Parameter("float", 0.3, 0.7), 0.3, True),
        (Parameter("float", 0.3, 0.7), 0.71, False),
        (Parameter("float", 0.3, 1.7), True, False),
        (Parameter("float", 0.3, 0.7), "0.5", False),
        (Parameter("int", 1, 3), 1.5, False),
    ],
)
def test_contains(parameter: Parameter, value: object, expected: bool) -> None:
    assert parameter.contains(value) is expected
