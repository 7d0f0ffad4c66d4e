"""The start from Detectron2's Mask R-CNN of COCO: files of the real names and shapes."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model
from torch import nn

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.data.registration import register_all
from cityscapes_maskrcnn.engine.checkpoint import SafeCheckpointer, load_for_inference
from cityscapes_maskrcnn.engine.checkpoint_origin import ORIGIN_KEY
from cityscapes_maskrcnn.engine.class_check import class_names
from cityscapes_maskrcnn.engine.weight_conventions import conventions_of
from cityscapes_maskrcnn.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("remove_files")

# Rows of person rider car truck bus train motorcycle bicycle among COCO's 80, rider from person.
COCO_ROWS = [0, 0, 2, 7, 5, 6, 3, 1]
HEADS = {
    "roi_heads.box_predictor.cls_score": 1,
    "roi_heads.box_predictor.bbox_pred": 4,
    "roi_heads.mask_head.predictor": 1,
}
# Narrow layers, in both models.
TINY = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "8", "MODEL.FPN.OUT_CHANNELS", "8"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "8", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8"),
]


def read(name: str, *options: object) -> CfgNode:
    words = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS_ALLOW_PICKLE", "('*',)", *map(str, options)]
    return build_config(f"configs/{name}.yaml", words)


def fill(model: nn.Module) -> nn.Module:
    """Fill a model with random values that differ in every row, and its variances with others."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.normal_(std=0.02)
                if name.endswith(("running_var", "norm.weight")):
                    value.abs_().add_(0.5)
    return model


def zoo_model(depth: int, *options: object) -> nn.Module:
    """Build the model of a zoo file by the zoo's own config: 80 classes."""
    cfg = model_zoo.get_config(f"COCO-InstanceSegmentation/mask_rcnn_R_{depth}_FPN_3x.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *options])
    return fill(build_model(cfg))


def write_zoo_file(path: Path, model: nn.Module) -> Path:
    """Write arrays as the zoo does; files of its time hold the anchors too."""
    state = dict(model.state_dict())
    for level in range(5):
        state[f"proposal_generator.anchor_generator.cell_anchors.{level}"] = torch.zeros(3, 4)
    arrays = {name: value.numpy() for name, value in state.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    return path


def start(cfg: CfgNode, path: Path, model: nn.Module | None = None) -> nn.Module:
    """Load a file as a training run does."""
    model = model or build_model(cfg)
    SafeCheckpointer(
        model,
        may_differ=cfg.MODEL.WEIGHTS_MAY_DIFFER,
        allow_pickle=cfg.MODEL.WEIGHTS_ALLOW_PICKLE,
        classes=class_names(cfg),
        weights_classes=cfg.MODEL.WEIGHTS_CLASSES,
        conventions=conventions_of(cfg),
    ).load(str(path), checkpointables=[])
    return model


@pytest.mark.parametrize("depth", [50, 101])
def test_every_tensor_of_the_zoos_file_finds_its_place(
    depth: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # ResNet-50 in its own shapes; of ResNet-101 the names, which are all that is new.
    options = {50: [], 101: TINY}[depth]
    source = zoo_model(depth, *options)
    path = write_zoo_file(tmp_path / "model_final.pkl", source)
    with caplog.at_level("INFO"):
        model = start(read(f"coco_mask_rcnn_R_{depth}_FPN", *options), path)
    theirs, ours = source.state_dict(), model.state_dict()
    # ResNet-50: 53 convolutions with 4 of BatchNorm each; ResNet-101: 51 more. FPN 8 x 2, RPN
    # 3 x 2, box head 2 x 2, its predictors 2 x 2, mask head 6 x 2.
    assert len(ours) == {50: 265, 101: 520}[depth] + 16 + 6 + 4 + 4 + 12
    assert ours.keys() == theirs.keys()
    heads = [name for name in ours if name.rpartition(".")[0] in HEADS]
    assert len(heads) == 6
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name not in heads)
    for layer, values in HEADS.items():
        rows = [row * values + each for row in COCO_ROWS for each in range(values)]
        rows += [80] if layer.endswith("cls_score") else []
        for kind in ("weight", "bias"):
            assert torch.equal(ours[f"{layer}.{kind}"], theirs[f"{layer}.{kind}"][rows])
    assert f"{path}: its heads by class, of 80:\n" in caplog.text
    assert "  rider       row   0  person\n  car         row   2  car\n" in caplog.text
    width = {50: 1024, 101: 8}[depth]
    assert f"cls_score.weight (81, {width}) -> (9, {width})" in caplog.text
    assert "starts from scratch" not in caplog.text


@torch.no_grad()
def test_the_new_baseline_computes_the_same(tmp_path: Path) -> None:
    """By Detectron2's own config of it, which is Python's; yaml expresses all but the SyncBN."""
    lazy = model_zoo.get_config("new_baselines/mask_rcnn_R_50_FPN_400ep_LSJ.py")
    source = instantiate(lazy.model).eval()
    for name, value in source.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(std=0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    cfg = read("coco_new_baseline_R_50_FPN")
    conventions = conventions_of(cfg)
    assert conventions["INPUT.FORMAT"] == lazy.model.input_format
    assert conventions["MODEL.PIXEL_MEAN"] == lazy.model.pixel_mean
    assert conventions["MODEL.PIXEL_STD"] == lazy.model.pixel_std
    stages = lazy.model.backbone.bottom_up.stages
    assert conventions["MODEL.RESNETS.STRIDE_IN_1X1"] == stages.stride_in_1x1
    # The name has its conventions looked up.
    model = start(cfg, write_zoo_file(tmp_path / "model_final_14d201.pkl", source)).eval()
    # 53 + 8 + 4 + 4 layers of BatchNorm count their batches there.
    counters = [name for name in source.state_dict() if name.endswith("num_batches_tracked")]
    assert len(counters) == 69
    assert {*source.state_dict()} - {*counters} == {*model.state_dict()}
    images = torch.randn(1, 3, 64, 96)
    features, others = model.backbone(images), source.backbone(images)
    for level, feature in others.items():
        assert torch.allclose(features[level], feature, rtol=1e-4, atol=1e-5)
    regions = torch.randn(2, 256, 14, 14)
    cells = regions[..., :7, :7].contiguous()
    pairs = [
        [each.proposal_generator.rpn_head([regions])[0][0] for each in (model, source)],
        [each.roi_heads.box_head(cells) for each in (model, source)],
        [each.roi_heads.mask_head.layers(regions) for each in (model, source)],
    ]
    pairs[2][1] = pairs[2][1][:, COCO_ROWS]
    for ours, theirs in pairs:
        assert theirs.std() > 0
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_strongest_config_has_a_place_for_all_of_its_start_but_the_mask_head() -> None:
    cfg = read("coco_strongest")
    name = cfg.MODEL.WEIGHTS.split("/")[3]
    lazy = model_zoo.get_config(f"new_baselines/{name}.py")
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        shapes, theirs = (
            {
                name: value.shape
                for name, value in model.state_dict().items()
                if not name.startswith(("roi_heads.mask_head", "roi_heads.box_predictor"))
                and not name.endswith("num_batches_tracked")
            }
            for model in (build_model(cfg), instantiate(lazy.model))
        )
    # ResNet-101: 104 x 5. FPN: 8 x 5. RPN: 2 x 2 convolutions and 2 x 2. Box head: 4 x 5 and 2.
    assert len(shapes) == 520 + 40 + 8 + 22
    assert shapes == theirs


def test_detections_are_those_of_the_source(tmp_path: Path) -> None:
    """Before any training, the boxes of a class are scored and placed as by the model of COCO."""
    source = zoo_model(50, *TINY)
    path = write_zoo_file(tmp_path / "model_final.pkl", source)
    model = start(read("coco_mask_rcnn_R_50_FPN", *TINY), path)
    regions = torch.randn(6, 8, 7, 7)
    scores, boxes = model.roi_heads.box_predictor(model.roi_heads.box_head(regions))
    other_scores, other_boxes = source.roi_heads.box_predictor(source.roi_heads.box_head(regions))
    assert torch.allclose(scores, other_scores[:, [*COCO_ROWS, 80]])
    assert torch.allclose(boxes.view(6, 8, 4), other_boxes.view(6, 80, 4)[:, COCO_ROWS])
    masks, other_masks = (
        each.roi_heads.mask_head.layers(torch.ones(1, 8, 14, 14)) for each in (model, source)
    )
    assert torch.allclose(masks, other_masks[:, COCO_ROWS])


@pytest.fixture
def tiny_zoo_file(tmp_path: Path) -> Path:
    return write_zoo_file(tmp_path / "model_final.pkl", zoo_model(50, *TINY))


@pytest.mark.parametrize("head", ["pointrend", "patchdct"])
def test_other_mask_heads_start_with_the_box_head_of_coco(head: str, tiny_zoo_file: Path) -> None:
    model = start(read(f"{head}_coco_R_50_FPN", *TINY), tiny_zoo_file).state_dict()
    given = pickle.loads(tiny_zoo_file.read_bytes())["model"]
    scores = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(model[scores], torch.from_numpy(given[scores])[[*COCO_ROWS, 80]])
    others = [
        name
        for name in model
        if not name.startswith(("roi_heads.mask_head", "roi_heads.box_predictor"))
    ]
    assert len(others) > 265
    assert all(torch.equal(model[name], torch.from_numpy(given[name])) for name in others)


@pytest.fixture
def all_classes_again() -> Iterator[None]:
    yield
    register_all()


@pytest.mark.usefixtures("all_classes_again")
def test_some_of_the_classes(tiny_zoo_file: Path) -> None:
    two = ["DATASETS.CLASSES", "('car','person')", "MODEL.ROI_HEADS.NUM_CLASSES", "2"]
    model = start(read("coco_mask_rcnn_R_50_FPN", *TINY, *two), tiny_zoo_file)
    given = pickle.loads(tiny_zoo_file.read_bytes())["model"]
    name = "roi_heads.box_predictor.cls_score.weight"
    # The order is the dataset's: person, car.
    assert torch.equal(model.state_dict()[name], torch.from_numpy(given[name])[[0, 2, 80]])


def test_classes_are_what_the_config_says(
    tiny_zoo_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """80 rows alone are no sign of COCO: without the key they start anew, and other names count."""
    name = "roi_heads.box_predictor.cls_score.weight"
    start(read("coco_mask_rcnn_R_50_FPN", *TINY, "MODEL.WEIGHTS_CLASSES", "()"), tiny_zoo_file)
    assert f"{name} starts from scratch" in caplog.text
    with pytest.raises(InputError, match=r"cls_score\.weight has 81 rows, .* those of 2 classes"):
        start(
            read("coco_mask_rcnn_R_50_FPN", *TINY, "MODEL.WEIGHTS_CLASSES", "('car','person')"),
            tiny_zoo_file,
        )
    nothing = str(tuple(f"thing {number}" for number in range(80)))
    with pytest.raises(InputError, match="has no rows for person, rider, car"):
        start(
            read("coco_mask_rcnn_R_50_FPN", *TINY, "MODEL.WEIGHTS_CLASSES", nothing), tiny_zoo_file
        )
    names = ["car", *(f"thing {number}" for number in range(79))]
    model = start(
        read("coco_mask_rcnn_R_50_FPN", *TINY, "MODEL.WEIGHTS_CLASSES", str(tuple(names))),
        tiny_zoo_file,
    )
    given = torch.from_numpy(pickle.loads(tiny_zoo_file.read_bytes())["model"][name])
    assert torch.equal(model.state_dict()[name][2], given[0])
    assert not torch.equal(model.state_dict()[name][0], given[0])


def test_own_checkpoints_name_their_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As many classes in another order: rows follow the names, with the key of COCO too."""
    cfg = read("coco_mask_rcnn_R_50_FPN", *TINY, "OUTPUT_DIR", tmp_path)
    source = fill(build_model(cfg))
    names = ["bicycle", "person", "rider", "car", "truck", "bus", "train", "motorcycle"]
    path = tmp_path / "model_final.pth"
    torch.save({"model": source.state_dict(), ORIGIN_KEY: {"classes": names}}, path)
    model = start(cfg, path)
    bias = "roi_heads.box_predictor.cls_score.bias"
    given = source.state_dict()[bias]
    assert torch.equal(model.state_dict()[bias], given[[1, 2, 3, 4, 5, 6, 7, 0, 8]])
    assert "predicts" not in caplog.text
    # Of none of its classes: they start anew, all of them.
    torch.save({"model": source.state_dict(), ORIGIN_KEY: {"classes": list("abcdefgh")}}, path)
    other = start(cfg, path).state_dict()[bias]
    assert other[-1] == given[-1]
    assert not (other[:-1] == given[:-1]).any()
    # To be scored, it must have the classes itself.
    torch.save({"model": source.state_dict(), ORIGIN_KEY: {"classes": names}}, path)
    cfg.MODEL.WEIGHTS = str(path)
    with pytest.raises(InputError, match=r"predicts bicycle, person, .* DATASETS\.CLASSES"):
        load_for_inference(model, cfg)


def test_the_start_can_be_scored(tiny_zoo_file: Path) -> None:
    """Without training: what the COCO model finds on streets shows that images are read right."""
    cfg = read("coco_mask_rcnn_R_50_FPN", *TINY, "MODEL.WEIGHTS", tiny_zoo_file)
    model = build_model(cfg)
    load_for_inference(model, cfg)
    given = pickle.loads(tiny_zoo_file.read_bytes())["model"]["roi_heads.mask_head.predictor.bias"]
    bias = model.state_dict()["roi_heads.mask_head.predictor.bias"]
    assert torch.equal(bias, torch.from_numpy(given)[COCO_ROWS])
    # Not with random rows.
    cfg.MODEL.WEIGHTS_CLASSES = ["car", *(f"thing {number}" for number in range(79))]
    with pytest.raises(
        InputError, match=r"no rows for person, rider, truck.*heads are car, thing 0"
    ):
        load_for_inference(model, cfg)
