"""What a run writes about itself, and what it refuses: in one process, with a tiny network."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.data.provenance import read_history
from cityscapes_maskrcnn.engine.seen_images import data_of_run, refuse_seen_images
from cityscapes_maskrcnn.engine.summary import RunSummary
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.utils.errors import InputError

PROJECT = Path(__file__).parents[2]
TINY = [
    *("MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.FREEZE_AT", 0),
    *("MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN", "MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.ROI_BOX_HEAD.FC_DIM", 32),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "TEST.DETECTIONS_PER_IMAGE", 10),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64, "DATALOADER.NUM_WORKERS", 0),
    *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.EPOCHS", 0, "SOLVER.MAX_ITER", 2),
    *("SOLVER.CHECKPOINT_EPOCHS", 0, "TEST.EVAL_EPOCHS", 0, "SOLVER.WARMUP_ITERS", 0),
]
TRAIN, OTHER = "cityscapes_instance_train_part1of8", "cityscapes_instance_train_part2of8"
VAL_1, VAL_3 = "cityscapes_instance_val_part1of4", "cityscapes_instance_val_part3of4"


@pytest.fixture(autouse=True)
def data(small_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))


def config(*options: object) -> Any:
    return build_config(
        str(PROJECT / "configs" / "Base-MaskRCNN-R50-FPN.yaml"), [*map(str, [*TINY, *options])]
    )


def train(folder: Path, *options: object, resume: bool = False) -> Path:
    trainer = Trainer(config("OUTPUT_DIR", folder, *options))
    trainer.resume_or_load(resume)
    trainer.train()
    return folder / "model_final.pth"


def history(checkpoint: Path) -> list[tuple[str, str, int]]:
    content = torch.load(checkpoint, weights_only=True)
    return [
        (used.dataset, used.role, len(used.digests)) for used in read_history(content, "checkpoint")
    ]


def score(weights: Path, dataset: str, folder: Path, *options: object) -> Any:
    return Trainer.evaluate_checkpoint(
        config(
            *("MODEL.WEIGHTS", weights, "DATASETS.TEST", f"('{dataset}',)", "OUTPUT_DIR", folder),
            *options,
        )
    )


@pytest.fixture(scope="module")
def parent(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on one image, tuned on two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(small_root))
        return train(
            tmp_path_factory.mktemp("parent"),
            *("DATASETS.TRAIN", f"('{TRAIN}',)", "DATASETS.TEST", f"('{VAL_3}',)"),
            *("DATASETS.TUNED_ON", f"('{VAL_1}',)"),
        )


def test_a_checkpoint_lists_what_it_used(parent: Path) -> None:
    # 8 images of train in 8 parts: 1. 6 of val in 4 parts: 2 2 1 1. Watching part 3 is no use.
    assert history(parent) == [(TRAIN, "trained", 1), (VAL_1, "tuned", 2)]


def test_a_summary_is_written(parent: Path) -> None:
    summary = json.loads((parent.parent / "summary.json").read_text())
    state = torch.load(parent, weights_only=True)["model"]
    buffers = ("running_mean", "running_var", "num_batches_tracked", "cell_anchors", "pixel_")
    sizes = [v.numel() for name, v in state.items() if not any(b in name for b in buffers)]
    assert summary["parameters"] == summary["trainable_parameters"] == sum(sizes)
    assert (summary["train"], summary["images"], summary["iterations"]) == ([TRAIN], 1, 2)
    assert summary["epochs"] == 2 * 2 / 1  # two iterations of two images, of which there is one
    assert 0 < summary["seconds"] < 300
    assert summary["memory"] == "RAM"
    assert 2**27 < summary["peak_memory_bytes"] < 2**36


def test_a_summary_adds_up_over_resumes() -> None:
    summary = RunSummary(config(), images=1)
    summary.trainer = SimpleNamespace(model=torch.nn.Linear(1, 1))
    summary.load_state_dict({"seconds": 1000.0, "peak_memory_bytes": 2**50})
    state = summary.state_dict()
    assert 1000 < state["seconds"] < 1100
    assert state["peak_memory_bytes"] == 2**50


def test_children_inherit_it_and_a_resume_adds_nothing(parent: Path, tmp_path: Path) -> None:
    options = ["MODEL.WEIGHTS", parent, "DATASETS.TRAIN", f"('{OTHER}',)"]
    options += ["DATASETS.TEST", f"('{VAL_3}',)", "SOLVER.MAX_ITER", 1]
    child = train(tmp_path, *options)
    expected = [(TRAIN, "trained", 1), (VAL_1, "tuned", 2), (OTHER, "trained", 1)]
    assert history(child) == expected
    options[-1] = 2
    assert history(train(tmp_path, *options, resume=True)) == expected
    assert json.loads((tmp_path / "summary.json").read_text())["iterations"] == 2

    # An ancestor's training image is refused as much as one of its own.
    with pytest.raises(InputError, match=rf"{TRAIN} were trained on, as {TRAIN} \(.*_leftImg8bit"):
        score(child, TRAIN, tmp_path / "score")
    assert not (tmp_path / "score" / "scores.json").exists()


def test_tuned_images_are_refused_too_unless_allowed(parent: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"2 of the 6 images of .*_val were tuned on, as {VAL_1}"):
        score(parent, "cityscapes_instance_val", tmp_path)
    results = score(parent, "cityscapes_instance_val", tmp_path, "TEST.ALLOW_SEEN_IMAGES", True)
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["datasets"]["cityscapes_instance_val"]["images"] == 6
    assert len(content["seen"]) == 1
    assert "2 of the 6 images of cityscapes_instance_val were tuned on" in content["seen"][0]
    scored = content["datasets"]["cityscapes_instance_val"]["results"]
    assert scored["segm"]["AP"] == results["segm"]["AP"]


def test_unseen_images_are_scored_without_a_remark(parent: Path, tmp_path: Path) -> None:
    score(parent, VAL_3, tmp_path)
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["seen"] == []
    assert content["weights"] == str(parent)


def test_training_on_images_of_the_test_set_is_refused_before_the_first_step(
    tmp_path: Path,
) -> None:
    options = ["DATASETS.TRAIN", f"('{TRAIN}',)", "DATASETS.TEST", f"('{TRAIN}',)"]
    with pytest.raises(InputError, match="1 of the 1 images"):
        train(tmp_path, *options)
    assert not list(tmp_path.glob("*.pth"))


def test_what_steers_a_run_is_tuned_on() -> None:
    def uses(*options: object) -> list[tuple[str, str]]:
        cfg = config(
            *("DATASETS.TRAIN", f"('{TRAIN}',)", "DATASETS.TEST", f"('{VAL_1}',)", *options)
        )
        return [(used.dataset, used.role) for used in data_of_run(cfg)]

    watched = [(TRAIN, "trained")]
    steered = [*watched, (VAL_1, "tuned")]
    assert uses("TEST.VALIDATION_LOSS", True) == watched
    assert uses("SOLVER.EARLY_STOPPING.ENABLED", True) == steered
    assert uses("SOLVER.LR_SCHEDULER_NAME", "ReduceLROnPlateau") == steered
    assert uses("DATASETS.TUNED_ON", f"('{VAL_1}',)", "SOLVER.EARLY_STOPPING.ENABLED", True) == (
        steered
    )


def test_tuned_images_may_be_watched_in_training() -> None:
    cfg = config(
        *("DATASETS.TRAIN", f"('{TRAIN}',)", "DATASETS.TEST", f"('{VAL_1}',)"),
        *("SOLVER.EARLY_STOPPING.ENABLED", True),
    )
    used = data_of_run(cfg)
    assert refuse_seen_images(cfg, used, ("trained",)) == []
    with pytest.raises(InputError, match="tuned on"):
        refuse_seen_images(cfg, used, ("trained", "tuned"))


def test_coarse_images_count_for_fine_ones() -> None:
    """Stage 0 sees the images of Bremen, a city of fine train, with coarse annotations."""

    def refused(trained: str, scored: str) -> str:
        coarse = config("DATASETS.TRAIN", f"('{trained}',)", "DATASETS.TEST", "()")
        cfg = config("DATASETS.TEST", f"('{scored}',)")
        with pytest.raises(InputError) as caught:
            refuse_seen_images(cfg, data_of_run(coarse), ("trained",))
        return str(caught.value)

    fine = "cityscapes_instance_train"
    said = refused("cityscapes_coarse_semantic_train", fine)
    assert f"8 of the 8 images of {fine} were trained on, as cityscapes_coarse_semantic_tr" in said
    said = refused("cityscapes_coarse_semantic_pretrain", fine)
    assert (
        f"1 of the 8 images of {fine} were trained on, as cityscapes_coarse_semantic_pretrain "
        "(bremen_000000_000019_leftImg8bit.png)" in said
    )
    # All of val were trained on; a part is a part of it, whatever the annotations.
    said = refused("cityscapes_coarse_semantic_val", VAL_3)
    assert f"1 of the 1 images of {VAL_3} were trained on" in said


def counted(folder: Path) -> tuple[list[str], list[float]]:
    """Classes and confidences of the predictions in the official precision-recall curves."""
    with (folder / "analysis" / "precision_recall.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["confidence"] != "inf"]
    return [row["class"] for row in rows], [float(row["confidence"]) for row in rows]


def test_augmented_scores_are_written_beside_plain_ones(tmp_path: Path) -> None:
    """The image as it is, alone, is no augmentation: the scores are the plain ones."""
    torch.manual_seed(2)
    model = Trainer.build_model(config())
    with torch.no_grad():
        # Random heads say nearly the same of everything.
        model.roi_heads.box_predictor.cls_score.weight.mul_(8)
    torch.save({"model": model.state_dict()}, tmp_path / "random.pth")
    dataset = "cityscapes_instance_val"

    def score_twice(folder: Path, flip: bool) -> Any:
        score(
            *(tmp_path / "random.pth", dataset, folder, "TEST.AUG.ENABLED", True),
            *("TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.FLIP", flip),
            *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.RPN.POST_NMS_TOPK_TEST", 50),
        )
        content = json.loads((folder / "scores.json").read_text())
        return content["datasets"][dataset]["results"]

    results = score_twice(tmp_path / "same", False)
    plain = {name: results[name] for name in ("segm", "coco_segm", "coco_bbox")}
    assert results.keys() == {*plain, *(f"{name}_TTA" for name in plain)}
    for name in plain:
        assert results[f"{name}_TTA"] == pytest.approx(plain[name], abs=0.01)
    # Those may be zeros. The confidences tell which predictions were counted.
    classes, confidences = counted(tmp_path / "same" / "inference")
    assert len(classes) > 10
    augmented = counted(tmp_path / "same" / "inference_TTA")
    assert augmented == (classes, pytest.approx(confidences, rel=1e-4))

    score_twice(tmp_path / "mirrored", True)
    assert counted(tmp_path / "mirrored" / "inference") == (classes, confidences)
    augmented = counted(tmp_path / "mirrored" / "inference_TTA")
    assert augmented[1] != pytest.approx(confidences, rel=1e-2)


def test_training_ends_with_augmented_scores(tmp_path: Path) -> None:
    train(
        tmp_path,
        *("DATASETS.TRAIN", f"('{TRAIN}',)", "DATASETS.TEST", f"('{VAL_3}',)"),
        *("TEST.EVAL_PERIOD", 1, "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(48,64)"),
        *("MODEL.RPN.POST_NMS_TOPK_TEST", 50),
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    # Plain scores after the first iteration and when both are done, augmented ones only then.
    assert [line["iteration"] for line in lines if "segm/AP" in line] == [0, 2]
    assert [line["iteration"] for line in lines if "segm_TTA/AP" in line] == [2]
    assert (tmp_path / "inference_TTA" / "cityscapes_results.json").exists()


def test_what_a_kill_after_the_last_step_lost_is_written_again(tmp_path: Path) -> None:
    """The weights are saved before the last losses and scores are written."""
    options = ["DATASETS.TRAIN", f"('{TRAIN}',)", "DATASETS.TEST", f"('{VAL_3}',)"]
    options += ["SOLVER.MAX_ITER", 1, "TEST.VALIDATION_LOSS", True]
    train(tmp_path, *options)
    lost = ("validation/total_loss", "segm/AP")

    def written() -> dict[str, float]:
        merged: dict[str, float] = {}
        for line in (tmp_path / "metrics.json").read_text().splitlines():
            merged |= json.loads(line)
        return {name: merged[name] for name in lost}

    before = written()
    (tmp_path / "metrics.json").unlink()
    (tmp_path / "summary.json").unlink()
    train(tmp_path, *options, resume=True)
    assert written() == before
    assert json.loads((tmp_path / "summary.json").read_text())["iterations"] == 1
