from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import subprocess
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from cityscapes_maskrcnn.data.provenance import SEEN_IMAGES_KEY
from cityscapes_maskrcnn.engine.checkpoint_origin import ORIGIN_KEY

Run = Callable[..., subprocess.CompletedProcess[str]]
TENSORS = {"backbone.weight": torch.ones(2, 3), "head.bias": torch.zeros(4, dtype=torch.half)}


@pytest.fixture
def describe(tool: Run) -> Callable[[Path], dict[str, Any]]:
    def run(path: Path) -> dict[str, Any]:
        done = tool("tools/describe_checkpoint.py", "--json", path)
        assert done.returncode == 0, done.stderr
        # The text is made of the same.
        assert tool("tools/describe_checkpoint.py", path).returncode == 0
        return json.loads(done.stdout)

    return run


def test_a_checkpoint_says_how_it_was_made(
    trained: Path, describe: Callable[[Path], dict[str, Any]]
) -> None:
    said = describe(trained / "model_final.pth")
    assert said["program"] == "cityscapes_maskrcnn"
    config = yaml.safe_load(said["config"])
    saved = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["SOLVER"] == saved["SOLVER"]
    assert said["seed"] == str(config["SEED"])
    # Quoted where the path of the project has a space.
    assert re.search(r"train_net.py'? --config-file ", said["command"])
    assert said["code"].startswith("0.1.0, sources ")
    assert said["device"] == "1 x cpu"
    assert said["environment"]["torch"] == torch.__version__
    assert said["parents"] == []
    assert said["tensors"]["classes"] == {"roi_heads.box_predictor.cls_score.weight": 8}
    (data,) = (each for each in said["data"] if each["role"] == "trained")
    assert data["dataset"] == "cityscapes_instance_train"
    assert data["images"] == 8
    assert len(data["sha256"]) == 64
    # The best weights are of the same run.
    best = describe(trained / "model_best.pth")
    keys = ("config", "seed", "command", "code", "parents")
    assert [best[key] for key in keys] == [said[key] for key in keys]


def test_in_a_process_of_its_own(trained: Path, tool_process: Run) -> None:
    path = trained / "model_final.pth"
    done = tool_process("tools/describe_checkpoint.py", "--config", path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    # Hundreds of lines of config come before what has to be seen at the end of a terminal.
    assert lines[0] == "config:"
    end = lines.index(f"file        {path}")
    assert all(line.startswith("  ") for line in lines[1:end])
    assert lines[end + 1] == f"sha256      {hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert "parents     none: it began with random weights" in lines
    assert "seed        42" in lines
    assert "    IMS_PER_BATCH: 2" in lines


def test_without_its_config_it_is_one_screen(trained: Path, tool: Run) -> None:
    done = tool("tools/describe_checkpoint.py", trained / "model_final.pth")
    lines = done.stdout.splitlines()
    assert len(lines) < 40
    assert lines[0].startswith("file  ")
    assert re.fullmatch(r"config      \d+ lines; --config shows them", lines[-1])


def mmdetection(path: Path) -> None:
    meta = {"cfg": "model = dict(\n    type='MaskRCNN')", "epoch": 12}
    torch.save({"meta": meta, "state_dict": TENSORS, "loss": np.float64(1)}, path)


def lightning(path: Path) -> None:
    content = {
        "pytorch-lightning_version": "2.4.0",
        "state_dict": TENSORS,
        "hyper_parameters": {"lr": 0.5, "root": PurePosixPath("data")},
        "epoch": 3,
    }
    torch.save(content, path)


def torchvision_script(path: Path) -> None:
    torch.save({"model": TENSORS, "args": argparse.Namespace(lr=0.1), "epoch": 3}, path)


def detectron2(path: Path) -> None:
    torch.save({"model": TENSORS, "optimizer": {}, "scheduler": {}, "iteration": 9}, path)


def safetensors(path: Path) -> None:
    save_file(TENSORS, path)


def zoo(path: Path) -> None:
    arrays = {name: tensor.numpy() for name, tensor in TENSORS.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))


@pytest.mark.parametrize(
    ("name", "write", "program", "config"),
    [
        ("a.pth", mmdetection, "MMEngine (MMDetection 3)", "model = dict(\n    type='MaskRCNN')"),
        (
            "a.ckpt",
            lightning,
            "PyTorch Lightning 2.4.0",
            "lr: 0.5\nroot: an object, not loaded",
        ),
        ("a.pth", torchvision_script, None, "lr: 0.1"),
        ("a.pth", detectron2, "Detectron2", None),
        ("a.safetensors", safetensors, None, None),
        ("a.pkl", zoo, "Detectron2's model zoo (Detectron2 Model Zoo)", None),
    ],
)
def test_files_of_other_programs(
    tmp_path: Path,
    describe: Callable[[Path], dict[str, Any]],
    name: str,
    write: Callable[[Path], None],
    program: str | None,
    config: str | None,
) -> None:
    write(tmp_path / name)
    said = describe(tmp_path / name)
    assert (said["program"], said["config"]) == (program, config)
    assert said["tensors"] == {
        "count": 2,
        "values": 10,
        "types": {"float32": 1, "float16": 1},
        "parts": {"backbone": 1, "head": 1},
        "classes": None,
    }
    for key in ("code", "command", "seed", "device", "environment", "parents", "data"):
        assert said[key] is None


SEEN = {
    "dataset": "d",
    "role": "trained",
    "images": 0,
    "generated": False,
    "contents": "",
    "names": "",
}


def test_what_a_file_says_is_no_command_to_the_terminal(tmp_path: Path, tool: Run) -> None:
    evil = "\x1b[2J\x07"
    doubled: dict[str, Any] = {}
    for _ in range(14):
        doubled = {"a": doubled, "b": doubled}
    origin = {
        **dict.fromkeys(("code", "command", "seed", "device", "config"), evil),
        "environment": {evil: evil},
        "parents": [{"file": evil, "sha256": evil}, 5],
    }
    data = [{**SEEN, "dataset": evil}]
    content = {"model": TENSORS, evil: evil, "x": doubled, "args": {"y": doubled, evil: evil}}
    torch.save({**content, ORIGIN_KEY: origin, SEEN_IMAGES_KEY: data}, tmp_path / "a.pth")
    for flags in ((), ("--config",), ("--json",)):
        done = tool("tools/describe_checkpoint.py", *flags, tmp_path / "a.pth")
        assert done.returncode == 0, done.stderr
        assert len(done.stdout) < 10_000
        assert "[2J" in done.stdout
        assert done.stdout.replace("\n", "").isprintable()


def test_values_of_other_types_are_shown_in_a_few_words(tmp_path: Path, tool: Run) -> None:
    many: list[Any] = [0]
    for _ in range(12):
        many = [many, many]
    origin = {
        **dict.fromkeys(("code", "command", "seed", "device", "config"), many),
        "environment": {"torch": many},
        "parents": [{"file": many, "sha256": 5}],
        "classes": many,
    }
    content = {"model": TENSORS, "rest": argparse.Namespace(many=many), (1, 2): 3, "meta": many}
    path = tmp_path / "a.pth"
    torch.save({**content, ORIGIN_KEY: origin}, path)
    done = tool("tools/describe_checkpoint.py", path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) < 10_000
    lines = done.stdout.splitlines()
    assert "parents     list of 2, sha256 5" in lines
    assert "            (1, 2): 3" in lines
    assert "also holds  rest: dict of 1" in lines
    torch.save({"model": TENSORS, SEEN_IMAGES_KEY: [{**SEEN, "dataset": many}]}, path)
    done = tool("tools/describe_checkpoint.py", path)
    assert done.stderr == (
        f"error: {path}: its list of images that the model has seen is damaged (a name of a "
        "dataset that is no text); load another copy of the file\n"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: .*No such file"),
        ({"epoch": 3}, "holds no tensors by name"),
        (torch.nn.Linear(2, 3), "a whole pickled model, not its weights"),
    ],
)
def test_what_is_no_checkpoint_gets_one_line(
    tmp_path: Path, tool: Run, content: object, message: str
) -> None:
    path = tmp_path / "a.pth"
    if content is not None:
        torch.save(content, path)
    done = tool("tools/describe_checkpoint.py", path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {path}: ")
    assert message.replace(".*", "") in line or message.rpartition(".*")[2] in line
