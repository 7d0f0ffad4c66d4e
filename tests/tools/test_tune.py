"""tune.py and analyze_study.py as a user runs them: real trials of a tiny network."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState

PROJECT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]

TINY = f"""
_BASE_: "{PROJECT}/configs/stage_1_heads.yaml"
MODEL:
  WEIGHTS: ""
  DEVICE: cpu
  BACKBONE: {{FREEZE_AT: 0}}
  RESNETS: {{NORM: BN, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 16, WIDTH_PER_GROUP: 8}}
  FPN: {{NORM: BN, OUT_CHANNELS: 16}}
  ROI_BOX_HEAD: {{FC_DIM: 32}}
  ROI_MASK_HEAD: {{CONV_DIM: 16}}
  ROI_HEADS: {{BATCH_SIZE_PER_IMAGE: 16, SCORE_THRESH_TEST: 0.0}}
  RPN: {{POST_NMS_TOPK_TEST: 50}}
INPUT: {{MIN_SIZE_TRAIN: [96], MAX_SIZE_TRAIN: 192, MIN_SIZE_TEST: 96, MAX_SIZE_TEST: 192}}
SOLVER: {{IMS_PER_BATCH: 2, WARMUP_ITERS: 0, EPOCHS: 0, MAX_ITER: 2, CHECKPOINT_EPOCHS: 0}}
TEST: {{DETECTIONS_PER_IMAGE: 10, EVAL_EPOCHS: 0, EVAL_PERIOD: 1}}
DATALOADER: {{NUM_WORKERS: 0}}
SEARCH: {{PARAMETERS: {{fpn_grad_flow: {{ENABLED: False}}}}}}
"""


@pytest.fixture(scope="module")
def searched(tool: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trials; a worker on each of two machines would do the same."""
    output = tmp_path_factory.mktemp("search") / "out"
    config = output.with_name("tiny.yaml")
    config.write_text(TINY)
    options = ["--config-file", config, "--trials", 2, "--no-prune", "OUTPUT_DIR", output]
    # A key that yaml or the command line adds to the search.
    options += ["SEARCH.PARAMETERS.base_lr.ENABLED", True, "SEARCH.PARAMETERS.base_lr.HIGH", 5e-4]
    done = tool("tools/tune.py", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    (output / "stdout").write_text(done.stdout)
    return output


def test_a_search(searched: Path) -> None:
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{searched}/search.db")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    first = study.trials[0]
    assert first.params["rpn_negative_iou_thresh"] == 0.2198
    assert all(1e-5 <= trial.params["base_lr"] <= 5e-4 for trial in study.trials)
    # Every evaluation arrives, though Detectron2 writes events every 20 iterations only.
    assert list(first.intermediate_values) == [1, 2]
    for trial in study.trials:
        folder = searched / "trials" / f"{trial.number:04d}"
        # Each is an ordinary training run, with its parameters in its config.
        trained = yaml.safe_load((folder / "config.yaml").read_text())
        fg = trial.params["fg_iou_thresh"]
        assert trained["MODEL"]["ROI_HEADS"]["IOU_THRESHOLDS"] == [fg / 2, fg]
        assert trained["SOLVER"]["BASE_LR"] == trial.params["base_lr"]
        assert (folder / "metrics.json").exists()
        assert not list(folder.glob("*.pth"))
    log = (searched / "stdout").read_text()
    assert "Trial 1: 2 of 2 iterations, score" in log
    assert "1 of 2 trials (0 pruned, 0 failed), best" in log
    assert "ETA" in log
    assert "2 of 2 trials (0 pruned, 0 failed), best" in (searched / "log.txt").read_text()


def test_the_report(tool: Run, searched: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{searched}/search.db"
    done = tool("tools/analyze_study.py", "--storage", url, "--output", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    names = {Path(line).name for line in done.stdout.splitlines()}
    assert {"report.md", "trials.csv", "best.yaml", "history.png"} <= names
    best = yaml.safe_load((tmp_path / "r" / "best.yaml").read_text())
    assert set(best) == {"DATASETS", "MODEL", "SOLVER", "VERSION"}
    assert best["DATASETS"] == {"TUNED_ON": ["cityscapes_instance_val"]}

    done = tool("tools/analyze_study.py", "--storage", url, "--study", "x", "--output", tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith("no study 'x'; it has: search\n")


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("tune", []),
        ("train_stages", ["--output", "out"]),
        ("cluster_anchors", ["--dataset", "x", "--output", "a.yaml"]),
        ("make_submission", ["--output", "a.zip"]),
        ("visualize_predictions", ["--input", "a.png", "--output", "out"]),
    ],
)
def test_flags_after_keys_are_refused_by_every_tool(
    tool: Run, name: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = ["--config-file", f"{PROJECT}/configs/stage_1_heads.yaml"]
    if name == "train_stages":
        config = ["--config-dir", f"{PROJECT}/configs"]
    done = tool(f"{PROJECT}/tools/{name}.py", *config, *flags, "SEED", "5", "--trials", "2")
    assert done.returncode == 1
    message = "--trials: flags go before the KEY VALUE pairs, which begin at SEED"
    assert done.stderr.splitlines()[-1] == f"error: {message}"
    assert list(tmp_path.iterdir()) == []
