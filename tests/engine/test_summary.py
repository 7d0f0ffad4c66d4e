from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage

from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.data.registration import register_all
from cityscapes_maskrcnn.engine.run_clock import RunClock
from cityscapes_maskrcnn.engine.summary import RunSummary, write_scores
from cityscapes_maskrcnn.utils.training_metrics import find_gap, read_curves


def test_augmented_scores_stand_beside_plain_ones(small_root: Path, tmp_path: Path) -> None:
    """With one dataset and with several, which Detectron2 nests, and names, differently."""
    register_all(small_root)
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    names = ("cityscapes_instance_val", "cityscapes_instance_val_part1of4")
    plain, augmented = {"segm": {"AP": 1.0}}, {"segm": {"AP": 2.0}}
    expected = {"segm": {"AP": 1.0}, "segm_TTA": {"AP": 2.0}}

    cfg.DATASETS.TEST = names[:1]
    write_scores(cfg, "w.pth", {**plain, "segm_TTA": augmented["segm"]}, [])
    datasets = json.loads((tmp_path / "scores.json").read_text())["datasets"]
    images = len(DatasetCatalog.get(names[0]))
    assert datasets == {names[0]: {"images": images, "generated": True, "results": expected}}

    cfg.DATASETS.TEST = names
    results = dict.fromkeys(names, plain) | {f"{name}_TTA": augmented for name in names}
    write_scores(cfg, "w.pth", results, [])
    datasets = json.loads((tmp_path / "scores.json").read_text())["datasets"]
    assert {name: entry["results"] for name, entry in datasets.items()} == dict.fromkeys(
        names, expected
    )


def test_generated_scenes_are_told_from_real_ones(small_root: Path, tmp_path: Path) -> None:
    """In the files that the performance table is made from, of training and of scoring."""
    real = tmp_path / "real"
    # Taken for real: nothing beside its images says that they are generated.
    shutil.copytree(small_root, real, ignore=shutil.ignore_patterns("synthetic.json"))
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.DATASETS.TRAIN = ("cityscapes_coarse_semantic_train",)
    cfg.DATASETS.TEST = ("cityscapes_instance_val",)
    summary = RunSummary(cfg, images=1, clock=RunClock())
    summary.trainer = SimpleNamespace(
        iter=1, max_iter=1, model=torch.nn.Linear(1, 1), storage=EventStorage()
    )
    for root, generated in ((small_root, True), (real, False)):
        register_all(root)
        summary.after_train()
        write_scores(cfg, "w.pth", {"segm": {"AP": 1.0}}, [])
        assert json.loads((tmp_path / "summary.json").read_text())["generated"] is generated
        (scored,) = json.loads((tmp_path / "scores.json").read_text())["datasets"].values()
        assert scored["generated"] is generated
    # Of a dataset of the user's own nobody knows where its images lie.
    cfg.DATASETS.TRAIN = ("of_somebody_else",)
    summary.after_train()
    assert json.loads((tmp_path / "summary.json").read_text())["generated"] is False


def test_the_training_loss_is_the_one_of_the_chart(tmp_path: Path) -> None:
    """Not that of the last batch, which says little; with and without a validation loss."""
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    summary = RunSummary(cfg, images=1, clock=RunClock())
    model = torch.nn.Linear(1, 1)
    with EventStorage(100) as storage:
        storage.put_scalar("total_loss", 9.0)
    summary.trainer = SimpleNamespace(iter=100, max_iter=100, model=model, storage=storage)
    losses = [{"iteration": at, "total_loss": 2 - at / 100} for at in range(100)]
    for validation in ([], [{"iteration": 99, "validation/total_loss": 1.2}]):
        lines = map(json.dumps, [*losses, *validation])
        (tmp_path / "metrics.json").write_text("\n".join(lines))
        curves = read_curves(tmp_path / "metrics.json")
        summary.after_train()
        said = json.loads((tmp_path / "summary.json").read_text())["final"]["total_loss"]
        # The mean of the last three of a hundred.
        assert said == pytest.approx(1.02)
        gap = find_gap(curves["total_loss"], curves.get("validation/total_loss", {}))
        assert gap is None or gap.training == said


def test_a_summary_adds_up_over_resumes() -> None:
    summary = RunSummary(get_cfg(), images=1, clock=RunClock())
    summary.trainer = SimpleNamespace(model=torch.nn.Linear(1, 1))
    summary.load_state_dict({"seconds": 1000.0, "peak_memory_bytes": 2**50})
    state = summary.state_dict()
    assert 1000 < state["seconds"] < 1100
    assert state["peak_memory_bytes"] == 2**50


def test_the_memory_of_the_parent_does_not_count() -> None:
    held = np.ones(2**27)  # 1 GiB of this process, which starts another one
    code = (
        "import torch; from cityscapes_maskrcnn.engine.summary import peak_memory;"
        " print(peak_memory(torch.nn.Linear(1, 1)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert 2**26 < int(done.stdout) < held.nbytes
