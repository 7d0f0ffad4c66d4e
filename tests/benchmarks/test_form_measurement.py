from __future__ import annotations

from pathlib import Path

import pytest

from cityscapes_maskrcnn.benchmarks import form_measurement
from cityscapes_maskrcnn.benchmarks.deployment_forms import Form
from cityscapes_maskrcnn.benchmarks.form_measurement import (
    Measured,
    Setting,
    measure_in_process,
    measure_or_reason,
)


def test_what_fails_in_a_form_is_its_note_and_in_the_base_an_error(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(form: Form, _: Setting) -> Measured:
        raise OSError("no space\nleft") if form.name == "full" else RuntimeError()

    monkeypatch.setattr(form_measurement, "measure", fail)
    full, empty = (Form(name, "PyTorch") for name in ("full", "empty"))
    assert measure_or_reason(full, setting) == "OSError: no space"
    assert measure_or_reason(empty, setting) == "RuntimeError: "
    with pytest.raises(RuntimeError):
        measure_or_reason(setting.base, setting)


def test_a_process_gives_the_reason_too(setting: Setting) -> None:
    folder = Form("file", "ONNX Runtime", file=Path())
    assert measure_in_process(folder, setting) == ".: no such file"
