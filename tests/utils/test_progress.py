from __future__ import annotations

import io
import os
import time
from pathlib import Path

import pytest

from cityscapes_maskrcnn.utils.progress import (
    LiveLine,
    Progress,
    fit,
    format_time,
    read_progress,
    write_progress,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.4, "0:00"), (81, "1:21"), (3599.6, "1:00:00"), (45296, "12:34:56")],
)
def test_times(seconds: float | None, text: str) -> None:
    assert format_time(seconds) == text


def test_the_most_important_parts_fit() -> None:
    parts = ["stage_1", "280/380", "ETA 1:21"]
    assert fit(parts, 26) == "stage_1  280/380  ETA 1:21"
    assert fit(parts, 25) == "stage_1  280/380"
    # What comes after a part that does not fit is less important.
    assert fit(["stage_1", "280/380 evaluating", "x"], 12) == "stage_1"
    assert fit(["a name of many letters"], 6) == "a name"
    assert fit([], 6) == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_that_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    seconds = 0.0
    stream = Terminal()
    line = LiveLine(stream, lambda: seconds)
    line.write("first")
    line.show(["a", "b"])
    line.show(["too soon"])
    seconds = 0.3
    line.show(["c"])
    line.show(["d"], at_once=True)
    line.write("between")
    line.clear()
    line.clear()
    line.write("last")
    clear = "\r\x1b[K"
    assert stream.getvalue() == (
        f"first\n{clear}a  b{clear}c{clear}d{clear}between\nd{clear}last\n"
    )
    # 80 columns where the terminal does not say; its last column stays empty.
    line.show(["x" * 100], at_once=True)
    assert stream.getvalue().endswith(clear + "x" * 79)


@pytest.mark.parametrize("kind", ["file", "dumb"])
def test_elsewhere_only_lines_that_stay(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal() if kind == "dumb" else io.StringIO()
    line = LiveLine(stream)
    line.show(["a"], at_once=True)
    line.write("b")
    line.clear()
    assert stream.getvalue() == "b\n"


def test_progress_is_handed_on_and_its_eta_counts_down(tmp_path: Path) -> None:
    file = tmp_path / "progress.json"
    assert read_progress(file) is None
    progress = Progress(done="3/9", eta=100.0, is_partial=True, details=("loss 2",), pace=0.5)
    write_progress(file, progress)
    os.utime(file, (time.time() - 30, time.time() - 30))
    read = read_progress(file)
    assert read is not None
    assert read.eta == pytest.approx(70, abs=2)
    assert (read.done, read.details, read.pace, read.evaluation) == ("3/9", ("loss 2",), 0.5, None)
    assert progress.parts() == ["3/9", "ETA 1:40 + evaluation", "loss 2"]
    for text in ("", "{", "[]", '{"done": "3/9", "eta": "x"}', '{"done": 1, "eta": {}}'):
        file.write_text(text)
        assert read_progress(file) is None
