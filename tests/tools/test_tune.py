"""tune.py and analyze_study.py as a user runs them: two real trials of a tiny network."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.search.tuning import tune
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import file_digest
from cityscapes_maskrcnn.utils.stop import StopRequests

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


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.count("error: ") == 1
    return done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def searched(tool: Run, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trials; a worker on each of two machines would do the same."""
    output = tmp_path_factory.mktemp("search") / "out"
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
        assert trained["MODEL"]["RPN"]["IOU_THRESHOLDS"] == [
            trial.params["rpn_negative_iou_thresh"],
            trial.params["rpn_positive_iou_thresh"],
        ]
        assert trained["SOLVER"]["BASE_LR"] == trial.params["base_lr"]
        assert (folder / "metrics.json").exists()
        assert not list(folder.glob("*.pth"))
    log = (searched / "stdout").read_text()
    assert "Trial 1: 2 of 2 iterations, score" in log
    assert "1 of 2 trials, best" in log
    assert "ETA" in log
    assert "2 of 2 trials, best" in (searched / "log.txt").read_text()


def test_another_search_space_is_refused(tool: Run, searched: Path, config: Path) -> None:
    before = (searched / "search.db").read_bytes()
    done = tool("tools/tune.py", "--config-file", config, "OUTPUT_DIR", searched)
    assert "study 'search' is of another search space: base_lr: not searched here" in last_line(
        done
    )
    assert (searched / "search.db").read_bytes() == before


def test_the_report(tool: Run, searched: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{searched}/search.db"
    done = tool("tools/analyze_study.py", "--storage", url, "--output", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    names = {Path(line).name for line in done.stdout.splitlines()}
    assert {"report.md", "trials.csv", "best.yaml", "history.png"} <= names
    best = yaml.safe_load((tmp_path / "r" / "best.yaml").read_text())
    assert set(best) == {"DATASETS", "MODEL", "SOLVER", "VERSION"}
    assert best["DATASETS"] == {"TUNED_ON": ["cityscapes_instance_val"]}

    absent = ["--study", "x", "--output", tmp_path / "n"]
    done = tool("tools/analyze_study.py", "--storage", url, *absent)
    assert "no study 'x'; it has: search" in last_line(done)
    assert not (tmp_path / "n").exists()


def test_thresholds_in_the_wrong_order(tool: Run, config: Path, tmp_path: Path) -> None:
    range_ = ["SEARCH.PARAMETERS.rpn_negative_iou_thresh.HIGH", "0.8"]
    options = ["--config-file", config, *range_, "OUTPUT_DIR", tmp_path]
    assert "in the wrong order" in last_line(tool("tools/tune.py", *options))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "storage", "trials", "message"),
    [
        ([], "postgres://u:secret@127.0.0.1:1/d", 2, "127.0.0.1:1/d: cannot use the database: c"),
        ([], "", 0, "--trials 0: at least 1"),
        (["MODEL.WEIGHTS", "s/model_final.pth"], "", 2, "s/model_final.pth: no such file; train"),
        (["DATASETS.TEST", "()"], "", 2, "a search needs one dataset to score on"),
        (["SEARCH.PRUNER.REDUCTION", "1"], "", 2, "REDUCTION at least 2"),
        (["SEARCH.STALL_MINUTES", "-1.0"], "", 2, "SEARCH.STALL_MINUTES must be at least 0"),
        (["SEARCH.MAX_FAILURES", "0"], "", 2, "must be at least 1"),
        (
            ["SEARCH.PARAMETERS.fg_iou_thresh.KEY", "SOLVER.RATE"],
            *("", 2, "fg_iou_thresh.KEY SOLVER.RATE: there is no such config key"),
        ),
    ],
)
def test_bad_input(
    config: Path,
    small_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    storage: str,
    trials: int,
    message: str,
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))
    cfg = build_config(str(config), [*options, "OUTPUT_DIR", str(tmp_path / "out")])
    with pytest.raises(InputError) as caught:
        tune(cfg, "search", storage, trials, True, ["no program"], StopRequests())
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)
    assert not list(tmp_path.rglob("*.*"))


@pytest.fixture
def fake_search(
    config: Path, small_root: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., optuna.Study]:
    """A search of one trial in this process, with the fake training program."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))
    command = [sys.executable, str(PROJECT / "tests" / "recipe" / "fake_train_net.py")]

    def search(
        output: Path, *opts: str, study: str = "search", prune: bool = False
    ) -> optuna.Study:
        # What the fake has to be told of every trial, and how long it trains.
        fit = ("SEARCH.PARAMETERS.fpn_grad_flow.ENABLED", "True", "SOLVER.MAX_ITER", "100")
        cfg = build_config(str(config), [*fit, *opts, "OUTPUT_DIR", str(output)])
        tune(cfg, study, "", 1, prune, command, StopRequests())
        return optuna.load_study(study_name=study, storage=f"sqlite:///{output}/search.db")

    return search


def test_the_last_line_can_be_pasted(
    fake_search: Callable[..., optuna.Study], tmp_path: Path
) -> None:
    output = tmp_path / "my search"
    fake_search(output, study="thresholds of mine")
    line = (output / "log.txt").read_text().splitlines()[-1]
    assert shlex.split(line.partition("best.yaml: ")[2]) == [
        *("tools/analyze_study.py", "--storage", f"sqlite:///{output}/search.db"),
        *("--study", "thresholds of mine", "--output", str(output)),
    ]


def test_other_weights_are_refused_by_their_content(
    fake_search: Callable[..., optuna.Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, copy = tmp_path / "mine.pth", tmp_path / "copy.pth"
    mine.write_text("weights")
    digested: list[Path] = []
    monkeypatch.setattr(
        "cityscapes_maskrcnn.search.tuning.file_digest",
        lambda path: digested.append(path) or file_digest(path),
    )
    study = fake_search(tmp_path / "out", "MODEL.WEIGHTS", str(mine))
    assert digested == [mine]
    shutil.copy(mine, copy)
    fake_search(tmp_path / "out", "MODEL.WEIGHTS", str(copy))
    before, now = file_digest(mine), hashlib.sha256(b"others").hexdigest()
    mine.write_text("others")
    with pytest.raises(InputError) as caught:
        fake_search(tmp_path / "out", "MODEL.WEIGHTS", str(mine))
    assert str(caught.value) == (
        "study 'search' trains with MODEL.WEIGHTS of which the content differs (SHA-256 "
        f"{before}, not SHA-256 {now}): its scores cannot be compared; take another --study or "
        "the same weights"
    )
    with pytest.raises(InputError, match=rf"differs \(SHA-256 {before}, not no weights\): its"):
        fake_search(tmp_path / "out")
    # A study that was made before says nothing about it.
    config = dict(study.user_attrs["config"])
    del config["content of MODEL.WEIGHTS"]
    study.set_user_attr("config", config)
    shutil.rmtree(tmp_path / "out" / "trials")
    fake_search(tmp_path / "out", "MODEL.WEIGHTS", str(mine))


def test_trials_of_another_study_are_found_before_one_is_started(
    fake_search: Callable[..., optuna.Study], tmp_path: Path
) -> None:
    fake_search(tmp_path)
    url = f"sqlite:///{tmp_path}/search.db"
    other = "0000: holds a trial of another study or config; take another OUTPUT_DIR"
    with pytest.raises(InputError, match=other):
        fake_search(tmp_path, study="other")
    assert optuna.get_all_study_names(url) == ["search"]
    # Another study of the same name, in a new database.
    (tmp_path / "search.db").unlink()
    with pytest.raises(InputError, match=other):
        fake_search(tmp_path, "SEED", "7")
    assert optuna.get_all_study_names(url) == []
    fake_search(tmp_path)
    assert optuna.get_all_study_names(url) == ["search"]


def test_a_search_whose_trials_are_too_short_to_be_pruned_says_so(
    fake_search: Callable[..., optuna.Study], tmp_path: Path
) -> None:
    line = (
        "No trial will be pruned: they have no more than SEARCH.PRUNER.MIN_EVALUATIONS 5 "
        "evaluations (TEST.EVAL_PERIOD 20 of 100 iterations)"
    )
    # Five evaluations of 20 iterations are all of a trial; 19 leave five iterations to save.
    for period, prune, told in (("20", True, True), ("19", True, False), ("20", False, False)):
        output = tmp_path / f"{period} {prune}"
        fake_search(output, "TEST.EVAL_PERIOD", period, prune=prune)
        assert (line in (output / "log.txt").read_text()) == told


def test_a_study_has_a_name(
    config: Path, small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))
    cfg = build_config(str(config), ["OUTPUT_DIR", str(tmp_path / "out")])
    with pytest.raises(InputError, match=r"^--study is empty: name the study$"):
        tune(cfg, "", "", 2, True, ["no program"], StopRequests())
    assert not list(tmp_path.iterdir())
