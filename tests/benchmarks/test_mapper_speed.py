from __future__ import annotations

from pathlib import Path

from cityscapes_maskrcnn.benchmarks.mapper_speed import benchmark_mapper

STAGE_1 = Path(__file__).parents[2] / "configs" / "stage_1_heads.yaml"


def test_ratios_are_those_of_equal_results() -> None:
    """On an idle machine they are about 3, 3, 2 and 10."""
    rows = benchmark_mapper(config_file=str(STAGE_1), small=True)
    ratios = {row.name: row.ratio for row in rows}
    assert list(ratios) == [
        "decoding",
        "mapper, fast resize",
        "mapper, exact",
        "mapper, fast resize, decoded images cached",
    ]
    assert ratios["mapper, fast resize"] > 1.3
    assert ratios["mapper, fast resize, decoded images cached"] > 3
    assert {row.unit for row in rows} == {"images/s"}
    assert "PNGs of 2." in rows[0].note
