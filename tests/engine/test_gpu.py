"""Training, resuming and scoring on a GPU: ``pytest -m gpu -n 3``, 2:38 minutes on an H200.

What can, runs on CPUs too, tiny.
"""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from torchvision.ops import roi_align

from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.modeling.determinism import ROI_ALIGN_MODULE

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
CLIP = ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.1]
CHANNELS_LAST = ["MODEL.CHANNELS_LAST", True]
FLOAT16 = ["SOLVER.AMP.ENABLED", True]
BFLOAT16 = [*FLOAT16, "SOLVER.AMP.PRECISION", "bfloat16"]
FLOAT32: list[object] = []
HALF_INFERENCE = ["TEST.PRECISION", "bfloat16", "TEST.BATCH_SIZE", 4]

Config = Callable[..., CfgNode]

PROJECT = Path(__file__).parents[2]


def numbers(folder: Path) -> list[float]:
    """All losses that were written."""
    entries = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return [value for each in entries for name, value in each.items() if "loss" in name]


# Each resumes the one before it.
ON_CPU = [FLOAT32, CLIP, [*CHANNELS_LAST, *CLIP], CHANNELS_LAST, FLOAT32]
ON_GPU = [
    *(FLOAT32, FLOAT16, [*FLOAT16, *CLIP], FLOAT16, [*FLOAT16, *CHANNELS_LAST]),
    *(BFLOAT16, [*BFLOAT16, *CLIP], [*FLOAT16, *CHANNELS_LAST, *CLIP], CLIP, FLOAT16),
    *([*BFLOAT16, *CHANNELS_LAST, "MODEL.COMPILE", "on"], [*BFLOAT16, "VIS_PERIOD", 1]),
]


@pytest.mark.parametrize(
    ("device", "runs"), [("cpu", ON_CPU), pytest.param("cuda", ON_GPU, marks=pytest.mark.gpu)]
)
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_runs_in_any_precision_resume_each_other(
    config: Config, tmp_path: Path, device: str, runs: list[list[object]], optimizer: str
) -> None:
    # A scaled gradient may be infinite at first: then the scale is halved, and nothing moves.
    iterations = 12 if device == "cuda" else 1
    before: dict[str, torch.Tensor] = {}
    for number, options in enumerate(runs):
        cfg = config(
            *("MODEL.DEVICE", device, "SOLVER.OPTIMIZER", optimizer, "DATASETS.TEST", "()"),
            *("TEST.VALIDATION_LOSS", False, "SOLVER.BASE_LR", 1e-4),
            *("SOLVER.MAX_ITER", (number + 1) * iterations, *options),
        )
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=True)
        assert trainer.start_iter == number * iterations
        trainer.train()
        weights = {name: each.detach() for name, each in trainer.model.named_parameters()}
        assert {each.device.type for each in weights.values()} == {device}
        assert all(torch.isfinite(each).all() for each in weights.values())
        assert not before or any(not torch.equal(before[name], weights[name]) for name in before)
        before = {name: each.clone() for name, each in weights.items()}
    losses = numbers(tmp_path)
    assert losses
    assert all(map(math.isfinite, losses))


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("options", [FLOAT32, CHANNELS_LAST, HALF_INFERENCE])
def test_scores_of_pasted_and_unpasted_masks(
    config: Config, tmp_path: Path, device: str, options: list[object]
) -> None:
    torch.manual_seed(3)
    words = ["MODEL.DEVICE", device, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, *options]
    words += ["TEST.ANALYSIS_CONFIDENCE", 0.0, "TEST.NUM_WORKERS", 1]
    model = Trainer.build_model(config(*words))
    tables = []
    for unpasted in (True, False):
        folder = tmp_path / str(unpasted)
        cfg = config(*words, "TEST.UNPASTED_MASKS", unpasted, "OUTPUT_DIR", folder)
        results: dict[str, Any] = Trainer.test(cfg, model)
        assert {"segm", "coco_segm", "coco_bbox"} <= results.keys()
        table = folder / "inference" / "analysis" / "per_class.csv"
        tables.append(table.read_text())
    assert tables[0] == tables[1]
    assert sum(map(str.isdigit, tables[0])) > 20


@pytest.mark.parametrize("options", [FLOAT32, FLOAT16, BFLOAT16])
@pytest.mark.gpu
def test_micro_batches_on_a_gpu(config: Config, tmp_path: Path, options: list[object]) -> None:
    """Chosen by --auto-batch, which a small network leaves whole, and by the key."""
    words = ["MODEL.DEVICE", "cuda", "DATASETS.TEST", "()", "TEST.VALIDATION_LOSS", False]
    words += ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.EMA_DECAY", 0.9, "SOLVER.BASE_LR", 1e-5]
    words += ["MODEL.ACTIVATION_CHECKPOINTING", "('res2','fpn','mask_head')", *options]
    trainer = Trainer(config(*words, "SOLVER.ACCUMULATE", 4, "OUTPUT_DIR", tmp_path / "auto"))
    trainer.resume_or_load(resume=False)
    before = {name: each.clone() for name, each in trainer.model.state_dict().items()}
    trainer.choose_micro_batch()
    after = trainer.model.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert trainer.cfg.SOLVER.ACCUMULATE == 1
    for folder, accumulate in (("whole", 1), ("parts", 2)):
        cfg = config(*words, "SOLVER.ACCUMULATE", accumulate, "OUTPUT_DIR", tmp_path / folder)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
        assert all(map(math.isfinite, numbers(tmp_path / folder)))
        assert (tmp_path / folder / "model_final_ema.pth").is_file()


EQUAL = ["SOLVER.MAX_ITER", 4, "SOLVER.EPOCHS", 0, "SOLVER.WARMUP_ITERS", 0, "SOLVER.BASE_LR", 1e-4]
EQUAL += ["SOLVER.CHECKPOINT_EPOCHS", 0, "TEST.EVAL_EPOCHS", 0, "MODEL.WEIGHTS", "", "SEED", 7]
EQUAL += ["DETERMINISTIC", True, "DATASETS.TEST", "()", "TEST.VALIDATION_LOSS", False]


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("stage_0_backbone", FLOAT32),
        ("stage_1_heads", FLOAT32),
        ("stage_1_heads", [*BFLOAT16, *CHANNELS_LAST]),
    ],
)
@pytest.mark.gpu
def test_equal_runs_are_bit_equal_on_a_gpu(
    small_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    options: list[object],
) -> None:
    """In processes of their own, at the same time: cuBLAS reads the switch once."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    plateau = ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.EARLY_STOPPING.ENABLED", False]
    words = [*EQUAL, *plateau, "MODEL.BACKBONE.FREEZE_AT", 0, "SOLVER.IMS_PER_BATCH", 4, *options]
    command = [sys.executable, "tools/train_net.py", "--config-file", f"configs/{stage}.yaml"]
    runs = [
        subprocess.Popen(
            [*command, *(str(word) for word in [*words, "OUTPUT_DIR", tmp_path / number])],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in "12"
    ]
    printed = [run.communicate(timeout=600)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], printed[0][-2000:] + printed[1][-2000:]
    assert_equal_runs(tmp_path)


def assert_equal_runs(folder: Path) -> None:
    one, other = (
        torch.load(folder / number / "model_final.pth", weights_only=True)["model"]
        for number in "12"
    )
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    # Losses, without the times beside them.
    assert numbers(folder / "1") == numbers(folder / "2")


def test_equal_runs_are_bit_equal(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the switch changes in this process is undone.
    monkeypatch.setattr(importlib.import_module(ROI_ALIGN_MODULE), "roi_align", roi_align)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        for number in "12":
            torch.manual_seed(1)
            trainer = Trainer(config(*EQUAL, "OUTPUT_DIR", tmp_path / number))
            trainer.resume_or_load(resume=False)
            assert torch.are_deterministic_algorithms_enabled()
            trainer.train()
    finally:
        torch.use_deterministic_algorithms(False)
    assert_equal_runs(tmp_path)


SHORT = """
SOLVER.MAX_ITER 6 SOLVER.EPOCHS 0 TEST.EVAL_PERIOD 3 SOLVER.WARMUP_ITERS 0
TEST.DETECTIONS_PER_IMAGE 10 DATALOADER.NUM_WORKERS 1 SOLVER.IMS_PER_BATCH 2
"""


@pytest.mark.gpu
def test_the_demo_s_chain(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stage, the search and the anchors, in a few iterations each."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))
    arguments = ["--config-dir", "configs/demo", "--output", str(tmp_path)]
    arguments += ["--trials", "1", "--confirm", "0"]
    done = subprocess.run(
        [sys.executable, "tools/train_stages.py", *arguments, *SHORT.split()],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for stage in ("stage_0", "stage_1", "stage_2", "stage_3"):
        assert (tmp_path / stage / "model_final.pth").is_file()
        summary = json.loads((tmp_path / stage / "summary.json").read_text())
        assert summary["memory"] == ("GPU" if torch.cuda.is_available() else "RAM")
    assert (tmp_path / "performance.md").is_file()
