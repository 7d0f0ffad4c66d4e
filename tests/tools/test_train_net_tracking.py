"""A training whose curves and pictures go to TensorBoard, Weights & Biases and MLflow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PROJECT = Path(__file__).parents[2]

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_tensorboard_has_pictures_and_curves(trained: Path) -> None:
    events = EventAccumulator(str(trained), size_guidance={"images": 0, "tensors": 0}).Reload()
    # Two evaluations, of two images each.
    pictures = [tag for tag in events.Tags()["images"] if tag.startswith("predictions/")]
    assert len(pictures) == 2
    for tag in pictures:
        assert [each.step for each in events.Images(tag)] == [3, 7]
        picture = Image.open(BytesIO(events.Images(tag)[-1].encoded_image_string))
        # Ground truth and prediction side by side, made smaller.
        assert picture.width == 1600
    curves = [tag for tag in events.Tags()["tensors"] if tag.startswith("precision_recall/")]
    assert "precision_recall/car" in curves
    for tag in curves:
        assert [each.step for each in events.Tensors(tag)] == [3, 7]


def wandb_records(run: Path) -> Iterator[Any]:
    """Read a run of W&B's from disk: records of its protocol in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = run.glob("*.wandb")
    content = file.read_bytes()
    assert content[:4] == b":W&B"
    block, position, parts = 32768, 7, b""
    while position < len(content):
        left = block - position % block
        if left < 7:
            position += left
            continue
        size, kind = (
            int.from_bytes(content[position + 4 : position + 6], "little"),
            content[position + 6],
        )
        parts += content[position + 7 : position + 7 + size]
        position += 7 + size
        # A whole record, or the last part of one.
        if kind in (1, 4):
            yield Record.FromString(parts)
            parts = b""


def history(records: list[Any]) -> list[dict[str, Any]]:
    return [
        {
            (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
            for item in each.history.item
        }
        for each in records
        if each.WhichOneof("record_type") == "history"
    ]


def test_an_interrupted_run_goes_on_as_the_same_run(
    tmp_path: Path,
    tiny: list[str],
    start_tool: Callable[..., AbstractContextManager[subprocess.Popen[str]]],
    first_checkpoint: Callable[..., None],
    train_net: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs.db")
    output = tmp_path / "out"
    options = [*tiny, "TRACKING.BACKENDS", "('wandb','mlflow')", "TEST.EVAL_PERIOD", 4]
    options += ["SOLVER.CHECKPOINT_PERIOD", 2, "OUTPUT_DIR", output, "TRACKING.NUM_PICTURES", 1]
    config = PROJECT / "configs" / "stage_1_heads.yaml"
    options += ["SOLVER.EPOCHS", 0, "SOLVER.CHECKPOINT_EPOCHS", 0, "TEST.EVAL_EPOCHS", 0]
    command = ["--config-file", config, *options, "SOLVER.MAX_ITER", 100_000]
    # MLflow keeps pictures in the working directory.
    with start_tool("tools/train_net.py", *command, cwd=tmp_path) as process:
        first_checkpoint(process, output, seconds=300)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM, out + err
    ids = json.loads((output / "tracking.json").read_text())

    from mlflow import MlflowClient

    client = MlflowClient()
    run = client.get_run(ids["mlflow"])
    assert run.info.status == "KILLED"
    assert run.info.run_name == f"{tmp_path.name}/out"
    assert run.data.params["SOLVER.MAX_ITER"] == "100000"
    (first,) = (output / "wandb").glob("offline-run-*")
    records = list(wandb_records(first))
    (exit_code,) = [each.exit.exit_code for each in records if each.HasField("exit")]
    assert exit_code == 1

    last = json.loads((output / "metrics.json").read_text().splitlines()[-1])["iteration"]
    end = 4 * (last // 4 + 2)
    done = train_net("--resume", *options, "SOLVER.MAX_ITER", end, cwd=tmp_path, config=config)
    assert done.returncode == 0, done.stderr
    assert json.loads((output / "tracking.json").read_text()) == ids

    run = client.get_run(ids["mlflow"])
    assert run.info.status == "FINISHED"
    scores = client.get_metric_history(ids["mlflow"], "segm/AP50")
    assert scores[-1].step == end
    losses = client.get_metric_history(ids["mlflow"], "total_loss")
    assert len(losses) > 1
    files = {each.path for each in client.list_artifacts(ids["mlflow"])}
    assert {"config.yaml", "images"} <= files
    assert client.list_artifacts(ids["mlflow"], "images")

    second = max((output / "wandb").glob("offline-run-*"), key=lambda run: run.stat().st_mtime_ns)
    assert second != first
    assert second.name.endswith(ids["wandb"])
    records = list(wandb_records(second))
    (exit_code,) = [each.exit.exit_code for each in records if each.HasField("exit")]
    assert exit_code == 0
    (started,) = [each.run for each in records if each.HasField("run")]
    assert (started.run_id, started.project) == (ids["wandb"], "cityscapes_maskrcnn")
    config_items = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert config_items["SOLVER"]["IMS_PER_BATCH"] == 2
    rows = history(records)
    assert [row["iteration"] for row in rows if "segm/AP50" in row][-1] == end
    (format_of_picture,) = {
        value
        for row in rows
        for name, value in row.items()
        if name.startswith("predictions/") and name.endswith("/format")
    }
    assert format_of_picture == "jpg"
    assert list(second.glob("files/media/images/predictions/*.jpg"))
    # What the services need of the environment is as it was.
    assert "MLFLOW_DISABLE_TELEMETRY" not in os.environ


def test_a_service_that_cannot_be_reached_ends_the_run_before_training(
    tmp_path: Path, tiny: list[str], train_net: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A folder stands where the database should be.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/runs")
    options = [*tiny, "TRACKING.BACKENDS", "('mlflow',)", "OUTPUT_DIR", tmp_path / "out"]
    done = train_net(*options)
    assert done.returncode == 1
    assert done.stderr.startswith("error: TRACKING.BACKENDS mlflow: no run can be started: ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("out/model_*"))


def test_a_misspelt_backend(tmp_path: Path, tiny: list[str], train_net: Run) -> None:
    done = train_net(*tiny, "TRACKING.BACKENDS", "('wandbb',)", "OUTPUT_DIR", tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "error: TRACKING.BACKENDS wandbb: it must be of wandb, mlflow; TensorBoard's files are "
        "always written\n"
    )
