from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.drift_report import DriftReport
from cityscapes_maskrcnn.modeling.deeplab_weights import deeplab_shapes
from cityscapes_maskrcnn.utils.errors import InputError


def train(report: DriftReport, start: float, end: float, start_iter: int = 0) -> None:
    """Have a backbone of one number trained to another one."""

    def model(value: float) -> SimpleNamespace:
        state = {name: torch.full(shape, value) for name, shape in deeplab_shapes().items()}
        return SimpleNamespace(backbone=SimpleNamespace(state_dict=lambda: state))

    report.trainer = SimpleNamespace(
        model=model(start), start_iter=start_iter, iter=start_iter, max_iter=9
    )
    report.before_train()
    report.after_train()
    report.trainer.model, report.trainer.iter = model(end), 9
    report.after_train()


def report(folder: Path, weights: str = "stage_2.pth") -> DriftReport:
    return DriftReport(build_config("", ["OUTPUT_DIR", str(folder), "MODEL.WEIGHTS", weights]), 8)


def test_random_weights_have_no_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="cityscapes_maskrcnn"):
        train(report(tmp_path, weights=""), 2.0, 2.5)
    assert caplog.messages[-1].startswith("No drift.png: training started from random weights")
    assert {path.name for path in tmp_path.iterdir()} == {
        "drift.csv",
        "drift.md",
        "start_weights.pth",
    }


def test_writes_numbers_table_and_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="cityscapes_maskrcnn"):
        train(report(tmp_path), 2.0, 2.5)
    lines = (tmp_path / "drift.csv").read_text().splitlines()
    assert lines[1] == "stem,9536,0.25,0.25,0.25,0.25"  # (2.5 - 2) / 2 = 0.25
    table = (tmp_path / "drift.md").read_text()
    assert table.startswith("| layers ")
    (record,) = caplog.records
    header = "Drift of the backbone from its initial weights:"
    assert record.getMessage() == f"{header}\n{table.rstrip()}"
    with Image.open(tmp_path / "drift.png") as image:
        assert image.format == "PNG"
    # A resumed run compares with the first start.
    train(report(tmp_path), 2.5, 3.0, start_iter=5)
    assert (tmp_path / "drift.csv").read_text().splitlines()[1].startswith("stem,9536,0.5,")


def test_the_picture_names_what_it_is_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[object] = []
    monkeypatch.setattr(
        "cityscapes_maskrcnn.engine.drift_report.plot_drift",
        lambda _, __, about: drawn.append(about),
    )
    train(report(tmp_path), 2.0, 2.5)
    (about,) = drawn
    assert str(about).startswith("8 images · Faster R-CNN ResNet-50, ")
    assert f"{tmp_path} · weights at the end compared with those at the start" in str(about)


def test_no_report_without_a_start_or_finite_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(report(tmp_path), 2.0, 2.5, start_iter=5)
    assert "No drift report" in caplog.text
    with pytest.raises(InputError, match="end of the drift report"):
        train(report(tmp_path), 2.0, float("nan"))
    assert [path.name for path in tmp_path.iterdir()] == ["start_weights.pth"]


def test_another_backbone_is_an_error_before_training(tmp_path: Path) -> None:
    hook = report(tmp_path)
    backbone = nn.Sequential(nn.Linear(2, 2))
    hook.trainer = SimpleNamespace(model=SimpleNamespace(backbone=backbone), start_iter=0)
    with pytest.raises(
        InputError,
        match=r"^SOLVER\.DRIFT_REPORT: the backbone: holds no ResNets or ConvNeXts \(2 te",
    ):
        hook.before_train()
    assert not list(tmp_path.iterdir())
