from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest

from cityscapes_maskrcnn.engine.terminal import TerminalHandler
from cityscapes_maskrcnn.utils.progress import PROGRESS_FILE, Progress, read_progress

CLEAR = "\r\x1b[K"
INFERENCE = (
    "Inference done 11/48. Dataloading: 0.0022 s/iter. Inference: 0.0967 s/iter. "
    "Eval: 0.0026 s/iter. Total: 0.1016 s/iter. ETA=0:01:03"
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def log(handler: TerminalHandler, name: str, text: str, level: int = logging.INFO) -> None:
    handler.emit(logging.LogRecord(name, level, "", 0, text, (), None))


def say_all(handler: TerminalHandler) -> None:
    ours, config = "cityscapes_maskrcnn.engine.trainer", "cityscapes_maskrcnn.engine.run_setup"
    log(handler, ours, "Starting training")
    log(handler, config, "Full config:\nA: 1\nB: 2")
    log(handler, ours, "Trainable parameters:\n| stem |\n| head |")
    log(handler, "detectron2.cityscapes_maskrcnn.evaluation.evaluator", "val\nAP 5")
    log(handler, "detectron2.data.common", "Serializing 240 elements")
    log(handler, "detectron2.utils.events", " eta: 0:01:00  iter: 19")
    log(handler, "fvcore.common.checkpoint", "Some tensors are missing", logging.WARNING)


def test_a_terminal_gets_notes_and_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    handler = TerminalHandler(stream, "stage_1", has_file=True)
    say_all(handler)
    warning = "WARNING: Some tensors are missing\n"
    assert stream.getvalue() == (
        "Starting training\nTrainable parameters: (2 lines, see log.txt)\nval\nAP 5\n" + warning
    )
    # In training the progress takes their place.
    handler.trains = True
    stream.seek(0)
    stream.truncate()
    handler.show(Progress(done="4/24", eta=60.0, details=("loss 2.1",)))
    say_all(handler)
    live = "stage_1  4/24  ETA 1:00  loss 2.1"
    assert stream.getvalue() == f"{CLEAR}{live}{CLEAR}{warning}{live}"
    log(handler, "detectron2.evaluation.evaluator", "Start inference on 48 batches")
    assert stream.getvalue().endswith("stage_1  4/24 scoring 0/48  ETA 1:00  loss 2.1")
    log(handler, "detectron2.evaluation.evaluator", INFERENCE)
    assert stream.getvalue().endswith("stage_1  4/24 scoring 11/48  ETA 1:00  loss 2.1")


def test_elsewhere_come_all_records_as_plain_lines() -> None:
    stream = io.StringIO()
    handler = TerminalHandler(stream, "stage_1", has_file=True)
    say_all(handler)
    handler.show(Progress(done="4/24"), at_once=True)
    handler.write(["stage_1", "4/24", "loss 2.1"], on_terminal=False)
    handler.write(["for a terminal"], on_terminal=True)
    handler.clear()
    lines = [line.rpartition("]: ")[2] for line in stream.getvalue().splitlines()]
    assert lines == [
        *("Starting training", "Full config: (2 lines, see log.txt)"),
        *("Trainable parameters:", "| stem |", "| head |", "val", "AP 5"),
        *("Serializing 240 elements", " eta: 0:01:00  iter: 19", "Some tensors are missing"),
        "stage_1  4/24  loss 2.1",
    ]
    assert "WARNING [" in stream.getvalue()
    assert " cm.engine.trainer]: Starting training\n" in stream.getvalue()
    assert not {"\r", "\x1b"} & {*stream.getvalue()}


def test_scoring_has_a_progress_and_a_parent_process_gets_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(PROGRESS_FILE, str(tmp_path / "progress.json"))
    handler = TerminalHandler(io.StringIO(), "scores", has_file=True)
    log(handler, "detectron2.evaluation.evaluator", "Start inference on 48 batches")
    progress = read_progress(tmp_path / "progress.json")
    assert progress == Progress(done="scoring 0/48")
    log(handler, "detectron2.evaluation.evaluator", INFERENCE)
    progress = read_progress(tmp_path / "progress.json")
    assert progress is not None
    assert (progress.done, round(progress.eta or 0)) == ("scoring 11/48", 63)
