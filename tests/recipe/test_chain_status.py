from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from cityscapes_maskrcnn.recipe.chain import require_inputs
from cityscapes_maskrcnn.recipe.chain_status import (
    ChainStatus,
    format_plan,
    format_time,
    last_metrics,
)
from cityscapes_maskrcnn.recipe.step import Step, StepState
from cityscapes_maskrcnn.utils.errors import InputError

NEW, HALF, DONE = StepState.NEW, StepState.UNFINISHED, StepState.COMPLETE


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def step(root: Path, name: str, iterations: int, amount: int = 0) -> Step:
    folder = root / name
    folder.mkdir()
    data = f"cityscapes_{name}_train"
    return Step(
        name=name,
        folder=folder,
        commands=(),
        settings={},
        needs={},
        outputs=(),
        data=data,
        images=1500,
        iterations=iterations,
        amounts={"trials": amount} if amount else {},
    )


def metrics(folder: Path, iteration: int, loss: float = 1.5) -> None:
    with (folder / "metrics.json").open("a") as file:
        file.write(json.dumps({"iteration": iteration, "total_loss": loss}) + "\n")


@pytest.fixture
def chain(tmp_path: Path) -> list[Step]:
    return [
        step(tmp_path, "stage_1", 1000),
        step(tmp_path, "search", 400, amount=2),
        step(tmp_path, "stage_2", 2000),
        step(tmp_path, "scores", 0),
    ]


def test_the_plan_has_a_row_a_step(chain: list[Step]) -> None:
    states = dict(
        zip(("stage_1", "search", "stage_2", "scores"), (DONE, HALF, NEW, NEW), strict=True)
    )
    lines = format_plan(chain, states).splitlines()
    assert lines[2].split() == [
        *("stage_1", "stage_1_train", "1,500", "1,000", str(chain[0].folder), "complete")
    ]
    assert lines[3].split()[-1] == "interrupted"
    assert lines[5].split()[2:4] == ["1,500", "-"]


def test_the_plan_says_which_data_are_missing(chain: list[Step]) -> None:
    states = {"stage_1": NEW, "search": NEW, "stage_2": DONE, "scores": NEW}
    lost = [
        replace(step, images=0, iterations=0, missing={"data": "no train"}) for step in chain[:3]
    ]
    scores = replace(chain[3], missing={"data": "no val"})
    table, _, below = format_plan([*lost, scores], states).partition("\n\n")
    rows = [line.split() for line in table.splitlines()[2:]]
    assert [row[0] for row in rows if row[-2:] == ["data", "missing"]] == [
        *("stage_1", "search", "scores")
    ]
    assert rows[0][2:4] == ["-", "-"]
    # A step that is complete needs no data any more.
    assert rows[2][-1] == "complete"
    assert below.splitlines() == ["stage_1, search: no train", "scores: no val"]


def test_the_plan_says_which_weights_are_missing(chain: list[Step]) -> None:
    states = dict.fromkeys([step.name for step in chain], NEW)
    weights = {"weights": "no typo.pth"}
    lost = [replace(chain[0], missing={"data": "no train", **weights}), chain[1]]
    lost += [replace(chain[2], missing=weights), replace(chain[3], missing={"data": "no val"})]
    table, _, below = format_plan(lost, states).partition("\n\n")
    states_drawn = [line.split("  ")[-1].strip() for line in table.splitlines()[2:]]
    assert states_drawn == ["data and weights missing", "to do", "weights missing", "data missing"]
    assert below.splitlines() == [
        *("stage_1: no train", "stage_1, stage_2: no typo.pth", "scores: no val")
    ]
    with pytest.raises(InputError) as caught:
        require_inputs(lost, states)
    assert str(caught.value) == (
        "stage_1: data and weights missing; stage_2: weights missing; scores: data missing, see "
        "below the plan; nothing is done"
    )


def test_times() -> None:
    assert format_time(3723.4) == "1:02:03"
    assert format_time(100 * 3600) == "100:00:00"
    assert format_time(None) == format_time(float("nan")) == "-"


def test_eta_follows_the_running_step(chain: list[Step]) -> None:
    clock, stream = Clock(), io.StringIO()
    status = ChainStatus(chain, dict.fromkeys([s.name for s in chain], NEW), stream, clock)
    assert status.remaining_of_all() is None  # nothing is known yet
    metrics(chain[0].folder, 199)  # an earlier call did 200 iterations ...
    status.began(chain[0])
    clock.seconds = 30.0
    metrics(chain[0].folder, 299)  # ... and this one 100 in 30 s: 0.3 s each
    assert status.remaining(chain[0]) == pytest.approx(700 * 0.3)
    assert status.remaining(chain[2]) == pytest.approx(2000 * 0.3)
    assert status.remaining_of_all() == pytest.approx((700 + 400 + 2000) * 0.3)
    assert "300 of 1,000 iterations (30 %)  loss 1.5  ETA 0:03:30" in status.line(chain[0])
    assert "of all about 0:15:30" in status.line(chain[0])


def test_eta_of_later_steps_follows_what_was_measured(chain: list[Step]) -> None:
    clock = Clock()
    status = ChainStatus(chain, dict.fromkeys([s.name for s in chain], NEW), io.StringIO(), clock)
    status.began(chain[0])
    metrics(chain[0].folder, 999)
    clock.seconds = 500.0
    (chain[0].folder / "summary.json").write_text('{"seconds": 250}')  # without starting up
    status.ended(chain[0])
    status.began(chain[1])
    assert status.remaining(chain[1]) == pytest.approx(400 * 0.25)
    clock.seconds += 40.0
    assert status.remaining(chain[1]) == pytest.approx(400 * 0.25 - 40)
    clock.seconds += 400.0
    assert status.remaining(chain[1]) is None  # it takes longer than was thought
    row = next(line for line in status.table().splitlines() if line.startswith("stage_1"))
    assert row.split() == ["stage_1", "complete", "1,000", "0:04:10", "-"]


def test_a_log_gets_a_line_a_minute(chain: list[Step]) -> None:
    clock, stream = Clock(), io.StringIO()
    status = ChainStatus(chain, dict.fromkeys([s.name for s in chain], NEW), stream, clock)
    (chain[1].folder / "steps.log").write_text("[11/24 15:37:16 cm.study]: Trial 0: score 3\n\n")
    status.began(chain[1])
    table = stream.tell()
    for _ in range(150):
        clock.seconds += 1.0
        status.tick()
    lines = stream.getvalue()[table:].splitlines()
    assert lines == ["search  Trial 0: score 3  ETA -  of all about -"] * 2


def test_half_written_metrics_are_passed_over(tmp_path: Path) -> None:
    assert last_metrics(tmp_path) == {}
    (tmp_path / "metrics.json").write_text('{"iteration": 19, "lr": 1}\n{"iteration": 3')
    assert last_metrics(tmp_path) == {"iteration": 19, "lr": 1}
