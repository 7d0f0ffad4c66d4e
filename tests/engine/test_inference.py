"""Evaluators of the datasets, unpasted masks, and test-time augmentation."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators
from PIL import Image
from torch import nn

from cityscapes_maskrcnn.data.registration import register_all, register_datasets_of
from cityscapes_maskrcnn.engine.class_check import class_names
from cityscapes_maskrcnn.engine.inference import (
    InferenceModel,
    build_evaluator,
    check_inference,
    check_metric,
    fit_to_evaluators,
    for_inference,
    model_categories,
    with_test_time_augmentation,
)
from cityscapes_maskrcnn.engine.predictor import Predictor
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.evaluation.evaluator import CityscapesInstanceEvaluator
from cityscapes_maskrcnn.evaluation.instances import UnpastedInference
from cityscapes_maskrcnn.utils.errors import InputError

INSTANCE, SEMANTIC = "cityscapes_instance_val", "cityscapes_fine_semantic_val"

Config = Callable[..., CfgNode]


@pytest.mark.parametrize(
    ("stage", "dataset", "message"),
    [
        ("stage_0_backbone", INSTANCE, "its instances are not what .* SemanticSegmentor predicts"),
        (
            "stage_1_heads",
            SEMANTIC,
            f"^dataset {SEMANTIC}: its semantic labels are not what .* GeneralizedRCNN predicts",
        ),
        ("stage_1_heads", "cityscapes_instance_test", "no labels to score against"),
    ],
)
def test_a_model_that_predicts_something_else(
    config: Config, tmp_path: Path, stage: str, dataset: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_evaluator(config(stage=stage), dataset, tmp_path)


@pytest.mark.parametrize(
    ("stage", "datasets", "good", "bad"),
    [
        ("stage_1_heads", (INSTANCE,), "segm/AP50-person", "segm/AP75"),
        ("stage_1_heads", (INSTANCE,), "coco_bbox/AP-car", "coco_segm/AR"),
        ("stage_1_heads", (INSTANCE,) * 2, f"{INSTANCE}/segm/AP", "segm/AP"),
        ("stage_0_backbone", (SEMANTIC,), "sem_seg/IoU-road", "sem_seg/mIoU"),
        # Whose scalars these are is not known.
        ("stage_1_heads", (INSTANCE,), "mine/PQ", "segm/"),
        ("stage_1_heads", (INSTANCE,), "total_loss", "segm/AP-"),
    ],
)
def test_metrics_that_are_no_scores(
    config: Config, stage: str, datasets: tuple[str, ...], good: str, bad: str
) -> None:
    cfg = config("DATASETS.TEST", datasets, stage=stage)
    cfg.defrost()
    cfg.SOLVER.BEST_CHECKPOINT_METRIC = good
    check_metric(cfg)
    cfg.SOLVER.BEST_CHECKPOINT_METRIC = bad
    with pytest.raises(InputError, match=f"^SOLVER.BEST_CHECKPOINT_METRIC {bad}: is not measured;"):
        check_metric(cfg)


@pytest.mark.parametrize(
    ("datasets", "metric"),
    [((INSTANCE,), "segm_EMA/AP"), ((INSTANCE,) * 2, f"{INSTANCE}_EMA/segm/AP")],
)
def test_scores_of_averaged_weights_are_metrics_if_there_is_an_average(
    config: Config, datasets: tuple[str, ...], metric: str
) -> None:
    options = ["DATASETS.TEST", datasets, "SOLVER.BEST_CHECKPOINT_METRIC", metric]
    check_metric(config(*options, "SOLVER.EMA_DECAY", 0.9))
    with pytest.raises(InputError, match=f"{metric}: is not measured; did you mean "):
        check_metric(config(*options))


def test_missing_ground_truth(
    config: Config, small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cfg = config()
    missing = max((tmp_path / "cityscapes" / "gtFine" / "val").rglob("*_instanceIds.png"))
    missing.unlink()
    with pytest.raises(InputError, match=f"{missing}: no such file, the ground truth of .*_leftIm"):
        build_evaluator(cfg, INSTANCE, tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("MIN_SIZES", "()"), ("MIN_SIZES", "(64, 9000)"), ("MAX_SIZE", 32)]
)
def test_augmentation_sizes_that_make_no_sense(
    config: Config, build: Callable[..., nn.Module], tmp_path: Path, key: str, value: object
) -> None:
    cfg = config(f"TEST.AUG.{key}", value, "TEST.AUG.ENABLED", True)
    with pytest.raises(InputError, match=r"TEST\.AUG\.MIN_SIZES"):
        with_test_time_augmentation(cfg, build("stage_1_heads"))
    # Before anything is scored without augmentation.
    with pytest.raises(InputError, match=r"TEST\.AUG\.MIN_SIZES"):
        build_evaluator(cfg, INSTANCE, tmp_path)


def test_values_set_from_python_are_checked_before_scoring(config: Config, tmp_path: Path) -> None:
    """Any unknown method would be the Gaussian one."""
    cfg = config()
    cfg.MODEL.ROI_HEADS.SOFT_NMS.METHOD = "gausian"
    with pytest.raises(InputError, match="METHOD gausian: it must be off or linear or gaussian"):
        build_evaluator(cfg, INSTANCE, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.ROI_HEADS.SOFT_NMS.METHOD", "quadratic"], "METHOD quadratic: it must be off or l"),
        (["MODEL.ROI_HEADS.SOFT_NMS.SIGMA", 0.0], "SIGMA 0.0: it must be more than 0"),
        (
            ["MODEL.ROI_HEADS.SOFT_NMS.METHOD", "linear", "TEST.AUG.ENABLED", True],
            "METHOD linear: TEST.AUG.ENABLED merges detections in its own way",
        ),
        (
            [
                *("MODEL.ROI_HEADS.SOFT_NMS.METHOD", "linear"),
                *("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
            ],
            "METHOD linear: MODEL.ROI_HEADS.NAME StandardROIHeads has none; BatchedROIHeads has",
        ),
    ],
)
def test_soft_nms_that_would_not_be_applied(
    config: Config, options: list[object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_inference(config(*options))


def test_other_networks_cannot_be_augmented(config: Config) -> None:
    with pytest.raises(InputError, match="a Linear cannot be augmented"):
        with_test_time_augmentation(config(), nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("scored", "unpasted_masks", "unpasted"),
    [
        (["ours"], True, True),
        (["ours", ["ours"]], True, True),
        (["ours"], False, False),
        # Another evaluator, also of this project's datasets, gets what Detectron2 gives it.
        (["ours", "theirs"], True, False),
        ([["ours", "theirs"]], True, False),
    ],
)
def test_masks_stay_unpasted_if_all_evaluators_accept_it(
    config: Config,
    build: Callable[..., nn.Module],
    scored: list[object],
    unpasted_masks: bool,
    unpasted: bool,
) -> None:
    cfg = config("TEST.UNPASTED_MASKS", unpasted_masks)
    known = {"ours": CityscapesInstanceEvaluator(INSTANCE), "theirs": DatasetEvaluator()}

    def evaluators(names: list[object]) -> list[object]:
        return [
            DatasetEvaluators(evaluators(each)) if isinstance(each, list) else known[str(each)]
            for each in names
        ]

    fitted = fit_to_evaluators(cfg, build("stage_1_heads"), evaluators(scored))
    assert isinstance(fitted, UnpastedInference) == unpasted


def test_masks_are_pasted_in_float32(config: Config, build: Callable[..., nn.Module]) -> None:
    """In bfloat16 the places that pixels are sampled at are off: overlaps of 0.94 to 0.98."""
    cfg = config("TEST.PRECISION", "bfloat16")
    model = build("stage_1_heads", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0).eval()
    nn.init.normal_(model.roi_heads.mask_head.predictor.weight, std=3.0)
    image = {"image": torch.randint(256, (3, 128, 256)), "height": 1024, "width": 2048}
    with torch.no_grad():
        (pasted,) = for_inference(cfg, model)([image])
        (unpasted,) = for_inference(cfg, UnpastedInference(model))([image])
    instances = unpasted["instances"]
    frames = instances.pred_masks.to_bitmasks(instances.pred_boxes, 1024, 2048).tensor
    assert frames.any(dim=(1, 2)).sum() == 5
    assert torch.equal(pasted["instances"].pred_masks, frames)


class Full(nn.Linear):
    """Has no memory for two images."""

    def forward(self, _: list[dict[str, Any]]) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has 1 GiB")


def test_out_of_memory_names_the_keys() -> None:
    message = (
        r"^out of memory on the GPU with 2 images: lower TEST\.BATCH_SIZE or INPUT\.MIN_SIZE_TEST, "
        r"or set TEST\.PRECISION bfloat16: CUDA out of memory\. Tried to allocate 2 GiB$"
    )
    with pytest.raises(InputError, match=message):
        InferenceModel(Full(1, 1), torch.float32)([{"image": torch.zeros(3, 8, 8)}] * 2)


def test_detectron2s_heads_pool_at_boxes_in_float32(
    config: Config, build: Callable[..., nn.Module]
) -> None:
    """In bfloat16 boxes are off by up to 8 pixels at the right border."""
    cfg = config("TEST.PRECISION", "bfloat16")
    image = {"image": torch.randint(256, (3, 64, 2048))}
    found = []
    for name in ("BatchedROIHeads", "StandardROIHeads"):
        model = build(
            "stage_1_heads", "MODEL.ROI_HEADS.NAME", name, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0
        )
        pooled: list[torch.Tensor] = []
        model.roi_heads.box_pooler.register_forward_hook(
            lambda *args, to=pooled: to.append(args[2])
        )
        with torch.no_grad():
            for_inference(cfg, model.eval())([image])
        found += pooled
    torch.testing.assert_close(found[1].float(), found[0].float(), rtol=0.01, atol=0.01)


def counted(folder: Path) -> tuple[list[str], list[float]]:
    """Classes and confidences of the predictions in the official precision-recall curves."""
    with (folder / "analysis" / "precision_recall.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["confidence"] != "inf"]
    return [row["class"] for row in rows], [float(row["confidence"]) for row in rows]


def random_model(model: nn.Module, folder: Path) -> list[object]:
    """Options of a model with random weights, whose predictions differ, and of what scores it."""
    with torch.no_grad():
        # Random heads predict nearly the same everywhere.
        model.roi_heads.box_predictor.cls_score.weight.mul_(8)
    weights = folder / "random.pth"
    torch.save({"model": model.state_dict()}, weights)
    return ["MODEL.WEIGHTS", weights, "DATASETS.TEST", f"('{INSTANCE}',)"]


@pytest.fixture
def scored_model(build: Callable[..., nn.Module], tmp_path: Path) -> list[object]:
    return random_model(build("stage_1_heads"), tmp_path)


def test_batches_change_no_score(
    config: Config, scored_model: list[object], tmp_path: Path
) -> None:
    options = [*scored_model]
    options += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 20]
    results, curves = [], []
    for batch_size in (1, 4):
        cfg = config(*options, "TEST.BATCH_SIZE", batch_size)
        batches = Trainer.build_test_loader(cfg, INSTANCE)
        assert [len(batch) for batch in batches] == {1: [1] * 6, 4: [4, 2]}[batch_size]
        results.append(Trainer.evaluate_checkpoint(cfg))
        curves.append(counted(tmp_path / "inference"))
    for name, scores in results[0].items():
        assert results[1][name] == pytest.approx(scores, abs=1e-6, nan_ok=True)
    assert len(curves[0][0]) > 10
    assert curves[1] == (curves[0][0], pytest.approx(curves[0][1], rel=1e-5))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "stage", ["stage_1_heads", "pointrend_rcnn_R_50_FPN", "patchdct_rcnn_R_50_FPN"]
)
def test_augmented_scores_are_written_beside_plain_ones(
    config: Config, build: Callable[..., nn.Module], tmp_path: Path, stage: str, flip: bool
) -> None:
    """The image as it is, alone, is no augmentation: the scores are the plain ones."""
    small = ["MODEL.POINT_HEAD.FC_DIM", 8, "MODEL.ROI_MASK_HEAD.FC_DIM", 8]
    options = [*small, *random_model(build(stage, *small), tmp_path)]
    options += ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.FLIP", flip]
    options += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 20]
    Trainer.evaluate_checkpoint(config(*options, "MODEL.RPN.POST_NMS_TOPK_TEST", 50, stage=stage))
    for folder in ("inference", "inference_TTA"):
        analysis = tmp_path / folder / "analysis"
        assert (analysis / "confusion.csv").exists()
        assert not (analysis / "confusion.png").exists()  # TEST.ANALYSIS_PICTURES
    scores = json.loads((tmp_path / "scores.json").read_text())
    results = scores["datasets"][INSTANCE]["results"]
    plain = {name: results[name] for name in ("segm", "coco_segm", "coco_bbox")}
    assert results.keys() == {*plain, *(f"{name}_TTA" for name in plain)}
    # Scores may be zeros. The confidences show which predictions were counted.
    classes, confidences = counted(tmp_path / "inference")
    assert len(classes) > 10
    augmented = counted(tmp_path / "inference_TTA")
    assert len(augmented[0]) > 10
    if flip:
        assert augmented[1] != pytest.approx(confidences, rel=1e-4)
        return
    for name in plain:
        assert results[f"{name}_TTA"] == pytest.approx(plain[name], abs=0.01)
    assert augmented == (classes, pytest.approx(confidences, rel=1e-4))


@pytest.fixture
def two_classes(small_root: Path) -> str:
    """The validation images with cars (class 0) and persons (1) alone."""
    register_all(str(small_root))
    name, of = "inference_car_and_person", {2: 0, 0: 1}

    def load() -> list[dict[str, Any]]:
        images = DatasetCatalog.get(INSTANCE)
        for image in images:
            image["annotations"] = [
                {**each, "category_id": of[each["category_id"]]}
                for each in image["annotations"]
                if each["category_id"] in of
            ]
        return images

    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, load)
    metadata = MetadataCatalog.get(INSTANCE)
    MetadataCatalog.get(name).set(
        gt_dir=metadata.gt_dir,
        image_dir=metadata.image_dir,
        evaluator_type="cityscapes_instance",
        thing_classes=["car", "person"],
    )
    return name


@pytest.fixture
def two_class_options(two_classes: str, config: Config, tmp_path: Path) -> list[object]:
    """Options of a random model of the two classes that finds something."""
    options: list[object] = ["DATASETS.TRAIN", f"('{two_classes}',)"]
    options += ["MODEL.ROI_HEADS.NUM_CLASSES", 2, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
    options += ["DATASETS.TEST", f"('{two_classes}',)", "TEST.ANALYSIS_CONFIDENCE", 0.0]
    torch.manual_seed(5)
    model = Trainer.build_model(config(*options))
    weights = tmp_path / "two.pth"
    torch.save({"model": model.state_dict()}, weights)
    return [*options, "MODEL.WEIGHTS", weights]


def test_some_of_the_classes_are_scored_and_drawn(
    config: Config,
    two_class_options: list[object],
    small_root: Path,
    tmp_path: Path,
) -> None:
    cfg = config(*two_class_options)
    results = Trainer.evaluate_checkpoint(cfg)
    assert sorted(key for key in results["segm"] if "50" not in key) == [
        "AP",
        "AP-car",
        "AP-person",
    ]
    # There is a car, but no person of 100 pixels.
    assert set(counted(tmp_path / "inference")[0]) == {"car"}

    image = min((small_root / "cityscapes/leftImg8bit/val").rglob("*.png"))
    predictor = Predictor(cfg, score_thresh=0.0)
    assert predictor.metadata.thing_classes == ["car", "person"]
    # Ground truth, with its other classes, beside the predictions.
    assert predictor.draw(image).shape[1] > 2 * 192


def test_classes_of_a_model_whose_config_names_no_data(config: Config) -> None:
    options = ["DATASETS.TRAIN", (), "DATASETS.TEST", (), "MODEL.ROI_HEADS.NUM_CLASSES", 2]
    chosen = config(*options, "DATASETS.CLASSES", "('car', 'person')")
    assert model_categories(chosen) == (0, 2)
    with pytest.raises(InputError, match="NUM_CLASSES is 2, but Cityscapes has 8 instance classes"):
        model_categories(config(*options))


def test_chosen_classes_count_without_the_tools(config: Config) -> None:
    """In Python the catalog may have all classes."""
    cfg = config("MODEL.ROI_HEADS.NUM_CLASSES", 2, "DATASETS.CLASSES", "('car', 'person')")
    register_all()
    assert "bus" in MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes
    assert model_categories(cfg) == (0, 2)
    assert class_names(cfg) == ["person", "car"]


def test_own_data_and_classes_without_the_tools(config: Config, tmp_path: Path) -> None:
    """Of two configs in one process, in any order."""
    name = "own_val"
    folders = {"IMAGE_DIR": "cityscapes/leftImg8bit/val", "GT_DIR": "cityscapes/gtFine/val"}

    def own(*classes: str) -> CfgNode:
        cfg = config("SOLVER.MAX_ITER", 1)
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(classes)
        cfg.OUTPUT_DIR = str(tmp_path / "_".join(classes))
        cfg.MODEL.WEIGHTS = f"{cfg.OUTPUT_DIR}/model_final.pth"
        cfg.DATASETS.OWN, cfg.DATASETS.CLASSES = CfgNode({name: folders}), classes
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
        cfg.TEST.ALLOW_SEEN_IMAGES = True
        cfg.freeze()
        return cfg

    def scored(results: dict[str, Any]) -> set[str]:
        return {key for key in results["segm"] if key.startswith("AP-")}

    try:
        cfg, other = own("car", "person"), own("bus", "car", "person")
        trainer = Trainer(cfg)
        assert MetadataCatalog.get(name).thing_classes == ["person", "car"]
        Trainer(other)
        assert MetadataCatalog.get(name).thing_classes == ["person", "car", "bus"]
        trainer.train()
        assert scored(trainer._last_eval_results) == {"AP-person", "AP-car"}
        for score in (
            lambda: Trainer.test(cfg, trainer.model),
            lambda: Trainer.evaluate_checkpoint(cfg),
        ):
            register_datasets_of(other)
            assert scored(score()) == {"AP-person", "AP-car"}
        register_datasets_of(other)
        assert Predictor(cfg).metadata.thing_classes == ["person", "car"]
        assert MetadataCatalog.get(name).thing_classes == ["person", "car"]
    finally:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def test_faster_rcnn_is_scored_for_its_boxes(
    config: Config, build: Callable[..., nn.Module], tmp_path: Path
) -> None:
    model = build("stage_1_heads", "MODEL.MASK_ON", False)
    weights = tmp_path / "boxes.pth"
    torch.save({"model": model.state_dict()}, weights)
    options = ["MODEL.WEIGHTS", weights, "DATASETS.TEST", f"('{INSTANCE}',)"]
    results = Trainer.evaluate_checkpoint(config(*options, "MODEL.MASK_ON", False))
    assert list(results) == ["coco_bbox"]
    assert 0 <= results["coco_bbox"]["AP"] < 100


def test_evaluator_of_a_subclass(
    config: Config, build: Callable[..., nn.Module], tmp_path: Path
) -> None:
    """Detectron2's COCOEvaluator reads pasted masks; so does an evaluator with another process."""

    class Own(CityscapesInstanceEvaluator):
        def process(self, *pair: Any) -> None:
            """Do something else with the masks."""

    class WithCoco(Trainer):
        @classmethod
        def build_evaluator(cls, _cfg: CfgNode, dataset_name: str, *_: Any) -> DatasetEvaluator:
            return COCOEvaluator(dataset_name, output_dir=str(tmp_path / "coco"))

    model = build("stage_1_heads")
    weights = tmp_path / "random.pth"
    torch.save({"model": model.state_dict()}, weights)
    cfg = config("MODEL.WEIGHTS", weights, "DATASETS.TEST", f"('{INSTANCE}',)")
    assert set(WithCoco.evaluate_checkpoint(cfg)) == {"bbox", "segm"}
    fitted = fit_to_evaluators(cfg, model, [Own(INSTANCE)])
    assert not isinstance(fitted, UnpastedInference)


def test_nothing_to_score_is_an_error(
    config: Config,
    build: Callable[..., nn.Module],
    small_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(small_root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for file in (tmp_path / "cityscapes/gtFine/val").rglob("*_instanceIds.png"):
        Image.fromarray(np.full((96, 192), 7, np.uint16)).save(file)
    weights = tmp_path / "random.pth"
    torch.save({"model": build("stage_1_heads").state_dict()}, weights)
    cfg = config("MODEL.WEIGHTS", weights, "DATASETS.TEST", f"('{INSTANCE}',)")
    with pytest.raises(InputError, match=f"DATASETS.TEST {INSTANCE}: nothing could be scored"):
        Trainer.evaluate_checkpoint(cfg)
