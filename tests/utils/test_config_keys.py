from __future__ import annotations

import pytest

from cityscapes_maskrcnn.utils.config_keys import value_at


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
