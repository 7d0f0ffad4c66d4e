"""Videos of moving squares and a model that finds them; a tiny Mask R-CNN, and it exported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.data.labels import THING_CLASSES, THING_COLORS
from cityscapes_maskrcnn.deploy.export import export_model
from cityscapes_maskrcnn.deploy.frame_detections import BgrImage, FrameDetections
from cityscapes_maskrcnn.evaluation.masks import mask_from_bitmap

PERSON, CAR = 0, 2
TINY = (Path(__file__).parents[1] / "tiny_network.txt").read_text().split()


class SquareModel:
    """Finds white squares, which are cars, and grey ones, which are persons, on black."""

    class_names = THING_CLASSES
    class_colors = THING_COLORS
    batch_size = 2

    def prepare(self, image: BgrImage, name: str) -> BgrImage:
        assert name
        return image

    def predict(self, images: Iterable[BgrImage]) -> Iterator[npt.NDArray[np.uint8]]:
        for image in images:
            yield image[:, :, 0]

    def detections(self, output: npt.NDArray[np.uint8], height: int, width: int) -> FrameDetections:
        classes, boxes, masks = [], [], []
        for category, low, high in ((CAR, 200, 255), (PERSON, 90, 160)):
            inside = cv2.morphologyEx(
                cv2.inRange(output, low, high), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8)
            )
            count, labels = cv2.connectedComponents(inside)
            for label in range(1, count):
                mask = mask_from_bitmap(labels == label)
                masks.append(mask)
                boxes.append(mask.box())
                classes.append(category)
        assert output.shape == (height, width)
        return FrameDetections(
            classes=np.array(classes, dtype=np.int64),
            scores=np.full(len(classes), 0.9, dtype=np.float32),
            boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
            masks=masks,
        )


@pytest.fixture(scope="session")
def square_model() -> SquareModel:
    return SquareModel()


def moving_squares(number: int, height: int = 96, width: int = 160) -> BgrImage:
    """Frame ``number``: a white square goes right, a grey one left, 30 rows below it."""
    image = np.zeros((height, width, 3), np.uint8)
    right, left = number % (width - 20), (width - 20) - number % (width - 20)
    image[20:40, right : right + 20] = 255
    image[50:70, left : left + 20] = 128
    return image


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    """``make_video(path, num_frames, codec="mp4v", height=96, width=160)``, at 25 frames/s."""

    def make(
        path: Path, num_frames: int, codec: str = "mp4v", height: int = 96, width: int = 160
    ) -> Path:
        writer = cv2.VideoWriter(
            str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), 25.0, (width, height)
        )
        assert writer.isOpened()
        for number in range(num_frames):
            writer.write(moving_squares(number, height, width))
        writer.release()
        return path

    return make


def tiny_config(*options: object) -> CfgNode:
    return build_config("configs/stage_1_heads.yaml", [*TINY, *map(str, options)])


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = build_model(tiny_config())
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.fixture
def config(weights: Path) -> CfgNode:
    return tiny_config("MODEL.WEIGHTS", weights)


@pytest.fixture(scope="session")
def exported(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``model.onnx``; do not change it."""
    folder = tmp_path_factory.mktemp("exported")
    return export_model(tiny_config("MODEL.WEIGHTS", weights), folder)[0]


def read_types_of_weights(path: Path, nodes: list[str]) -> set[str]:
    """Find the types in which layers' weights are stored, behind what makes them float."""
    import onnx

    graph = onnx.load(path).graph
    stored = {each.name: each.data_type for each in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    found = set()
    for node in graph.node:
        if node.name in nodes:
            weight = node.input[1]
            while weight in makers:
                weight = makers[weight].input[0]
            found.add(onnx.TensorProto.DataType.Name(stored[weight]))
    return found


@pytest.fixture(scope="session")
def types_of_weights() -> Callable[[Path, list[str]], set[str]]:
    """The function above."""
    return read_types_of_weights
