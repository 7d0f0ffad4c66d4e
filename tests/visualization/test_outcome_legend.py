from __future__ import annotations

from cityscapes_maskrcnn.evaluation.telling_examples import OUTCOMES
from cityscapes_maskrcnn.visualization.outcome_legend import (
    GROUND_TRUTH_EDGES,
    PREDICTION_EDGES,
)


def test_every_outcome_has_an_outline_of_its_own() -> None:
    assert set(PREDICTION_EDGES) == set(OUTCOMES)
    assert set(GROUND_TRUTH_EDGES) == {
        "found",
        "missed",
        "not counted",
        "group, not counted",
    }
    hatched = [name for name, edge in GROUND_TRUTH_EDGES.items() if edge.is_hatched]
    assert hatched == ["group, not counted"]
    assert len({edge.color for edge in PREDICTION_EDGES.values()}) == len(OUTCOMES)
    assert len({edge.dashes for edge in list(PREDICTION_EDGES.values())[1:]}) == len(OUTCOMES) - 1
