from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.search.best_config import best_config
from cityscapes_maskrcnn.search.space import Parameter, SearchSpace
from cityscapes_maskrcnn.search.study import STUDY_CONFIG, STUDY_SPACE
from cityscapes_maskrcnn.search.study_report import write_study_report

CONFIGS = Path(__file__).parents[2] / "configs"


def make_study(config: dict[str, Any] | None = None, **values: Any) -> optuna.Study:
    """A study of one trial with these values, and with the config of its trials if it is known."""
    study = optuna.create_study(direction="maximize")
    if config is not None:
        study.set_user_attr(STUDY_CONFIG, config)
    trial = study.ask()
    for name, value in values.items():
        trial.suggest_categorical(name, [value])
    study.tell(trial, 1.0)
    return study


@pytest.fixture
def search_config() -> dict[str, Any]:
    """What a study keeps of configs/stage_2_search.yaml, as far as it concerns anchors."""
    cfg = build_config(str(CONFIGS / "stage_2_search.yaml"), [])
    node = yaml.safe_load(cfg.dump())["MODEL"]["ANCHOR_GENERATOR"]
    anchors = {f"MODEL.ANCHOR_GENERATOR.{key}": value for key, value in node.items()}
    return {**anchors, "DATASETS.TRAIN": list(cfg.DATASETS.TRAIN)}


def test_config_keys_of_a_widened_search() -> None:
    config = {
        "MODEL.RPN.IOU_THRESHOLDS": [0.2, 0.7],
        # Its anchors were fitted to train.
        "DATASETS.TUNED_ON": ["cityscapes_instance_train"],
        "DATASETS.TEST": ["cityscapes_instance_val_part3of4"],
    }
    study = make_study(config, base_lr=0.001, rpn_positive_iou_thresh=0.8)
    rate = Parameter("float", 1e-5, 1e-3, True, key="SOLVER.BASE_LR")
    study.set_user_attr(STUDY_SPACE, SearchSpace({"base_lr": rate}).to_json())
    assert best_config(study, study.best_trial) == {
        "SOLVER": {"BASE_LR": 0.001},
        # The other threshold is the one that its trials trained with.
        "MODEL": {"RPN": {"IOU_THRESHOLDS": [0.2, 0.8], "IOU_LABELS": [0, -1, 1]}},
        # Training notes in its weights on which data they were chosen.
        "DATASETS": {"TUNED_ON": ["cityscapes_instance_train", "cityscapes_instance_val_part3of4"]},
    }


def test_text_in_a_study_cannot_become_config_keys(tmp_path: Path) -> None:
    note = "a\nSEED: 2\nMODEL: {WEIGHTS: other.pth}"
    study = make_study(fg_iou_thresh=0.5, note=note, **{"x\nSEED: 3": 1})
    write_study_report(study, "memory\nSEED: 4", tmp_path)
    fragment = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert fragment == {**best_config(study, study.best_trial), "VERSION": 2}


@pytest.mark.parametrize(
    ("kmeans", "expected", "remark"),
    [
        (
            False,
            ("DefaultAnchorGenerator", [[32], [64], [128], [256], [512]], [[0.5, 1.0, 2.0]], 3),
            "Anchors: those with which the trials without k-means were trained.",
        ),
        # Fitted anew, on all training images instead of the trials' few, but as many anchors.
        (
            True,
            ("KMeansAnchorGenerator", [], [[0.5, 1.2, 1.7]], 2),
            "as in the trials (cityscapes_instance_train_part1of8)",
        ),
    ],
)
def test_anchors_are_those_of_the_search(
    search_config: dict[str, Any], tmp_path: Path, kmeans: bool, expected: object, remark: str
) -> None:
    search_config["MODEL.ANCHOR_GENERATOR.NUM_RATIOS"] = 2
    write_study_report(make_study(search_config, kmeans_anchors=kmeans), "memory", tmp_path)
    include = ["INCLUDE", f"('{tmp_path / 'best.yaml'}',)"]
    node = build_config(str(CONFIGS / "stage_2_tuned.yaml"), include).MODEL.ANCHOR_GENERATOR
    anchors = (node.NAME, node.SIZES, node.ASPECT_RATIOS, node.NUM_RATIOS)
    assert anchors == expected
    for name in ("report.md", "best.yaml"):
        assert remark in (tmp_path / name).read_text()


def test_anchors_that_were_not_searched_are_left_alone(search_config: dict[str, Any]) -> None:
    study = make_study(search_config, fg_iou_thresh=0.5)
    assert set(best_config(study, study.best_trial)["MODEL"]) == {"ROI_HEADS"}


def test_anchors_of_another_program_are_not_known(tmp_path: Path) -> None:
    study = make_study(kmeans_anchors=False, fg_iou_thresh=0.5)
    write_study_report(study, "memory", tmp_path)
    for name in ("report.md", "best.yaml"):
        assert "Anchors: not known. kmeans_anchors is False" in (tmp_path / name).read_text()
    assert set(best_config(study, study.best_trial)["MODEL"]) == {"ROI_HEADS"}
