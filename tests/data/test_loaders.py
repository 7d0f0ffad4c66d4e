"""Worker processes of the loaders, and what the training loader refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch.utils.data import DataLoader

from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.data import image_cache
from cityscapes_maskrcnn.data.loaders import (
    build_test_loader,
    build_train_loader,
    build_validation_loader,
)
from cityscapes_maskrcnn.data.prefetch import PrefetchedLoader
from cityscapes_maskrcnn.utils.errors import InputError


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATALOADER.NUM_WORKERS = 1
    cfg.DATASETS.TRAIN = ("some_images",)
    return cfg


@pytest.fixture
def image(tmp_path: Path) -> dict[str, object]:
    Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(tmp_path / "image.png")
    objects = [{"bbox": [1, 1, 9, 9], "bbox_mode": 0, "category_id": 0, "segmentation": []}]
    return {
        "file_name": str(tmp_path / "image.png"),
        "height": 32,
        "width": 64,
        "annotations": objects,
    }


@pytest.fixture
def register() -> Iterator[Callable[..., None]]:
    """Register images as the dataset that the config trains on."""
    yield lambda *images: DatasetCatalog.register("some_images", lambda: list(images))
    DatasetCatalog.remove("some_images")
    MetadataCatalog.pop("some_images", None)


def test_batches_that_detectron2_draws_stay_on_the_cpu(
    cfg: CfgNode, image: dict[str, object], register: Callable[..., None]
) -> None:
    """It makes NumPy arrays of their boxes, which those on a GPU cannot become."""
    register(image)
    cfg.MODEL.DEVICE, cfg.SOLVER.IMS_PER_BATCH = "cuda", 1
    assert isinstance(build_train_loader(cfg), PrefetchedLoader)
    cfg.VIS_PERIOD = 10
    assert isinstance(build_train_loader(cfg), DataLoader)


@pytest.mark.parametrize("training", [False, True])
def test_a_signal_to_the_process_group_does_not_reach_workers(
    cfg: CfgNode, image: dict[str, object], register: Callable[..., None], training: bool
) -> None:
    """Ctrl-C and timeout send one; the training process then needs its workers to finish."""
    register(image)
    cfg.SOLVER.IMS_PER_BATCH, cfg.INPUT.MIN_SIZE_TRAIN = 1, (32,)
    loader = build_train_loader(cfg) if training else build_test_loader(cfg, "some_images")
    batches = iter(loader)
    next(batches)
    (worker,) = batches._workers
    assert os.getpgid(worker.pid) == worker.pid != os.getpgid(0)


def test_a_worker_outlives_a_signal_of_a_scheduler_but_not_of_its_parent(
    cfg: CfgNode, image: dict[str, object], register: Callable[..., None]
) -> None:
    register(image)
    cfg.SOLVER.IMS_PER_BATCH, cfg.INPUT.MIN_SIZE_TRAIN = 1, (32,)
    batches = iter(build_train_loader(cfg))
    next(batches)
    (worker,) = batches._workers
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker.pid, number)
    for _ in range(10):  # more than are loaded ahead
        next(batches)
    # As multiprocessing when Python exits, which then waits without end.
    worker._popen.terminate()
    worker.join(20)
    assert not worker.is_alive()


STUCK = """
import sys, time
from detectron2.config import get_cfg
from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.data.loaders import inference_loader
from cityscapes_maskrcnn.data.mapper import CityscapesMapper
cfg = get_cfg()
add_cityscapes_maskrcnn_config(cfg)
cfg.DATALOADER.NUM_WORKERS = 1
mapper = CityscapesMapper(cfg, is_train=False)
batches = iter(inference_loader([{"file_name": sys.argv[1]}], mapper, cfg))
print(batches._workers[0].pid, flush=True)
time.sleep(100)
"""


def test_a_stuck_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "image.png")  # nobody writes into it
    parent = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(tmp_path / "image.png")],
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        worker = int(parent.stdout.readline())
        end = time.monotonic() + 60
        while os.getpgid(worker) != worker and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.2)
        parent.kill()
        parent.wait()
        while Path(f"/proc/{worker}/stat").exists() and time.monotonic() < end:
            time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


@pytest.mark.parametrize("place", ["disk", "ram"])
def test_loaders_give_the_same_with_a_cache(
    cfg: CfgNode,
    register: Callable[..., None],
    image: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    monkeypatch.setenv("CITYSCAPES_MASKRCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image_cache, "_SHARED_MEMORY", tmp_path)
    pixels = np.random.default_rng(0).integers(256, size=(32, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(str(image["file_name"]))
    register(image)
    cfg.DATASETS.TEST = ("some_images",)
    cfg.SOLVER.IMS_PER_BATCH, cfg.SEED = 1, 3
    cfg.INPUT.MIN_SIZE_TRAIN = cfg.INPUT.MIN_SIZE_TEST = 24
    found = {}
    for cache in ("none", place):
        cfg.INPUT.CACHE = cache
        loaders = [
            build_train_loader(cfg),
            build_test_loader(cfg, "some_images"),
            build_validation_loader(cfg),
        ]
        # The first batch is decoded, the others are cached.
        found[cache] = [batch for loader in loaders for batch in islice(loader, 4)]
        assert len(list(tmp_path.rglob("*.pixels"))) == (cache != "none")
    assert len(found["none"]) == 6
    for (one,), (other,) in zip(found["none"], found[place], strict=True):
        assert torch.equal(one["image"], other["image"])


def test_workers_of_the_validation_loader_stay(
    cfg: CfgNode, register: Callable[..., None], image: dict[str, object]
) -> None:
    register(image)
    cfg.DATASETS.TEST = ("some_images",)
    loader = build_validation_loader(cfg)
    first = list(loader)
    (worker,) = loader._iterator._workers
    # Left in the middle, as when a measurement is.
    next(iter(loader))
    second = list(loader)
    assert loader._iterator._workers == [worker]
    assert worker.is_alive()
    assert torch.equal(first[0][0]["image"], second[0][0]["image"])


@pytest.mark.parametrize("kind", ["CROP", "LSJ"])
def test_validation_is_the_same_whatever_is_cropped_in_training(
    cfg: CfgNode, register: Callable[..., None], image: dict[str, object], kind: str
) -> None:
    """An outline from 50 to 80 of an image 64 wide: its box ends at the image's border."""
    polygon = [50.0, 5.0, 80.0, 5.0, 80.0, 20.0, 50.0, 20.0]
    box = [50.0, 5.0, 80.0, 20.0]
    (annotation,) = image["annotations"]
    register({**image, "annotations": [{**annotation, "bbox": box, "segmentation": [polygon]}]})
    cfg.DATASETS.TEST, cfg.DATALOADER.NUM_WORKERS = ("some_images",), 0
    cfg.INPUT.MIN_SIZE_TEST, cfg.MODEL.MASK_ON = 32, True
    cfg.INPUT[kind].ENABLED = True
    ((example,),) = build_validation_loader(cfg)
    assert example["image"].shape == (3, 32, 64)
    assert example["instances"].gt_boxes.tensor.tolist() == [[50.0, 5.0, 64.0, 20.0]]


def test_images_of_both_orientations_are_not_grouped_silently(
    cfg: CfgNode, image: dict[str, object], register: Callable[..., None]
) -> None:
    register(image, {**image, "height": 64, "width": 32})
    with pytest.raises(InputError, match=r"DATALOADER\.ASPECT_RATIO_GROUPING True: .* False"):
        build_train_loader(cfg)
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    build_train_loader(cfg)


@pytest.mark.parametrize(
    ("keys", "changed", "message"),
    [
        (
            [],
            {"category_id": 2},
            "has category_id 2, but the dataset has 2 classes, 0 to 1: cat, d",
        ),
        ([], {"category_id": -1}, "an object has category_id -1, but the dataset has 2 classes"),
        (
            ["MODEL.MASK_ON", True],
            {"segmentation": None},
            "an object has a box but no segmentation",
        ),
        (["MODEL.META_ARCHITECTURE", "PanopticFPN"], {}, "a PanopticFPN learns semantic labels"),
        (
            ["MODEL.META_ARCHITECTURE", "SemanticSegmentor"],
            {},
            "a SemanticSegmentor learns semanti",
        ),
    ],
)
def test_objects_that_the_model_cannot_learn(
    cfg: CfgNode,
    image: dict[str, object],
    register: Callable[..., None],
    keys: list[object],
    changed: dict[str, object],
    message: str,
) -> None:
    """Detectron2 fails in the first iteration that meets one."""
    (annotation,) = image["annotations"]
    annotation = {**annotation, **changed}
    annotation = {key: value for key, value in annotation.items() if value is not None}
    register(image, {**image, "annotations": [annotation]})
    MetadataCatalog.get("some_images").thing_classes = ["cat", "dog"]
    cfg.merge_from_list(keys)
    with pytest.raises(InputError, match=message):
        build_train_loader(cfg)


def test_boxes_alone_are_learnt_without_outlines(
    cfg: CfgNode, image: dict[str, object], register: Callable[..., None]
) -> None:
    del image["annotations"][0]["segmentation"]
    register(image)
    build_train_loader(cfg)


def test_batches_to_score_are_of_one_size_and_keep_the_order(
    cfg: CfgNode, tmp_path: Path, register: Callable[..., None]
) -> None:
    images = []
    # The last two do not name their sizes.
    for number, width in enumerate((64, 64, 64, 48, 64, 64, 48, 48)):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.zeros((32, width, 3), np.uint8)).save(path)
        size = {"height": 32, "width": width} if number < 6 else {}
        images.append({"file_name": str(path), "image_id": number, **size})
    register(*images)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TEST = 32
    for batch_size, expected in (
        (1, [[0], [1], [2], [3], [4], [5], [6], [7]]),
        (2, [[0, 1], [2], [3], [4, 5], [6], [7]]),
        (8, [[0, 1, 2], [3], [4, 5], [6], [7]]),
    ):
        cfg.TEST.BATCH_SIZE = batch_size
        loader = build_test_loader(cfg, "some_images")
        assert len(loader) == len(expected)
        assert [[each["image_id"] for each in batch] for batch in loader] == expected


def test_images_of_a_rare_class_are_repeated(
    cfg: CfgNode, image: dict[str, object], register: Callable[..., None]
) -> None:
    """One of four images has class 1: f = 0.25, t = 1, sqrt(t / f) = 2."""
    (annotation,) = image["annotations"]
    rare = {**image, "image_id": 3, "annotations": [annotation, {**annotation, "category_id": 1}]}
    register(*({**image, "image_id": index} for index in range(3)), rare)
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = 0, 5
    cfg.INPUT.MIN_SIZE_TRAIN = (32,)
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    with pytest.raises(InputError, match=r"REPEAT_THRESHOLD is 0\.0: with .* must be above 0"):
        build_train_loader(cfg)
    cfg.DATALOADER.REPEAT_THRESHOLD = 1.0
    loader = build_train_loader(cfg)
    assert loader.dataset.num_images == 4
    for batch in islice(loader, 3):
        assert sorted(example["image_id"] for example in batch) == [0, 1, 2, 3, 3]
    cfg.DATALOADER.REPEAT_SQRT = False
    assert sum(example["image_id"] == 3 for example in next(iter(build_train_loader(cfg)))) >= 2
