"""``--output "$UNSET"``: an empty name would mean the current folder, whose files are replaced."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

VAL = "cityscapes_instance_val"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("analyze_dataset", ["--dataset", VAL]),
        ("analyze_study", ["--storage", "search.db"]),
        ("benchmark", ["recipe", "--small"]),
        ("compress_model", ["prune", "--config-file", "a.yaml", "--ratio", "0.5"]),
        ("export_model", ["--config-file", "a.yaml"]),
        ("make_gallery", ["--dataset", VAL, "--predictions", "."]),
        ("predict", ["--model", "a.onnx", "--input", "index.md"]),
        ("share_model", ["--run", "."]),
        ("train_stages", []),
        ("visualize_data", ["--dataset", VAL, "--num-images", "1"]),
        ("visualize_predictions", ["--config-file", "a.yaml", "--input", "index.md"]),
    ],
)
def test_an_empty_name_is_no_folder(
    tool: Run, name: str, arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / "index.md").write_text("mine")
    done = tool(f"tools/{name}.py", *arguments, "--output", "", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: --output is empty: name a folder"
    assert [path.name for path in tmp_path.iterdir()] == ["index.md"]
    assert (tmp_path / "index.md").read_text() == "mine"
