"""train_net.py on a terminal: one line that lives, and Ctrl-C."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def test_a_terminal_gets_one_line_and_ctrl_c_is_acknowledged(
    tiny: list[str],
    small_root: Path,
    tmp_path: Path,
    on_terminal: Callable[..., tuple[int, str]],
) -> None:
    output = tmp_path / "my_run"
    pressed = False

    def press(text: str) -> str:
        nonlocal pressed
        # After an evaluation, in a step.
        if pressed or not re.search(r"/4,000  ETA [^\r\n]*AP 0\.0", text):
            return ""
        pressed = True
        return "\x03"

    words = ["SOLVER.EPOCHS", 0, "SOLVER.MAX_ITER", 4000, "TEST.EVAL_PERIOD", 8]
    words += ["TEST.VALIDATION_LOSS", True, "OUTPUT_DIR", output]
    status, written = on_terminal(
        [
            sys.executable,
            "tools/train_net.py",
            *("--config-file", "configs/stage_1_heads.yaml"),
            *map(str, [*tiny, *words]),
        ],
        press,
        cwd=PROJECT,
        env={**os.environ, "DETECTRON2_DATASETS": str(small_root), "TERM": "xterm"},
    )
    assert status == 130, written
    # What lives stands between a return to the line's beginning and the next one.
    lives = re.findall(r"\r\x1b\[K(my_run[^\r\n]*)", written)
    assert max(map(len, lives)) <= 79
    assert re.fullmatch(r"my_run  0/4,000  ETA -  [\d.]+ GB", lives[0])
    assert any(" + evaluation  loss " in line for line in lives)
    # The terminal shows what is typed: ^C.
    shape = r"my_run  \d+/4,000  ETA [\d:]+  loss [\d.]+  AP 0\.0  [\d.]+ img/s  [\d.]+ GB(\^C)?"
    assert any(re.fullmatch(shape, line) for line in lives), "\n".join(lives)
    assert any("  8/4,000 scoring 0/6  ETA" in line for line in lives)
    stays = [line.rpartition("\x1b[K")[2].rstrip() for line in written.split("\n")]
    assert stays[0] == "Loading PyTorch ..."
    assert any(re.fullmatch(r"iteration 8  AP 0\.\d  AP50 .*validation loss .*", s) for s in stays)
    assert "stopping after this step; Ctrl-C again ends at once" in stays
    assert any(line.startswith("WARNING: SIGINT: stopping after iteration") for line in stays)
    # No dump, no library: all of it is a screen.
    assert len(stays) < 24
    log = (output / "log.txt").read_text()
    assert "META_ARCHITECTURE: GeneralizedRCNN" in log
    assert "Serializing" in log
    assert list(output.glob("model_*.pth"))


def test_elsewhere_progress_comes_as_plain_lines(trained: Path) -> None:
    printed = (trained / "stdout").read_text()
    assert not {"\r", "\x1b"} & {*printed}
    name = re.escape(trained.name)
    (line,) = re.findall(rf"^{name}  8/8  .*", printed, re.MULTILINE)
    assert re.fullmatch(rf"{name}  8/8  ETA 0:00  loss .*  AP .* img/s  .* GB", line)
    (end,) = re.findall(rf"{name}: (8 iterations, .*)", printed)
    assert re.fullmatch(r"8 iterations, 2 epochs, in \d+:\d\d, of which evaluation \d+:\d\d", end)
    # The line of Detectron2 is in the log, its remaining time with evaluations.
    assert "iter: 7  total_loss" not in printed
    assert re.search(r"eta: 0:00  iter: 7  total_loss", (trained / "log.txt").read_text())
