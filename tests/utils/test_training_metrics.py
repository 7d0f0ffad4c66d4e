from __future__ import annotations

import logging
import math
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.utils.events import EventStorage, JSONWriter

from cityscapes_maskrcnn.utils.training_metrics import (
    Curve,
    Gap,
    find_gap,
    read_curves,
    without_imitation,
)

TRAINING = {0: 9.0, 20: 5.0, 40: 3.0, 60: 2.0, 80: 1.0, 95: 1.4}
VALIDATION = {49: 2.5, 99: 3.0}


def test_reads_what_detectron2_writes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    writer = JSONWriter(str(path), window_size=1)
    with EventStorage() as storage:
        for iteration, loss in enumerate([4.0, 2.0, math.nan]):
            storage.iter = iteration
            storage.put_scalar("total_loss", loss)
            if iteration == 1:
                storage.put_scalar("segm/AP", 12.5, smoothing_hint=False)
            writer.write()
    writer.close()
    curves = read_curves(path)
    assert curves["segm/AP"] == {1: 12.5}
    assert list(curves["total_loss"]) == [0, 1, 2]
    assert list(curves["total_loss"].values())[:2] == [4.0, 2.0]
    assert math.isnan(curves["total_loss"][2])


def test_resumed_and_interrupted_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(
        '{"iteration": 19, "lr": 1.0}\n{"iteration": 39, "lr": 2.0}\n'
        '{"iteration": 39, "segm/AP": 5}\n'
        # After the resume the later value counts.
        '{"iteration": 59, "lr": 3.0}\n{"iteration": 39, "lr": 2.5}\n'
        '{"iteration": 79, "l\n[1]\n\n{"lr": 7}\n'
    )
    with caplog.at_level(logging.WARNING):
        curves = read_curves(path)
    assert list(curves["lr"].items()) == [(19, 1.0), (39, 2.5), (59, 3.0)]
    assert curves["segm/AP"] == {39: 5.0}
    assert "3 lines are no metrics: skipped" in caplog.text


def test_losses_of_imitation_are_no_part_of_the_total() -> None:
    curves = {
        "total_loss": {9: 5.0, 19: 3.0, 29: 2.0},
        "loss_distill_features": {9: 1.5, 19: 0.5},
        "loss_distill_classes": {9: 0.25},
        "loss_mask": {9: 3.25},
    }
    assert without_imitation(curves) == {9: 3.25, 19: 2.5, 29: 2.0}
    assert without_imitation({"lr": {9: 1.0}}) == {}


@pytest.mark.parametrize(
    ("training", "validation", "expected"),
    [
        # Six values are smoothed over 6 // 40 = 0 neighbours, so the last one is as it is.
        (TRAINING, VALIDATION, Gap(training=1.4, validation=3.0, lowest=49, last=99)),
        ({0: 4.0, 9: 2.0}, {9: 2.5}, Gap(training=2.0, validation=2.5, lowest=None, last=9)),
        # 80 // 40 = 2 neighbours on each side; at the end there are the two before: (1 + 0 + 1) / 3
        (
            {at: float(at % 2) for at in range(80)},
            {79: 2.0},
            Gap(training=2 / 3, validation=2.0, lowest=None, last=79),
        ),
        ({}, VALIDATION, None),
        (TRAINING, {9: math.nan}, None),
    ],
)
def test_the_gap_is_between_the_ends_of_the_drawn_lines(
    training: Curve, validation: Curve, expected: Gap | None
) -> None:
    assert find_gap(training, validation) == expected


def test_numbers_do_not_need_matplotlib() -> None:
    code = (
        "import sys, cityscapes_maskrcnn.utils.training_metrics; print('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
