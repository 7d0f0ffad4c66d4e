from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cityscapes_maskrcnn.data.provenance import UsedData
from cityscapes_maskrcnn.deploy.model_card import SharedModel, model_card, read_model
from cityscapes_maskrcnn.engine.checkpoint_origin import ORIGIN_KEY

CONFIG: dict[str, Any] = {
    "MODEL": {
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "MASK_ON": True,
        "BACKBONE": {"NAME": "build_resnet_fpn_backbone"},
        "RESNETS": {"DEPTH": 50},
        "SEM_SEG_HEAD": {"NAME": "SemSegFPNHead"},
        "WEIGHTS": "/home/alice/start.pth",
        "WEIGHTS_ALLOW_PICKLE": ["/home/alice/*.pkl", "https://dl.fbaipublicfiles.com/*"],
        "DISTILLATION": {"TEACHER": "/home/alice/runs/stage_3/teacher.pth", "WEIGHT": 1.0},
        "DEVICE": "cuda:1",
    },
    "DATASETS": {
        "OWN": {
            "mine": {
                "IMAGE_DIR": "/home/alice/data/images",
                "GT_DIR": "lamps/gtFine/train",
                "TASK": "instance",
            }
        },
        "PROPOSAL_FILES_TRAIN": ["/home/alice/proposals.pkl", "~alice/p.pkl", "../alice/p.pkl"],
        "PROPOSAL_FILES_TEST": ["file:///home/alice/p.pkl", "https://alice:key@host/p.pkl?alice"],
    },
    "INCLUDE": ["/home/alice/best.yaml"],
    "SEARCH": {"OBJECTIVE": "segm/AP", "STORAGE": "/home/alice/study.db"},
    "OUTPUT_DIR": "/home/alice/out",
    "TRACKING": {"PROJECT": "alice's"},
}
SHA = "ab" * 32


def seen(name: str, role: str = "trained", generated: bool = False) -> UsedData:
    return UsedData(name, role, contents=frozenset(["0" * 12]), generated=generated)


def shared(history: tuple[UsedData, ...], *parents: str) -> SharedModel:
    return SharedModel(
        source_sha256=SHA,
        tensors={"a": torch.zeros(1, dtype=torch.bfloat16)},
        config={**CONFIG, "MODEL": {**CONFIG["MODEL"], "DISTILLATION": {"TEACHER": ""}}},
        origin={
            "environment": {},
            "parents": [{"file": parent, "sha256": SHA} for parent in parents],
            "classes": ["person", "car"],
        },
        history=history,
        chosen_by="",
    )


def front_matter(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_model_of_cityscapes_bears_its_terms() -> None:
    history = (seen("cityscapes_instance_train"), seen("cityscapes_instance_val", "tuned"))
    card = model_card(shared(history, "detectron2://ImageNetPretrained/MSRA/R-50.pkl"), None, SHA)
    head = front_matter(card)
    assert head["license"] == "other"
    assert head["license_name"] == "cityscapes-terms-non-commercial"
    assert head["license_link"] == "https://www.cityscapes-dataset.com/license/"
    assert "model-index" not in head
    assert "# Mask R-CNN ResNet-50 for Cityscapes\n" in card
    assert "- trained on `cityscapes_instance_train`: 1 images" in card
    assert "- tuned on `cityscapes_instance_val`: 1 images" in card
    assert f"- `detectron2://ImageNetPretrained/MSRA/R-50.pkl`, SHA-256 `{SHA}`" in card
    assert "Not for commercial use" in card
    assert "- Cityscapes shows streets of cities in and around Germany" in card
    assert "generated" not in card
    assert "| types of its tensors | `bfloat16` |" in card


@pytest.mark.parametrize(
    ("history", "parents", "name"),
    [
        ((), (), "terms-of-the-data-and-weights-it-was-trained-from"),
        ((seen("mine"),), (), "terms-of-the-data-and-weights-it-was-trained-from"),
        # Generated scenes, but COCO's weights.
        (
            (seen("cityscapes_instance_train", generated=True),),
            ("torchvision://maskrcnn_resnet50_fpn",),
            "terms-of-the-data-and-weights-it-was-trained-from",
        ),
        # First generated ones, then photographs.
        (
            (seen("cityscapes_a", generated=True), seen("cityscapes_instance_train")),
            (),
            "cityscapes-terms-non-commercial",
        ),
    ],
)
def test_terms_follow_from_data_and_weights(
    history: tuple[UsedData, ...], parents: tuple[str, ...], name: str
) -> None:
    card = model_card(shared(history, *parents), None, SHA)
    assert front_matter(card)["license_name"] == name
    assert ("not recorded" in card.split("Images that it")[1].split("started from:")[0]) == (
        not history
    )


@pytest.mark.parametrize(
    ("parents", "teacher", "licence"),
    [
        ([{"file": "stage_0/model.pth"}], "", "other"),
        ([{"file": "data/mask_rcnn_coco.pkl"}], "", "other"),
        ([{"file": "stage_0/model.pth", "program": "cityscapes_maskrcnn"}], "", "apache-2.0"),
        (
            [
                {"file": "stage_0/model.pth", "program": "cityscapes_maskrcnn"},
                {"file": "data/mask_rcnn_coco.pkl"},
            ],
            "",
            "other",
        ),
        # Pruned from its teacher, or taught by another model.
        (
            [{"file": "stage_0/model.pth", "program": "cityscapes_maskrcnn"}],
            "stage_0/model.pth",
            "apache-2.0",
        ),
        ([], "data/teacher.pth", "other"),
    ],
)
def test_weights_not_known_to_be_ours_have_terms(
    parents: list[dict[str, str]], teacher: str, licence: str
) -> None:
    model = shared((seen("cityscapes_instance_train", generated=True),))
    model = replace(
        model,
        origin={**model.origin, "parents": [{"sha256": SHA, **parent} for parent in parents]},
        config={**CONFIG, "MODEL": {**CONFIG["MODEL"], "DISTILLATION": {"TEACHER": teacher}}},
    )
    assert front_matter(model_card(model, None, SHA))["license"] == licence


def test_scores_on_generated_scenes_grant_nothing() -> None:
    history = (seen("cityscapes_instance_train"),)
    results = {"segm": {"AP": 1.0}}
    scores = {"datasets": {"demo": {"images": 5, "generated": True, "results": results}}}
    card = model_card(shared(history), scores, SHA)
    assert front_matter(card)["license_name"] == "cityscapes-terms-non-commercial"
    assert "Trained on generated" not in card
    assert "On `demo`: **5 generated images**." in card
    assert "- trained on `cityscapes_instance_train`: 1 images\n" in card


@pytest.mark.parametrize(
    ("history", "title"),
    [
        ((seen("lamps"),), "lamps"),
        ((seen("cityscapes_lamps"),), "cityscapes_lamps"),
        ((seen("cityscapes_instance_train"), seen("lamps")), "cityscapes_instance_train, lamps"),
        ((seen("demo", generated=True), seen("lamps"), seen("lamps", "tuned")), "lamps"),
        ((), "street scenes"),
    ],
)
def test_other_data_are_not_called_cityscapes(history: tuple[UsedData, ...], title: str) -> None:
    results = {"segm": {"AP": 1.0}}
    names = ("lamps", "cityscapes_instance_val")
    scores = {
        "datasets": {name: {"images": 5, "generated": False, "results": results} for name in names}
    }
    card = model_card(shared(history), scores, SHA)
    assert f"\n# Mask R-CNN ResNet-50 for {title}\n" in card
    assert "Cityscapes shows" not in card
    assert "- Expect worse results for places, weather, " in card
    head: dict[str, Any] = front_matter(card)
    assert head["license_name"] == "terms-of-the-data-and-weights-it-was-trained-from"
    (index,) = head["model-index"]
    assert [result["dataset"]["type"] for result in index["results"]] == ["lamps", "cityscapes"]


def test_text_from_outside_is_no_markup() -> None:
    evil = "`</code><script>|x\n# Title"
    scores = {
        "datasets": {
            evil: {
                "images": 5,
                "generated": False,
                "results": {"segm": {"AP": 1.0, "AP-car": None}},
            }
        },
        "seen": [evil],
    }
    card = model_card(shared((seen(evil),), evil), scores, SHA)
    shown = "`'</code><script>¦x\\n# Title`"
    assert card.count(shown) == 4
    assert "\n# Title" not in card
    assert "<script>" not in card.replace(shown, "").split("---\n", 2)[2]
    assert "- Official AP by class" not in card
    assert "Official AP by class: `car` -." in card
    assert "**Scored on images that it has seen**" in card


@pytest.mark.parametrize("iteration", [None, "7"])
def test_a_choice_without_an_iteration_is_none(tmp_path: Path, iteration: object) -> None:
    path = tmp_path / "model.pth"
    chosen = {"metric": "segm/AP", "value": 30.0}
    if iteration is not None:
        chosen["iteration"] = iteration
    origin = {"config": yaml.safe_dump(CONFIG)}
    torch.save({"model": {"a": torch.zeros(2)}, ORIGIN_KEY: origin, **chosen}, path)
    assert read_model(path).chosen_by == ""


def test_places_and_accounts_stay_at_home(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    origin = {
        "command": "train_net.py /home/alice/secret",
        "seed": 3,
        "environment": {
            "torch": "2.14",
            "detectron2": "0.6 in /home/alice/lib",
            "DETECTRON2_DATASETS": "/home/alice",
        },
        "parents": [
            {"file": "/home/alice/project/stage_0/model.pth", "sha256": SHA},
            {"file": "/home/alice/model.pth", "sha256": SHA},
        ],
        "classes": ["person"],
        "config": yaml.safe_dump(CONFIG),
    }
    torch.save({"model": {"a": torch.zeros(2)}, "optimizer": {}, ORIGIN_KEY: origin}, path)
    model = read_model(path)
    assert "alice" not in str(model)
    assert model.origin["parents"] == [
        {"file": "stage_0/model.pth", "sha256": SHA},
        {"file": "model.pth", "sha256": SHA},
    ]
    assert model.origin["environment"] == {"torch": "2.14", "detectron2": "0.6"}
    config = model.config
    assert config == yaml.safe_load(model.origin["config"])
    assert config["MODEL"]["WEIGHTS"] == "model.safetensors"
    assert config["MODEL"]["DEVICE"] == "cuda"
    assert config["MODEL"]["DISTILLATION"] == {"TEACHER": "stage_3/teacher.pth", "WEIGHT": 1.0}
    assert config["MODEL"]["WEIGHTS_ALLOW_PICKLE"] == ["*.pkl", "https://dl.fbaipublicfiles.com/*"]
    assert config["DATASETS"] == {
        "OWN": {
            "mine": {
                "IMAGE_DIR": "data/images",
                "GT_DIR": "lamps/gtFine/train",
                "TASK": "instance",
            }
        },
        "PROPOSAL_FILES_TRAIN": ["proposals.pkl", "p.pkl", "p.pkl"],
        "PROPOSAL_FILES_TEST": ["p.pkl", "https://host/p.pkl"],
    }
    assert config["INCLUDE"] == ["best.yaml"]
    assert config["SEARCH"] == {"OBJECTIVE": "segm/AP", "STORAGE": "study.db"}
    assert config["OUTPUT_DIR"] == "./output"
    assert "TRACKING" not in config
    assert {*model.tensors} == {"a"}
