from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution
from optuna.trial import create_trial

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.search.best_config import best_config
from cityscapes_maskrcnn.search.space import Parameter, SearchSpace
from cityscapes_maskrcnn.search.study import STUDY_CONFIG, STUDY_SPACE
from cityscapes_maskrcnn.search.study_report import write_study_report

CONFIGS = Path(__file__).parents[2] / "configs"
SEARCH_ANCHORS = [[32], [64], [128], [256], [512]]
NODE = "MODEL.ANCHOR_GENERATOR"


def anchors_study(kmeans: object, config: dict[str, Any] | None) -> optuna.Study:
    """One trial that searched for k-means anchors or none, and for a threshold."""
    study = optuna.create_study(study_name="s", direction="maximize")
    if config is not None:
        study.set_user_attr(STUDY_CONFIG, config)
    study.add_trial(
        create_trial(
            value=1.0,
            params={"kmeans_anchors": kmeans},
            distributions={"kmeans_anchors": CategoricalDistribution([True, False, "False"])},
        )
    )
    return study


@pytest.fixture
def search_config() -> dict[str, Any]:
    """What a study keeps of configs/stage_2_search.yaml, as far as it concerns anchors."""
    cfg = build_config(str(CONFIGS / "stage_2_search.yaml"), [])
    node = yaml.safe_load(cfg.dump())["MODEL"]["ANCHOR_GENERATOR"]
    train = {"DATASETS.TRAIN": list(cfg.DATASETS.TRAIN)}
    return {**{f"{NODE}.{key}": value for key, value in node.items()}, **train}


def test_config_keys_of_a_widened_search(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    space = SearchSpace(
        {
            "base_lr": Parameter("float", 1e-5, 1e-3, True, key="SOLVER.BASE_LR"),
            "rpn_positive_iou_thresh": Parameter("float", 0.5, 0.9),
        }
    )
    study.set_user_attr(STUDY_SPACE, space.to_json())
    config = {"MODEL.RPN.IOU_THRESHOLDS": [0.2, 0.7], "SEARCH.OBJECTIVE": "AP"}
    study.set_user_attr(
        STUDY_CONFIG, {**config, "DATASETS.TEST": ["cityscapes_instance_val_part3of4"]}
    )
    study.optimize(lambda trial: float(len(space.suggest(trial))), n_trials=1)
    write_study_report(study, "memory", tmp_path)
    rate, positive = study.best_params.values()
    fragment = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert fragment["SOLVER"] == {"BASE_LR": rate}
    # The other threshold is the one that its trials trained with.
    assert fragment["MODEL"]["RPN"]["IOU_THRESHOLDS"] == [0.2, positive]
    # What trains with them carries on by what they were chosen.
    assert fragment["DATASETS"] == {"TUNED_ON": ["cityscapes_instance_val_part3of4"]}
    assert "AP (%)" in (tmp_path / "report.md").read_text()


def test_text_in_a_study_cannot_become_config_keys(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="s\nSEED: 1", direction="maximize")

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("note", ["a\nSEED: 2\nMODEL: {WEIGHTS: other.pth}"])
        trial.suggest_categorical("x\nSEED: 3", [1])
        return trial.suggest_float("fg_iou_thresh", 0.3, 0.7)

    study.optimize(objective, n_trials=1)
    write_study_report(study, "memory\nSEED: 4", tmp_path)
    fragment = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert fragment == {**best_config(study, study.best_trial), "VERSION": 2}


@pytest.mark.parametrize("value", [False, "False"])
def test_without_k_means_the_anchors_are_those_of_the_search(
    search_config: dict[str, Any], tmp_path: Path, value: object
) -> None:
    write_study_report(anchors_study(value, search_config), "memory", tmp_path)
    tuned = str(CONFIGS / "stage_2_tuned.yaml")
    assert build_config(tuned, []).MODEL.ANCHOR_GENERATOR.SIZES != SEARCH_ANCHORS
    cfg = build_config(tuned, ["INCLUDE", f"('{tmp_path / 'best.yaml'}',)"])
    node = cfg.MODEL.ANCHOR_GENERATOR
    assert (node.NAME, node.SIZES) == ("DefaultAnchorGenerator", SEARCH_ANCHORS)
    assert node.ASPECT_RATIOS == [[0.5, 1.0, 2.0]]
    printed = "Anchors: those that the trials without k-means trained with."
    assert printed in (tmp_path / "report.md").read_text()
    assert f"# {printed}\n" in (tmp_path / "best.yaml").read_text()


def test_k_means_is_fitted_anew(search_config: dict[str, Any], tmp_path: Path) -> None:
    """On all training images instead of the trials' few, but as many anchors as theirs."""
    search_config[f"{NODE}.NUM_RATIOS"] = 2
    write_study_report(anchors_study(True, search_config), "memory", tmp_path)
    tuned = str(CONFIGS / "stage_2_tuned.yaml")
    cfg = build_config(tuned, ["INCLUDE", f"('{tmp_path / 'best.yaml'}',)"])
    node = cfg.MODEL.ANCHOR_GENERATOR
    assert (node.NAME, node.SIZES, node.NUM_RATIOS) == ("KMeansAnchorGenerator", [], 2)
    for name in ("report.md", "best.yaml"):
        text = (tmp_path / name).read_text()
        assert "as in the trials (cityscapes_instance_train_part1of8)" in text


def test_anchors_that_were_not_searched_are_left_alone(search_config: dict[str, Any]) -> None:
    study = optuna.create_study(direction="maximize")
    study.set_user_attr(STUDY_CONFIG, search_config)
    study.optimize(lambda trial: trial.suggest_float("fg_iou_thresh", 0.3, 0.7), n_trials=1)
    assert set(best_config(study, study.best_trial)["MODEL"]) == {"ROI_HEADS"}


def test_anchors_of_another_program_are_not_known(tmp_path: Path) -> None:
    study = anchors_study(False, None)
    write_study_report(study, "memory", tmp_path / "alone")
    assert not (tmp_path / "alone" / "best.yaml").exists()
    assert (
        "Anchors: not known. kmeans_anchors is False"
        in (tmp_path / "alone" / "report.md").read_text()
    )

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("kmeans_anchors", [False])
        return trial.suggest_float("fg_iou_thresh", 0.3, 0.7)

    study = optuna.create_study(direction="maximize")
    study.optimize(objective, n_trials=1)
    write_study_report(study, "memory", tmp_path / "r")
    for name in ("report.md", "best.yaml"):
        assert "Anchors: not known. kmeans_anchors is False" in (tmp_path / "r" / name).read_text()
    best = yaml.safe_load((tmp_path / "r" / "best.yaml").read_text())
    assert set(best["MODEL"]) == {"ROI_HEADS"}


def test_one_threshold_beyond_the_default_of_the_other(
    rpn_study: Callable[..., optuna.Study], tmp_path: Path
) -> None:
    write_study_report(rpn_study((0.75, 0.75), (0.8, 0.8), trials=1), "memory", tmp_path)
    best = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert best["MODEL"]["RPN"]["IOU_THRESHOLDS"] == [0.75, 0.8]
