"""Quantise an exported ONNX file: to int8, to int8 weights only, or to float16.

Neither torch nor Detectron2 is imported; the packages of the extra ``compress`` are.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.deploy.runtime import OnnxPredictor
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write, read_file, read_json

#: int8: weights and activations, with ranges of activations from calibration images. weights: int8
#: weights, which become float when they are used. fp16: float16 weights and activations.
FORMS: Final = ("int8", "weights", "fp16")

_LAYERS: Final = ("Conv", "Gemm", "MatMul")
# Their weights have these names; the first that fits counts.
_GROUPS: Final = {
    "backbone.bottom_up.": "backbone",
    "backbone.": "FPN",
    "proposal_generator.": "RPN head",
    "roi_heads.box_head.": "box head",
    "roi_heads.box_predictor.": "box predictor",
    "roi_heads.mask_head.predictor.": "mask predictor",
    "roi_heads.mask_head.": "mask head",
}


class QuantizableModel:
    """An exported Mask R-CNN, its layers in groups of which some can stay in float.

    Args:
        predictor: of the file.
        path: the file.

    Attributes:
        groups: by group the names of its nodes with weights, in the order of the graph.

    Raises:
        InputError: the file is not one of ``tools/export_model.py``, is quantised already, or the
            extra ``compress`` is not installed.
    """

    def __init__(self, predictor: OnnxPredictor, path: Path) -> None:
        try:
            import onnx
            import onnxruntime.quantization  # noqa: F401
        except ImportError as error:
            raise InputError(
                f"quantisation needs a package that is not installed ({error.name}): pip install"
                " -e '.[compress]'"
            ) from error
        if "quantized" in predictor.card:
            raise InputError(f"{path}: is quantised already; give the file that it comes from")
        self._predictor = predictor
        self._model = onnx.load_from_string(read_file(path))
        _resolve_copies(self._model)
        self._weights = {each.name: each for each in self._model.graph.initializer}
        self.groups: dict[str, list[str]] = {}
        for node in self._layers():
            group = "first convolution"
            if self.groups:
                prefix = next((name for name in _GROUPS if node.input[1].startswith(name)), None)
                # A matrix that the exporter has transposed has lost its name: only backbones have.
                group = "backbone" if prefix is None else _GROUPS[prefix]
            self.groups.setdefault(group, []).append(node.name)
        missing = set(_GROUPS.values()) - set(self.groups)
        if missing:
            raise InputError(
                f"{path}: no Mask R-CNN of tools/export_model.py, it has no {sorted(missing)[0]}"
            )

    def write(
        self,
        target: Path,
        *,
        form: str,
        float_groups: Collection[str],
        images: Sequence[Path],
    ) -> None:
        """Write the model with smaller numbers.

        Args:
            target: the ``.onnx`` file. Of int8 the float model and ``ranges.json``, those of
                activations, are kept in its folder, which is this model's alone: images are
                predicted for the first file only.
            form: of :data:`FORMS`.
            float_groups: of :attr:`groups`, not all of them: these stay as they are.
            images: to calibrate int8 on; read one after the other.

        Raises:
            InputError: an image cannot be read, or nothing is found in any of them.
        """
        nodes = [
            name
            for group, names in self.groups.items()
            if group not in float_groups
            for name in names
        ]
        # To ONNX Runtime an empty list would mean all.
        assert nodes
        if form == "int8":
            self._write_int8(target, nodes, images)
            return
        data = self._int8_weights(nodes) if form == "weights" else self._float16(nodes)
        with atomic_write(target) as file:
            file.write(data)

    def _write_int8(self, target: Path, nodes: list[str], images: Sequence[Path]) -> None:
        from onnxruntime.quantization import QuantType, quantize_static

        # Given a model instead of a file, quantize_static would move its weights to other files.
        source = target.with_name("float.onnx")
        if not source.exists():
            with atomic_write(source) as file:
                file.write(self._model.SerializeToString())
        ranges = target.with_name("ranges.json")
        # The range of what a ReLU returns starts at 0, so that rounding to it computes the ReLU.
        relus = [node.name for node in self._model.graph.node if node.op_type == "Relu"]
        # With all arguments but the nodes the same, so are the tensors that are calibrated.
        quantize_static(
            source,
            target,
            _CalibrationImages(self._predictor, images),
            per_channel=True,
            op_types_to_quantize=[*_LAYERS, "Relu"],
            nodes_to_quantize=[*nodes, *relus],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # Seven bits of weights: processors without VNNI add two products in 16 bits, where
            # eight overflow without a word, and a file would find other things on each machine.
            reduce_range=True,
            calibration_cache_path=ranges,
        )
        # The minimum of no value, where no image has a detection, is infinite.
        found = read_json(ranges, advice="calibrate again")["data"].values()
        lowest = [value for each in found for value in each["lowest"]["data"]]
        if not all(map(math.isfinite, lowest)):
            raise InputError(
                f"the model finds nothing in the {len(images)} calibration images, so its mask head"
                " cannot be calibrated; use other images, or more with --num-images"
            )
        model = type(self._model).FromString(read_file(target))
        _drop_redundant(model)
        with atomic_write(target) as file:
            file.write(model.SerializeToString())

    def _int8_weights(self, nodes: Collection[str]) -> bytes:
        from onnx import helper, numpy_helper

        model = self._copy()
        layers = {
            node.input[1]: node
            for node in model.graph.node
            if node.name in nodes  # several may share a weight
        }
        kept = [each for each in model.graph.initializer if each.name not in layers]
        first = []
        for name, node in layers.items():
            values = numpy_helper.to_array(self._weights[name])
            axis = _output_axis(node, values.ndim)
            quantized, scales = _quantize(values, axis)
            kept.append(numpy_helper.from_array(quantized, f"{name}.int8"))
            kept.append(numpy_helper.from_array(scales, f"{name}.scales"))
            first.append(
                helper.make_node(
                    "DequantizeLinear",
                    [f"{name}.int8", f"{name}.scales"],
                    [name],
                    name=f"{name}.dequantize",
                    axis=axis,
                )
            )
        others = list(model.graph.node)
        del model.graph.initializer[:], model.graph.node[:]
        model.graph.initializer.extend(kept)
        model.graph.node.extend([*first, *others])
        data: bytes = model.SerializeToString()
        return data

    def _float16(self, nodes: Collection[str]) -> bytes:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        # Boxes stay in float32: of float16 a coordinate from 1024 on is a whole number of pixels.
        between = [
            node.name
            for node in self._model.graph.node
            if node.op_type == "Relu"
            or (node.op_type in ("Add", "MaxPool") and node.name.startswith("/backbone/"))
        ]
        small = {*nodes, *between}
        model = convert_float_to_float16(
            self._copy(),
            keep_io_types=True,
            node_block_list=[
                node.name for node in self._model.graph.node if node.name not in small
            ],
        )
        data: bytes = model.SerializeToString()
        return data

    def _layers(self) -> Iterator[Any]:
        for node in self._model.graph.node:
            if node.op_type in _LAYERS and node.input[1] in self._weights:
                yield node

    def _copy(self) -> Any:
        model = type(self._model)()
        model.CopyFrom(self._model)
        return model


class _CalibrationImages:
    """What ``quantize_static`` reads images by: of all, one is held at a time."""

    def __init__(self, predictor: OnnxPredictor, images: Iterable[Path]) -> None:
        self._predictor = predictor
        self._images = iter(images)

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        """Get the next input of the network; None: that was the last one."""
        image = next(self._images, None)
        return None if image is None else {"images": self._predictor.prepare(image).pixels[None]}


def _resolve_copies(model: Any) -> None:
    """Let nodes use weights by one name.

    The exporter keeps equal ones once and names them anew by Identity nodes; a bias that is no
    initializer would keep its layer from being quantised.
    """
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    original = {each.name: each.name for each in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Identity" and node.input[0] in original:
            original[node.output[0]] = original[node.input[0]]
            continue
        node.input[:] = [original.get(name, name) for name in node.input]
        nodes.append(node)
    nodes = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    # Otherwise ONNX Runtime advises what its own preparation would do beyond this.
    add_pre_process_metadata(model)


def _drop_redundant(model: Any) -> None:
    """Remove what readers know: shapes of tensors, and zero points of biases, which are 0."""
    from onnx import TensorProto

    del model.graph.value_info[:]
    biases = {each.name for each in model.graph.initializer if each.data_type == TensorProto.INT32}
    dropped = set()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in biases:
            dropped.update(node.input[2:])
            del node.input[2:]
    kept = [each for each in model.graph.initializer if each.name not in dropped]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _output_axis(node: Any, num_axes: int) -> int:
    """Find the axis of a layer's weights that is its output channels."""
    if node.op_type == "Gemm":
        return 0 if any(each.name == "transB" and each.i for each in node.attribute) else 1
    return num_axes - 1 if node.op_type == "MatMul" else 0


def _quantize(
    values: npt.NDArray[np.float32], axis: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Round weights to multiples, -127 to 127, of a scale for each index of an axis."""
    others = tuple(each for each in range(values.ndim) if each != axis)
    largest = np.abs(values).max(axis=others, keepdims=True)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(values / scales).clip(-127, 127).astype(np.int8), scales.reshape(-1)
