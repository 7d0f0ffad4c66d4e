from __future__ import annotations

import json
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from cityscapes_maskrcnn.cli import build_config

STAGE_1 = Path(__file__).parents[2] / "configs" / "stage_1_heads.yaml"
CAR_OVER_GREY = (50, 50, 121)  # (100 + 0) / 2, (100 + 0) / 2, (100 + 142) / 2


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A datasets folder with two validation images, and one test image without labels."""
    for split, number in [("val", 0), ("val", 1), ("test", 0)]:
        stem = f"ulm_{number:06d}_000019"
        image = tmp_path / "cityscapes/leftImg8bit" / split / "ulm" / f"{stem}_leftImg8bit.png"
        annotation = tmp_path / "cityscapes/gtFine" / split / "ulm" / f"{stem}_gtFine_polygons.json"
        image.parent.mkdir(parents=True, exist_ok=True)
        annotation.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((64, 128, 3), 100, np.uint8)).save(image)
        car = {"label": "car", "polygon": [[20, 20], [99, 20], [99, 49], [20, 49]]}
        annotation.write_text(json.dumps({"imgHeight": 64, "imgWidth": 128, "objects": [car]}))
        label_ids = np.full((64, 128), 7, np.uint8)  # road
        Image.fromarray(label_ids).save(annotation.with_name(f"{stem}_gtFine_labelIds.png"))
    return tmp_path


@pytest.fixture
def draw_data(root, tool):
    return partial(tool, "tools/visualize_data.py", root=root, cwd=root)


@pytest.fixture(scope="module")
def weights(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": build_model(build_config(str(STAGE_1), tiny)).state_dict()}, path)
    return path


@pytest.fixture
def predict(root, tool, tiny, weights):
    def run(*arguments, weights=weights):
        words = ("--config-file", STAGE_1, *arguments, *tiny, "MODEL.WEIGHTS", weights)
        return tool("tools/visualize_predictions.py", *words, root=root, cwd=root)

    return run


def assert_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    for word in words:
        assert word in last


def test_random_weights_are_not_drawn(root, predict):
    done = predict("--input", "cityscapes/leftImg8bit/val", "--output", "pictures", weights="")
    assert_one_line(done, "MODEL.WEIGHTS is empty: name a checkpoint")
    assert not (root / "pictures").exists()


def test_predictions_beside_ground_truth(root, predict):
    inputs = ("cityscapes/leftImg8bit/val", "cityscapes/leftImg8bit/test/ulm/*.png")
    # KEY VALUE pairs, which follow, may come directly after --input.
    done = predict("--output", "new/pictures", "--score-thresh", "0.05", "--input", *inputs)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3 pictures are in new/pictures\n"
    assert "3/3" in done.stderr  # the progress bar
    sizes = {path.name: Image.open(path).size for path in (root / "new/pictures").iterdir()}
    # A panel is 1024 x 512 below 41 of caption (see test_predictor); letters 23, gap 23 / 2 = 12
    assert sizes == {
        "ulm_000000_000019_prediction.png": (2 * 1024 + 12, 512 + 41),
        "ulm_000001_000019_prediction.png": (2 * 1024 + 12, 512 + 41),
        "ulm_000000_000019_2_prediction.png": (1024, 512 + 41),  # test: no ground truth
    }
    pixels = np.asarray(Image.open(root / "new/pictures/ulm_000000_000019_prediction.png"))
    np.testing.assert_allclose(pixels[41 + 8 * 46, 8 * 24].astype(int), CAR_OVER_GREY, atol=2)


def test_damaged_images(root, predict):
    image = root / "street.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    Image.fromarray(noise).save(image)
    image.write_bytes(image.read_bytes()[:9000])
    assert_one_line(predict("--input", image, "--output", "p"), "street.png", "truncated")
    other = root / "cityscapes/leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png"
    Image.fromarray(noise[:32]).save(other)
    assert_one_line(predict("--input", other, "--output", "p"), "128x32", "128x64")
    assert not list((root / "p").iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--input": "nowhere/*.png"}, ("--input nowhere/*.png", "no such file")),
        # Its name in Detectron2's demo.py.
        ({"--confidence-threshold": "1.5"}, ("--score-thresh 1.5", "between 0 and 1")),
        ({"--output": "cityscapes/leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png/p"}, ()),
        ({"MODEL.ROI_HEADS.NUM_CLASSES": "80"}, ("MODEL.ROI_HEADS.NUM_CLASSES is 80",)),
    ],
)
def test_bad_input_of_predictions(predict, change, words):
    arguments = {"--input": "cityscapes/leftImg8bit/val", "--output": "pictures", **change}
    assert_one_line(predict(*(each for pair in arguments.items() for each in pair)), *words)


def test_dataset(root, draw_data):
    flags = ("--dataset", "cityscapes_instance_val", "--output", "pictures", "--num-images", "1")
    done = draw_data(*flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1 picture is in pictures\n"
    (picture,) = (root / "pictures").iterdir()
    assert picture.name in {f"ulm_{number:06d}_000019_ground_truth.png" for number in (0, 1)}
    # Below a caption, as above.
    pixels = np.asarray(Image.open(picture))[41:].astype(int)
    assert pixels.shape == (512, 1024, 3)
    np.testing.assert_allclose(pixels[8 * 46, 8 * 24], CAR_OVER_GREY, atol=2)


def test_semantic_dataset(root, draw_data):
    done = draw_data("--dataset", "cityscapes_fine_semantic_val", "--output", "pictures")
    assert done.stdout == "2 pictures are in pictures\n", done.stderr
    pixels = np.asarray(Image.open(root / "pictures/ulm_000001_000019_ground_truth.png"))
    # Road is (128, 64, 128): ((100 + 128) / 2, (100 + 64) / 2, (100 + 128) / 2)
    np.testing.assert_allclose(pixels[500, 20].astype(int), (114, 82, 114), atol=2)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_augmented_examples(root, draw_data, mask_format):
    """Repeated, as training sees them: at half their size in a corner, the rest is grey."""
    flags = ("--augmented", "--dataset", "cityscapes_instance_val", "--output", "pictures")
    lsj = ["INPUT.LSJ.ENABLED", "True", "INPUT.LSJ.SIZE", "[64,128]", "INPUT.RANDOM_FLIP", "none"]
    lsj += ["INPUT.LSJ.MIN_SCALE", "0.5", "INPUT.LSJ.MAX_SCALE", "0.5"]
    lsj += ["INPUT.MASK_FORMAT", mask_format]
    done = draw_data(*flags, "--num-images", "3", *lsj)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3 pictures are in pictures\n"
    pictures = sorted((root / "pictures").iterdir())
    names = [each.name.split("_") for each in pictures]
    assert [name[0] for name in names] == ["00000", "00001", "00002"]
    assert {name[2] for name in names[:2]} == {"000000", "000001"}
    assert all(name[-1] == "augmented.png" for name in names)
    for picture in pictures:
        pixels = np.asarray(Image.open(picture))[41:].astype(int)
        assert pixels.shape == (512, 1024, 3)
        # The car is from 10 to 50, 10 to 25, times 8.
        np.testing.assert_allclose(pixels[8 * 23, 8 * 12], CAR_OVER_GREY, atol=2)
        np.testing.assert_array_equal(pixels[8 * 40, 8 * 12], (128, 128, 128))


@pytest.mark.parametrize(
    "augmentation",
    [
        ("INPUT.COPY_PASTE.PROB", "1.0", "INPUT.COPY_PASTE.MIN_AREA", "1"),
        ("INPUT.COLOR_JITTER.BRIGHTNESS", "0.9"),
    ],
)
def test_each_augmentation_is_drawn(root, draw_data, augmentation):
    """The cars of a green image and of a grey one are at different places."""
    image = root / "cityscapes/leftImg8bit/val/ulm/ulm_000001_000019_leftImg8bit.png"
    Image.fromarray(np.full((64, 128, 3), (0, 200, 0), np.uint8)).save(image)
    annotation = root / "cityscapes/gtFine/val/ulm/ulm_000001_000019_gtFine_polygons.json"
    car = {"label": "car", "polygon": [[20, 52], [99, 52], [99, 62], [20, 62]]}
    annotation.write_text(json.dumps({"imgHeight": 64, "imgWidth": 128, "objects": [car]}))
    flags = ("--augmented", "--dataset", "cityscapes_instance_val", "--num-images", "6")
    plain = ("INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TRAIN", "(64,)", "MODEL.MASK_ON", "True")
    for folder, options in (("plain", plain), ("changed", (*plain, *augmentation))):
        done = draw_data(*flags, "--output", folder, *options)
        assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (root / "plain").iterdir())
    assert names == sorted(path.name for path in (root / "changed").iterdir())
    differences = [
        np.asarray(Image.open(root / "plain" / name)).astype(int)[41:]
        - np.asarray(Image.open(root / "changed" / name)).astype(int)[41:]
        for name in names
    ]
    changed = [abs(each).max() > 20 for each in differences]
    assert any(changed)
    if augmentation[0] == "INPUT.COPY_PASTE.PROB":
        # The other image's car, at its place; nothing changes beside both cars. An image that draws
        # itself stays as it is.
        assert all(abs(each[:, : 8 * 15]).max() == 0 for each in differences)
    else:
        assert all(abs(each[8 * 5, 8 * 5]).max() > 0 for each in differences)


def test_repeated_images_are_drawn_as_often_as_training_sees_them(root, draw_data):
    """Cars are in both images, a train in one, which is repeated sqrt(1 / 0.5) = 1.41 times."""
    annotation = root / "cityscapes/gtFine/val/ulm/ulm_000001_000019_gtFine_polygons.json"
    content = json.loads(annotation.read_text())
    train = {"label": "train", "polygon": [[2, 2], [19, 2], [19, 19], [2, 19]]}
    annotation.write_text(json.dumps({**content, "objects": [*content["objects"], train]}))
    flags = ("--augmented", "--dataset", "cityscapes_instance_val", "--num-images", "24")
    counts = {}
    for sampler in ("TrainingSampler", "RepeatFactorTrainingSampler"):
        options = ("DATALOADER.SAMPLER_TRAIN", sampler, "DATALOADER.REPEAT_THRESHOLD", "1.0")
        done = draw_data(*flags, "--output", sampler, "INPUT.MIN_SIZE_TRAIN", "(64,)", *options)
        assert done.returncode == 0, done.stderr
        counts[sampler] = len(list((root / sampler).glob("*_000001_*")))
    assert counts["TrainingSampler"] == 12
    # 24 x 1.41 / 2.41 = 14.
    assert 13 <= counts["RepeatFactorTrainingSampler"] <= 15


def test_augmented_semantic_labels(root, draw_data):
    flags = ("--augmented", "--dataset", "cityscapes_fine_semantic_val", "--output", "pictures")
    semantic = ("MODEL.META_ARCHITECTURE", "SemanticSegmentor", "INPUT.MIN_SIZE_TRAIN", "(64,)")
    done = draw_data(*flags, *semantic, "INPUT.FORMAT", "BGR")
    assert done.stdout == "2 pictures are in pictures\n", done.stderr
    pixels = np.asarray(Image.open(next((root / "pictures").iterdir())))
    np.testing.assert_allclose(pixels[500, 20].astype(int), (114, 82, 114), atol=2)
    assert_one_line(draw_data(*flags), "a GeneralizedRCNN learns instances")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--dataset": "cityscapes_instance_vall"}, ("cityscapes_instance_val",)),
        ({"--dataset": "cityscapes_instance_test"}, ("cityscapes_instance_test", "no labels")),
        ({"--dataset": "cityscapes_instance_train"}, ("no such folder", "train")),
        ({"--num-images": "0"}, ("--num-images 0",)),
    ],
)
def test_bad_input_of_data(draw_data, change, words):
    arguments = {"--dataset": "cityscapes_instance_val", "--output": "pictures", **change}
    assert_one_line(draw_data(*(each for pair in arguments.items() for each in pair)), *words)


@pytest.mark.parametrize("script", ["tools/visualize_data.py", "tools/visualize_predictions.py"])
def test_in_a_process_of_its_own(tool_process, tmp_path, script):
    done = tool_process(script, "--help")
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout
    source = ("--dataset", "nowhere") if "data" in script else ("--config-file", "nowhere.yaml")
    flags = ("--input", "x.png") if "predictions" in script else ()
    assert_one_line(
        tool_process(script, *source, *flags, "--output", tmp_path / "pictures"), "nowhere"
    )
