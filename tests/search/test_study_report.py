from __future__ import annotations

import csv
import math
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.search.best_config import best_config
from cityscapes_maskrcnn.search.storage import open_study, storage_url
from cityscapes_maskrcnn.search.study import (
    CONFIRMED_SCORES,
    STUDY_CONFIG,
    STUDY_SPACE,
    TRIAL_ITERATIONS,
    TRIAL_REASON,
)
from cityscapes_maskrcnn.search.study_report import parameter_importances, write_study_report
from cityscapes_maskrcnn.utils.errors import InputError

PICTURES = {"history.png", "importances.png", "slices.png", "parallel_coordinates.png"}
TEXTS = {"report.md", "trials.csv", "best.yaml"}
DISTRIBUTIONS = {
    "fg_iou_thresh": FloatDistribution(0.3, 0.7),
    "fpn_grad_flow": CategoricalDistribution([True, False]),
}


def add(study: optuna.Study, fg: float, flow: bool, value: float | None, **user: object) -> None:
    study.add_trial(
        create_trial(
            state=TrialState.FAIL if value is None else TrialState.COMPLETE,
            value=value,
            params={"fg_iou_thresh": fg, "fpn_grad_flow": flow},
            distributions=DISTRIBUTIONS,
            user_attrs=user,
        )
    )


@pytest.fixture
def study() -> optuna.Study:
    """Twenty trials whose score depends on the first parameter alone."""
    study = optuna.create_study(study_name="s", direction="maximize")
    for number in range(20):
        fg = 0.3 + 0.02 * number
        add(study, fg, number % 2 == 0, 20 - 40 * abs(fg - 0.5))
    add(study, 0.5, True, None, **{TRIAL_REASON: "out of memory: a|b"})
    return study


def test_the_report_of_a_study(study: optuna.Study, tmp_path: Path) -> None:
    files, missing = write_study_report(study, "sqlite:///s.db", tmp_path / "r")
    assert missing == ""
    assert {path.name for path in files} == PICTURES | TEXTS
    assert {path.name for path in (tmp_path / "r").iterdir()} == PICTURES | TEXTS
    for name in PICTURES:
        with Image.open(tmp_path / "r" / name) as image:
            assert image.width >= 600
            assert len(image.convert("RGB").getcolors(1 << 20)) > 20
    text = (tmp_path / "r" / "report.md").read_text()
    # 0.3 + 0.02 x 10 = 0.5 is best, with the full score; three quarters of 21 are not shown.
    assert "Best: **20**, trial 10 (largest is best)" in text
    assert "Trials: 20 complete, 1 failed" in text
    assert "## Best 10 of 20 complete trials" in text
    # The best five: 0.5, and 0.02 and 0.04 to both sides.
    assert "0.46 to 0.54" in text
    assert "out of memory: a\\|b" in text

    rows = list(csv.DictReader((tmp_path / "r" / "trials.csv").open()))
    assert len(rows) == 21
    assert rows[0]["trial"] == "10"
    values = [float(row["value"]) for row in rows[:20]]
    assert values == sorted(values, reverse=True)
    assert (rows[20]["state"], rows[20]["reason"]) == ("fail", "out of memory: a|b")


def test_best_yaml_is_taken_by_the_config(study: optuna.Study, tmp_path: Path) -> None:
    write_study_report(study, "sqlite:///s.db", tmp_path)
    text = (tmp_path / "best.yaml").read_text()
    comment = [line for line in text.splitlines() if line.startswith("#")]
    assert "study 's'" in comment[0]
    assert "trial 10, objective 20" in comment[1]
    cfg = build_config("", ["INCLUDE", f"('{tmp_path / 'best.yaml'}',)"])
    assert cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS == [0.25, 0.5]
    assert cfg.MODEL.ROI_HEADS.IOU_LABELS == [0, -1, 1]
    assert cfg.MODEL.FPN.FREEZE is False
    # What was not searched is left alone.
    assert "RPN" not in yaml.safe_load(text)["MODEL"]


def test_importances(study: optuna.Study) -> None:
    importances, remark = parameter_importances(study)
    assert sum(importances.values()) == pytest.approx(1)
    # The second parameter has no influence.
    assert importances["fg_iou_thresh"] > 0.9
    assert remark == "Measured on 20 complete trials."
    assert parameter_importances(study)[0] == importances
    # One infinite score must not spoil them.
    add(study, 0.6, True, math.inf)
    assert parameter_importances(study)[0] == importances


def test_importances_of_few_trials_are_left_out(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    for number in range(9):
        add(study, 0.3 + 0.01 * number, number % 2 == 0, float(number))
    write_study_report(study, "memory", tmp_path)
    assert not (tmp_path / "importances.png").exists()
    text = (tmp_path / "report.md").read_text()
    assert "Importances are not measured: 9 complete trials (at least 10 are needed)" in text
    assert "importances.png" not in text
    # Few for two parameters: 10 each are wanted.
    add(study, 0.6, True, 9.0)
    write_study_report(study, "memory", tmp_path)
    assert (tmp_path / "importances.png").exists()
    warning = "Measured on 10 complete trials, few for 2 parameters: an indication, not a result."
    assert warning in (tmp_path / "report.md").read_text()


def test_the_winner_by_mean_becomes_best_yaml(study: optuna.Study, tmp_path: Path) -> None:
    """Trial 10 has the best score of one seed, 20; trial 11, with 19.2, the best mean."""
    scores = {"10": {"42": 20.0, "43": 15.0, "44": 16.0}, "11": {"42": 19.2, "43": 18.4}}
    study.set_user_attr(CONFIRMED_SCORES, scores)
    write_study_report(study, "memory", tmp_path)
    text = (tmp_path / "report.md").read_text()
    # (19.2 + 18.4) / 2 = 18.8 and (20 + 15 + 16) / 3 = 17
    assert "Best: **18.8 (mean of 2 seeds, 18.4 to 19.2)**, trial 11" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    table = rows.index(["trial", "seed 42", "seed 43", "seed 44", "mean", "min to max"])
    assert rows[table + 2] == ["11", "19.2", "18.4", "-", "18.8", "18.4 to 19.2"]
    assert rows[table + 3] == ["10", "20", "15", "16.0", "17", "15 to 20"]
    best = (tmp_path / "best.yaml").read_text()
    assert "trial 11, objective 18.8 (mean of 2 seeds, 18.4 to 19.2)." in best
    # 0.3 + 0.02 x 11
    fg = yaml.safe_load(best)["MODEL"]["ROI_HEADS"]["IOU_THRESHOLDS"][1]
    assert fg == pytest.approx(0.52)


LONG = [f"a very long name of parameter number {number}" for number in range(6)]
CHOICES = ["AdamW with a cosine schedule", "SGD with momentum and steps", "$Lion$ and \\frac"]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved, in order."""
    saved: list[Figure] = []
    save = Figure.savefig

    def save_and_keep(figure: Figure, *args: Any, **options: Any) -> None:
        save(figure, *args, **options)
        figure.draw_without_rendering()
        saved.append(figure)

    monkeypatch.setattr(Figure, "savefig", save_and_keep)
    return saved


def assert_apart(texts: Sequence[Text]) -> None:
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert len(boxes) > 2
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])


def test_long_names_do_not_overlap(figures: list[Figure], tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    distributions = {name: FloatDistribution(0, 1) for name in LONG}
    for number in range(12):
        study.add_trial(
            create_trial(
                value=float(number),
                params={**dict.fromkeys(LONG, number / 12), "optimizer": CHOICES[number % 3]},
                distributions={**distributions, "optimizer": CategoricalDistribution(CHOICES)},
            )
        )
    style, drawn = dict(plt.rcParams), plt.get_fignums()
    write_study_report(study, "memory", tmp_path)
    parallel, _, importances, slices = figures
    assert_apart([axis.xaxis.label for axis in slices.axes[:7]])
    assert_apart(slices.axes[6].get_xticklabels())
    assert_apart(parallel.axes[0].get_xticklabels())
    assert "number 5" in parallel.axes[0].get_xticklabels()[6].get_text()
    # The categories stand between their axis and the colour bar.
    bar = parallel.axes[1].get_window_extent()
    for label in parallel.axes[-1].get_yticklabels():
        assert label.get_window_extent().x1 < bar.x0
    assert_apart(importances.axes[0].get_yticklabels())
    # Neither Optuna's style nor its figures are left behind.
    assert (dict(plt.rcParams), plt.get_fignums()) == (style, drawn)


def test_an_old_study_of_another_program(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "old.db")
    connection.executescript(Path(__file__).with_name("study_of_optuna_2.sql").read_text())
    connection.close()
    with open_study(storage_url(str(tmp_path / "old.db")), "maskrcnn-thresholds") as study:
        write_study_report(study, "old", tmp_path / "r")
        best = best_config(study, study.best_trial)
    assert {path.name for path in (tmp_path / "r").iterdir()} == PICTURES | TEXTS
    fragment = yaml.safe_load((tmp_path / "r" / "best.yaml").read_text())
    assert fragment == {**best, "VERSION": 2}
    # Trial 2 of that file.
    assert best["MODEL"]["RPN"]["IOU_THRESHOLDS"] == [0.16133567491945525, 0.8055658501190278]
    assert best["MODEL"]["FPN"] == {"FREEZE": False}


def test_minimized_and_unknown_parameters(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="loss", sampler=optuna.samplers.RandomSampler(seed=0))

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("rate", 1e-5, 1e-1, log=True)
        return abs(math.log10(rate) + 3) + trial.suggest_int("depth", 1, 3)

    study.optimize(objective, n_trials=10)
    write_study_report(study, "memory", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == (PICTURES | TEXTS) - {"best.yaml"}
    text = (tmp_path / "report.md").read_text()
    assert f"Best: **{study.best_value:.6g}**, trial {study.best_trial.number} (smallest" in text
    assert "there is no `best.yaml`" in text


def test_studies_without_a_result(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="s", direction="maximize")
    with pytest.raises(InputError, match=r"study 's' has no complete trial \(no trials\)"):
        write_study_report(study, "memory", tmp_path / "r")
    add(study, 0.4, True, None, **{TRIAL_REASON: "diverged"})
    add(study, 0.4, True, math.inf)
    with pytest.raises(InputError, match=r"1 failed, 1 complete\).*the last failure: diverged"):
        write_study_report(study, "memory", tmp_path / "r")
    several = optuna.create_study(study_name="two", directions=["maximize", "minimize"])
    with pytest.raises(InputError, match="'two' has 2 objectives"):
        write_study_report(several, "memory", tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_thresholds_in_the_wrong_order_give_no_best_yaml(
    rpn_study: Callable[..., optuna.Study], tmp_path: Path
) -> None:
    study = rpn_study((0.8, 0.9), (0.5, 0.6), trials=10)
    _, missing = write_study_report(study, "memory", tmp_path / "r")
    assert {path.name for path in (tmp_path / "r").iterdir()} == (PICTURES | TEXTS) - {"best.yaml"}
    assert missing.startswith("The best trial cannot become config keys (thresholds in the wrong")
    assert missing.endswith("so there is no best.yaml.")


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("fpn_grad_flow", ["on", "off"], "(fpn_grad_flow 'on': it must be True or False)"),
        ("kmeans_anchors", [None, 3], "(kmeans_anchors None: it must be True or False)"),
        ("fg_iou_thresh", [5, 4], "(fg_iou_thresh 5: an IoU threshold lies between 0 and 1)"),
    ],
)
def test_a_name_with_another_meaning_gives_no_best_yaml(
    tmp_path: Path, name: str, values: list[Any], why: str
) -> None:
    study = optuna.create_study(direction="maximize")

    def objective(trial: optuna.Trial) -> float:
        # The first of the values is best.
        chosen = trial.suggest_categorical(name, values)
        return trial.suggest_float("x", 0, 1) - 2 * values.index(chosen)

    study.enqueue_trial({name: values[0]})
    study.optimize(objective, n_trials=4)
    (tmp_path / "best.yaml").write_text("earlier")
    files, missing = write_study_report(study, "memory", tmp_path)
    assert tmp_path / "best.yaml" not in files
    assert PICTURES - {"importances.png"} <= {path.name for path in files}
    assert (tmp_path / "best.yaml").read_text() == "earlier"
    earlier = f"The one in {tmp_path} is of an earlier report and was left as it is."
    assert missing.endswith(f"{why}, so there is no best.yaml. {earlier}")
    assert missing in (tmp_path / "report.md").read_text().replace("`", "")


def test_attributes_of_another_program(tmp_path: Path) -> None:
    """By the names of ours, with anything in them."""
    study = optuna.create_study(direction="maximize")
    study.set_user_attr(STUDY_CONFIG, "config.yaml")
    study.set_user_attr(STUDY_SPACE, {"lr": [0.1, 0.2], "fg_iou_thresh": 3})
    add(study, 0.4, True, 3.0, **{TRIAL_ITERATIONS: "many", TRIAL_REASON: ["none"]})
    add(study, 0.5, True, None, **{TRIAL_ITERATIONS: None, TRIAL_REASON: ["a", "b"]})
    write_study_report(study, "memory", tmp_path)
    assert (tmp_path / "best.yaml").is_file()


@pytest.mark.parametrize("thresholds", [0.3, ["a", "b"]])
def test_a_config_of_another_program(thresholds: object, tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    study.set_user_attr(
        STUDY_CONFIG, {"MODEL.RPN.IOU_THRESHOLDS": thresholds, "DATASETS.TEST": "name"}
    )
    trial = study.ask()
    trial.suggest_float("rpn_positive_iou_thresh", 0.6, 0.9)
    study.tell(trial, 0.5)
    _, missing = write_study_report(study, "memory", tmp_path)
    assert missing.startswith("The best trial cannot become config keys")
    assert (tmp_path / "report.md").is_file()


def test_a_folder_that_cannot_be_made(study: optuna.Study, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/r/.*: cannot be written"):
        write_study_report(study, "memory", tmp_path / "file" / "r")


def test_parameters_that_only_some_trials_have(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        return x + (trial.suggest_float("y", 0, 1) if trial.number % 2 else 0)

    study.optimize(objective, n_trials=10)
    write_study_report(study, "memory", tmp_path)
    assert set(parameter_importances(study)[0]) == {"x"}
    assert len(list(tmp_path.iterdir())) == 6
