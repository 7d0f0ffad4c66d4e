from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.structures import BoxMode

from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.data.registration import register_all
from cityscapes_maskrcnn.engine.run_anchors import (
    boxes_at_network_scale,
    dataset_boxes,
    resolve_anchors,
)
from cityscapes_maskrcnn.modeling.anchors import fit_anchors
from cityscapes_maskrcnn.utils.errors import InputError

TRAIN = "cityscapes_instance_train"
SIZES = [[11.0], [22.0], [33.0], [44.0], [55.0]]
RATIOS = [[0.6, 1.1, 1.9]]


def config(output: Path, **keys: object) -> CfgNode:
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "KMeansAnchorGenerator"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = []
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.DATASETS.TRAIN = (TRAIN,)
    cfg.OUTPUT_DIR = str(output)
    cfg.MODEL.WEIGHTS = ""
    cfg.merge_from_list([part for pair in keys.items() for part in pair])
    return cfg


def earlier_run(folder: Path, name: str = "KMeansAnchorGenerator") -> Path:
    """Leave what a run leaves that trained with some anchors."""
    cfg = config(folder)
    cfg.MODEL.ANCHOR_GENERATOR.NAME = name
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = SIZES
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = RATIOS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(cfg.dump())
    (folder / "last_checkpoint").write_text("model_0000009.pth")
    return folder


def anchors_of(cfg: CfgNode) -> tuple[list[list[float]], list[list[float]]]:
    return cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS


@pytest.fixture
def data(small_root: Path) -> None:
    register_all(str(small_root))


@pytest.fixture
def no_data() -> None:
    """A machine without the training data: whoever asks for it gets an error."""
    register_all("absent")


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize(("min_size", "max_size"), [(1024, 2048), (61, 2048), (80, 100), (0, 50)])
def test_boxes_are_scaled_as_detectron2_scales_images(min_size: int, max_size: int) -> None:
    resize = T.ResizeShortestEdge(min_size, max_size)
    expected = []
    for image in DatasetCatalog.get(TRAIN):
        transform = resize.get_transform(np.zeros((image["height"], image["width"], 3)))
        boxes = [each["bbox"] for each in image["annotations"] if not each["iscrowd"]]
        expected += [transform.apply_box(np.array([box]))[0] for box in boxes]
    corners = np.array(expected)
    sides = corners[:, 2:] - corners[:, :2]
    assert len(sides) > 20
    found = dataset_boxes(TRAIN, min_size, max_size)
    assert found == pytest.approx(sides[(sides >= 1).all(axis=1)])


def test_groups_slivers_and_other_formats() -> None:
    objects = [
        {"bbox": (1, 1, 11, 21), "bbox_mode": BoxMode.XYWH_ABS},
        {"bbox": (1, 1, 500, 500), "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 1},
        {"bbox": (1, 1, 0, 5), "bbox_mode": BoxMode.XYWH_ABS},
        # 0.8 and 30 pixels of the network's input: what is left of an object behind others.
        {"bbox": (1, 1, 0.4, 15), "bbox_mode": BoxMode.XYWH_ABS},
    ]
    size = {"height": 100, "width": 200}
    images = [{**size, "annotations": objects}, {**size, "annotations": []}, size]
    # Twice as high and as wide: 100 -> 200.
    assert boxes_at_network_scale(images, 200, 1000).tolist() == [[22, 42]]


@pytest.mark.usefixtures("data")
def test_dataset_without_boxes() -> None:
    with pytest.raises(InputError, match="cityscapes_instance_test: it has no boxes"):
        dataset_boxes("cityscapes_instance_test", 0, 0)
    with pytest.raises(InputError, match="did you mean cityscapes_instance_train"):
        dataset_boxes("cityscapes_instance_trian", 0, 0)


@pytest.mark.usefixtures("no_data")
def test_anchors_in_the_config_are_used(tmp_path: Path) -> None:
    keys = {"MODEL.ANCHOR_GENERATOR.SIZES": SIZES, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": RATIOS}
    other = {"MODEL.ANCHOR_GENERATOR.NAME": "DefaultAnchorGenerator"}
    for cfg in (config(tmp_path, **keys), config(tmp_path, **other)):
        before = cfg.dump()
        assert resolve_anchors(cfg, resume=False, eval_only=False) == ""
        assert cfg.dump() == before


def test_the_generator_has_the_anchors_of_the_config(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = SIZES
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = RATIOS
    levels = [ShapeSpec(channels=1, stride=stride) for stride in (4, 8, 16, 32, 64)]
    generator = build_anchor_generator(cfg, levels)
    assert generator.num_anchors == [3] * 5
    first = next(iter(generator.cell_anchors))[0]
    # 11 pixels, 0.6 times as high as wide.
    width, height = 11 / 0.6**0.5, 11 * 0.6**0.5
    assert first.tolist() == pytest.approx([-width / 2, -height / 2, width / 2, height / 2])
    for sizes, message in ((SIZES[:4], "SIZES has 4 lists for the 5 levels"), ([], "is empty")):
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = sizes
        with pytest.raises(InputError, match=message):
            build_anchor_generator(cfg, levels)


@pytest.mark.usefixtures("data")
def test_fitted_to_the_training_data(tmp_path: Path) -> None:
    keys = {"INPUT.MIN_SIZE_TEST": 192, "MODEL.ANCHOR_GENERATOR.NUM_RATIOS": 2, "SEED": 5}
    cfg = config(tmp_path, **keys)
    message = resolve_anchors(cfg, resume=True, eval_only=False)
    expected = fit_anchors(dataset_boxes(TRAIN, 192, cfg.INPUT.MAX_SIZE_TEST), 5, 2, seed=5)
    assert anchors_of(cfg) == ([[size] for size in expected.sizes], [list(expected.ratios)])
    assert f"fitted to {TRAIN}" in message
    assert "mean best IoU" in message
    # Types that config.yaml can hold.
    assert yaml.safe_load(cfg.dump())["MODEL"]["ANCHOR_GENERATOR"]["SIZES"] == anchors_of(cfg)[0]


@pytest.mark.usefixtures("data")
def test_a_new_run_fits_anew(tmp_path: Path) -> None:
    """In an old folder, and from weights that were trained with ordinary anchors."""
    folder = earlier_run(tmp_path / "stage_1", name="DefaultAnchorGenerator")
    weights = {"MODEL.WEIGHTS": str(folder / "model_final.pth")}
    for cfg in (config(earlier_run(tmp_path)), config(tmp_path / "stage_2", **weights)):
        assert "fitted to" in resolve_anchors(cfg, resume=False, eval_only=False)
        assert anchors_of(cfg)[0] != SIZES


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize("eval_only", [False, True])
def test_known_anchors_are_never_fitted_again(tmp_path: Path, eval_only: bool) -> None:
    """Those of a run that is resumed, and those of the weights that a later stage starts from."""
    earlier = earlier_run(tmp_path / "stage_2")
    later = {"MODEL.WEIGHTS": str(earlier / "model_final.pth")}
    for cfg, resume in ((config(earlier), True), (config(tmp_path / "stage_3", **later), False)):
        message = resolve_anchors(cfg, resume=resume, eval_only=eval_only)
        assert message.endswith(f"as in {earlier / 'config.yaml'}")
        assert anchors_of(cfg) == (SIZES, RATIOS)


@pytest.mark.parametrize("content", [None, "MODEL: [broken", "MODEL: 3"])
@pytest.mark.usefixtures("data")
def test_a_resume_that_cannot_know_its_anchors(tmp_path: Path, content: str | None) -> None:
    file = earlier_run(tmp_path) / "config.yaml"
    file.unlink()
    if content:
        file.write_text(content)
    message = f"SIZES is empty, and {tmp_path} has no config.yaml"
    with pytest.raises(InputError, match=message):
        resolve_anchors(config(tmp_path), resume=True, eval_only=False)


@pytest.mark.usefixtures("data")
def test_scoring_never_fits(tmp_path: Path) -> None:
    cfg = config(tmp_path, **{"MODEL.WEIGHTS": str(tmp_path / "alone" / "model_final.pth")})
    with pytest.raises(InputError, match="set SIZES and ASPECT_RATIOS"):
        resolve_anchors(cfg, resume=False, eval_only=True)
