"""Weather variants and other data through train_net.py, as datasets/README.md describes them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from detectron2.data import DatasetCatalog
from PIL import Image

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.data.registration import register_dataset
from cityscapes_maskrcnn.engine.submission import expected_images

PROJECT = Path(__file__).parents[2]
Done = subprocess.CompletedProcess[str]

# dataset -> the name of an image there; otherwise it is that of the generated set.
NAMES = {"acdc_fog_val": "GOPR0475_frame_{:06}", "kitti_val": "{:06}_10", "our_val": "IMG {}.night"}


def copy_as(source: Path, root: Path, name: str, options: dict[str, str]) -> None:
    """Copy a split of the generated set as a dataset of the README describes it."""
    split = "train" if name == "foggy_train" else "val"
    for index, image in enumerate(sorted((source / "leftImg8bit" / split).glob("*/*.png"))):
        city, old = image.parent.name, image.name.removesuffix("_leftImg8bit.png")
        new = NAMES.get(name, old).format(index)
        images, gt_dir = root / options["IMAGE_DIR"] / city, root / options["GT_DIR"] / city
        images.mkdir(parents=True, exist_ok=True)
        gt_dir.mkdir(parents=True, exist_ok=True)
        with Image.open(image) as picture:
            picture.save(images / f"{new}{options['IMAGE_SUFFIX']}")
            # The same scene in other weather, which belongs to no dataset here.
            picture.save(images / f"{new}_leftImg8bit_foggy_beta_0.01.gif")
        for file in (source / "gtFine" / split / city).glob(f"{old}_gtFine_*"):
            end = file.name.rpartition("_")[2]
            if name != "acdc_fog_val" or end == "labelIds.png":
                shutil.copy(file, gt_dir / f"{new}_{options.get('GT_KIND', 'gtFine')}_{end}")


@pytest.fixture(scope="module")
def config(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of the README, with the data that it names below its folder."""
    folder = tmp_path_factory.mktemp("own data")
    readme = (PROJECT / "datasets" / "README.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    for name, options in yaml.safe_load(block)["DATASETS"]["OWN"].items():
        copy_as(small_root / "cityscapes", folder, name, options)
    (folder / "configs").symlink_to(PROJECT / "configs")
    (folder / "own.yaml").write_text(block)
    return folder / "own.yaml"


def test_all_of_them_load(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(config.parent))
    cfg = build_config(str(config), [])
    found = {name: DatasetCatalog.get(name) for name in cfg.DATASETS.OWN}
    assert {name: len(images) for name, images in found.items()} == {
        "foggy_train": 8,
        "rainy_val": 6,
        "acdc_fog_val": 6,
        "kitti_val": 6,
        "our_val": 6,
    }
    for name, images in found.items():
        task = "sem_seg_file_name" if name == "acdc_fog_val" else "annotations"
        assert all(task in image for image in images)
        assert (images[0]["height"], images[0]["width"]) == (96, 192)
    names = [image.name for image in expected_images("our_val")]
    assert names == [f"IMG {index}.night" for index in range(6)]


def test_trained_on_fog_and_scored_in_rain_and_on_photographs(
    config: Path,
    train_net: Callable[..., Done],
    tiny: list[str],
    tables: Callable[[Path], dict[str, str]],
    tmp_path: Path,
) -> None:
    done = train_net(
        *tiny,
        *("SOLVER.MAX_ITER", 1, "SOLVER.EPOCHS", 0, "TEST.EVAL_EPOCHS", 0, "TEST.EVAL_PERIOD", 1),
        *("DATASETS.TEST", "('rainy_val','our_val','kitti_val')", "OUTPUT_DIR", tmp_path),
        config=config,
        root=config.parent,
    )
    assert done.returncode == 0, done.stderr
    assert "rainy_val, 6 images" in done.stdout
    for name in ("rainy_val", "our_val", "kitti_val"):
        scores = json.loads((tmp_path / f"inference/{name}/cityscapes_results.json").read_text())
        assert scores["averages"]["allAp"] is not None
    tables(tmp_path)


def test_trained_on_a_city_of_ones_own_that_is_registered_from_python(
    small_root: Path,
    train_net: Callable[..., Done],
    tiny: list[str],
    tmp_path: Path,
) -> None:
    """No official city has this name; nothing but ``register_dataset`` knows the folder."""
    name = "mytown_train"
    for kind, end in (("leftImg8bit", "png"), ("gtFine", "*")):
        for city in (small_root / "cityscapes" / kind / "train").iterdir():
            for file in city.glob(f"*.{end}"):
                new = tmp_path / "mine" / kind / "mytown" / file.name.replace(city.name, "mytown")
                new.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, new)
    register_dataset(
        name,
        str(tmp_path / "mine" / "leftImg8bit"),
        str(tmp_path / "mine" / "gtFine"),
    )
    assert {Path(each["file_name"]).parent.name for each in DatasetCatalog.get(name)} == {"mytown"}
    done = train_net(
        *tiny,
        *("SOLVER.MAX_ITER", 1, "SOLVER.EPOCHS", 0, "TEST.EVAL_EPOCHS", 0, "TEST.EVAL_PERIOD", 1),
        *("DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)"),
        *("TEST.ALLOW_SEEN_IMAGES", True, "OUTPUT_DIR", tmp_path / "run"),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model_final.pth").exists()
    scores = json.loads((tmp_path / "run/inference/cityscapes_results.json").read_text())
    assert scores["averages"]["allAp"] is not None


def test_other_tools_find_them_by_the_same_config(
    config: Path, tool: Callable[..., Done], tmp_path: Path
) -> None:
    with_data = {"root": config.parent}
    names = ("--config-file", config, "--dataset", "our_val")
    done = tool("tools/visualize_data.py", *names, "--output", tmp_path / "drawn", **with_data)
    assert done.returncode == 0, done.stderr
    drawn = {path.name for path in (tmp_path / "drawn").iterdir()}
    assert drawn == {f"IMG {index}.night_ground_truth.png" for index in range(6)}
    (tmp_path / "results").mkdir()
    for index in range(6):
        (tmp_path / "results" / f"IMG_{index}.night_pred.txt").touch()
    done = tool("tools/make_submission.py", *names, "--check", tmp_path / "results", **with_data)
    assert done.stdout == "valid: no violations\n", done.stderr
    done = tool("tools/evaluate_results.py", *names, "--results", tmp_path / "results", **with_data)
    assert "6 images of our_val" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("{GT_DIR: a}", "DATASETS.OWN.x: IMAGE_DIR is missing"),
        ("5", "DATASETS.OWN.x: IMAGE_DIR is missing"),
        ("{IMAGE_DIR: a, SUFFIX: .jpg}", "DATASETS.OWN.x: there is no key SUFFIX, only IMAGE_DIR,"),
        ("{IMAGE_DIR: a, IMAGE_SUFFIX: 5}", "DATASETS.OWN.x.IMAGE_SUFFIX must be a string, not 5"),
        ("{IMAGE_DIR: a, TASK: boxes}", "dataset x: task is instance or semantic, not 'boxes'"),
    ],
)
def test_nodes_that_describe_no_dataset(
    node: str, message: str, train_net: Callable[..., Done], tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text(f"DATASETS: {{OWN: {{x: {node}}}}}")
    done = train_net(config=tmp_path / "own.yaml")
    assert done.returncode == 1
    assert f"error: {message}" in done.stderr
