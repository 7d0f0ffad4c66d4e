"""Which groups of layers stay in float, by what each costs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cityscapes_maskrcnn.deploy import accuracy_control
from cityscapes_maskrcnn.deploy.accuracy_control import (
    CalibrationData,
    ScoringData,
    Trial,
    choose_float_groups,
    format_quantized,
    quantize,
)
from cityscapes_maskrcnn.deploy.quantization import QuantizableModel
from cityscapes_maskrcnn.deploy.runtime import OnnxPredictor
from cityscapes_maskrcnn.deploy.scoring import refuse_seen_by_exported
from cityscapes_maskrcnn.utils.errors import InputError

# AP points that int8 costs in a group; the backbone has no choice.
COSTS = {"backbone": 0.125, "FPN": 1.0, "box head": 0.25, "mask head": 3.0}
GROUPS = ["FPN", "box head", "mask head"]


def score(float_groups: Sequence[str], few_images: bool) -> Trial:
    loss = sum(cost for group, cost in COSTS.items() if group not in float_groups)
    return Trial(tuple(float_groups), few_images, ap=30 - loss, loss=loss)


def test_what_costs_most_stays_in_float_until_the_budget_is_kept() -> None:
    trials = choose_float_groups(GROUPS, score, budget=0.5)
    assert [(trial.float_groups, trial.few_images, trial.loss) for trial in trials] == [
        ((), False, 4.375),
        (("FPN",), True, 3.375),
        (("box head",), True, 4.125),
        (("mask head",), True, 1.375),
        (("mask head",), False, 1.375),
        (("mask head", "FPN"), False, 0.375),
    ]
    assert choose_float_groups(GROUPS, score, budget=0.2)[-1].float_groups == (
        "mask head",
        "FPN",
        "box head",
    )


def test_within_the_budget_nothing_else_is_tried() -> None:
    assert choose_float_groups(GROUPS, score, budget=4.5) == [score([], False)]


def test_a_budget_that_nothing_keeps() -> None:
    with pytest.raises(InputError) as error:
        choose_float_groups(GROUPS, score, budget=0)
    assert str(error.value) == (
        "no quantised file is within --budget 0: the best one loses 0.12 points of AP, with mask"
        " head, FPN, box head in float; raise the budget, or use the float file"
    )


@pytest.fixture(scope="module")
def scoring(small_root: Path) -> ScoringData:
    images = sorted(small_root.glob("cityscapes/leftImg8bit/val/*/*.png"))
    ground_truth = sorted(small_root.glob("cityscapes/gtFine/val/*/*_instanceIds.png"))
    return ScoringData("val", list(zip(images, ground_truth, strict=True)), range(8))


def test_what_was_chosen_is_in_the_file_and_its_card(
    exported: Path,
    scoring: ScoringData,
    types_of_weights: Callable[[Path, list[str]], set[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scores stand for those of a model whose mask head loses nearly all that is lost."""
    groups = QuantizableModel(OnnxPredictor(exported), exported).groups
    alone = dict.fromkeys((group for group in groups if group != "backbone"), 21.0)
    alone["mask head"] = 28.0
    alone["FPN"] = 24.0
    # The float file and int8 weights on all images; then on few images the float file and each
    # group; then two groups on all.
    scores = [30.0, 20.0, 31.0, *alone.values(), 29.0, 29.75]
    num_images = []

    def next_score(_: OnnxPredictor, images: Sequence[tuple[Path, Path]]) -> dict[str, float]:
        num_images.append(len(images))
        return {"AP": scores.pop(0)}

    monkeypatch.setattr(accuracy_control, "exported_scores", next_score)
    monkeypatch.setattr(accuracy_control, "_NUM_FEW", 4)
    quantized = quantize(
        exported,
        tmp_path / "small",
        form="weights",  # int8 takes longer
        calibration=CalibrationData("", []),
        scoring=scoring,
        budget=0.5,
    )
    assert scores == []
    assert num_images == [6, 6, 4, *[4] * len(alone), 6, 6]
    assert quantized["float_groups"] == ["mask head", "FPN"]
    assert quantized["float_ap"] == 30
    few = [trial for trial in quantized["trials"] if trial["few_images"]]
    assert [trial["loss"] for trial in few] == [31 - ap for ap in alone.values()]
    assert quantized["trials"][-1]["loss"] == 0.25

    path = tmp_path / "small" / "model.onnx"
    in_float = [*groups["mask head"], *groups["FPN"]]
    others = [name for names in groups.values() for name in names if name not in in_float]
    assert types_of_weights(path, in_float) == {"FLOAT"}
    assert types_of_weights(path, others) == {"INT8"}
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["quantized"]["float_groups"] == ["mask head", "FPN"]
    source = json.loads(exported.with_suffix(".json").read_text())
    assert quantized["from"]["sha256"] == source["file"]["sha256"]
    assert quantized["from"]["compared_with_pytorch"] == source["compared_with_pytorch"]
    assert "compared_with_pytorch" not in card
    # The scored images too have decided what the file is.
    seen = [
        (each["dataset"], each["role"], each["images"])
        for each in card["cityscapes_maskrcnn.seen_images"]
    ]
    assert ("val", "tuned", 6) in seen
    text = format_quantized(quantized)
    assert "on a few images, to measure the cost of each group:" in text
    assert "the groups that recover most, added one by one:" in text
    assert text.splitlines()[-1].startswith("weights, mask head, FPN in float: ")
    with pytest.raises(InputError, match="6 of the 6 images of val were tuned on"):
        refuse_seen_by_exported(
            OnnxPredictor(path),
            str(path),
            dataset="val",
            images=[image for image, _ in scoring.images],
            flag="--score",
        )


def test_images_that_cannot_decide_are_one_line(
    exported: Path,
    scoring: ScoringData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def message(scoring: ScoringData) -> str:
        with pytest.raises(InputError) as error:
            quantize(
                exported,
                tmp_path / "small",
                form="weights",
                calibration=CalibrationData("", []),
                scoring=scoring,
                budget=0.5,
            )
        assert list(tmp_path.iterdir()) == []
        return str(error.value)

    empty = ScoringData("val", [], range(8))
    assert message(empty) == "--score val: has no images to score on"
    monkeypatch.setattr(accuracy_control, "exported_scores", lambda *_: {"AP": math.nan})
    assert message(scoring) == "--score val: has no object that counts"
