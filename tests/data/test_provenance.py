from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from cityscapes_maskrcnn.data.provenance import (
    SEEN_IMAGES_KEY,
    TRAINED,
    TUNED,
    UsedData,
    content_digests,
    find_seen,
    merge,
    name_digests,
    read_history,
    to_plain,
    used_data,
)
from cityscapes_maskrcnn.utils.errors import InputError


@pytest.fixture(autouse=True)
def write_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that :func:`images` names, each with its path as content."""
    monkeypatch.chdir(tmp_path)
    for letter in "abcdefqxyz01234":
        write(f"val/ulm/{letter}.png", f"{letter}.png")


def write(file: str, content: str) -> str:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(content)
    return file


def images(names: str, folder: str = "val/ulm") -> list[dict[str, Any]]:
    return [{"file_name": f"{folder}/{n}.png", "image_id": f"{n}.png"} for n in names]


@pytest.fixture
def stage_0() -> UsedData:
    return used_data("coarse", TRAINED, images("abc"))


@pytest.fixture
def stage_2() -> UsedData:
    return used_data("val_part1", TUNED, images("xy"))


def test_a_digest_is_the_start_of_sha_256() -> None:
    # The whole of a small file counts three times, after its size: printf '5 a.pnga.pnga.png'
    # as its middle begins in the middle: '5 ' + 'a.png' + 'png' + 'a.png'.
    expected = hashlib.sha256(b"5 a.pngpnga.png").hexdigest()[:12]
    assert content_digests(["val/ulm/a.png"]) == [expected]
    expected = hashlib.sha256(b"ulm/a.png").hexdigest()[:12]
    assert name_digests(["/data/val/ulm/a.png"]) == [expected]
    assert content_digests([]) == name_digests([]) == []


@pytest.mark.parametrize("position", [0, 2**14 - 1, 50_000, 100_000 - 2**14, 99_999])
def test_beginning_middle_and_end_of_a_large_file_count(position: int) -> None:
    content = bytearray(100_000)
    Path("a.png").write_bytes(content)
    content[position] = 1
    Path("b.png").write_bytes(content)
    Path("c.png").write_bytes(bytes(100_001))
    assert len(set(content_digests(["a.png", "b.png", "c.png"]))) == 3


def test_ids_do_not_matter() -> None:
    """They restart at 0 in each split of the balloon tutorial and of every COCO file."""
    train = [{"file_name": f"val/ulm/{n}.png", "image_id": i} for i, n in enumerate("abc")]
    val = [{"file_name": f"val/ulm/{n}.png", "image_id": i} for i, n in enumerate("xyz")]
    without = [{"file_name": f"val/ulm/{n}.png"} for n in "cx"]
    used = used_data("balloon_train", TRAINED, train)
    assert find_seen([used], "balloon_val", val) == []
    (seen,) = find_seen([used], "mixed", without)
    assert seen.images == ("c.png",)


def test_names_may_restart_and_files_may_move(caplog: pytest.LogCaptureFixture) -> None:
    for folder, content in [("train", "1"), ("val", "2"), ("other/val", "3"), ("b/leaked", "1")]:
        write(f"{folder}/image_2/000000.png", content)
    used = used_data("train", TRAINED, [{"file_name": "train/image_2/000000.png"}])

    def seen(folder: str) -> int:
        return len(find_seen([used], "val", [{"file_name": f"{folder}/image_2/000000.png"}]))

    assert [seen("train"), seen("b/leaked")] == [1, 1]
    assert caplog.text == ""
    # Not an error: nobody knows whether this is the same scene.
    assert [seen("val"), seen("other/val")] == [0, 0]
    warning = (
        "1 of the 1 images of val have folder and name of images that were trained on, as train, "
        "but another content; whether they are copies of them is not known"
    )
    assert [record.message for record in caplog.records] == [warning] * 2


def test_a_generated_image_is_no_copy_of_the_real_one_of_its_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    real, generated = (
        [{"file_name": write(f"{root}/leftImg8bit/val/ulm/a.png", root)}]
        for root in ("real", "generated")
    )
    Path("generated/synthetic.json").touch()
    demo, model = used_data("val", TRAINED, generated), used_data("val", TRAINED, real)
    assert find_seen([demo], "val", real) == find_seen([model], "val", generated) == []
    assert len(find_seen([demo], "val", generated)) == len(find_seen([model], "val", real)) == 1
    data = {"generated": generated, "real": real, "both": generated + real, "none": []}
    assert {name: used_data(name, TRAINED, images).generated for name, images in data.items()} == {
        "generated": True,
        "real": False,
        "both": False,
        "none": False,
    }
    assert caplog.text == ""


def test_images_that_are_no_files() -> None:
    """A mapper of the user's own may read a database by keys."""
    images = [{"file_name": f"lmdb://streets/{n}"} for n in range(3)]
    used = used_data("val", TRAINED, images[:2])
    (seen,) = find_seen([used], "val", images[1:])
    assert seen.images == ("1",)


def test_a_seen_image_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)  # root may read everything
    with pytest.raises(InputError, match=r"val/ulm/a\.png: cannot be read: Permission denied"):
        content_digests(["val/ulm/a.png"])


def test_an_overlap_is_named_without_the_training_data(
    stage_0: UsedData, stage_2: UsedData
) -> None:
    """Only the digests travel; the names come from the dataset that is to be scored."""
    seen = find_seen([stage_0, stage_2], "val", images("yzcb"))
    assert [(each.used, each.role, each.images, each.total) for each in seen] == [
        ("coarse", "trained", ("b.png", "c.png"), 4),
        ("val_part1", "tuned", ("y.png",), 4),
    ]
    assert str(seen[0]) == "2 of the 4 images of val were trained on, as coarse (b.png, c.png)"
    tuned = find_seen([stage_0, stage_2], "val", images("ax"), (TUNED,))
    assert [each.role for each in tuned] == [TUNED]
    assert find_seen([stage_0, stage_2], "val", images("q")) == []
    assert find_seen([stage_0], "val", []) == find_seen([], "val", images("a")) == []
    (seen_again,) = find_seen([used_data("train", TRAINED, images("01234"))], "x", images("01234"))
    assert str(seen_again).endswith("(0.png, 1.png, 2.png, ...)")


def test_merging_keeps_the_order_and_drops_repetitions(
    stage_0: UsedData, stage_2: UsedData
) -> None:
    """A resumed run adds what its own checkpoint has already."""
    assert merge([stage_0], [stage_2, stage_0]) == (stage_0, stage_2)
    # The same name with other images is another dataset: that of another machine.
    other = used_data("coarse", TRAINED, images("d"))
    assert merge([stage_0], [other]) == (stage_0, other)


def test_it_survives_safe_loading(stage_0: UsedData, stage_2: UsedData) -> None:
    file = io.BytesIO()
    torch.save({SEEN_IMAGES_KEY: to_plain([stage_0, stage_2])}, file)
    file.seek(0)
    content = torch.load(file, weights_only=True)
    assert read_history(content, "model.pth") == (stage_0, stage_2)
    assert content[SEEN_IMAGES_KEY][0]["images"] == 3


@pytest.mark.parametrize("content", [None, 5, [], [0.7, 0.5], {"loss": [0.7]}, [{"epoch": 1}], "x"])
def test_a_file_of_another_program_has_no_history(content: object) -> None:
    assert read_history({}, "zoo.pth") == read_history({"history": content}, "zoo.pth") == ()


DIGESTS = "0123456789ab" + "0123456789ac"
ENTRY = {
    "dataset": "val",
    "role": "trained",
    "images": 2,
    "generated": True,
    "contents": DIGESTS,
    "names": DIGESTS,
}


@pytest.mark.parametrize(
    "entry",
    [
        ENTRY | {"images": 4},
        ENTRY | {"contents": "abc"},
        # These equal no digest, so that the check for seen images would find none.
        ENTRY | {"contents": DIGESTS.upper()},
        ENTRY | {"contents": DIGESTS.encode()},
        ENTRY | {"names": torch.zeros(24)},
        ENTRY | {"contents": [DIGESTS[:12], DIGESTS[12:]]},
        ENTRY | {"role": "watched"},
        {"contents": DIGESTS},
        ENTRY | {"generated": None},
        ENTRY | {"generated": 1},
        {key: value for key, value in ENTRY.items() if key != "generated"},
        ENTRY | {"images": torch.tensor([3, 3])},
    ],
)
def test_a_damaged_history_gets_one_line(entry: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"model\.pth: its list of images .* is damaged"):
        read_history({SEEN_IMAGES_KEY: [entry]}, "model.pth")
    history = read_history({SEEN_IMAGES_KEY: [ENTRY]}, "model.pth")
    assert to_plain(history) == [ENTRY]


@pytest.mark.parametrize("content", [5, ["coarse"], {}, b"", torch.zeros(0), torch.zeros(1, 3)])
def test_what_is_no_history_is_damage_under_this_projects_name(content: object) -> None:
    with pytest.raises(InputError, match=r"model\.pth: its list of images .* is damaged"):
        read_history({SEEN_IMAGES_KEY: content}, "model.pth")


def test_a_text_that_a_file_names_many_times_is_not_split_each_time() -> None:
    """A million digests of one text; the file stores it once."""
    digests = "".join(f"{number:012x}" for number in range(20_000))
    entry = {**ENTRY, "contents": digests, "names": digests, "images": 20_000}
    assert len(read_history({SEEN_IMAGES_KEY: [entry] * 20}, "model.pth")) == 20
    with pytest.raises(InputError, match=r"is damaged \(more than 10000000 characters\); load"):
        read_history({SEEN_IMAGES_KEY: [entry] * 25}, "model.pth")
