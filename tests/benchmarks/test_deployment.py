from __future__ import annotations

import math

import pytest

from cityscapes_maskrcnn.benchmarks import deployment
from cityscapes_maskrcnn.benchmarks.deployment_forms import Form
from cityscapes_maskrcnn.benchmarks.form_measurement import Measured, Setting
from cityscapes_maskrcnn.utils.errors import InputError


def measured(
    ap: float = 30.0, min_size: int = 512, max_size: int = 1024, proposals: int = 1000
) -> Measured:
    return Measured(ap, 10.0, 20.0, 4_000_000, 8_000_000, min_size, max_size, proposals)


@pytest.mark.parametrize(
    ("group", "result", "name", "ap", "note"),
    [
        ("ONNX Runtime", measured(), "x", 30.0, ""),
        ("ONNX Runtime", measured(min_size=1024, max_size=2048), "x (1024/2048 px)", 30.0, ""),
        (
            "other model",
            measured(max_size=2048, proposals=7),
            "x (512/2048 px, 7 proposals)",
            30,
            "",
        ),
        ("proposals", measured(proposals=7), "x", 30.0, ""),
        (
            "ONNX Runtime",
            measured(math.nan),
            "x",
            None,
            "AP is undefined: no object of its classes",
        ),
    ],
)
def test_rows_name_other_inputs_and_undefined_ap(
    setting: Setting,
    monkeypatch: pytest.MonkeyPatch,
    group: str,
    result: Measured,
    name: str,
    ap: float | None,
    note: str,
) -> None:
    results = {"x": result, setting.base.name: measured()}
    monkeypatch.setattr(deployment, "measure_in_process", lambda form, _: results[form.name])
    _, row = deployment._measure_all([setting.base, Form("x", group)], setting)
    assert (row.name, row.ap, row.note) == (name, ap, note)
    assert (row.min_size, row.max_size, row.proposals) == (
        result.min_size,
        result.max_size,
        result.proposals,
    )
    assert (row.milliseconds, row.times_faster) == (10, 2)


def test_undefined_ap_of_the_base_ends_after_its_measurement(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "measure_in_process", lambda _, __: measured(math.nan))
    message = f"^{setting.dataset}: no object to find, so AP is undefined$"
    with pytest.raises(InputError, match=message):
        deployment._measure_all([setting.base], setting)
