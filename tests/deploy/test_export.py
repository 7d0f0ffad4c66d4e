"""Exported files against the model that they come from."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.deploy import export
from cityscapes_maskrcnn.deploy.export import compare_with_pytorch, export_model
from cityscapes_maskrcnn.engine.checkpoint import load_for_inference
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.utils.errors import InputError

TINY = (Path(__file__).parents[1] / "tiny_network.txt").read_text().split()


def model_of(cfg: CfgNode) -> nn.Module:
    model = Trainer.build_model(cfg).eval()
    load_for_inference(model, cfg)
    return model


def random_batch(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape[2]).integers(0, 256, shape, dtype=np.uint8)


def test_any_size_and_number_of_images(config: CfgNode, exported: Path) -> None:
    session = onnxruntime.InferenceSession(exported)
    batches = [
        (str(shape), random_batch(*shape))
        for shape in [(1, 3, 64, 64), (1, 3, 33, 170), (3, 3, 100, 40), (5, 3, 70, 90)]
    ]
    model = model_of(config)
    check = compare_with_pytorch(
        model, lambda images: session.run(None, {"images": images}), batches, config
    )
    assert (check["images"], check["detections"]) == (10, 100)
    assert check["largest_box_difference"] < 0.05
    assert check["largest_mask_difference"] < 1e-3


def test_torchscript(config: CfgNode, tmp_path: Path) -> None:
    path, check = export_model(config, tmp_path, file_format="torchscript")
    assert path == tmp_path / "model.torchscript"
    # Four batches, one of them of two images.
    assert check["images"] == 5 and check["detections"] == 50
    assert len({tuple(shape[2:]) for shape in check["shapes"]}) == 4
    images = torch.from_numpy(random_batch(3, 3, 77, 131))
    with torch.no_grad():
        found = torch.jit.load(path)(images)
        expected = model_of(config).inference([{"image": each} for each in images], None, False)
    torch.testing.assert_close(found[0], torch.cat([each.pred_boxes.tensor for each in expected]))
    torch.testing.assert_close(found[3], torch.cat([each.pred_masks[:, 0] for each in expected]))
    assert found[4].tolist() == [0] * 10 + [1] * 10 + [2] * 10


def shallow_config(folder: Path, *opts: str, confidence: float = 1.0) -> CfgNode:
    """Build a small network: ``torch.export`` takes three times as long for a whole one.

    ``confidence`` multiplies the weights of the class scores, which are all next to 1 in 9.
    """
    shallow = [
        "MODEL.RESNETS.DEPTH",
        "18",
        "MODEL.RESNETS.RES2_OUT_CHANNELS",
        "64",
        "MODEL.RPN.IN_FEATURES",
        "['p2','p3']",
        "MODEL.ROI_HEADS.IN_FEATURES",
        "['p2','p3']",
        "MODEL.ANCHOR_GENERATOR.SIZES",
        "[[16],[32]]",
    ]
    cfg = build_config("configs/stage_1_heads.yaml", [*TINY, *shallow, *opts])
    cfg.MODEL.WEIGHTS = str(folder / "weights.pth")
    torch.manual_seed(0)
    model = build_model(cfg)
    model.roi_heads.box_predictor.cls_score.weight.data.mul_(confidence)
    torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
    return cfg


def check_without_detections(run: export.Exported, images: np.ndarray) -> None:
    """No level has a region for a mask then."""
    boxes, classes, scores, masks, indices = run(images)
    assert boxes.shape == (0, 4) and masks.shape == (0, 28, 28)
    assert classes.shape == scores.shape == indices.shape == (0,)


def test_torch_export(tmp_path: Path) -> None:
    cfg = shallow_config(tmp_path, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.15", confidence=1000)
    path, check = export_model(cfg, tmp_path, file_format="torch_export")
    assert path == tmp_path / "model.pt2"
    assert check["images"] == 5 and check["detections"] == 50
    assert len({tuple(shape) for shape in check["shapes"]}) == 4
    # In a plain image of the mean colour, every class has a score of about 1 in 9.
    plain = np.broadcast_to(np.uint8([124, 116, 104])[:, None, None], (2, 3, 66, 96))
    check_without_detections(export.FORMATS["torch_export"].open(path.read_bytes()), plain.copy())


@pytest.mark.parametrize(("file_format", "options"), [("onnx", {"opset": 17}), ("torchscript", {})])
def test_images_without_detections(
    tmp_path: Path, file_format: str, options: dict[str, int]
) -> None:
    cfg = shallow_config(tmp_path, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.99")
    written = export.FORMATS[file_format]
    data = written.export(export.ExportableMaskRCNN(model_of(cfg)), **options)
    check_without_detections(written.open(data), random_batch(2, 3, 66, 96))


def test_the_card_says_what_the_file_needs(weights: Path, exported: Path) -> None:
    card = json.loads(exported.with_suffix(".json").read_text())
    assert card["file"]["sha256"] == hashlib.sha256(exported.read_bytes()).hexdigest()
    assert card["file"]["opset"] == 17
    assert card["input"]["channels"] == "RGB"
    assert (card["input"]["min_size"], card["input"]["max_size"]) == (96, 192)
    assert card["classes"][2] == {"name": "car", "label_id": 26, "color": [0, 0, 142]}
    assert card["thresholds"]["nms"] == 0.5
    assert card["checkpoint"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert card["compared_with_pytorch"]["detections"] == 50


Change = Callable[[list[Any]], list[Any]]


def changed(exported: Path, change: Change) -> Callable[[np.ndarray], list[Any]]:
    """An exported model whose outputs are changed."""
    session = onnxruntime.InferenceSession(exported)
    return lambda images: change(session.run(None, {"images": images}))


def compare(config: CfgNode, exported: Path, change: Change) -> dict[str, Any]:
    batches = [("scene", random_batch(1, 3, 64, 96))]
    return compare_with_pytorch(model_of(config), changed(exported, change), batches, config)


@pytest.mark.parametrize(
    ("output", "difference", "problem"),
    [
        (0, 0.1, "the box of detection 0 is 0.1 pixels away"),
        (1, 1, "the box of detection [0-9] is "),
        (2, 0.01, "the score of detection 0 differs by 0.01, more than 0.001"),
        (3, 0.01, "the mask of detection 0 differs by 0.01, more than 0.001"),
        (0, math.nan, "some of its boxes are NaN or infinite"),
        (2, math.nan, "some of its scores are NaN or infinite"),
        (3, math.nan, "some of its masks are NaN or infinite"),
    ],
)
def test_where_a_model_differs_from_pytorch_is_said(
    config: CfgNode, exported: Path, output: int, difference: float, problem: str
) -> None:
    def change(outputs: list[Any]) -> list[Any]:
        outputs[output] = outputs[output] + outputs[output].dtype.type(difference)
        return outputs

    with pytest.raises(InputError, match=problem) as error:
        compare(config, exported, change)
    assert str(error.value).startswith("scene, image 0: the exported model differs from PyTorch:")


def test_nan_in_pytorch_alone_is_a_difference(
    config: CfgNode, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    difference = export._difference
    monkeypatch.setattr(export, "_difference", lambda *each: difference(*each) * math.nan)
    with pytest.raises(InputError, match="the box of detection 0 is nan pixels away"):
        compare(config, exported, lambda outputs: outputs)


def test_a_new_detection_is_a_difference(config: CfgNode, exported: Path) -> None:
    def with_first_twice(outputs: list[Any]) -> list[Any]:
        return [np.concatenate([each[:1], each]) for each in outputs]

    model = model_of(config)
    config.defrost()
    config.TEST.DETECTIONS_PER_IMAGE = 20  # a full list could end with another detection
    batches = [("scene", random_batch(1, 3, 64, 96))]
    with pytest.raises(InputError, match=r"detection \d+ is a new one \(score 0\."):
        compare_with_pytorch(model, changed(exported, with_first_twice), batches, config)


def test_detections_at_the_end_of_the_list_are_not_counted(config: CfgNode, exported: Path) -> None:
    """Of ten detections the last is missing in the file; another one would be as good."""
    check = compare(config, exported, lambda outputs: [each[:-1] for each in outputs])
    assert check["detections"] == 9


def test_a_comparison_of_nothing_is_refused(
    config: CfgNode, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.defrost()
    threshold = config.MODEL.ROI_HEADS
    threshold.SCORE_THRESH_TEST = 0.99
    with pytest.raises(InputError, match="the model finds nothing in 1 images, so that nothing"):
        compare(config, exported, lambda outputs: [each[:0] for each in outputs])
    # With this tolerance all scores are near the threshold, so any detection may be missing.
    threshold.SCORE_THRESH_TEST = 0.0
    monkeypatch.setitem(export._TOLERANCES, "score", 1.0)
    with pytest.raises(InputError, match="it finds none of the 10 detections in 1 images"):
        compare(config, exported, lambda outputs: [each[:0] for each in outputs])


@pytest.mark.parametrize(
    ("expected", "found", "problem"),
    [
        (12.0, 12.3, "model.onnx: its AP on val is 12.30, PyTorch's 12.00; more than 0.1 points"),
        (12.0, math.nan, "model.onnx: its AP on val is nan, PyTorch's 12.00; more than 0.1 points"),
        (math.nan, math.nan, "--score val: has no object that counts"),
    ],
)
def test_scores_that_differ(expected: float, found: float, problem: str) -> None:
    scores = {"dataset": "val", "pytorch": {"AP": expected}, "exported": {"AP": found}}
    with pytest.raises(InputError) as error:
        export.check_scores(scores, Path("model.onnx"))
    assert str(error.value).startswith(problem)


def test_scores_that_agree() -> None:
    scores = {"dataset": "val", "pytorch": {"AP": 12.0}, "exported": {"AP": 11.95}}
    export.check_scores(scores, Path("model.onnx"))


def test_a_model_that_differs_from_pytorch_is_not_written(
    config: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exportable = export.ExportableMaskRCNN

    def other_mean(model: Any) -> nn.Module:
        network = exportable(model)
        network.pixel_mean += 20
        return network

    monkeypatch.setattr(export, "ExportableMaskRCNN", other_mean)
    with pytest.raises(InputError, match=r"^generated 193x97 batch 1, image 0: the exported model"):
        export_model(config, tmp_path, file_format="torchscript")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opset", [16, 18, 19, 20])
def test_other_opsets(config: CfgNode, tmp_path: Path, opset: int) -> None:
    """The other tests export with 17."""
    path, check = export_model(config, tmp_path, opset=opset)
    assert check["detections"] == 50
    assert onnx.load(path).opset_import[0].version == opset


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            ["MODEL.META_ARCHITECTURE", "RetinaNet"],
            "MODEL.META_ARCHITECTURE RetinaNet: only GeneralizedRCNN, with",
        ),
        (["MODEL.MASK_ON", False], "MODEL.MASK_ON False: an exported model has masks"),
        (
            ["MODEL.ROI_HEADS.SOFT_NMS.METHOD", "linear"],
            "MODEL.ROI_HEADS.SOFT_NMS.METHOD: soft-NMS is not exported",
        ),
        (
            [
                "MODEL.ROI_HEADS.NAME",
                "CascadeROIHeads",
                "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
                True,
            ],
            "MODEL.ROI_HEADS.NAME CascadeROIHeads",
        ),
        (["MODEL.ROI_HEADS.NUM_CLASSES", 5], "MODEL.ROI_HEADS.NUM_CLASSES is 5"),
        (["MODEL.ROI_BOX_HEAD.FC_DIM", 16], "roi_heads.box_head.fc1"),
        (["MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is empty"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    config: CfgNode, tmp_path: Path, options: list[object], problem: str
) -> None:
    config.merge_from_list(options)
    with pytest.raises(InputError) as error:
        export_model(config, tmp_path)
    assert problem in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_onnx_is_missing(config: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"needs the package onnx: pip install -e '\.\[export\]'"):
        export_model(config, tmp_path)


def test_pointrend_is_not_exported(tmp_path: Path) -> None:
    cfg = build_config("configs/pointrend_rcnn_R_50_FPN.yaml", TINY)
    with pytest.raises(InputError) as error:
        export_model(cfg, tmp_path)
    assert str(error.value) == (
        "MODEL.ROI_MASK_HEAD.NAME PointRendMaskHead: only MaskRCNNConvUpsampleHead and"
        " FusedMaskHead can be exported"
    )


def test_flags_that_make_no_sense(config: CfgNode, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--opset 9: it must be between 16 and 20"):
        export_model(config, tmp_path, opset=9)
    with pytest.raises(InputError, match="--format tflite: it must be one of onnx, torchscript"):
        export_model(config, tmp_path, file_format="tflite")
    (tmp_path / "model.pt2").touch()
    with pytest.raises(InputError, match=r"holds model.pt2, which model.json describes"):
        export_model(config, tmp_path)
