from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cityscapes_maskrcnn.data.labels import INSTANCE_LABELS, resolve_label
from cityscapes_maskrcnn.synthetic.dataset import generate_dataset, image_name
from cityscapes_maskrcnn.synthetic.label_images import (
    colors_of_labels,
    draw_instance_ids,
    labels_of_instances,
)
from cityscapes_maskrcnn.synthetic.scene import Scene, render_scene
from cityscapes_maskrcnn.utils.errors import InputError

COUNTS = {"train": 3, "val": 2, "test": 1, "train_extra": 2}
ARGUMENTS: dict[str, int] = {"height": 96, "width": 192, "seed": 7, "num_workers": 1}
SMALL: dict[str, int] = {"height": 64, "width": 128, "seed": 0}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_dataset(tmp_path_factory.mktemp("root"), COUNTS, **ARGUMENTS)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    # Objects are counted at the official shape, a quarter of the size, and areas times 16.
    return [render_scene(np.random.default_rng([3, k]), 256, 512) for k in range(45)]


def _files(tree: Path) -> dict[str, str]:
    return {
        str(path.relative_to(tree)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(tree.rglob("*"))
        if path.is_file()
    }


def _instances(scene: Scene) -> Iterator[tuple[int, int]]:
    """Label id and visible area of every instance of the eight classes."""
    ids, areas = np.unique(draw_instance_ids(scene.annotation), return_counts=True)
    for value, area in zip(ids.tolist(), areas.tolist(), strict=True):
        if value >= 1000:
            yield value // 1000, area


def test_complete_official_layout(tree: Path) -> None:
    expected = {"synthetic.json"}
    for split, count in COUNTS.items():
        for index in range(count):
            city, stem = image_name(split, index)
            expected.add(f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png")
            kinds = {"train": "Fine Coarse", "val": "Fine Coarse", "test": "Fine"}
            for kind in kinds.get(split, "Coarse").split():
                for ending in ("polygons.json", "instanceIds.png", "labelIds.png", "color.png"):
                    expected.add(f"gt{kind}/{split}/{city}/{stem}_gt{kind}_{ending}")
    assert set(_files(tree)) == expected
    # 8 images; 6 fine and 7 coarse annotations of 4 files; the manifest
    assert len(expected) == 8 + 4 * (6 + 7) + 1


def test_first_cities_are_those_of_stage_0() -> None:
    names = [image_name("train_extra", index) for index in range(24)]
    first = {city for city, _ in names[:5]}
    assert first == {"augsburg", "dortmund", "dresden", "wuppertal", "erlangen"}
    assert names[23] == ("augsburg", "augsburg_000001_000019")


def test_files_hold_what_the_polygons_say(tree: Path) -> None:
    for path in tree.rglob("*_polygons.json"):
        ids = draw_instance_ids(json.loads(path.read_text()))
        labels = labels_of_instances(ids)
        expected = [("instanceIds", "I;16", ids), ("labelIds", "L", labels)]
        expected.append(("color", "RGBA", colors_of_labels(labels)))
        for ending, mode, pixels in expected:
            with Image.open(str(path).replace("polygons.json", f"{ending}.png")) as image:
                assert image.mode == mode
                assert np.array_equal(np.asarray(image), pixels)
        if "/test/" in str(path):  # a placeholder
            assert set(np.unique(labels)) == {1, 2, 3}
    with Image.open(next(tree.glob("leftImg8bit/train/*/*.png"))) as image:
        assert (image.mode, image.size) == ("RGB", (192, 96))


def test_equal_arguments_give_equal_bytes(tree: Path, tmp_path: Path) -> None:
    """However many processes and further images there are."""
    more = COUNTS | {"train": 32}  # enough for a second process
    again = _files(generate_dataset(tmp_path / "a", more, **{**ARGUMENTS, "num_workers": 2}))
    before = _files(tree)
    del before["synthetic.json"]
    assert {name: again[name] for name in before} == before
    other = _files(generate_dataset(tmp_path / "b", {"val": 1}, **{**ARGUMENTS, "seed": 8}))
    name = "leftImg8bit/val/frankfurt/frankfurt_000000_000019_leftImg8bit.png"
    assert other[name] != before[name]


def test_a_folder_is_completed_and_never_overwritten(tmp_path: Path) -> None:
    counts = {"val": 1}
    folder = generate_dataset(tmp_path, counts, **SMALL)
    before = _files(folder)
    image = next(folder.glob("leftImg8bit/val/*/*.png"))
    manifest = folder / "synthetic.json"

    # One whose writing broke off is written again, a finished one is not.
    image.write_bytes(b"half an image")
    manifest.write_text(manifest.read_text().replace('"finished": true', '"finished": false'))
    generate_dataset(tmp_path, counts, **SMALL)
    assert _files(folder) == before
    stamp = image.stat().st_mtime_ns
    assert generate_dataset(tmp_path, counts, **SMALL) == folder
    assert image.stat().st_mtime_ns == stamp

    with pytest.raises(InputError, match="other arguments"):
        generate_dataset(tmp_path, counts, **{**SMALL, "seed": 1})
    assert _files(folder) == before
    for damaged in ("{", "[]", "{}", '{"arguments": {}, "finished": "no"}'):
        manifest.write_text(damaged)
        with pytest.raises(InputError, match=r"synthetic.json: .*; choose another root, or remove"):
            generate_dataset(tmp_path, counts, **SMALL)
    manifest.unlink()
    with pytest.raises(InputError, match="not synthetic"):
        generate_dataset(tmp_path, counts, **SMALL)


@pytest.mark.parametrize(
    ("counts", "changes", "message"),
    [
        ({"train": -1}, {}, "number of train images is -1"),
        ({"training": 1}, {}, "unknown split 'training'"),
        ({"train": 0}, {}, "no images requested"),
        ({"train": 1}, {"height": 63}, "63x128"),
        ({"train": 1}, {"width": 127}, "64x127"),
        ({"train": 1}, {"width": 10000}, "out of range"),
        ({"train": 1}, {"seed": -1}, "seed is -1"),
        ({"train": 1}, {"num_workers": 0}, "number of workers is 0"),
    ],
)
def test_bad_arguments(
    counts: dict[str, int], changes: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        generate_dataset(tmp_path, counts, **(SMALL | changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("height", "width"), [(64, 128), (65, 131), (128, 128), (64, 512)])
def test_odd_sizes(height: int, width: int) -> None:
    scene = render_scene(np.random.default_rng(0), height, width)
    assert scene.image.shape == (height, width, 3)
    assert scene.image.dtype == np.uint8
    assert draw_instance_ids(scene.annotation).shape == (height, width)


def test_annotations_have_the_official_fields(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert list(scene.annotation) == ["imgHeight", "imgWidth", "objects"]
        for item in scene.annotation["objects"]:
            assert set(item) <= {"label", "polygon", "deleted"}
            assert item.get("deleted", 1) == 1
            assert len(item["polygon"]) >= 3
            assert all(type(value) is int for point in item["polygon"] for value in point)
            resolve_label(item["label"])
        assert json.loads(json.dumps(scene.annotation)) == scene.annotation


def test_sizes_and_classes_are_near_those_of_cityscapes(scenes: list[Scene]) -> None:
    sizes: Counter[str] = Counter()
    classes: Counter[int] = Counter()
    for scene in scenes:
        for label, area in _instances(scene):
            full = 16 * area  # at 1024 x 2048
            sizes["small" if full < 32**2 else "medium" if full < 96**2 else "large"] += 1
            classes[label] += 1
    total = sum(sizes.values())
    # Cityscapes: 24 % small, 43 % medium, 33 % large, about 17 an image; in small pictures the
    # smallest objects are left out.
    assert 0.10 < sizes["small"] / total < 0.34
    assert 0.35 < sizes["medium"] / total < 0.58
    assert 0.22 < sizes["large"] / total < 0.45
    assert 9 < total / len(scenes) < 18
    assert set(classes) == {label.id for label in INSTANCE_LABELS}
    order = [label for label, _ in classes.most_common()]
    assert order[:2] == [26, 24]  # car, then person
    assert 0.35 < classes[26] / total < 0.62
    assert 0.2 < classes[24] / total < 0.45
    assert all(0.004 < classes[label.id] / total < 0.13 for label in INSTANCE_LABELS[3:])


def test_hard_cases_occur(scenes: list[Scene]) -> None:
    found: Counter[str] = Counter()
    for scene in scenes:
        ids = draw_instance_ids(scene.annotation)
        height, width = ids.shape
        singles = [value for value in np.unique(ids).tolist() if value >= 1000]
        found["no instance"] += not singles
        for value in singles:
            _, _, stats, _ = cv2.connectedComponentsWithStats((ids == value).astype(np.uint8))
            found["cut in two"] += int((stats[1:, cv2.CC_STAT_AREA] >= 20).sum() > 1)
        names = [i["label"] for i in scene.annotation["objects"] if not i.get("deleted")]
        counted = sum(name in [label.name for label in INSTANCE_LABELS] for name in names)
        found["hidden entirely"] += counted - len(singles)
        for item in scene.annotation["objects"]:
            points = np.asarray(item["polygon"])
            found["over the border"] += bool(points.min() < 0 or (points >= (width, height)).any())
            found["deleted"] += "deleted" in item
            found[item["label"]] += 1
    rare = ["no instance", "cut in two", "hidden entirely", "over the border", "deleted"]
    groups = ["cargroup", "persongroup", "bicyclegroup", "license plate", "static", "rail track"]
    missing = [name for name in rare + groups if not found[name]]
    assert not missing
    for name in ("ego vehicle", "out of roi", "rectification border"):
        assert found[name] == len(scenes)


def test_a_smaller_picture_shows_the_same_street() -> None:
    large = render_scene(np.random.default_rng(5), 256, 512)
    small = render_scene(np.random.default_rng(5), 128, 256)
    large_ids, small_ids = (
        labels_of_instances(draw_instance_ids(each.annotation)) for each in (large, small)
    )
    assert (large_ids[::2, ::2] == small_ids).mean() > 0.85
    difference = large.image[::2, ::2].astype(float) - small.image
    assert np.abs(difference).mean() < 20
