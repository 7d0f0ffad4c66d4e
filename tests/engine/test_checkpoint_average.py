from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cityscapes_maskrcnn.data.provenance import SEEN_IMAGES_KEY, UsedData, read_history, to_plain
from cityscapes_maskrcnn.engine.checkpoint_average import average_checkpoints
from cityscapes_maskrcnn.engine.checkpoint_origin import ORIGIN_KEY, parents_in
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import file_digest

START = {"file": "start.pth", "sha256": "0" * 64}


def write(path: Path, iteration: int, tensors: dict[str, Any], **others: Any) -> Path:
    origin = {"seed": 42, "classes": ["car"], "parents": [START], **others.pop("origin", {})}
    content = {"model": tensors, "iteration": iteration, ORIGIN_KEY: origin, **others}
    torch.save(content, path)
    return path


def seen(name: str) -> list[dict[str, Any]]:
    return to_plain([UsedData(name, "trained", contents=frozenset({"0" * 12}))])


def three(folder: Path) -> list[Path]:
    """Weights 1, 2 and 6; a half 0.5, 1 and 3; statistics; and a counter."""
    values = [(1.0, 4.0, 10), (2.0, 1.0, 20), (6.0, 1.0, 30)]
    return [
        write(
            folder / f"model_{number}.pth",
            number,
            {
                "fc.weight": torch.tensor([[weight, -weight]]),
                "fc.bias": torch.tensor([weight / 2], dtype=torch.float16),
                "bn.running_var": torch.tensor([variance]),
                "bn.num_batches_tracked": torch.tensor(count),
            },
            **{SEEN_IMAGES_KEY: seen("first") + (seen("second") if number else [])},
        )
        for number, (weight, variance, count) in enumerate(values)
    ]


def test_the_mean_by_hand(tmp_path: Path) -> None:
    paths = three(tmp_path)
    average = average_checkpoints(paths)
    # (1 + 2 + 6) / 3 = 3, its half 1.5, (4 + 1 + 1) / 3 = 2; the counter is the last one's.
    assert {name: each.tolist() for name, each in average["model"].items()} == {
        "fc.weight": [[3.0, -3.0]],
        "fc.bias": [1.5],
        "bn.running_var": [2.0],
        "bn.num_batches_tracked": 30,
    }
    assert average["model"]["fc.bias"].dtype == torch.float16
    assert average["model"]["fc.weight"].dtype == torch.float32
    assert [each.dataset for each in read_history(average, "average")] == ["first", "second"]
    assert parents_in(average) == [
        *(
            {"file": str(path), "sha256": file_digest(path), "program": "cityscapes_maskrcnn"}
            for path in reversed(paths)
        ),
        START,
    ]
    assert average[ORIGIN_KEY]["classes"] == ["car"]
    # It is no state of a training, which could be resumed.
    assert average.keys() == {"model", SEEN_IMAGES_KEY, ORIGIN_KEY}


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"tensors": {"a": torch.zeros(3)}}, r"b.pth: a is \(3,\), in .*a.pth \(2,\); only "),
        ({"tensors": {"b": torch.zeros(2)}}, r"b.pth: a is missing, in .*a.pth \(2,\); only"),
        (
            {"tensors": {"a": torch.zeros(2), "c": torch.zeros(1)}},
            r"b.pth: c is \(1,\), in .*a.pth missing; only",
        ),
        ({"tensors": {"a": torch.tensor([torch.nan, 0.0])}}, "b.pth: a holds values that are not "),
        ({"iteration": 1}, "b.pth: has the same weights, or is of the same iteration, as .*a.pth"),
        ({"origin": {"seed": 43}}, "b.pth: is of another run than .*a.pth: other seed; the mean"),
        ({"origin": {"parents": []}}, "another run than .*a.pth: other weights that it started fr"),
        ({"origin": {"classes": ["bus"]}}, "is of another run than .*a.pth: other classes; the "),
    ],
)
def test_what_is_not_of_one_run_is_one_line(
    others: dict[str, Any], message: str, tmp_path: Path
) -> None:
    first = write(tmp_path / "a.pth", 1, {"a": torch.zeros(2)})
    second = write(
        tmp_path / "b.pth", **{"iteration": 2, "tensors": {"a": torch.ones(2)}, **others}
    )
    with pytest.raises(InputError, match=message):
        average_checkpoints([first, second])


def test_too_few_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", 1, {"a": torch.zeros(2)})
    with pytest.raises(InputError, match="an average needs at least two checkpoints"):
        average_checkpoints([path])
