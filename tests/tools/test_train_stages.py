"""train_stages.py as a user runs it: a short chain, a second call, and mistakes.

The whole chain, with anchors and search, is what `make demo` runs, and tests/recipe/kill_chain.py.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from cityscapes_maskrcnn.data.provenance import read_history

PROJECT = Path(__file__).parents[2]

Run = Callable[..., subprocess.CompletedProcess[str]]

TINY = (
    "MODEL.DEVICE cpu MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16 "
    "MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.RESNETS.NORM BN MODEL.FPN.OUT_CHANNELS 16 "
    "MODEL.ROI_BOX_HEAD.FC_DIM 32 MODEL.ROI_MASK_HEAD.CONV_DIM 16 INPUT.MIN_SIZE_TRAIN (64,) "
    "INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TEST 192 SOLVER.EPOCHS 0 SOLVER.MAX_ITER 2 "
    "SOLVER.IMS_PER_BATCH 2 SOLVER.WARMUP_ITERS 0 TEST.DETECTIONS_PER_IMAGE 10"
)
STAGES = ["--stages", "stage_2", "stage_3", "MODEL.WEIGHTS", "", *TINY.split()]
NO_DATA = "error: stage_0: data missing, see the list below the plan; nothing is done"
REPORT = {
    "performance.md",
    "performance.csv",
    "performance.png",
    "overfitting.png",
    "recipe.json",
}


@pytest.fixture(scope="module")
def train_stages(tool: Run) -> Run:
    """Run the tool in this process: ``train_stages(output, *arguments, root=...)``."""
    return partial(tool, "tools/train_stages.py", "--config-dir", "configs/demo", "--output")


@pytest.fixture(scope="module")
def chain(train_stages: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stages 2 and 3, from random weights."""
    output = tmp_path_factory.mktemp("chain")
    done = train_stages(output, *STAGES)
    assert done.returncode == 0, done.stdout + done.stderr
    (output / "stdout").write_text(done.stdout)
    return output


def test_it_plans_trains_scores_and_reports(chain: Path) -> None:
    printed = (chain / "stdout").read_text()
    plan, _, rest = printed.partition("stage_2: complete")
    assert plan.index("iterations") < plan.index("[1/4] stage_2: 2 iterations on 8 images")
    # A screen for each step, and no line of a library.
    assert len([line for line in rest.splitlines() if "  ETA " not in line]) < 40
    assert max(map(len, plan.splitlines()[1:])) <= 80
    scores = r"AP [\d.]+, AP50 [\d.]+ on"
    assert re.search(rf"^stage_2: {scores} val part 2 of 4$", rest, re.MULTILINE)
    assert re.search(r"^stage_3: loss .*, peak .* GB RAM$", rest, re.MULTILINE)
    assert re.search(rf"^scores/stage_3: {scores} val parts 3-4 of 4$", rest, re.MULTILINE)
    assert "scores/stage_3: complete" in rest
    assert re.search(r"^3 refined .* s$", rest, re.MULTILINE)
    for name in REPORT:
        assert (chain / name).stat().st_size > 0
    gallery = json.loads((chain / "gallery" / "gallery.json").read_text())
    assert gallery["model"].endswith(str(chain / "stage_3" / "model_final.pth"))
    assert str(chain / "gallery" / "index.md") in rest
    # For the report: how to repeat it.
    assert rest.endswith(f"All on one page: python tools/report.py --run {chain}\n")
    recipe = json.loads((chain / "recipe.json").read_text())
    (call,) = recipe["commands"]
    assert call.startswith("python ")
    assert f"--output {chain} --stages stage_2 stage_3 MODEL.WEIGHTS ''" in call
    assert recipe["selected"] == ["stage_2", "stage_3", "scores/stage_2", "scores/stage_3"]
    (command,) = json.loads((chain / "stage_3" / "inputs.json").read_text())["commands"]
    assert "--resume MODEL.DEVICE cpu" in command
    assert f"MODEL.WEIGHTS {chain}/stage_2/model_final.pth" in command
    for stage in ("stage_2", "stage_3"):
        scores = json.loads((chain / "scores" / stage / "scores.json").read_text())
        assert list(scores["datasets"]) == ["cityscapes_instance_val_part3and4of4"]
        assert scores["seen"] == []
        assert (chain / stage / "steps.log").stat().st_size > 1000


def test_weights_and_what_they_have_seen_are_handed_on(chain: Path) -> None:
    log = (chain / "stage_3" / "log.txt").read_text()
    assert str(chain / "stage_2" / "model_final.pth") in log
    content = torch.load(chain / "stage_3" / "model_final.pth", weights_only=True)
    assert [(used.dataset, used.role) for used in read_history(content, "stage_3")] == [
        ("cityscapes_instance_train", "trained"),
        ("cityscapes_instance_val_part1of4", "tuned"),
        ("cityscapes_instance_val_part1of4", "trained"),
        ("cityscapes_instance_val_part2of4", "trained"),
    ]


def fingerprint(folder: Path) -> dict[str, tuple[str, int]]:
    """Digest and time of the last change of every file."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_another_config_is_refused_and_nothing_is_overwritten(
    chain: Path, train_stages: Run
) -> None:
    before = fingerprint(chain)
    assert {"stage_2/model_final.pth", "scores/stage_3/scores.json"} <= before.keys()
    words = ["--stages", "stage_2", "MODEL.WEIGHTS", "", *TINY.split(), "SOLVER.BASE_LR", "0.5"]
    error = error_of(train_stages(chain, *words))
    assert f"{chain / 'stage_2'}: was made with SOLVER.BASE_LR 0.003, now 0.5; choose" in error
    assert fingerprint(chain) == before


def test_a_second_call_runs_nothing(chain: Path, train_stages: Run) -> None:
    before = fingerprint(chain)
    done = train_stages(chain, *STAGES)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("stage_2", "stage_3", "scores/stage_2", "scores/stage_3"):
        (row,) = [line for line in done.stdout.splitlines() if line.startswith(f"{name} ")]
        assert row.endswith("complete")
    assert "[1/" not in done.stdout
    assert "COCO-style AP" in done.stdout
    after = fingerprint(chain)
    # The report, beside the folders of the steps, is written again.
    assert {name for name in before if before[name] != after.get(name)} <= REPORT
    assert before.keys() == after.keys()
    assert [name for name in REPORT if before[name][0] != after[name][0]] == []


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return error


def test_without_coarse_data_the_plan_names_the_command_that_works(
    tool: Run, small_root: Path, tmp_path: Path
) -> None:
    for folder in ("leftImg8bit", "gtFine"):
        (tmp_path / "data/cityscapes").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data/cityscapes" / folder).mkdir()
        for split in ("train", "val"):
            source = small_root / "cityscapes" / folder / split
            (tmp_path / "data/cityscapes" / folder / split).symlink_to(source)
    run = partial(tool, root=tmp_path / "data")
    output = tmp_path / "my output"
    options = ["SOLVER.BASE_LR", "0.002"]
    done = run("tools/train_stages.py", "--output", output, "--trials", 7, *options)
    assert error_of(done) == NO_DATA
    (command,) = re.findall(r"without coarse data: (python .*)", done.stdout)
    python, script, *words = shlex.split(command)
    assert (python, Path(script)) == ("python", PROJECT / "tools/train_stages.py")
    assert words[-4:] == [
        *options,
        *("MODEL.WEIGHTS", "detectron2://ImageNetPretrained/torchvision/R-50.pkl"),
    ]
    done = run("tools/train_stages.py", "--dry-run", *words)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(\w+) .* to do$", done.stdout, re.MULTILINE) == [
        *("stage_1", "anchors", "search", "stage_2", "stage_3")
    ]
    assert str(output) in done.stdout


def test_missing_data_are_named_below_the_plan_and_nothing_is_written(
    train_stages: Run, small_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    shutil.copytree(small_root, root, ignore=shutil.ignore_patterns("gtCoarse"))
    done = train_stages(tmp_path / "new", *TINY.split(), root=root)
    assert error_of(done) == NO_DATA
    plan, _, below = done.stdout.partition("\n\n")
    rows = [line for line in plan.splitlines()[3:] if not line.startswith(" ")]
    states = {row.split()[0]: row.split()[-2:] for row in rows}
    assert states.pop("stage_0") == ["data", "missing"]
    assert list(states.values()) == [["to", "do"]] * 8
    assert below.startswith(f"stage_0: {root}/cityscapes/gtCoarse: no such folder")
    assert list(tmp_path.iterdir()) == [root]


def test_a_dry_run_prints_the_plan_and_writes_nothing(train_stages: Run, tmp_path: Path) -> None:
    done = train_stages(tmp_path / "new", "--dry-run", *STAGES)
    assert done.returncode == 0, done.stderr
    plan = [line.split() for line in done.stdout.splitlines() if "stage_" in line]
    assert [(row[0], row[-2:]) for row in plan] == [
        (name, ["to", "do"]) for name in ("stage_2", "stage_3", "scores/stage_2", "scores/stage_3")
    ]
    assert "[1/" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_empty_output_is_refused(train_stages: Run) -> None:
    done = train_stages("", "--dry-run", *STAGES)
    assert error_of(done) == "error: --output is empty: name a folder"
    assert done.stdout == ""
