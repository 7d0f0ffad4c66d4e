from __future__ import annotations

import hashlib
import io

import pytest
import torch

from cityscapes_maskrcnn.data.provenance import (
    TRAINED,
    TUNED,
    find_seen,
    from_plain,
    image_digest,
    merge,
    to_plain,
    used_data,
)
from cityscapes_maskrcnn.utils.errors import InputError

STAGE_0 = used_data("coarse", TRAINED, ["a.png", "b.png", "c.png"])
STAGE_2 = used_data("val_part1", TUNED, ["x.png", "y.png"])


def test_a_digest_is_the_start_of_sha_256() -> None:
    # printf a.png | sha256sum
    assert image_digest("a.png") == hashlib.sha256(b"a.png").hexdigest()[:12]
    assert len(image_digest("a.png")) == 12


def test_an_overlap_is_named_without_the_training_data() -> None:
    """Only the digests travel; the names come from the dataset that is to be scored."""
    history = from_plain(to_plain([STAGE_0, STAGE_2]), "model.pth")
    seen = find_seen(history, "val", ["y.png", "z.png", "c.png", "b.png"])
    assert [(each.used, each.role, each.images, each.total) for each in seen] == [
        ("coarse", "trained", ("b.png", "c.png"), 4),
        ("val_part1", "tuned", ("y.png",), 4),
    ]
    assert str(seen[0]) == ("2 of the 4 images of val were trained on, as coarse (b.png, c.png)")


def test_roles_can_be_chosen() -> None:
    images = ["a.png", "x.png"]
    assert [each.role for each in find_seen([STAGE_0, STAGE_2], "val", images, (TUNED,))] == [TUNED]
    assert find_seen([STAGE_0], "val", images, (TUNED,)) == []


def test_nothing_in_common_and_nothing_at_all() -> None:
    assert find_seen([STAGE_0, STAGE_2], "val", ["q.png"]) == []
    assert find_seen([STAGE_0], "val", []) == []
    assert find_seen([], "val", ["a.png"]) == []


def test_many_images_are_abbreviated() -> None:
    ids = [f"{number}.png" for number in range(5)]
    (seen,) = find_seen([used_data("train", TRAINED, ids)], "again", ids)
    assert str(seen).endswith("(0.png, 1.png, 2.png, ...)")


def test_merging_keeps_the_order_and_drops_repetitions() -> None:
    """A resumed run adds what its own checkpoint has already."""
    assert merge([STAGE_0], [STAGE_2, STAGE_0]) == (STAGE_0, STAGE_2)
    # The same name with other images is another dataset: that of another machine.
    other = used_data("coarse", TRAINED, ["d.png"])
    assert merge([STAGE_0], [other]) == (STAGE_0, other)


def test_it_survives_safe_loading() -> None:
    file = io.BytesIO()
    torch.save({"history": to_plain([STAGE_0, STAGE_2])}, file)
    file.seek(0)
    content = torch.load(file, weights_only=True)["history"]
    assert from_plain(content, "model.pth") == (STAGE_0, STAGE_2)
    assert content[0]["images"] == 3


def test_a_file_of_another_program_has_no_history() -> None:
    assert from_plain(None, "zoo.pth") == ()


@pytest.mark.parametrize(
    "damage",
    [
        5,
        ["coarse"],
        [{"dataset": "coarse"}],
        [{**to_plain([STAGE_0])[0], "images": 4}],
        [{**to_plain([STAGE_0])[0], "digests": "abc"}],
        [{**to_plain([STAGE_0])[0], "role": "watched"}],
    ],
)
def test_a_damaged_history_gets_one_line(damage: object) -> None:
    with pytest.raises(InputError, match=r"model\.pth: its list of images .* is damaged"):
        from_plain(damage, "model.pth")
