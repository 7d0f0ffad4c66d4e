from __future__ import annotations

from itertools import pairwise

import pytest

from cityscapes_maskrcnn.data.partitions import partition, subset
from cityscapes_maskrcnn.utils.errors import InputError

# Images per city of the official train split; 2,975 together.
TRAIN = {
    "aachen": 174, "bochum": 96, "bremen": 316, "cologne": 154, "darmstadt": 85,
    "dusseldorf": 221, "erfurt": 109, "hamburg": 248, "hanover": 196, "jena": 119,
    "krefeld": 99, "monchengladbach": 94, "strasbourg": 365, "stuttgart": 196,
    "tubingen": 144, "ulm": 95, "weimar": 142, "zurich": 122,
}  # fmt: skip
VAL = {"frankfurt": 267, "lindau": 59, "munster": 174}
# In most cities every image is a sequence of its own, frame 19; these were driven through, and
# their sequences hold frames with gaps.
DRIVES = {"bochum", "frankfurt", "hamburg", "hanover", "krefeld", "monchengladbach", "strasbourg"}


def ids(cities: dict[str, int]) -> list[str]:
    """Names with the official numbering, in the order in which the frames were taken."""
    names = []
    for city, count in cities.items():
        for number in range(count):
            sequence, frame = number, 19
            if city in DRIVES:  # a third in sequence 0, the rest in sequence 1, 237 to 451 apart
                sequence, first = (0, 0) if number < count // 3 else (1, count // 3)
                frame = 294 + 237 * (number - first) + 107 * ((number - first) % 3)
            names.append(f"{city}_{sequence:06d}_{frame:06d}_leftImg8bit.png")
    return names


def city(name: str) -> str:
    return name.split("_")[0]


@pytest.mark.parametrize(
    ("cities", "parts", "sizes"),
    [
        (TRAIN, 8, [372] * 7 + [371]),  # 7 x 372 + 371 = 2,975
        (VAL, 4, [125] * 4),
        ({"aachen": 3, "jena": 2, "ulm": 5}, 4, [3, 3, 2, 2]),
        ({"ulm": 3}, 3, [1, 1, 1]),
        ({"ulm": 3}, 1, [3]),
    ],
)
def test_parts_are_runs_of_neighbours_in_every_city(cities, parts, sizes):
    names = ids(cities)
    assert names == sorted(names)
    found = [partition(reversed(names), part, parts) for part in range(1, parts + 1)]
    assert [len(part) for part in found] == sizes
    assert sorted(name for part in found for name in part) == names
    for name, count in cities.items():
        runs = [[image for image in part if city(image) == name] for part in found]
        # 316 images of Bremen in 8 parts: 39 or 40 each.
        assert {len(run) for run in runs} <= {count // parts, -(-count // parts)}
        # The runs follow each other: a city has one cut less than it has parts.
        assert [i for run in runs for i in run] == [i for i in names if city(i) == name]


def test_only_frames_at_the_cuts_have_a_neighbour_in_another_part():
    part_of = {name: part for part in range(1, 5) for name in partition(ids(VAL), part, 4)}
    torn = [
        (a, b) for a, b in pairwise(ids(VAL)) if city(a) == city(b) and part_of[a] != part_of[b]
    ]
    assert len(torn) == 3 * 3  # three cities, three cuts each
    # 267 = 67 + 67 + 67 + 66; sequence 0 has 89 frames. Frame 67 is 294 + 237 x 67 + 107 x 1.
    assert partition(ids(VAL), 2, 4)[:2] == [
        "frankfurt_000000_016280_leftImg8bit.png",
        "frankfurt_000000_016624_leftImg8bit.png",
    ]


def test_official_numbers():
    frames = ["000000_000294", "000000_000576", "000000_001016", "000000_001236", "000000_001751"]
    frames += ["000001_000538", "000001_001464", "000001_002512"]
    names = [f"frankfurt_{frame}_leftImg8bit.png" for frame in frames]
    names += [f"lindau_{number:06d}_000019_leftImg8bit.png" for number in range(3)]
    names += [f"munster_{number:06d}_000019_leftImg8bit.png" for number in (0, 1, 173)]
    # Places 1-4 1-4 | 1 2 3 | 4 1 2: lindau is in parts 1 to 3, munster in 1, 2 and 4.
    assert [partition(names, part, 4) for part in range(1, 5)] == [
        [*names[0:2], names[8], names[11]],
        [*names[2:4], names[9], names[12]],
        [*names[4:6], names[10]],
        [*names[6:8], names[13]],
    ]


def test_cities_with_an_underscore():
    """Two such cities are cut into runs one by one, as any."""
    names = [
        f"{city}/{city}_{number:06d}_000019_leftImg8bit.png"
        for city in ("new_jersey", "new_york")
        for number in range(4)
    ]
    assert partition(names, 1, 2) == [*names[0:2], *names[4:6]]
    assert partition(names, 2, 2) == [*names[2:4], *names[6:8]]


def test_folders_change_no_part_of_the_official_data():
    for split in (TRAIN, VAL):
        folders = [f"{name.partition('_')[0]}/{name}" for name in ids(split)]
        for part in range(1, 5):
            expected = partition(ids(split), part, 4)
            assert [name.partition("/")[2] for name in partition(folders, part, 4)] == expected


@pytest.mark.parametrize(
    ("part", "parts", "message"),
    [
        (0, 4, "no part 0 of 4"),
        (5, 4, "no part 5 of 4"),
        (1, 0, "no part 1 of 0"),
        (3, 4, "part 3 of 4 is empty: the split has only 2 images"),
    ],
)
def test_impossible_parts(part, parts, message):
    with pytest.raises(InputError, match=message):
        partition(["a", "b"], part, parts)


def test_subset_is_fixed_for_every_machine():
    names = [f"ulm_{i}" for i in range(10)]
    # The smallest three of `for i in 0..9: printf "$seed ulm_$i" | sha256sum` of coreutils:
    # seed 0: 181b1b72... ulm_2, 24b2ea2e... ulm_3, 28fa792f... ulm_1
    # seed 1: 1d3e7c03... ulm_5, 3734d354... ulm_3, 460f37ae... ulm_2
    assert subset(names, 3) == ["ulm_1", "ulm_2", "ulm_3"]
    assert subset(reversed(names), 3, seed=0) == ["ulm_1", "ulm_2", "ulm_3"]
    assert subset(names, 3, seed=1) == ["ulm_2", "ulm_3", "ulm_5"]
    assert subset(names, 10, seed=7) == sorted(names)
    small, large = subset(ids(VAL), 20, seed=3), subset(ids(VAL), 100, seed=3)
    assert set(small) < set(large)
    for size in (0, -1, 11):
        with pytest.raises(InputError, match=f"a subset of {size} images cannot be taken from 10"):
            subset(names, size)
