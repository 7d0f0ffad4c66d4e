from __future__ import annotations

from collections import Counter

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


def ids(cities: dict[str, int]) -> list[str]:
    return [f"{city}_{i:06d}_000019" for city, count in cities.items() for i in range(count)]


@pytest.mark.parametrize(
    ("cities", "parts", "sizes"),
    [
        (TRAIN, 8, [372] * 7 + [371]),  # 7 x 372 + 371 = 2,975
        (VAL, 4, [125] * 4),
        ({"ulm": 3}, 3, [1, 1, 1]),
        ({"ulm": 3}, 1, [3]),
    ],
)
def test_every_image_is_in_exactly_one_part(cities, parts, sizes):
    dealt = [partition(ids(cities), part, parts) for part in range(1, parts + 1)]
    assert [len(part) for part in dealt] == sizes
    assert sorted(name for part in dealt for name in part) == sorted(ids(cities))
    assert all(part == sorted(part) for part in dealt)


def test_cities_are_mixed():
    for part in range(1, 9):
        found = Counter(name.split("_")[0] for name in partition(ids(TRAIN), part, 8))
        # 316 images of Bremen in 8 parts: 39 or 40 each; likewise everywhere.
        for city, count in TRAIN.items():
            assert found[city] in (count // 8, count // 8 + 1)


def test_the_rule_is_fixed_and_ignores_the_order():
    names = ["c", "a", "e", "b", "d"]
    assert partition(names, 1, 2) == ["a", "c", "e"]
    assert partition(reversed(names), 2, 2) == ["b", "d"]


@pytest.mark.parametrize(
    ("part", "parts", "message"),
    [
        (0, 4, "no part 0 of 4"),
        (5, 4, "no part 5 of 4"),
        (-1, 4, "no part -1 of 4"),
        (1, 0, "no part 1 of 0"),
        (3, 4, "part 3 of 4 is empty: the split has only 2 images"),
        (8, 8, "part 8 of 8 is empty: the split has only 2 images"),
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


def test_smaller_subsets_lie_inside_larger_ones():
    names = ids(VAL)
    small, large = subset(names, 20, seed=3), subset(names, 100, seed=3)
    assert set(small) < set(large) and len(large) == len(set(large)) == 100
    assert len({name.split("_")[0] for name in large}) == 3


@pytest.mark.parametrize("size", [0, -1, 4])
def test_impossible_subsets(size):
    with pytest.raises(InputError, match=f"a subset of {size} images cannot be taken from 3"):
        subset(["a", "b", "c"], size)
