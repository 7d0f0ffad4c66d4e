from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cityscapes_maskrcnn.recipe.chain import require_inputs
from cityscapes_maskrcnn.recipe.chain_status import ChainStatus, format_plan
from cityscapes_maskrcnn.recipe.step import Step, StepState
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.progress import Progress, write_progress

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
        step(tmp_path, "stage_1", 1000, evaluations=2, evaluated_images=20),
        step(tmp_path, "search", 400, amounts={"trials": 2}, processes=2),
        step(tmp_path, "stage_2", 2000, evaluations=1, evaluated_images=10),
        step(tmp_path, "scores", 0, evaluations=1, evaluated_images=30),
    ]


def states(chain: list[Step], *states: StepState) -> dict[str, StepState]:
    return {step.name: state for step, state in zip(chain, states or [NEW] * 4, strict=True)}


def test_the_plan_has_a_row_a_step(chain: list[Step]) -> None:
    lines = format_plan(chain, states(chain, DONE, HALF, NEW, NEW)).splitlines()
    assert lines[2].split() == ["stage_1", "stage_1_train", "1,500", "1,000", "complete"]
    assert lines[3].split()[-1] == "interrupted"
    assert lines[5].split()[2:4] == ["1,500", "-"]


def test_the_plan_fits_into_80_columns(chain: list[Step]) -> None:
    long = (
        "cityscapes_instance_val_part1of4 cityscapes_instance_val_part2of4 -> "
        "cityscapes_coarse_semantic_pretrain_val"
    )
    table = format_plan([replace(each, data=long) for each in chain], states(chain))
    assert max(map(len, table.splitlines())) <= 80
    assert "val parts 1 and 2 of 4" in table
    # Whole: no word is broken.
    assert "pretrain_val" in table


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
        "the list below the plan; nothing is done"
    )
    # A step that is complete needs none.
    assert "missing" not in format_plan(lost[:1], {"stage_1": DONE})
    require_inputs(lost[:1], {"stage_1": DONE})


class Status(ChainStatus):
    """Its clock stands still until a test moves it."""

    def __init__(self, chain: list[Step]) -> None:
        self.seconds = 0.0
        self.stream = io.StringIO()
        self.file = chain[0].folder.parent / "progress.json"
        super().__init__(chain, states(chain), self.stream, self.file, lambda: self.seconds)

    def at(self, seconds: float, **progress: Any) -> None:
        """A process notes its progress, which is noticed at once."""
        self.seconds = seconds
        write_progress(self.file, Progress(**progress))
        self.tick()

    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


def test_remaining_times_count_starting_up_evaluations_and_scoring(chain: list[Step]) -> None:
    status = Status(chain)
    assert status.remaining_of_all() is None  # nothing is known yet
    status.began(chain[0])
    status.tick()
    assert status.parts(chain[0])[:2] == ["stage_1", "starting up"]
    # Started in 5 s; 0.3 s an iteration; no evaluation has been yet.
    status.at(5.0, done="0/1,000")
    status.at(35.0, done="100/1,000", eta=270.0, is_partial=True, pace=0.3)
    assert status.parts(chain[0]) == [
        *("stage_1", "100/1,000"),
        # The search starts up twice and stage 2 once, the scoring too: 4 x 5 s.
        *("ETA 4:30 + evaluation", "all 16:50+"),
    ]
    # An evaluation, of 10 images, took 40 s: 4 s an image.
    details = ("loss 1.5", "AP 8.9")
    status.at(200.0, done="500/1,000", eta=190.0, pace=0.3, evaluation=40.0, details=details)
    rest = 190 + (10 + 400 * 0.3) + (5 + 2000 * 0.3 + 10 * 4) + (5 + 30 * 4)
    assert status.remaining_of_all() == pytest.approx(rest, abs=1)
    assert status.parts(chain[0]) == [
        *("stage_1", "500/1,000", "ETA 3:10", "all 18:10", "loss 1.5", "AP 8.9")
    ]


def test_later_steps_follow_what_was_measured(chain: list[Step]) -> None:
    status = Status(chain)
    status.began(chain[0])
    status.at(5.0, done="0/1,000")
    status.seconds = 400.0
    # (330 - 80) s / 1,000 iterations = 0.25 s; 80 s / 20 images = 4 s.
    summary = {"seconds": 330, "iterations": 1000, "evaluation_seconds": 80, "epochs": None}
    summary |= {"peak_memory_bytes": 2**30, "memory": "RAM"}
    summary["final"] = {"total_loss": 1.5, "segm/AP": 8.94, "segm/AP50": 20}
    summary["measured"] = ["cityscapes_instance_val_part2of4"]
    (chain[0].folder / "summary.json").write_text(json.dumps(summary))
    status.ended(chain[0])
    assert status.lines() == [
        "[1/4] stage_1: 1,000 iterations on 1,500 images",
        "stage_1: complete after 6:40",
        "stage_1: 1,000 iterations in 5:30, of which evaluation 1:20",
        "stage_1: AP 8.9, AP50 20.0 on val part 2 of 4",
        "stage_1: loss 1.5, peak 1.0 GB RAM",
    ]
    status.began(chain[1])
    # Two trainings, each of which starts up: 2 x 5 s + 400 x 0.25 s
    assert status.lines()[-1] == "[2/4] search: 400 iterations on 1,500 images, about 1:50"
    status.seconds = 430.0
    assert status.remaining(chain[1]) == pytest.approx(110 - 30)
    # The first trial is known better than that.
    (chain[1].folder / "trials" / "0000").mkdir(parents=True)
    (chain[1].folder / "trials" / "0000" / "console.txt").touch()
    status.at(440.0, done="10/200", eta=70.0, pace=0.25)
    assert status.remaining(chain[1]) == pytest.approx(70 + 110 / 2, abs=1)
    assert status.parts(chain[1])[:3] == ["search", "training 1/2", "10/200"]
    # The second one starts up: what is noted is still of the first.
    (chain[1].folder / "trials" / "0001").mkdir()
    (chain[1].folder / "trials" / "0001" / "console.txt").touch()
    status.tick()
    assert status.parts(chain[1])[:3] == ["search", "training 2/2", "starting up"]
    status.pause()
    status.seconds = 900.0
    status.tick()
    assert status.remaining(chain[1]) is None  # it takes longer than was thought
    assert status.remaining(chain[2]) == pytest.approx(5 + 2000 * 0.25 + 10 * 4)
    assert status.remaining(chain[3]) == pytest.approx(5 + 30 * 4)


def test_confirmation_runs_count_as_trainings_of_a_search(chain: list[Step]) -> None:
    # Two trials, and two other seeds of the best one.
    chain[1] = replace(chain[1], processes=4, amounts={"trials": 2, "confirm": 1})
    status = Status(chain)
    status.began(chain[1])
    for number, name in enumerate(("trials/0000", "trials/0001", "confirmation/0000"), start=1):
        (chain[1].folder / name).mkdir(parents=True)
        (chain[1].folder / name / "console.txt").touch()
        status.tick()
        # What was noted is of the training before.
        assert status.parts(chain[1])[:3] == ["search", f"training {number}/4", "starting up"]
        status.at(0.0, done="10/100", eta=45.0, pace=0.5)
    # 400 iterations at 0.5 s, of which the last of four trainings has a quarter.
    assert status.remaining(chain[1]) == pytest.approx(45 + 400 * 0.5 / 4, abs=1)


def test_a_log_gets_a_line_a_minute_without_control_characters(chain: list[Step]) -> None:
    status = Status(chain)
    # What a library logs is no progress.
    (chain[1].folder / "steps.log").write_text("[11/24 15:37:16 d2.x]: Loading from a.pth\n\n")
    status.began(chain[1])
    for _ in range(150):
        status.seconds += 1.0
        status.tick()
    line = "search  training 1/2  starting up  ETA -  all -"
    assert status.stream.getvalue() == (
        f"[2/4] search: 400 iterations on 1,500 images\n{line}\n{line}\n"
    )


def test_scores_are_shown_at_the_end_of_scoring(chain: list[Step]) -> None:
    status = Status(chain)
    scores = {"segm": {"AP": 9.04, "AP50": 21.0, "AP-car": 40.0}}
    content = {"datasets": {"cityscapes_instance_val": {"images": 30, "results": scores}}}
    (chain[3].folder / "scores.json").write_text(json.dumps(content))
    status.began(chain[3])
    status.seconds = 100.0
    status.ended(chain[3])
    status.finished()
    assert status.lines()[1:] == [
        "scores: complete after 1:40",
        "scores: AP 9.0, AP50 21.0 on val",
        "all steps complete after 1:40",
    ]
    # Scoring as many images again takes as long.
    other = replace(chain[3], name="scores/other")
    status._states[other.name] = NEW
    assert status.remaining(replace(other, evaluated_images=60)) == pytest.approx(200)


def test_what_notes_no_progress_is_named_and_counted(chain: list[Step]) -> None:
    chain[1] = replace(chain[1], activities=("", "analysing"))
    chain[2] = replace(chain[3], name="first scores")
    changes = {"processes": 2, "evaluations": 2, "evaluated_images": 60}
    chain[3] = replace(chain[3], activities=("", "drawing the gallery"), **changes)
    status = Status(chain)
    status.began(chain[1])
    # What the last trial noted is not of the command after it.
    status.at(0.0, done="20/20", eta=0.0)
    status.command(1)
    status.tick()
    assert status.parts(chain[1])[:2] == ["search", "analysing"]
    status.ended(chain[1])
    status.began(chain[2])
    status.seconds = 20.0
    status.ended(chain[2])
    status.began(chain[3])
    status.command(0)
    # Scored after 15 s more; the gallery takes as long as the first scores did.
    status.at(25.0, done="scoring 11/30", eta=10.0)
    assert status.parts(chain[3])[:3] == ["scores", "scoring 11/30", "ETA 0:30"]
    status.command(1)
    status.pause()
    status.seconds = 35.0
    status.tick()
    assert status.parts(chain[3])[:3] == ["scores", "drawing the gallery", "ETA 0:25"]
