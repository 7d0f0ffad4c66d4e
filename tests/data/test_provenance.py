from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch

from cityscapes_maskrcnn.data.provenance import (
    SEEN_IMAGES_KEY,
    TRAINED,
    TUNED,
    find_seen,
    image_digests,
    merge,
    read_history,
    to_plain,
    used_data,
)
from cityscapes_maskrcnn.utils.errors import InputError


def images(names: str, folder: Path = Path("leftImg8bit/val/ulm")) -> list[dict[str, Any]]:
    return [{"file_name": str(folder / f"{n}.png"), "image_id": f"{n}.png"} for n in names]


STAGE_0 = used_data("coarse", TRAINED, images("abc"))
STAGE_2 = used_data("val_part1", TUNED, images("xy"))


def test_a_digest_is_the_start_of_sha_256() -> None:
    # printf a.png | sha256sum
    assert image_digests(images("a")) == {hashlib.sha256(b"a.png").hexdigest()[:12]: "a.png"}
    assert image_digests([]) == {}


def test_generated_images_are_not_the_real_ones_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "generated").mkdir()
    (tmp_path / "generated" / "synthetic.json").touch()
    real, generated = (
        images("ab", tmp_path / name / "leftImg8bit/val/ulm") for name in ("real", "generated")
    )
    demo, model = used_data("val", TRAINED, generated), used_data("val", TRAINED, real)
    assert find_seen([demo], "val", real) == find_seen([model], "val", generated) == []
    assert len(find_seen([demo], "val", generated)) == len(find_seen([model], "val", real)) == 1


def test_an_overlap_is_named_without_the_training_data() -> None:
    """Only the digests travel; the names come from the dataset that is to be scored."""
    seen = find_seen([STAGE_0, STAGE_2], "val", images("yzcb"))
    assert [(each.used, each.role, each.images, each.total) for each in seen] == [
        ("coarse", "trained", ("b.png", "c.png"), 4),
        ("val_part1", "tuned", ("y.png",), 4),
    ]
    assert str(seen[0]) == "2 of the 4 images of val were trained on, as coarse (b.png, c.png)"
    tuned = find_seen([STAGE_0, STAGE_2], "val", images("ax"), (TUNED,))
    assert [each.role for each in tuned] == [TUNED]
    assert find_seen([STAGE_0, STAGE_2], "val", images("q")) == []
    assert find_seen([STAGE_0], "val", []) == find_seen([], "val", images("a")) == []
    (seen_again,) = find_seen([used_data("train", TRAINED, images("01234"))], "x", images("01234"))
    assert str(seen_again).endswith("(0.png, 1.png, 2.png, ...)")


def test_merging_keeps_the_order_and_drops_repetitions() -> None:
    """A resumed run adds what its own checkpoint has already."""
    assert merge([STAGE_0], [STAGE_2, STAGE_0]) == (STAGE_0, STAGE_2)
    # The same name with other images is another dataset: that of another machine.
    other = used_data("coarse", TRAINED, images("d"))
    assert merge([STAGE_0], [other]) == (STAGE_0, other)


@pytest.mark.parametrize("key", [SEEN_IMAGES_KEY, "history"])
def test_it_survives_safe_loading_under_its_present_and_its_former_name(key: str) -> None:
    file = io.BytesIO()
    torch.save({key: to_plain([STAGE_0, STAGE_2])}, file)
    file.seek(0)
    content = torch.load(file, weights_only=True)
    assert read_history(content, "model.pth") == (STAGE_0, STAGE_2)
    assert content[key][0]["images"] == 3


@pytest.mark.parametrize("content", [None, 5, [], [0.7, 0.5], {"loss": [0.7]}, [{"epoch": 1}], "x"])
def test_a_file_of_another_program_has_no_history(content: object) -> None:
    assert read_history({}, "zoo.pth") == read_history({"history": content}, "zoo.pth") == ()


ENTRY = to_plain([STAGE_0])[0]


@pytest.mark.parametrize("key", [SEEN_IMAGES_KEY, "history"])
@pytest.mark.parametrize(
    "entry",
    [
        ENTRY | {"images": 4},
        ENTRY | {"digests": "abc"},
        ENTRY | {"role": "watched"},
        {"digests": ENTRY["digests"]},
        # These equal no digest, so that the check for seen images would find none.
        ENTRY | {"digests": ENTRY["digests"].encode()},
        ENTRY | {"digests": ENTRY["digests"].upper()},
        ENTRY | {"digests": torch.tensor(list(ENTRY["digests"].encode()))},
        ENTRY | {"images": torch.tensor([3, 3])},
    ],
)
def test_a_damaged_history_gets_one_line(key: str, entry: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"model\.pth: its list of images .* is damaged"):
        read_history({key: [entry]}, "model.pth")


@pytest.mark.parametrize("content", [5, ["coarse"], {}, b"", torch.zeros(0), torch.zeros(1, 3)])
def test_what_is_no_history_is_damage_under_this_projects_name(content: object) -> None:
    with pytest.raises(InputError, match=r"model\.pth: its list of images .* is damaged"):
        read_history({SEEN_IMAGES_KEY: content}, "model.pth")
