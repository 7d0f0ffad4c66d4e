"""Which groups of layers stay in float, by what each costs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cityscapes_maskrcnn.deploy.accuracy_control import Trial, choose_float_groups
from cityscapes_maskrcnn.utils.errors import InputError

# AP points that int8 costs in a group; the backbone has no choice.
COSTS = {"backbone": 0.125, "FPN": 1.0, "box head": 0.25, "mask head": 3.0}
GROUPS = ["FPN", "box head", "mask head"]


def score(float_groups: Sequence[str], few_images: bool) -> Trial:
    loss = sum(cost for group, cost in COSTS.items() if group not in float_groups)
    return Trial(tuple(float_groups), few_images, ap=30 - loss, loss=loss)


def test_what_costs_most_stays_in_float_until_the_budget_is_kept() -> None:
    trials = choose_float_groups(GROUPS, score, budget=0.5)
    assert [(trial.float_groups, trial.few_images, trial.loss) for trial in trials] == [
        ((), False, 4.375),
        (("FPN",), True, 3.375),
        (("box head",), True, 4.125),
        (("mask head",), True, 1.375),
        (("mask head",), False, 1.375),
        (("mask head", "FPN"), False, 0.375),
    ]
    assert choose_float_groups(GROUPS, score, budget=0.2)[-1].float_groups == (
        "mask head",
        "FPN",
        "box head",
    )


def test_within_the_budget_nothing_else_is_tried() -> None:
    assert choose_float_groups(GROUPS, score, budget=4.5) == [score([], False)]


def test_a_budget_that_nothing_keeps() -> None:
    with pytest.raises(InputError) as error:
        choose_float_groups(GROUPS, score, budget=0)
    assert str(error.value) == (
        "nothing can be quantised within --budget 0: the best file loses 0.12 points of AP, with"
        " mask head, FPN, box head in float"
    )
