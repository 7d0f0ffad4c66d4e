from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cityscapes_maskrcnn.recipe.chain import require_inputs
from cityscapes_maskrcnn.recipe.chain_status import ChainStatus, format_plan, last_metrics
from cityscapes_maskrcnn.recipe.step import Step, StepState
from cityscapes_maskrcnn.utils.errors import InputError

NEW, HALF, DONE = StepState.NEW, StepState.UNFINISHED, StepState.COMPLETE


def step(root: Path, name: str, iterations: int, **changes: Any) -> Step:
    folder = root / name
    folder.mkdir()
    return Step(
        name=name,
        folder=folder,
        commands=(),
        settings={},
        needs={},
        outputs=(),
        data=f"cityscapes_{name}_train",
        images=1500,
        iterations=iterations,
        **changes,
    )


@pytest.fixture
def chain(tmp_path: Path) -> list[Step]:
    return [
        step(tmp_path, "stage_1", 1000),
        step(tmp_path, "search", 400, amounts={"trials": 2}),
        step(tmp_path, "stage_2", 2000),
        step(tmp_path, "scores", 0),
    ]


def metrics(step: Step, iteration: int) -> None:
    with (step.folder / "metrics.json").open("a") as file:
        file.write(json.dumps({"iteration": iteration, "total_loss": 1.5}) + "\n")


def states(chain: list[Step], *states: StepState) -> dict[str, StepState]:
    return {step.name: state for step, state in zip(chain, states or [NEW] * 4, strict=True)}


def test_the_plan_has_a_row_a_step(chain: list[Step]) -> None:
    lines = format_plan(chain, states(chain, DONE, HALF, NEW, NEW)).splitlines()
    row = f"stage_1 stage_1_train 1,500 1,000 {chain[0].folder} complete"
    assert lines[2].split() == row.split()
    assert lines[3].split()[-1] == "interrupted"
    assert lines[5].split()[2:4] == ["1,500", "-"]


def test_the_plan_lists_what_is_missing(chain: list[Step]) -> None:
    weights = {"weights": "no typo.pth"}
    everything = {"data": "no train", **weights}
    changes = [everything, {}, weights, {"data": "no val"}]
    lost = [replace(step, missing=each) for step, each in zip(chain, changes, strict=True)]
    table, _, below = format_plan(lost, states(chain)).partition("\n\n")
    drawn = [line.split("  ")[-1].strip() for line in table.splitlines()[2:]]
    assert drawn == ["data and weights missing", "to do", "weights missing", "data missing"]
    assert below.splitlines() == [
        "stage_1: no train",
        "stage_1, stage_2: no typo.pth",
        "scores: no val",
    ]
    with pytest.raises(InputError) as caught:
        require_inputs(lost, states(chain))
    assert str(caught.value) == (
        "stage_1: data and weights missing; stage_2: weights missing; scores: data missing, see "
        "below the plan; nothing is done"
    )
    # A step that is complete needs none.
    assert "missing" not in format_plan(lost[:1], {"stage_1": DONE})
    require_inputs(lost[:1], {"stage_1": DONE})


class Status(ChainStatus):
    """Its clock stands still until a test moves it."""

    def __init__(self, chain: list[Step]) -> None:
        self.seconds = 0.0
        self.stream = io.StringIO()
        super().__init__(chain, states(chain), self.stream, lambda: self.seconds)


def test_eta_follows_the_running_step(chain: list[Step]) -> None:
    status = Status(chain)
    assert status.remaining_of_all() is None  # nothing is known yet
    metrics(chain[0], 199)  # an earlier call did 200 iterations ...
    status.began(chain[0])
    status.seconds = 30.0
    metrics(chain[0], 299)  # ... and this one 100 in 30 s: 0.3 s each
    assert status.remaining(chain[0]) == pytest.approx(700 * 0.3)
    assert status.remaining(chain[2]) == pytest.approx(2000 * 0.3)
    assert status.remaining_of_all() == pytest.approx((700 + 400 + 2000) * 0.3)
    assert status.line(chain[0]) == (
        "stage_1  300 of 1,000 iterations (30 %)  loss 1.5  ETA 0:03:30  of all about 0:15:30"
    )


def test_eta_of_later_steps_follows_what_was_measured(chain: list[Step]) -> None:
    status = Status(chain)
    status.began(chain[0])
    metrics(chain[0], 999)
    status.seconds = 500.0
    (chain[0].folder / "summary.json").write_text('{"seconds": 250}')  # without starting up
    status.ended(chain[0])
    status.began(chain[1])
    assert status.remaining(chain[1]) == pytest.approx(400 * 0.25)
    status.seconds += 40.0
    assert status.remaining(chain[1]) == pytest.approx(400 * 0.25 - 40)
    status.seconds += 400.0
    assert status.remaining(chain[1]) is None  # it takes longer than was thought
    row = next(line for line in status.table().splitlines() if line.startswith("stage_1"))
    assert row.split() == ["stage_1", "complete", "1,000", "0:04:10", "-"]


def test_a_log_gets_a_line_a_minute(chain: list[Step]) -> None:
    status = Status(chain)
    (chain[1].folder / "steps.log").write_text("[11/24 15:37:16 cm.study]: Trial 0: score 3\n\n")
    status.began(chain[1])
    table = status.stream.tell()
    for _ in range(150):
        status.seconds += 1.0
        status.tick()
    lines = status.stream.getvalue()[table:].splitlines()
    assert lines == ["search  Trial 0: score 3  ETA -  of all about -"] * 2


def test_half_written_metrics_are_passed_over(tmp_path: Path) -> None:
    assert last_metrics(tmp_path) == {}
    (tmp_path / "metrics.json").write_text('{"iteration": 19, "lr": 1}\n{"iteration": 3')
    assert last_metrics(tmp_path) == {"iteration": 19, "lr": 1}
    (tmp_path / "metrics.json").write_text('{"iteration": 19}\n5\n')
    assert last_metrics(tmp_path) == {"iteration": 19}
