"""The notebook, run from its first cell to its last on a few small images."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import onnx
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).parents[1] / "docs" / "demo.ipynb"

# A network that knows nothing, without stage 0, anchors and search.
OPTIONS = (
    'MODEL.WEIGHTS "" MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16'
    " MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.RESNETS.NORM BN MODEL.FPN.OUT_CHANNELS 16"
    " MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0 TEST.DETECTIONS_PER_IMAGE 10"
    ' INPUT.MIN_SIZE_TRAIN "(96,)"'
    " INPUT.MIN_SIZE_TEST 96 INPUT.MAX_SIZE_TEST 192"
    " SOLVER.MAX_ITER 2 SOLVER.WARMUP_ITERS 0 TEST.VALIDATION_LOSS False"
    " TRACKING.NUM_PICTURES 0 TEST.ANALYSIS_PICTURES False"
)


def read() -> NotebookNode:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


def text_of(cell: NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def num_pictures(cell: NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def test_it_is_stored_without_outputs() -> None:
    cells = [cell for cell in read().cells if cell.cell_type == "code"]
    assert len(cells) == 10
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("note book")


@pytest.fixture(scope="module")
def cells(output: Path) -> dict[str, NotebookNode]:
    """The cells with what they put out, by id."""
    settings = {
        "OUTPUT": output,
        "SCENES": "--train 4 --val 6 --height 96 --width 192 --num-workers 1",
        "STAGES": "stage_1",
        "TRIALS": 1,
        "OPTIONS": OPTIONS,
        "SCORE_THRESH": 0,
    }
    notebook = read()
    client = NotebookClient(
        notebook,
        timeout=1800,
        # A command that fails stops no cell, so that errors are looked for in all outputs.
        allow_errors=True,
        kernel_name="python3",
        # Where Jupyter starts it.
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    )
    overridden = {f"NOTEBOOK_{name}": str(value) for name, value in settings.items()}
    client.execute(env={**os.environ, **overridden})
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def test_all_commands_succeed(cells: dict[str, NotebookNode]) -> None:
    text = "".join(map(text_of, cells.values()))
    assert "error: " not in text
    assert "Traceback" not in text
    assert [cell.id for cell in cells.values() for each in cell.outputs if "ename" in each] == []


def test_nothing_is_installed_again(cells: dict[str, NotebookNode]) -> None:
    assert text_of(cells["install"]) == ""


def test_it_trains_scores_and_exports(cells: dict[str, NotebookNode], output: Path) -> None:
    assert "train 4, val 6 images of 96x192" in text_of(cells["data"])
    assert "scores/stage_1: complete" in text_of(cells["train"])
    (table,) = (each.data["text/markdown"] for each in cells["score"].outputs[:1])
    assert "val parts 3-4 of 4" in table
    assert "agrees with PyTorch" in text_of(cells["export"])
    onnx.checker.check_model(onnx.load(output / "onnx" / "model.onnx"))
    assert text_of(cells["report"]).startswith(f"{output}/report.html: ")
    lines = text_of(cells["predict"]).splitlines()
    assert lines[0].endswith("_leftImg8bit.png: 10 objects, the best of them:")
    assert len(lines) == 6


def test_it_shows_pictures(cells: dict[str, NotebookNode]) -> None:
    # Of two images with the same AP, 0, the one with more objects is best, median and worst.
    shown = {name: num_pictures(cell) for name, cell in cells.items() if num_pictures(cell)}
    assert shown == {"look": 1, "score": 2, "pictures": 2}
