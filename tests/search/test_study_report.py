from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from matplotlib import pyplot as plt
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.search.best_config import best_config
from cityscapes_maskrcnn.search.storage import open_study, storage_url
from cityscapes_maskrcnn.search.study import (
    CONFIRMED_SCORES,
    GENERATED_SCENES,
    SCORED_IMAGES,
    STUDY_CONFIG,
    TRIAL_REASON,
)
from cityscapes_maskrcnn.search.study_report import parameter_importances, write_study_report
from cityscapes_maskrcnn.utils.errors import InputError

PICTURES = {"history.png", "importances.png", "slices.png", "parallel_coordinates.png"}
TEXTS = {"report.md", "trials.csv", "best.yaml"}


def add(study: optuna.Study, value: float | None, reason: str = "", **params: Any) -> None:
    """Add a complete trial, or a failed one if there is no value."""
    study.add_trial(
        create_trial(
            state=TrialState.FAIL if value is None else TrialState.COMPLETE,
            value=value,
            params=params,
            distributions={
                name: FloatDistribution(0, 1)
                if isinstance(param, float)
                else CategoricalDistribution(CHOICES if param in CHOICES else [True, False])
                for name, param in params.items()
            },
            user_attrs={TRIAL_REASON: reason} if reason else {},
        )
    )


CHOICES = ["AdamW with a cosine schedule", "SGD with momentum and steps", "$Lion$ and \\frac"]


@pytest.fixture
def study() -> optuna.Study:
    """Twenty trials whose score depends on the first parameter alone, and one that failed."""
    study = optuna.create_study(study_name="s", direction="maximize")
    for number in range(20):
        fg = 0.3 + 0.02 * number
        flow = number % 2 == 0
        add(study, 20 - 40 * abs(fg - 0.5), fg_iou_thresh=fg, fpn_grad_flow=flow)
    add(study, None, "out of memory: a|b", fg_iou_thresh=0.5, fpn_grad_flow=True)
    return study


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_report_of_a_study(study: optuna.Study, tmp_path: Path) -> None:
    files, missing = write_study_report(study, "sqlite:///s.db", tmp_path / "r")
    assert missing == ""
    assert {path.name for path in files} == names(tmp_path / "r") == PICTURES | TEXTS
    for name in PICTURES:
        with Image.open(tmp_path / "r" / name) as image:
            assert image.width >= 600
            assert len(image.convert("RGB").getcolors(1 << 20)) > 20
    text = (tmp_path / "r" / "report.md").read_text()
    # 0.3 + 0.02 x 10 = 0.5 is best, with the full score.
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

    comment = (tmp_path / "r" / "best.yaml").read_text().splitlines()
    assert "study 's'" in comment[0]
    assert "trial 10, objective 20" in comment[1]
    cfg = build_config("", ["INCLUDE", f"('{tmp_path / 'r' / 'best.yaml'}',)"])
    assert cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS == [0.25, 0.5]
    assert cfg.MODEL.FPN.FREEZE is False


def test_importances(study: optuna.Study) -> None:
    importances, remark = parameter_importances(study)
    assert sum(importances.values()) == pytest.approx(1)
    # The second parameter has no influence.
    assert importances["fg_iou_thresh"] > 0.9
    assert remark == "Measured on 20 complete trials."
    # One infinite score must not spoil them.
    add(study, math.inf, fg_iou_thresh=0.6, fpn_grad_flow=True)
    assert parameter_importances(study)[0] == importances
    # A parameter that only some trials have has none.
    add(study, 3.0, fg_iou_thresh=0.6, fpn_grad_flow=True, other=0.5)
    assert set(parameter_importances(study)[0]) == {"fg_iou_thresh", "fpn_grad_flow"}


def test_importances_of_few_trials_are_left_out(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    for number in range(9):
        add(study, float(number), x=0.3 + 0.01 * number, y=0.1 * number)
    write_study_report(study, "memory", tmp_path)
    assert not (tmp_path / "importances.png").exists()
    text = (tmp_path / "report.md").read_text()
    assert "Importances are not measured: 9 complete trials (at least 10 are needed)" in text
    # Few for two parameters: 10 each are wanted.
    add(study, 9.0, x=0.6, y=1.0)
    assert parameter_importances(study)[1] == (
        "Measured on 10 complete trials, few for 2 parameters: an indication, not a result."
    )


def test_the_winner_by_mean_becomes_best_yaml(study: optuna.Study, tmp_path: Path) -> None:
    """Trial 10 has the best score of one seed, 20; trial 11, with 19.2, the best mean of three."""
    scores = {
        "10": {"42": 20.0, "43": 15.0, "44": 16.0},
        "11": {"42": 19.2, "43": 18.4, "44": 18.8},
        # Its other runs failed.
        "12": {"42": 19.1},
    }
    study.set_user_attr(CONFIRMED_SCORES, scores)
    study.set_user_attr(STUDY_CONFIG, {"SEARCH.OBJECTIVE": "segm/AP"})
    write_study_report(study, "memory", tmp_path)
    text = (tmp_path / "report.md").read_text()
    # (19.2 + 18.4 + 18.8) / 3 = 18.8 and (20 + 15 + 16) / 3 = 17
    assert "Best: **18.8 (mean of 3 seeds, 18.4 to 19.2)**, trial 11" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    table = rows.index(["trial", "seed 42", "seed 43", "seed 44", "mean", "min to max"])
    assert rows[table + 2] == ["11", "19.2", "18.4", "18.8", "18.8", "18.4 to 19.2"]
    assert rows[table + 3] == ["10", "20", "15.0", "16.0", "17", "15 to 20"]
    assert rows[table + 4][:4] == ["12", "19.1", "-", "-"]
    best = (tmp_path / "best.yaml").read_text()
    assert "trial 11, segm/AP (%) 18.8 (mean of 3 seeds, 18.4 to 19.2)." in best
    # 0.3 + 0.02 x 11
    fg = yaml.safe_load(best)["MODEL"]["ROI_HEADS"]["IOU_THRESHOLDS"][1]
    assert fg == pytest.approx(0.52)
    assert "but only once" not in text

    # A trial that ran after the confirmation.
    del scores["10"]
    study.set_user_attr(CONFIRMED_SCORES, scores)
    write_study_report(study, "memory", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Trial 10 scored 20, more than any other, but only once: it ran after" in text
    study.set_user_attr(CONFIRMED_SCORES, {"ten": 1})
    with pytest.raises(InputError, match="its attribute confirmed_scores holds no scores by trial"):
        write_study_report(study, "memory", tmp_path)


def test_generated_scenes_are_named(study: optuna.Study, tmp_path: Path) -> None:
    text = "- Data: **generated scenes, not Cityscapes**"
    for generated in (False, True):
        study.set_user_attr(STUDY_CONFIG, {GENERATED_SCENES: generated})
        write_study_report(study, "memory", tmp_path)
        assert (text in (tmp_path / "report.md").read_text()) == generated
        for name in PICTURES:
            # Only that warning below the title is red where there are no marks.
            with Image.open(tmp_path / name) as image:
                corner = np.asarray(image.convert("RGB"))[30:60, 10:250].reshape(-1, 3)
            is_red = np.abs(corner - np.array([213, 94, 0])).max(axis=1) < 8
            assert is_red.any() == generated, name


def test_pictures_name_the_score_for_people(
    study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(
        "cityscapes_maskrcnn.search.study_report.plot_study",
        lambda *_, **given: drawn.update(given) or [],
    )
    study.set_user_attr(STUDY_CONFIG, {"SEARCH.OBJECTIVE": "segm/AP"})
    write_study_report(study, "sqlite:///output/search.db", tmp_path)
    assert drawn["label"] == "official mask AP, %"
    rest = f"study {study.study_name} in output/search.db · official mask AP of each trial"
    assert str(drawn["about"]) == rest
    config = {"SEARCH.OBJECTIVE": "segm/AP", "DATASETS.TEST": ["val_of_a_study"], SCORED_IMAGES: 7}
    study.set_user_attr(STUDY_CONFIG, config)
    write_study_report(study, "sqlite:///output/search.db", tmp_path)
    assert str(drawn["about"]) == f"val_of_a_study · 7 images · {rest}"


def test_pictures_leave_nothing_behind(study: optuna.Study, tmp_path: Path) -> None:
    before = dict(plt.rcParams), plt.get_fignums()
    write_study_report(study, "memory", tmp_path)
    assert (dict(plt.rcParams), plt.get_fignums()) == before


def test_an_old_study_of_another_program(old_database: Path, tmp_path: Path) -> None:
    with open_study(storage_url(str(old_database)), "maskrcnn-thresholds") as study:
        write_study_report(study, "old", tmp_path / "r")
        best = best_config(study, study.best_trial)
    assert names(tmp_path / "r") == PICTURES | TEXTS
    fragment = yaml.safe_load((tmp_path / "r" / "best.yaml").read_text())
    assert fragment == {**best, "VERSION": 2}
    # Trial 2 of that file.
    assert best["MODEL"]["RPN"]["IOU_THRESHOLDS"] == [0.16133567491945525, 0.8055658501190278]
    assert best["MODEL"]["FPN"] == {"FREEZE": False}


def test_minimized_and_unknown_parameters(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="loss", sampler=optuna.samplers.RandomSampler(seed=0))
    # By the name of ours, with something else in it.
    study.set_user_attr(STUDY_CONFIG, "config.yaml")

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("rate", 1e-5, 1e-1, log=True)
        return abs(math.log10(rate) + 3) + trial.suggest_int("depth", 1, 3)

    study.optimize(objective, n_trials=10)
    write_study_report(study, "memory", tmp_path)
    assert names(tmp_path) == (PICTURES | TEXTS) - {"best.yaml"}
    text = (tmp_path / "report.md").read_text()
    assert f"Best: **{study.best_value:.6g}**, trial {study.best_trial.number} (smallest" in text
    assert "None of the parameters has a known config key, so there is no best.yaml." in text


def test_studies_without_a_result(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="s", direction="maximize")
    with pytest.raises(InputError, match=r"study 's' has no complete trial \(no trials\)"):
        write_study_report(study, "memory", tmp_path / "r")
    add(study, None, "diverged", x=0.4)
    add(study, math.inf, x=0.4)
    with pytest.raises(InputError, match=r"1 failed, 1 complete\).*the last failure: diverged"):
        write_study_report(study, "memory", tmp_path / "r")
    several = optuna.create_study(study_name="two", directions=["maximize", "minimize"])
    with pytest.raises(InputError, match="'two' has 2 objectives"):
        write_study_report(several, "memory", tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({"fpn_grad_flow": CHOICES[0]}, f"fpn_grad_flow '{CHOICES[0]}': it must be True or False"),
        ({"fg_iou_thresh": 1.0}, "fg_iou_thresh 1.0: an IoU threshold lies between 0 and 1"),
        (
            {"rpn_negative_iou_thresh": 0.8, "rpn_positive_iou_thresh": 0.6},
            "thresholds in the wrong order: rpn_negative_iou_thresh 0.8 must be below "
            "rpn_positive_iou_thresh 0.6",
        ),
    ],
)
def test_a_name_with_another_meaning_gives_no_best_yaml(
    tmp_path: Path, params: dict[str, Any], why: str
) -> None:
    study = optuna.create_study(direction="maximize")
    add(study, 1.0, **params)
    (tmp_path / "best.yaml").write_text("earlier")
    files, missing = write_study_report(study, "memory", tmp_path)
    assert tmp_path / "best.yaml" not in files
    assert (tmp_path / "best.yaml").read_text() == "earlier"
    assert missing == (
        f"The best trial cannot be written as config keys ({why}), so there is no best.yaml. The "
        f"one in {tmp_path} is from an earlier report and was not changed."
    )
    assert missing in (tmp_path / "report.md").read_text()


def test_a_folder_that_cannot_be_made(study: optuna.Study, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/r/.*: cannot be written"):
        write_study_report(study, "memory", tmp_path / "file" / "r")
    assert not plt.get_fignums()
