from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine import dataset_report

NAMES = ["cityscapes_instance_train", "cityscapes_instance_val"]


@pytest.mark.parametrize(
    ("generated", "warned", "marked"),
    [
        ([], False, NAMES),
        (NAMES, True, NAMES),
        (NAMES[1:], False, [NAMES[0], f"{NAMES[1]} (generated scenes)"]),
    ],
)
def test_generated_data_beside_real_ones_are_marked_by_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    generated: list[str],
    warned: bool,
    marked: list[str],
) -> None:
    """Real data are not headed GENERATED SCENES."""
    build_config("", [])
    drawn: dict[str, Any] = {}

    def plot(datasets: dict[str, Any], *_: Any, about: Any, **__: Any) -> list[Path]:
        drawn.update(names=list(datasets), about=about)
        return []

    monkeypatch.setattr(dataset_report, "plot_dataset", plot)
    monkeypatch.setattr(dataset_report, "is_generated_dataset", lambda name: name in generated)
    monkeypatch.setattr(dataset_report, "_measure", lambda _: SimpleNamespace(num_images=4))
    for name in ("to_markdown", "classes_to_csv", "objects_to_csv", "overview"):
        monkeypatch.setattr(dataset_report, name, lambda *_: "")
    dataset_report.write_dataset_report(NAMES, tmp_path)
    assert drawn["names"] == marked
    assert drawn["about"].generated == warned
    assert drawn["about"].dataset == "; ".join(f"{name}: 4 images" for name in marked)
