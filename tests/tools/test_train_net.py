"""train_net.py on one process: training, scoring, and what it refuses."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.utils import comm

PROJECT = Path(__file__).parents[2]
Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]
Metrics = Callable[[Path], dict[str, float]]
Tables = Callable[[Path], dict[str, str]]

FITTED_ANCHORS = """
MODEL.ANCHOR_GENERATOR.NAME KMeansAnchorGenerator MODEL.ANCHOR_GENERATOR.SIZES []
SOLVER.MAX_ITER 1 SOLVER.EPOCHS 0 TEST.EVAL_EPOCHS 0 DATASETS.TEST () TEST.VALIDATION_LOSS False
"""
# A narrow network for Detectron2's own config. Random weights under this config's frozen BatchNorm
# diverge at any larger rate.
ZOO = """
MODEL.DEVICE cpu MODEL.RESNETS.STEM_OUT_CHANNELS 16
MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.RESNETS.WIDTH_PER_GROUP 16 MODEL.ROI_BOX_HEAD.FC_DIM 64
MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0 TEST.ANALYSIS_CONFIDENCE 0.0
INPUT.MIN_SIZE_TRAIN (96,) INPUT.MIN_SIZE_TEST 96 DATALOADER.NUM_WORKERS 0 SOLVER.IMS_PER_BATCH 1
SOLVER.MAX_ITER 2 SOLVER.CHECKPOINT_PERIOD 1 SOLVER.BASE_LR 1e-6 SEED 42
"""


def averages(output: Path) -> dict[str, float]:
    """The official averages that an evaluation left behind."""
    return json.loads((output / "inference" / "cityscapes_results.json").read_text())["averages"]


def anchors(output: Path) -> dict[str, object]:
    return yaml.safe_load((output / "config.yaml").read_text())["MODEL"]["ANCHOR_GENERATOR"]


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


def test_metrics_hold_both_losses_and_official_scores(trained: Path, metrics: Metrics) -> None:
    merged = metrics(trained)
    assert {"total_loss", "validation/total_loss", "validation/loss_mask"} <= merged.keys()
    assert merged["segm/AP"] == pytest.approx(100 * averages(trained)["allAp"], abs=1e-9)
    assert {"coco_segm/AP", "coco_bbox/AP"} <= merged.keys()


@pytest.fixture(scope="module")
def scored(trained: Path, tool_process: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of scoring the trained model in a process of its own, and its ``stdout``."""
    output = tmp_path_factory.mktemp("scored")
    done = tool_process(
        "tools/train_net.py",
        *("--config-file", trained / "config.yaml", "--eval-only"),
        *("MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", output),
    )
    assert done.returncode == 0, done.stderr
    (output / "stdout").write_text(done.stdout)
    return output


def test_eval_only_repeats_the_score(trained: Path, scored: Path, tables: Tables) -> None:
    assert averages(scored) == averages(trained)
    assert tables(scored) == tables(trained)


def test_scoring_into_the_folder_of_a_training_keeps_its_config(
    trained: Path, train_net: Run, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    done = train_net(
        *("--eval-only", "MODEL.WEIGHTS", tmp_path / "model_final.pth", "OUTPUT_DIR", tmp_path),
        *("DATASETS.TEST", "('cityscapes_instance_val_part4of4',)"),
        config=tmp_path / "config.yaml",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "config.yaml").read_bytes() == (trained / "config.yaml").read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--resume", "MODEL.FPN.FREEZE", True], "trained with other frozen layers"),
        (["--overwrite", "MODEL.WEIGHTS", "missing.pth"], "missing.pth: no such file"),
        (
            ["MODEL.WEIGHTS", ""],
            "contains the checkpoints of an earlier run; continue it with --resume",
        ),
        (
            ["--resume", "--overwrite"],
            "--overwrite: deletes an earlier run, so it excludes --resume",
        ),
        (["--eval-only", "MODEL.WEIGHTS", "missing.pth"], "missing.pth: no such file"),
        (["--eval-only", "--auto-batch"], "--auto-batch: --eval-only trains nothing"),
    ],
)
def test_a_refused_command_leaves_the_config_of_the_run(
    trained: Path,
    train_net: Run,
    tiny: list[str],
    tmp_path: Path,
    flags: list[object],
    message: str,
) -> None:
    """The folder's model is scored with its config.yaml, and its anchors are read from there."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    flag = [word for word in flags if str(word).startswith("--")]
    options = [*tiny, "MODEL.ANCHOR_GENERATOR.SIZES", "[[8],[16],[32],[64],[128]]"]
    done = train_net(*flag, *options, *flags[len(flag) :], "OUTPUT_DIR", tmp_path)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
    assert (tmp_path / "config.yaml").read_bytes() == (trained / "config.yaml").read_bytes()


SHORT = """
SOLVER.MAX_ITER 2 SOLVER.EPOCHS 0 SOLVER.CHECKPOINT_EPOCHS 0 SOLVER.CHECKPOINT_PERIOD 1
DATASETS.TEST () TEST.VALIDATION_LOSS False
"""


def test_a_run_that_overwrites_and_fails_leaves_no_checkpoints_of_another_config(
    trained: Path, train_net: Run, tiny: list[str], tmp_path: Path
) -> None:
    """Beside a new config.yaml they would be scored with settings they were not trained with."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    options = [*tiny, *SHORT.split(), "OUTPUT_DIR", tmp_path]
    done = train_net("--overwrite", *options, "SOLVER.BASE_LR", 1e38, "SOLVER.CHECKPOINT_PERIOD", 9)
    assert done.returncode == 1
    assert "training diverged" in done.stderr
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["SOLVER"]["BASE_LR"] == 1e38
    names = {path.name for path in tmp_path.iterdir()}
    assert not {"last_checkpoint", "summary.json"} & names
    assert not [name for name in names if name.endswith(".pth")]
    # There is nothing to go on with, so this begins anew.
    done = train_net("--resume", *options)
    assert done.returncode == 0, done.stderr
    assert "Starting training from iteration 0 of 2" in done.stdout
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    assert {json.loads(line)["iteration"] for line in lines} <= {0, 1}


def test_a_disk_that_fills_keeps_the_checkpoint_and_ends_in_one_line(
    train_net: Run, tiny: list[str], tmp_path: Path
) -> None:
    for name in ("log.txt", "metrics.json"):
        (tmp_path / name).symlink_to("/dev/full")
    done = train_net(*tiny, *SHORT.split(), "OUTPUT_DIR", tmp_path)
    assert done.returncode == 1
    errors = done.stderr.splitlines()
    reason = "cannot be written: No space left on device"
    assert errors.count(f"warning: {tmp_path}/log.txt: {reason}") == 1
    last = "; --resume continues from the last checkpoint"
    assert errors[-1] == f"error: {tmp_path}/metrics.json: {reason}{last}"
    assert "Traceback" not in done.stdout + done.stderr
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_processes_resume_at_the_same_place_or_not_at_all(
    trained: Path, train_net: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second machine that does not see the folder of the first would start anew."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(comm, "all_gather", lambda start: [start, 0])
    done = train_net("--resume", "OUTPUT_DIR", tmp_path, config=trained / "config.yaml")
    assert done.returncode == 1
    last = torch.load(trained / "model_final.pth", weights_only=True)["iteration"]
    message = f"--resume: the processes would continue from iterations [{last + 1}, 0]; all mach"
    assert message in done.stderr


def test_anchors_are_fitted_once_and_scored_elsewhere(
    train_net: Run, tiny: list[str], small_root: Path, tmp_path: Path
) -> None:
    output, elsewhere = tmp_path / "stage", tmp_path / "elsewhere"
    done = train_net(*tiny, *FITTED_ANCHORS.split(), "OUTPUT_DIR", output)
    assert done.returncode == 0, done.stderr
    assert "fitted to cityscapes_instance_train" in done.stdout
    assert "Trainable parameters:" in done.stdout
    fitted = anchors(output)
    assert [len(level) for level in fitted["SIZES"]] == [1] * 5
    # At 96 rows no object has the default sizes, 32 to 512.
    assert fitted["SIZES"][-1][0] < 96

    # Another machine, which has the validation images only.
    for folder in ("leftImg8bit", "gtFine"):
        (elsewhere / "cityscapes" / folder).mkdir(parents=True)
        source = small_root / "cityscapes" / folder / "val"
        (elsewhere / "cityscapes" / folder / "val").symlink_to(source)
    done = train_net(
        *("--eval-only", "MODEL.WEIGHTS", output / "model_final.pth"),
        *("DATASETS.TEST", "('cityscapes_instance_val',)", "OUTPUT_DIR", tmp_path / "score"),
        config=output / "config.yaml",
        root=elsewhere,
    )
    assert done.returncode == 0, done.stderr
    assert anchors(tmp_path / "score") == fitted
    assert (tmp_path / "score" / "inference" / "cityscapes_results.json").exists()


def test_detectron2s_own_cityscapes_config_trains_and_scores(
    train_net: Run, metrics: Metrics, tables: Tables, tmp_path: Path
) -> None:
    done = train_net(
        *ZOO.split(),
        *("MODEL.WEIGHTS", "", "OUTPUT_DIR", tmp_path),
        config="model_zoo://Cityscapes/mask_rcnn_R_50_FPN.yaml",
    )
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["DATASETS"]["TRAIN"] == ["cityscapes_fine_instance_seg_train"]
    first, last = (
        torch.load(tmp_path / f"model_{name}.pth", weights_only=True)
        for name in ("0000000", "final")
    )
    assert last["iteration"] == 1
    moved = {
        name.partition(".")[0]
        for name, value in first["model"].items()
        if not torch.equal(value, last["model"][name])
    }
    assert moved == {"backbone", "proposal_generator", "roi_heads"}
    merged = metrics(tmp_path)
    assert 0 < merged["total_loss"] < math.inf
    tables(tmp_path)
    assert merged["segm/AP-car"] == 100 * averages(tmp_path)["classes"]["car"]["ap"]


def test_people_and_cars_as_in_the_readme(
    train_net: Run,
    tool: Run,
    tiny: list[str],
    small_root: Path,
    tmp_path: Path,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A project with two of the classes: trained, scored, analysed, scored again and drawn."""
    (words,) = re.findall(r"DATASETS\.CLASSES \".*", (PROJECT / "configs/README.md").read_text())
    options = [*tiny, *shlex.split(words), "SOLVER.EPOCHS", 1]
    # Detectron2 logs this once a process, in which other tests may have trained.
    monkeypatch.setattr("detectron2.utils.logger._LOG_COUNTER", Counter())
    done = train_net(*options, "OUTPUT_DIR", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Distribution of instances among all 2 categories" in (tmp_path / "log.txt").read_text()
    assert averages(tmp_path)["classes"].keys() == {"person", "car"}
    assert not any("bus" in name for name in metrics(tmp_path))
    analysis = (tmp_path / "inference/analysis/per_class.csv").read_text()
    assert re.findall(r"^\w+", analysis, re.MULTILINE) == ["class", "person", "car"]
    weights = ("MODEL.WEIGHTS", tmp_path / "model_final.pth")
    again = tmp_path / "again"
    done = train_net("--eval-only", *weights, "OUTPUT_DIR", again, config=tmp_path / "config.yaml")
    assert done.returncode == 0, done.stderr
    # As many classes, but others: its persons would be scored as buses.
    others = ("DATASETS.CLASSES", "('bus','truck')", "OUTPUT_DIR", again)
    done = train_net("--eval-only", *weights, *others, config=tmp_path / "config.yaml")
    assert done.returncode == 1
    assert "predicts person, car, but the classes of the config's datasets are truck, bus" in (
        done.stderr
    )
    assert averages(again) == averages(tmp_path)
    done = tool(
        "tools/visualize_predictions.py",
        *("--config-file", tmp_path / "config.yaml", "--score-thresh", 0.0),
        *("--input", small_root / "cityscapes/leftImg8bit/val", "--output", tmp_path / "pictures"),
        *weights,
    )
    assert done.returncode == 0, done.stderr
    assert "6 pictures are in" in done.stdout
    archive = tmp_path / "results.zip"
    done = tool(
        "tools/make_submission.py",
        *("--config-file", tmp_path / "config.yaml", "--dataset", "cityscapes_instance_test"),
        *("--output", archive, *weights),
    )
    assert done.returncode == 0, done.stderr
    assert "the benchmark scores the others with 0: rider, truck, bus, train," in done.stdout
    with zipfile.ZipFile(archive) as results:
        texts = [results.read(name) for name in results.namelist() if name.endswith(".txt")]
    # Official label ids: person and car.
    labels = {line.split()[1] for text in texts for line in text.splitlines()}
    assert labels
    assert labels <= {b"24", b"26"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", ""),
        (
            "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
            "a PanopticFPN learns semantic labels, which these datasets do not have",
        ),
        (
            "COCO-Detection/rpn_R_50_FPN_1x.yaml",
            "its instances are not what MODEL.META_ARCHITECTURE ProposalNetwork predicts",
        ),
        ("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml", "MODEL.KEYPOINT_ON True: this project's"),
    ],
)
def test_other_configs_of_the_zoo_run_or_are_refused(
    train_net: Run, metrics: Metrics, tmp_path: Path, config: str, message: str
) -> None:
    done = train_net(
        *(*ZOO.split(), "SOLVER.MAX_ITER", 1, "TEST.NUM_WORKERS", 0),
        *("MODEL.ROI_HEADS.NUM_CLASSES", 8, "MODEL.RETINANET.NUM_CLASSES", 8),
        *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 19, "MODEL.WEIGHTS", "", "OUTPUT_DIR", tmp_path),
        *("DATASETS.TRAIN", "('cityscapes_instance_train',)"),
        *("DATASETS.TEST", "('cityscapes_instance_val',)"),
        config=f"model_zoo://{config}",
    )
    if message:
        assert done.returncode == 1
        assert message in done.stderr.splitlines()[-1]
        assert len(done.stdout.splitlines()) <= 40
    else:
        assert done.returncode == 0, done.stderr
        assert "coco_bbox/AP" in metrics(tmp_path)
        assert not any(name.startswith("segm/") for name in metrics(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SOLVER.EPOCS", 3], "no config key SOLVER.EPOCS; did you mean SOLVER.EPOCHS?"),
        (["DATASETS.TRAIN", "('cityscapes_instance_trian',)"], "cityscapes_instance_trian"),
        (["MODEL.WEIGHTS", "missing.pth", "SOLVER.EPOCHS", 1], "missing.pth: no such file"),
    ],
)
def test_bad_input_is_one_line(
    train_net: Run, tiny: list[str], tmp_path: Path, arguments: list[object], message: str
) -> None:
    done = train_net(*tiny, *arguments, "OUTPUT_DIR", tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_bad_input_is_one_line_of_a_process(tool_process: Run) -> None:
    done = tool_process("tools/train_net.py", "--config-file", "configs/missing.yaml")
    assert done.returncode == 1
    # Above it may stand deprecation warnings, from the imports of Detectron2.
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "configs/missing.yaml: no such file" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["DATASETS.TRAIN", "('cityscapes_coarse_semantic_train_extra',)"],
            "a GeneralizedRCNN learns instances",
        ),
        (["DATASETS.TEST", "('cityscapes_fine_semantic_val',)"], "its semantic labels are not"),
        (["--eval-only", "MODEL.WEIGHTS", "missing.pth"], "missing.pth: no such file"),
        (["MODEL.WEIGHTS", __file__], "test_train_net.py"),
    ],
)
def test_an_error_stands_below_few_lines(
    train_net: Run, tiny: list[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    """Config, environment and model would fill 900 lines; inputs are looked at before the model."""
    flags = [each for each in arguments if each.startswith("--")]
    length = ["SOLVER.EPOCHS", 0, "SOLVER.MAX_ITER", 1, "OUTPUT_DIR", tmp_path]
    done = train_net(*flags, *tiny, *length, *arguments[len(flags) :])
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
    assert len(done.stdout.splitlines()) <= 40
    assert ("Model:" in done.stdout) == (__file__ in arguments)


def test_the_terminal_shows_results_and_the_log_the_rest(trained: Path, scored: Path) -> None:
    log, shown = (trained / "log.txt").read_text(), (trained / "stdout").read_text()
    for line in ("META_ARCHITECTURE: GeneralizedRCNN", "(roi_heads): BatchedROIHeads(", "torch  "):
        assert line in log
        assert line not in shown
    assert re.search(r"Running with full config: \(\d{3} lines, see log.txt\)\n", shown)
    # Two epochs: two tables of two protocols each.
    assert shown.count("Cityscapes instance protocol (official), percent") == 2
    assert len(shown.splitlines()) < 200
    shown = (scored / "stdout").read_text()
    assert "average" in shown
    assert len(shown.splitlines()) < 100


def test_help_lists_detectron2s_flags(tool: Run) -> None:
    done = tool("tools/train_net.py", "--help")
    assert done.returncode == 0
    flags = {"--config-file", "--num-gpus", "--num-machines", "--machine-rank", "--dist-url"}
    assert {*flags, "--resume", "--eval-only"} <= set(re.findall(r"--[a-z-]+", done.stdout))
    help_text = " ".join(done.stdout.split())
    assert "continue the run in OUTPUT_DIR from its last checkpoint" in help_text
