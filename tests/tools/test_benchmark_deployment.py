"""The benchmark of a trained model in several forms, on a tiny one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from cityscapes_maskrcnn.benchmarks import deployment
from cityscapes_maskrcnn.benchmarks.deployment_forms import Form, list_forms
from cityscapes_maskrcnn.benchmarks.form_measurement import (
    Measured,
    Setting,
    measure_in_process,
    measure_or_reason,
)
from cityscapes_maskrcnn.utils.memory import peak_resident_bytes

Run = Callable[..., subprocess.CompletedProcess[str]]

VAL = "cityscapes_instance_val"


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure here: importing torch anew for each of ten forms would take a minute."""

    monkeypatch.setattr(deployment, "measure_in_process", measure_or_reason)


@pytest.mark.usefixtures("in_this_process")
def test_every_form_has_a_row_with_values_or_a_reason(
    trained: Path, exported: Path, tool: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where there is none: compiling takes half a minute.
    monkeypatch.setattr(torch, "compile", Mock(side_effect=RuntimeError("no C++ compiler")))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    done = tool(
        "tools/benchmark.py",
        *["deployment", "--config-file", trained / "config.yaml", "--score", VAL],
        *["--sizes", 48, 96, "--proposals", 50, 20, "--images", 2, "--repeats", 1],
        *["--also", "twin", trained / "config.yaml", trained / "model_final.pth"],
        *["--onnx", exported, "--json", tmp_path / "a.json", "--picture", tmp_path / "a.png"],
        *["MODEL.WEIGHTS", trained / "model_final.pth"],
    )
    assert done.returncode == 0, done.stderr
    assert f"GENERATED SCENES, not Cityscapes · {VAL} · 6 images" in done.stdout
    assert (tmp_path / "a.png").stat().st_size > 10_000
    content = json.loads((tmp_path / "a.json").read_text())
    rows = {row["name"]: row for row in content["rows"]}
    base = "PyTorch float32 (96 px, 50 proposals)"
    # 96 px and 50 proposals are the first row.
    assert list(rows) == [
        base,
        "PyTorch bfloat16",
        "PyTorch float16",
        "PyTorch float32, compiled",
        "input 48 px",
        "20 proposals",
        "PyTorch float32, twin",
        "ONNX Runtime float32, onnx",
        "ONNX Runtime fp16",
        "ONNX Runtime int8",
    ]
    reasons = {name: row["note"] for name, row in rows.items() if row["ap"] is None}
    assert list(reasons) == [
        "PyTorch float16",
        "PyTorch float32, compiled",
        "ONNX Runtime fp16",
        "ONNX Runtime int8",
    ]
    assert reasons["PyTorch float16"].startswith("TEST.PRECISION 'float16': on MODEL.DEVICE cpu")
    assert reasons["PyTorch float32, compiled"].endswith("RuntimeError: no C++ compiler")
    assert reasons["ONNX Runtime int8"].startswith("none given: tools/compress_model.py quantize")
    for name in set(rows) - set(reasons):
        costs = ("milliseconds", "times_faster", "file_megabytes", "memory_megabytes")
        assert all(rows[name][cost] > 0 for cost in costs), name
        assert f"| {name} " in done.stdout
    assert rows["PyTorch float32, twin"]["ap"] == rows[base]["ap"]
    assert rows["ONNX Runtime float32, onnx"]["ap"] == pytest.approx(rows[base]["ap"], abs=1e-9)


def test_an_exported_file_is_measured_without_torch(
    trained: Path, exported: Path, small_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))
    tree = small_root / "cityscapes"
    files = sorted(tree.glob("leftImg8bit/val/*/*.png"))
    gt_files = sorted(tree.glob("gtFine/val/*/*_instanceIds.png"))
    opts = ("MODEL.WEIGHTS", str(trained / "model_final.pth"))
    base = Form("base", "PyTorch", str(trained / "config.yaml"), opts)
    setting = Setting(
        base=base,
        dataset=VAL,
        images=tuple(zip(files, gt_files, strict=True)),
        timed=tuple(files[:1]),
        blocks=1,
        device="cpu",
        num_threads=1,
    )
    measured = measure_in_process(Form("file", "ONNX Runtime", file=exported), setting)
    assert isinstance(measured, Measured)
    assert measured.file_bytes == exported.stat().st_size
    # This process has torch.
    assert 2**26 < measured.memory_bytes < 0.7 * peak_resident_bytes()


def test_bfloat16_is_not_measured_where_it_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, reason in (("AVX512", ""), ("AVX2", "without AVX-512 the processor emulates")):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=capability: name)
        assert deployment._emulated_bfloat16("cpu").startswith(reason)
        assert bool(deployment._emulated_bfloat16("cpu")) == bool(reason)
        assert not deployment._emulated_bfloat16("cuda")


def test_an_exported_file_is_named_by_its_folder(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(exported.parent)
    forms = list_forms(
        "a.yaml",
        (),
        scale=(512, 1024),
        num_proposals=1000,
        sizes=None,
        proposals=(),
        also=(),
        onnx=[Path(exported.name)],
        no_bfloat16="",
    )
    assert "ONNX Runtime float32, onnx" in [form.name for form in forms]


@pytest.mark.parametrize(
    ("flags", "options", "problem"),
    [
        ([], ["TEST.PRECISION", "bfloat16"], "TEST.PRECISION: remove it; every precision, and"),
        ([], ["MODEL.COMPILE", "on"], "MODEL.COMPILE: remove it; every precision, and compilatio"),
        (["--sizes", 48], ["INPUT.MIN_SIZE_TEST", 0], "INPUT.MIN_SIZE_TEST 0: no image is resized"),
    ],
)
def test_bad_pairs_are_one_line(
    trained: Path, tool: Run, flags: list[object], options: list[object], problem: str
) -> None:
    config = ["--config-file", trained / "config.yaml", "--score", VAL]
    done = tool("tools/benchmark.py", "deployment", *flags, *config, *options)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {problem}")


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--repeats", 0], "--images, --repeats, --sizes and --proposals must be 1 or more"),
        (["--score", "cityscapes_instance_vall"], "unknown dataset 'cityscapes_instance_vall'"),
        (["--onnx", "none.onnx", "--images", 1], "none.onnx: no such file"),
        (
            ["--score", "cityscapes_instance_train"],
            "the model has seen images that it is to be scored on: 8 of the 8",
        ),
    ],
)
def test_bad_input_is_one_line(trained: Path, tool: Run, flags: list[object], problem: str) -> None:
    config = ["--config-file", trained / "config.yaml"]
    weights = ["MODEL.WEIGHTS", trained / "model_final.pth"]
    done = tool("tools/benchmark.py", "deployment", *config, *flags, *weights)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {problem}")
