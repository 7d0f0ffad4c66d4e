"""Files with smaller numbers against the float file that they come from."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from cityscapes_maskrcnn.deploy.quantization import QuantizableModel, _quantize
from cityscapes_maskrcnn.deploy.runtime import OnnxPredictor, open_session
from cityscapes_maskrcnn.utils.errors import InputError

GROUPS = [
    "first convolution",
    "backbone",
    "FPN",
    "RPN head",
    "box head",
    "box predictor",
    "mask head",
    "mask predictor",
]


@pytest.fixture(scope="module")
def model(exported: Path) -> QuantizableModel:
    return QuantizableModel(OnnxPredictor(exported), exported)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    files = [folder / f"{number}.png" for number in range(2)]
    for file in files:
        cv2.imwrite(str(file), rng.integers(0, 256, (96, 192, 3), dtype=np.uint8))
    return files


def weight_bytes(path: Path) -> int:
    """Of what has at least two axes; the rest of the tiny file is the graph."""
    arrays = [numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer]
    return sum(array.nbytes for array in arrays if array.ndim > 1)


def mask_differences(expected: list[np.ndarray], found: list[np.ndarray]) -> list[float]:
    """Find the largest difference of the masks of each detection that both have.

    Args:
        expected: boxes, classes, scores, masks and indices of images.
        found: the same of another file.

    Returns:
        One for each expected detection with a found one of the same class and image, whose box has
        an IoU of 0.7 at least. Scores that change places change the order.
    """
    differences = []
    for box, category, _, mask, image in zip(*expected, strict=True):
        ious = box_ious(box, found[0])
        ious[(found[1] != category) | (found[4] != image)] = 0
        nearest = int(ious.argmax())
        if ious[nearest] >= 0.7:
            differences.append(float(np.abs(found[3][nearest] - mask).max()))
    return differences


def box_ious(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Find the IoU of a box (4,) with each of other boxes (N, 4)."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    overlap = sides.clip(min=0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return overlap / (areas + (box[2:] - box[:2]).prod() - overlap)


@pytest.mark.parametrize(
    ("form", "ratio", "stored", "tolerance", "mask_tolerance"),
    [
        ("int8", 3.5, "INT8", 0.3, 0.1),
        ("weights", 3.5, "INT8", 0.3, 0.1),
        ("fp16", 1.9, "FLOAT16", 0.02, 0.01),
    ],
)
def test_weights_are_smaller_and_outputs_near(
    model: QuantizableModel,
    exported: Path,
    images: list[Path],
    tmp_path: Path,
    types_of_weights: Callable[[Path, list[str]], set[str]],
    form: str,
    ratio: float,
    stored: str,
    tolerance: float,
    mask_tolerance: float,
) -> None:
    path = tmp_path / "model.onnx"
    model.write(path, form=form, float_groups=["mask head"], images=images)
    rest = [name for group in GROUPS if group != "mask head" for name in model.groups[group]]
    assert types_of_weights(path, rest) == {stored}
    assert types_of_weights(path, model.groups["mask head"]) == {"FLOAT"}
    assert weight_bytes(exported) / weight_bytes(path) > ratio

    # One size of image, then two images of another: the file takes any.
    for shape in [(1, 3, 96, 192), (2, 3, 70, 90)]:
        batch = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
        expected, found = (
            open_session(each.read_bytes(), "", "cpu", 1).run(None, {"images": batch})
            for each in (exported, path)
        )
        assert [each.dtype for each in found] == [each.dtype for each in expected]
        assert found[4].tolist() == expected[4].tolist()
        differences = np.abs(found[2] - expected[2])
        assert 0 < differences.max() < tolerance
        # Scores may be right while a mask head, badly calibrated, gives 0.5 everywhere.
        assert np.ptp(found[3], axis=(1, 2)).min() > 0.05
        differences_of_masks = mask_differences(expected, found)
        assert differences_of_masks
        assert max(differences_of_masks) < mask_tolerance


def test_groups_are_all_layers(model: QuantizableModel, exported: Path) -> None:
    assert list(model.groups) == GROUPS
    assert model.groups["first convolution"] == ["/backbone/bottom_up/stem/conv1/Conv"]
    assert model.groups["box predictor"] == [
        "/box_predictor/cls_score/Gemm",
        "/box_predictor/bbox_pred/Gemm",
    ]
    layers = [
        node.name for node in onnx.load(exported).graph.node if node.op_type in ("Conv", "Gemm")
    ]
    assert sorted(name for names in model.groups.values() for name in names) == sorted(layers)


def test_all_layers_compute_in_int8(
    model: QuantizableModel, exported: Path, images: list[Path], tmp_path: Path
) -> None:
    """Where ONNX Runtime cannot merge a layer with the nodes around it, it computes in float."""
    path = tmp_path / "model.onnx"
    model.write(path, form="int8", float_groups=[], images=images)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    counts = [
        Counter(node.op_type for node in onnx.load(file).graph.node)
        for file in (exported, tmp_path / "optimized.onnx")
    ]
    graph = onnx.load(path).graph
    assert not graph.value_info
    biases = {each.name for each in graph.initializer if each.data_type == onnx.TensorProto.INT32}
    readers = [node for node in graph.node if node.input and node.input[0] in biases]
    assert len(readers) == counts[0]["Conv"] + counts[0]["Gemm"]
    assert all(len(node.input) == 2 for node in readers)
    assert counts[0]["Relu"] > 0
    assert counts[1]["QLinearConv"] == counts[0]["Conv"] > 50
    assert counts[1]["QGemm"] == counts[0]["Gemm"] == 4
    floats = {"Conv", "ConvTranspose", "Gemm", "FusedConv", "FusedGemm", "Relu"}
    assert not counts[1].keys() & floats


def test_rounding() -> None:
    values = np.array([[1.27, -0.635], [0, 0], [-254, 3]], np.float32)
    quantized, scales = _quantize(values, 0)
    assert quantized.tolist() == [[127, -64], [0, 0], [-127, 2]]
    np.testing.assert_allclose(scales, [0.01, 1, 2])
    quantized, scales = _quantize(values, 1)
    assert quantized[:, 1].tolist() == [-27, 0, 127]
    np.testing.assert_allclose(scales, [2, 3 / 127])


def test_what_cannot_be_quantised_is_one_line(
    exported: Path, images: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    shutil.copy(exported, path)
    shutil.copy(exported.with_suffix(".json"), path.with_suffix(".json"))
    predictor = OnnxPredictor(path)

    # A bias of the box predictor beyond all others: everything is background.
    model = onnx.load(path)
    for each in model.graph.initializer:
        if each.name == "roi_heads.box_predictor.cls_score.bias":
            bias = numpy_helper.to_array(each).copy()
            bias[-1] = 1e6
            each.CopyFrom(numpy_helper.from_array(bias, each.name))
    onnx.save(model, path)
    with pytest.raises(InputError) as error:
        QuantizableModel(predictor, path).write(
            tmp_path / "int8.onnx", form="int8", float_groups=[], images=images
        )
    assert str(error.value) == (
        "the model finds nothing in the 2 calibration images, so its mask head cannot be"
        " calibrated; use other images, or more with --num-images"
    )

    for node in model.graph.node:
        if node.op_type == "Gemm":
            node.op_type = "Einsum"
    onnx.save(model, path)
    with pytest.raises(InputError, match=r"no Mask R-CNN of tools/export_model.py, it has no box"):
        QuantizableModel(predictor, path)
    predictor.card["quantized"] = {}
    with pytest.raises(InputError, match="is quantised already; give the file that it comes from"):
        QuantizableModel(predictor, path)
