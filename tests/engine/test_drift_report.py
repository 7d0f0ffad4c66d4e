from __future__ import annotations

import logging

import pytest
import torch
from PIL import Image

from cityscapes_maskrcnn.engine.drift_report import write_drift_report
from cityscapes_maskrcnn.modeling.deeplab_weights import deeplab_shapes
from cityscapes_maskrcnn.utils.errors import InputError


def constant_state(value):
    """A ResNet-50 of one number; it takes no memory."""
    return {name: torch.tensor(value).expand(shape) for name, shape in deeplab_shapes().items()}


def test_writes_numbers_table_and_picture(tmp_path, caplog):
    folder = tmp_path / "out"
    with pytest.raises(InputError, match="end of the drift report"):
        write_drift_report(constant_state(1.0), {"w": torch.zeros(2)}, folder)
    assert not folder.exists()
    with caplog.at_level(logging.INFO, logger="cityscapes_maskrcnn"):
        write_drift_report(constant_state(2.0), constant_state(2.5), folder)
    assert {path.name for path in folder.iterdir()} == {"drift.csv", "drift.md", "drift.png"}
    # (2.5 - 2) / 2 = 0.25
    lines = (folder / "drift.csv").read_text().splitlines()
    assert lines[1] == "stem,9536,0.25,0.25,0.25,0.25"
    table = (folder / "drift.md").read_text()
    assert table.startswith("| layers ")
    (record,) = caplog.records
    assert record.getMessage() == f"The backbone moved from its start by\n{table.rstrip()}"
    with Image.open(folder / "drift.png") as image:
        assert image.format == "PNG"
