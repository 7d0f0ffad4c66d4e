from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import Image
from torch import nn

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.data.registration import register_all
from cityscapes_maskrcnn.engine import predictor
from cityscapes_maskrcnn.engine.predictor import Predictor
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.annotated_images import ground_truth_of
from cityscapes_maskrcnn.visualization.drawing import caption_of

# Mask R-CNN on a narrow ResNet-50 that needs a fraction of a second for an image.
TINY = """
MODEL.DEVICE cpu MODEL.RESNETS.NORM BN MODEL.FPN.NORM BN
MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16
MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.FPN.OUT_CHANNELS 16
MODEL.ROI_BOX_HEAD.FC_DIM 32 MODEL.ROI_MASK_HEAD.CONV_DIM 16
MODEL.RPN.POST_NMS_TOPK_TEST 20 INPUT.MIN_SIZE_TEST 80
"""


@pytest.fixture
def tiny_config(tmp_path: Path) -> CfgNode:
    cfg = build_config("configs/stage_1_heads.yaml", TINY.split())
    torch.manual_seed(0)
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    return cfg


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "street.png"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def assert_same(found: Instances, expected: Instances, tolerance: float = 0.0) -> None:
    assert found.image_size == expected.image_size
    assert len(found) == len(expected) > 0
    assert found.get_fields().keys() == expected.get_fields().keys()
    for name, value in expected.get_fields().items():
        mine = found.get(name)
        if not isinstance(mine, torch.Tensor):
            mine, value = mine.tensor, value.tensor
        torch.testing.assert_close(mine, value, rtol=tolerance, atol=tolerance)


def test_same_predictions_as_detectron2(tiny_config, photograph):
    tiny_config.MODEL.FOLD_FROZEN_NORM = False
    tiny_config.freeze()
    before = tiny_config.dump()
    ours = Predictor(tiny_config, 0.0)
    assert tiny_config.dump() == before
    cfg = tiny_config.clone()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    pixels = cv2.imread(str(photograph))
    theirs = DefaultPredictor(cfg)(pixels)["instances"]

    for image in (photograph, str(photograph), pixels):
        found = ours(image)
        assert_same(found, theirs)
        assert found.image_size == (64, 128)
        assert found.pred_masks.shape == (len(found), 64, 128)
        assert_same(ours(ours.prepare(image)), theirs)
    unpasted = ours(pixels, paste_masks=False)
    assert unpasted.pred_masks.tensor.shape == (len(found), 28, 28)
    pasted = unpasted.pred_masks.to_bitmasks(unpasted.pred_boxes, 64, 128)
    assert torch.equal(pasted.tensor, found.pred_masks)


def numbered_images() -> Iterator[npt.NDArray[np.uint8]]:
    """Four images of one size, one of another, and three more of the first."""
    for number in range(8):
        rng = np.random.default_rng(number)
        shape = (80, 80, 3) if number == 4 else (64, 128, 3)
        yield rng.integers(0, 256, shape, dtype=np.uint8)


def test_batches_change_nothing_and_hold_no_more_than_their_images(tiny_config, monkeypatch):
    predict = Predictor(tiny_config, 0.0)
    # One pixel in a million is as near to 0.5 as rounding.
    expected = [predict(image, paste_masks=False) for image in numbered_images()]
    tiny_config.TEST.BATCH_SIZE = 3
    predict = Predictor(tiny_config, 0.0)
    sizes: list[int] = []
    inference = type(predict.model).inference

    def note(model: nn.Module, inputs: list[dict], **kwargs: Any) -> Any:
        sizes.append(len(inputs))
        return inference(model, inputs, **kwargs)

    monkeypatch.setattr(type(predict.model), "inference", note)
    taken = 0

    def count() -> Iterator[npt.NDArray[np.uint8]]:
        nonlocal taken
        for image in numbered_images():
            taken += 1
            yield image

    found = []
    for index, each in enumerate(predict(count(), paste_masks=False)):
        # The first three; the fourth, which ends with the fifth, that with the sixth; three.
        assert taken == [3, 3, 3, 5, 6, 8, 8, 8][index]
        found.append(each)
    monkeypatch.undo()
    assert sizes == [3, 1, 1, 3]
    for mine, theirs in zip(found, expected, strict=True):
        assert_same(mine, theirs, tolerance=1e-4)


def test_images_before_a_broken_one_are_given(tiny_config, photograph, tmp_path):
    tiny_config.TEST.BATCH_SIZE = 4
    found = Predictor(tiny_config, 0.0)([photograph, photograph, tmp_path / "none.png"])
    assert len(next(found)) == len(next(found)) > 0
    with pytest.raises(InputError, match=r"none\.png"):
        next(found)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_images(tiny_config, pixels):
    with pytest.raises(InputError, match=r"not an image: it must be \(height, width, 3\) and uint"):
        Predictor(tiny_config)(pixels)


def test_an_array_of_which_resizing_leaves_nothing(tiny_config):
    with pytest.raises(InputError, match=r"^an array: 9000x1 pixels cannot be resized: "):
        Predictor(tiny_config)(np.zeros((1, 9000, 3), np.uint8))


def test_half_precision(tiny_config, photograph):
    expected = Predictor(tiny_config, 0.0)(photograph)
    tiny_config.TEST.PRECISION = "bfloat16"
    predict = Predictor(tiny_config, 0.0)
    found = predict(photograph, paste_masks=False)
    assert found.scores.dtype == found.pred_boxes.tensor.dtype == torch.float32
    assert found.pred_masks.tensor.dtype == torch.float32
    assert not torch.equal(found.scores, expected.scores)
    # Of random weights: boxes of low scores are others.
    torch.testing.assert_close(found.scores[:5], expected.scores[:5], rtol=0.0, atol=0.05)
    # bfloat16 has 8 digits.
    assert not torch.equal(found.scores, found.scores.bfloat16().float())
    # Nothing of it stays with the model.
    assert not torch.is_autocast_enabled("cpu")
    assert not predict.model.roi_heads.box_predictor._forward_hooks


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "PRECISION",
            "half",
            r"^TEST\.PRECISION 'half': .* cpu it must be one of float32, bfloat16$",
        ),
        ("PRECISION", "float16", r"^TEST\.PRECISION 'float16': on MODEL\.DEVICE cpu it must be"),
        ("BATCH_SIZE", 0, r"^TEST\.BATCH_SIZE 0: it must be 1 or more$"),
    ],
)
def test_keys_of_inference(tiny_config, key, value, message):
    tiny_config.TEST[key] = value
    with pytest.raises(InputError, match=message):
        Predictor(tiny_config)


def test_weights_are_loaded_and_must_be_whole(tiny_config, tmp_path):
    whole = torch.load(tiny_config.MODEL.WEIGHTS, weights_only=True)["model"]
    backbone = {name: value for name, value in whole.items() if name.startswith("backbone.")}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    for name, value in Predictor(tiny_config).model.state_dict().items():
        assert torch.equal(value, whole[name]), name
    tiny_config.MODEL.WEIGHTS = str(tmp_path / "backbone.pth")
    with pytest.raises(
        InputError, match=r"backbone\.pth: lacks 6 tensors of proposal_gen.* random"
    ):
        Predictor(tiny_config)
    cls_score = "roi_heads.box_predictor.cls_score.weight"
    torch.save({"model": {**whole, cls_score: torch.zeros(81, 32)}}, tmp_path / "coco.pth")
    tiny_config.MODEL.WEIGHTS = str(tmp_path / "coco.pth")
    with pytest.raises(
        InputError, match=r"cls_score\.weight is \(81, 32\) in the file, .*\(9, 32\)"
    ):
        Predictor(tiny_config)
    tiny_config.MODEL.WEIGHTS = ""
    with pytest.raises(InputError, match=r"MODEL\.WEIGHTS is empty: name a checkpoint"):
        Predictor(tiny_config)


def test_a_picture_without_ground_truth_is_one_panel(tiny_config, photograph):
    picture = Predictor(tiny_config, 1.0).draw(photograph)
    # 128 wide, enlarged to 1024: 512 high; caption letters 1024 / 45 = 23, bar 1.8 * 23 = 41
    assert picture.shape == (512 + 41, 1024, 3)


def test_ground_truth_of_the_models_classes_alone_is_drawn(
    small_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its caption counts what it shows; otherwise the model seems to miss what it never learnt."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))
    register_all(str(small_root))
    classes = ["DATASETS.CLASSES", "('person','car')", "MODEL.ROI_HEADS.NUM_CLASSES", "2"]
    cfg = build_config("configs/stage_1_heads.yaml", [*TINY.split(), *classes])
    torch.manual_seed(0)
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    panels: list[str] = []

    def note(found: list[tuple[str, Any]], _warning: str = "") -> npt.NDArray[np.uint8]:
        panels.extend(caption for caption, _ in found)
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(predictor, "side_by_side", note)
    drawn = Predictor(cfg, 1.0)
    others = 0
    for image in (small_root / "cityscapes/leftImg8bit/val").glob("*/*.png"):
        record = ground_truth_of(image)
        assert record is not None
        objects = [each for each in record["annotations"] if each["category_id"] in (0, 2)]
        others += len(record["annotations"]) - len(objects)
        groups = sum(each.get("iscrowd", 0) for each in objects)
        drawn.draw(image)
        assert panels[-2] == caption_of("ground truth", len(objects) - groups, groups)
    assert others > 0


@pytest.mark.parametrize("score_thresh", [-0.1, 1.1, float("nan")])
def test_score_thresh_out_of_range(tiny_config, score_thresh):
    with pytest.raises(InputError, match="--score-thresh"):
        Predictor(tiny_config, score_thresh)
