"""The predictor without torch, against Pillow, Detectron2 and this project's predictor."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.layers.mask_ops import paste_masks_in_image
from PIL import Image

from cityscapes_maskrcnn.deploy.runtime import OnnxPredictor, resize, resized_size
from cityscapes_maskrcnn.engine.predictor import Predictor
from cityscapes_maskrcnn.utils.errors import InputError

ROOT = Path(__file__).parents[2]


def random_image(seed: int, height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)


def test_resizes_as_pillow_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    sizes = [
        *rng.integers(1, 200, (60, 4)).tolist(),
        (1, 1, 5, 7),
        (40, 60, 40, 60),
        (300, 2, 3, 9),
    ]
    for height, width, new_height, new_width in sizes:
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if height % 2:
            image = np.where(image > 127, 255, 0).astype(np.uint8)
        expected = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(resize(image, new_height, new_width), np.asarray(expected))


def test_sizes_are_detectron2s() -> None:
    assert resized_size(1024, 2048, 800, 1333) == (667, 1333)
    assert resized_size(1024, 2048, 0, 1333) == (1024, 2048)
    rng = np.random.default_rng(0)
    for height, width, shorter, more in rng.integers(1, 3000, (3000, 4)).tolist():
        rule = ResizeShortestEdge.get_output_shape
        assert resized_size(height, width, shorter, shorter + more) == rule(
            height, width, shorter, shorter + more
        )


def test_finds_what_the_predictor_finds(config: CfgNode, exported: Path, tmp_path: Path) -> None:
    theirs, ours = Predictor(config, 0.1), OnnxPredictor(exported, score_thresh=0.1)
    assert ours.classes[0] == "person" and ours.colors[0] == (220, 20, 60)
    images = [random_image(seed, *size) for seed, size in enumerate([(96, 192), (150, 70)])]
    cv2.imwrite(str(tmp_path / "street.png"), images[0])
    for image in [*images, tmp_path / "street.png"]:
        expected, found = theirs(image), ours(image)
        assert len(expected) == len(found.scores) > 0
        assert found.masks.dtype == bool
        assert found.masks.shape == expected.pred_masks.shape
        np.testing.assert_array_equal(found.classes, expected.pred_classes)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
        np.testing.assert_allclose(found.boxes, expected.pred_boxes.tensor, atol=0.01)
        assert (found.masks != expected.pred_masks.numpy()).mean() < 1e-4
        unpasted = ours(image, paste_masks=False)
        assert unpasted.masks.shape == (len(found.scores), 28, 28)
        pasted = paste_masks_in_image(
            torch.from_numpy(unpasted.masks), torch.from_numpy(found.boxes), found.masks.shape[1:]
        )
        np.testing.assert_array_equal(found.masks, pasted)


def test_batches_give_what_single_images_give(exported: Path) -> None:
    sizes = [(96, 192)] * 3 + [(80, 80)] + [(96, 192)] * 2
    images = [random_image(seed, *size) for seed, size in enumerate(sizes)]
    one, many = OnnxPredictor(exported), OnnxPredictor(exported, batch_size=2)
    given = [many.prepare(image) if index % 2 else image for index, image in enumerate(images)]
    for alone, together in zip(map(one, images), many(iter(given)), strict=True):
        assert len(alone.scores) == len(together.scores) == 10
        np.testing.assert_array_equal(alone.classes, together.classes)
        np.testing.assert_allclose(alone.boxes, together.boxes, atol=0.01)
        np.testing.assert_allclose(alone.scores, together.scores, atol=1e-5)


def test_needs_onnx_runtime_numpy_and_opencv_alone(
    exported: Path, tmp_path: Path, without_other_packages: Callable[..., str]
) -> None:
    hidden = without_other_packages("deploy")
    assert "'PIL'" in hidden
    assert "'pycocotools'" in hidden
    image = random_image(0, 96, 192)
    cv2.imwrite(str(tmp_path / "street.png"), image)
    (tmp_path / "sitecustomize.py").write_text(hidden)
    program = """
import sys, numpy
from cityscapes_maskrcnn.deploy.runtime import OnnxPredictor
boxes, classes, scores, masks = OnnxPredictor(sys.argv[1])("street.png")
numpy.savez("found.npz", boxes=boxes, classes=classes, scores=scores, masks=masks)
assert not sys.modules.get("torch") and not sys.modules.get("detectron2")
"""
    subprocess.run(
        [sys.executable, "-c", program, str(exported)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), *sys.path])},
        cwd=tmp_path,
        check=True,
    )
    expected = OnnxPredictor(exported)(image)
    with np.load(tmp_path / "found.npz") as found:
        assert len(found["boxes"]) == 10
        for name, value in expected._asdict().items():
            np.testing.assert_array_equal(found[name], value)


def test_what_cannot_be_loaded_is_one_line(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def message(path: Path, **settings: object) -> str:
        with pytest.raises(InputError) as error:
            OnnxPredictor(path, **settings)
        return str(error.value).replace(str(path.parent), "DIR")

    missing = tmp_path / "none" / "model.onnx"
    assert message(missing) == "DIR/model.onnx: no such file"
    copy = tmp_path / "model.onnx"
    shutil.copy(exported, copy)
    assert message(copy) == "DIR/model.json: missing; it belongs beside model.onnx"
    card = json.loads(exported.with_suffix(".json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**card, "version": 99}))
    assert message(copy) == "DIR/model.json: version 99; this program reads version 1"
    advice = "export the model again with tools/export_model.py"
    (tmp_path / "model.json").write_text("{}")
    assert message(copy) == f"DIR/model.json: has no version; {advice}"
    (tmp_path / "model.json").write_text(json.dumps({**card, "classes": [{"name": "car"}]}))
    assert message(copy) == f"DIR/model.json: classes is damaged; {advice}"
    shutil.copy(exported.with_suffix(".json"), tmp_path)
    copy.write_bytes(exported.read_bytes()[:-1])
    assert "not the file that model.json describes" in message(copy)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert message(exported, device="cuda").startswith(
        "device cuda: this ONNX Runtime has no CUDAExecutionProvider, only "
    )
    assert "CPUExecutionProvider" in message(exported, device="TensorrtExecutionProvider")
    assert message(exported, batch_size=0) == "batch_size 0: it must be at least 1"
    assert message(exported, score_thresh=1.5).startswith("score_thresh 1.5: it must lie between 0")


def test_images_that_are_none(exported: Path, tmp_path: Path) -> None:
    predict = OnnxPredictor(exported)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    for image in (tmp_path / "text.png", tmp_path / "empty.png", tmp_path / "missing.png"):
        with pytest.raises(InputError, match=re.escape(str(image))):
            predict(image)
    with pytest.raises(InputError, match=r"shape \(4, 4\) and dtype float64 is not an image"):
        predict(np.zeros((4, 4)))
    images = iter([random_image(0, 64, 64), np.zeros(3)])
    found = predict(images)
    assert len(next(found).scores) == 10
    with pytest.raises(InputError, match="is not an image"):
        next(found)
    thin = np.zeros((9000, 1, 3), dtype=np.uint8)
    with pytest.raises(InputError, match=r"^1x9000 pixels cannot be resized to 0x192"):
        predict(thin)
    cv2.imwrite(str(tmp_path / "thin.png"), thin)
    with pytest.raises(InputError, match=r"/thin\.png: 1x9000 pixels cannot be resized to 0x192"):
        predict(tmp_path / "thin.png")


@pytest.mark.gpu
def test_a_gpu_finds_what_the_cpu_finds(exported: Path) -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDAExecutionProvider: needs onnxruntime-gpu")
    images = [random_image(seed, *size) for seed, size in enumerate([(96, 192), (150, 70)])]
    on_cpu = OnnxPredictor(exported)
    on_gpu = OnnxPredictor(exported, device="cuda")
    for expected, found in zip(on_cpu(images), on_gpu(images), strict=True):
        assert len(expected.scores) == len(found.scores) > 0
        np.testing.assert_array_equal(found.classes, expected.classes)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.05)
        assert (found.masks != expected.masks).mean() < 1e-3
