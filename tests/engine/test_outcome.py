from __future__ import annotations

import pytest

from cityscapes_maskrcnn.engine.outcome import short_names


@pytest.mark.parametrize(
    ("datasets", "expected"),
    [
        (["cityscapes_instance_train"], "train"),
        (["cityscapes_coarse_semantic_train", "mine"], "coarse train, mine"),
        (["cityscapes_instance_val_part3and4of4"], "val parts 3-4 of 4"),
        (
            ["cityscapes_instance_train"]
            + [f"cityscapes_instance_val_part{part}of4" for part in (1, 2)],
            "train, val parts 1 and 2 of 4",
        ),
        (
            ["cityscapes_instance_val_part1of4", "cityscapes_instance_val_part2of2"],
            "val part 1 of 4, val part 2 of 2",
        ),
    ],
)
def test_datasets_have_short_names(datasets: list[str], expected: str) -> None:
    assert short_names(datasets) == expected
