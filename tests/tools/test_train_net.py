"""train_net.py as a user runs it: in a process of its own, on a small generated data set."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

PROJECT = Path(__file__).parents[2]
TRAIN_NET = PROJECT / "tools" / "train_net.py"

# A ResNet-50 with narrow layers, on images of 96x192: an iteration takes a fraction of a second.
TINY = """
MODEL.WEIGHTS "" MODEL.DEVICE cpu MODEL.BACKBONE.FREEZE_AT 0
MODEL.RESNETS.NORM BN MODEL.FPN.NORM BN
MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16
MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.FPN.OUT_CHANNELS 16
MODEL.ROI_BOX_HEAD.FC_DIM 32 MODEL.ROI_MASK_HEAD.CONV_DIM 16
MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16 MODEL.RPN.POST_NMS_TOPK_TEST 50
MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0 TEST.DETECTIONS_PER_IMAGE 10
INPUT.MIN_SIZE_TRAIN (80,96) INPUT.MAX_SIZE_TRAIN 192
INPUT.MIN_SIZE_TEST 96 INPUT.MAX_SIZE_TEST 192
SOLVER.IMS_PER_BATCH 2 SOLVER.WARMUP_ITERS 0 DATALOADER.NUM_WORKERS 0
""".replace('""', "''").split()
TINY = [word if word != "''" else "" for word in TINY]


def command(*arguments: object, config: str = "configs/stage_1_heads.yaml") -> list[str]:
    return [sys.executable, str(TRAIN_NET), "--config-file", config, *map(str, arguments)]


def environment(root: Path) -> dict[str, str]:
    return {**os.environ, "DETECTRON2_DATASETS": str(root), "OMP_NUM_THREADS": "1"}


def train_net(
    root: Path, *arguments: object, config: str = "configs/stage_1_heads.yaml"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments, config=config),
        env=environment(root),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def scores(output: Path) -> dict[str, float]:
    """The official averages that an evaluation left behind."""
    return json.loads((output / "inference" / "cityscapes_results.json").read_text())["averages"]


def parameters(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["model"]


@pytest.fixture(scope="module")
def trained(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of the tiny model: 2 x ceil(images / 2) iterations."""
    output = tmp_path_factory.mktemp("trained")
    done = train_net(
        small_root, *TINY, "SOLVER.EPOCHS", 2, "TEST.VALIDATION_LOSS", True, "OUTPUT_DIR", output
    )
    assert done.returncode == 0, done.stderr
    (output / "stdout").write_text(done.stdout)
    return output


def test_epochs_become_iterations(trained: Path) -> None:
    log = (trained / "stdout").read_text()
    images = int(re.search(r"one epoch: (\d+) images / 2 a batch", log).group(1))
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["SOLVER"]["EPOCHS"] == 2
    assert config["SOLVER"]["MAX_ITER"] == 2 * math.ceil(images / 2)
    # Checkpoints and evaluations: one an epoch.
    assert config["SOLVER"]["CHECKPOINT_PERIOD"] == math.ceil(images / 2)
    last = torch.load(trained / "model_final.pth", weights_only=True)["iteration"]
    assert last == config["SOLVER"]["MAX_ITER"] - 1


def test_output_folder_is_detectron2s(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"config.yaml", "log.txt", "metrics.json", "model_final.pth", "last_checkpoint"} <= names
    assert any(name.startswith("events.") for name in names)
    assert (trained / "training_curves.png").stat().st_size > 1000


def test_metrics_hold_both_losses_and_official_scores(trained: Path) -> None:
    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    merged: dict[str, float] = {}
    for line in (trained / "metrics.json").read_text().splitlines():
        merged.update(json.loads(line, parse_constant=no_constant))
    assert {"total_loss", "validation/total_loss", "validation/loss_mask"} <= merged.keys()
    assert merged["segm/AP"] == pytest.approx(100 * scores(trained)["allAp"], abs=1e-9)
    assert {"coco_segm/AP", "coco_bbox/AP"} <= merged.keys()


def test_eval_only_repeats_the_score(trained: Path, small_root: Path, tmp_path: Path) -> None:
    done = train_net(
        small_root,
        "--eval-only",
        *("MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", tmp_path),
        config=str(trained / "config.yaml"),
    )
    assert done.returncode == 0, done.stderr
    assert scores(tmp_path) == scores(trained)


def test_two_processes_score_as_one(trained: Path, small_root: Path, tmp_path: Path) -> None:
    # 6 images on one process, 3 on each of two.
    done = train_net(
        small_root,
        *("--eval-only", "--num-gpus", 2),
        *("MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", tmp_path),
        config=str(trained / "config.yaml"),
    )
    assert done.returncode == 0, done.stderr
    assert scores(tmp_path) == scores(trained)


def test_two_processes_train(small_root: Path, tmp_path: Path) -> None:
    done = train_net(
        small_root,
        *("--num-gpus", 2, *TINY, "SOLVER.EPOCHS", 0, "SOLVER.MAX_ITER", 3),
        *("TEST.VALIDATION_LOSS", True, "OUTPUT_DIR", tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert "World size: 2" in done.stdout
    two = scores(tmp_path)
    again = train_net(
        small_root,
        *(
            "--eval-only",
            "MODEL.WEIGHTS",
            tmp_path / "model_final.pth",
            "OUTPUT_DIR",
            tmp_path / "1",
        ),
        config=str(tmp_path / "config.yaml"),
    )
    assert again.returncode == 0, again.stderr
    # The score that two processes gave their model is the one that a single process gives it.
    assert scores(tmp_path / "1") == two


def test_resume_after_sigterm_equals_an_uninterrupted_run(small_root: Path, tmp_path: Path) -> None:
    options = [*TINY, "SOLVER.EPOCHS", 0, "SOLVER.MAX_ITER", 14, "SOLVER.CHECKPOINT_EPOCHS", 0]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_net(small_root, *options, "OUTPUT_DIR", whole).returncode == 0

    arguments = command("--resume", *options, "OUTPUT_DIR", parts)
    process = subprocess.Popen(
        arguments, env=environment(small_root), cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if "Starting training from iteration 0" in line:
            time.sleep(1)
            process.send_signal(signal.SIGTERM)
            break
    process.stdout.read()
    assert process.wait(timeout=120) == 128 + signal.SIGTERM
    assert (parts / "last_checkpoint").read_text() != "model_final.pth"

    done = subprocess.run(
        arguments, env=environment(small_root), cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = parameters(whole / "model_final.pth")
    resumed = parameters(parts / "model_final.pth")
    assert expected.keys() == resumed.keys()
    assert [name for name in expected if not torch.equal(expected[name], resumed[name])] == []


def test_frozen_backbone_stays_bit_equal(trained: Path, small_root: Path, tmp_path: Path) -> None:
    weights = trained / "model_final.pth"
    frozen = ["MODEL.WEIGHTS", weights, "MODEL.BACKBONE.FREEZE_AT", 5, "SOLVER.EPOCHS", 1]
    done = train_net(small_root, *TINY, *frozen, "OUTPUT_DIR", tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = parameters(weights), parameters(tmp_path / "model_final.pth")
    backbone = [
        name for name in before if name.startswith("backbone.bottom_up.") and "num_" not in name
    ]
    # 53 convolutions and their normalisations: 53 x (1 + 4) tensors.
    assert len(backbone) == 265
    assert all(torch.equal(before[name], after[name]) for name in backbone)
    assert not torch.equal(
        before["backbone.fpn_output2.weight"], after["backbone.fpn_output2.weight"]
    )


def test_detectron2s_own_cityscapes_config_trains_and_scores(
    small_root: Path, tmp_path: Path
) -> None:
    done = train_net(
        small_root,
        *("MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", tmp_path),
        *("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", 96),
        *("SOLVER.IMS_PER_BATCH", 1, "SOLVER.MAX_ITER", 2, "DATALOADER.NUM_WORKERS", 0),
        # Random weights under this config's frozen BatchNorm diverge at any larger rate.
        *("SOLVER.BASE_LR", 1e-6),
        config="model_zoo://Cityscapes/mask_rcnn_R_50_FPN.yaml",
    )
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["DATASETS"]["TRAIN"] == ["cityscapes_fine_instance_seg_train"]
    assert 0 <= scores(tmp_path)["allAp"] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SOLVER.EPOCS", "3"], "no config key SOLVER.EPOCS; did you mean SOLVER.EPOCHS?"),
        (["DATASETS.TRAIN", "('cityscapes_instance_trian',)"], "cityscapes_instance_trian"),
        (["MODEL.WEIGHTS", "missing.pth", "SOLVER.EPOCHS", "1"], "missing.pth: no such file"),
        (["--config-file", "configs/missing.yaml"], "configs/missing.yaml: no such file"),
    ],
)
def test_bad_input_gets_one_line(
    small_root: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    flags = [word for word in arguments if word.startswith("--")]
    options = [] if flags else [*TINY, *arguments, "OUTPUT_DIR", str(tmp_path)]
    done = train_net(small_root, *(arguments if flags else []), *options)
    assert done.returncode == 1
    # Above it may stand deprecation warnings, from the imports of Detectron2.
    assert done.stderr.count("error: ") == 1, done.stderr
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stdout + done.stderr


def test_one_of_two_processes_finds_a_truncated_image(tmp_path: Path) -> None:
    from cityscapes_maskrcnn.data.synthetic import generate_dataset

    generate_dataset(tmp_path, {"train": 2, "val": 1}, 96, 192, seed=3)
    image = min((tmp_path / "cityscapes" / "leftImg8bit" / "train").rglob("*.png"))
    image.write_bytes(image.read_bytes()[:500])
    # One image each, in the only iteration: the end of training must not evaluate, which would
    # wait for ever, and the process that merely lost its partner has nothing to say.
    done = train_net(
        tmp_path,
        *("--num-gpus", 2, *TINY, "SOLVER.EPOCHS", 1),
        *("DATALOADER.NUM_WORKERS", 1, "OUTPUT_DIR", tmp_path / "o"),
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"{image}: truncated" in errors[0]
    assert not (tmp_path / "o" / "model_final.pth").exists()


def test_sigterm_reaches_every_process(small_root: Path, tmp_path: Path) -> None:
    arguments = command(
        *("--num-gpus", 2, *TINY, "SOLVER.EPOCHS", 0, "SOLVER.MAX_ITER", 100_000),
        *("SOLVER.CHECKPOINT_EPOCHS", 0, "TEST.EVAL_EPOCHS", 0, "OUTPUT_DIR", tmp_path),
    )
    with subprocess.Popen(
        arguments,
        env=environment(small_root),
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout:
            if "Starting training from iteration 0" in line:
                time.sleep(1)
                process.send_signal(signal.SIGTERM)
                break
        log, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in log + errors
    assert "error: " not in errors
    (checkpoint,) = tmp_path.glob("model_*.pth")
    assert (tmp_path / "last_checkpoint").read_text() == checkpoint.name
    iteration = torch.load(checkpoint, weights_only=True)["iteration"]
    assert checkpoint.name == f"model_{iteration:07d}.pth"


def test_help_shows_detectron2s_flags() -> None:
    done = subprocess.run(
        [sys.executable, str(TRAIN_NET), "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    for flag in ("--config-file", "--num-gpus", "--num-machines", "--machine-rank", "--dist-url"):
        assert flag in done.stdout
    assert {"--resume", "--eval-only"} <= set(re.findall(r"--[a-z-]+", done.stdout))
