"""A program that behaves as tools/train_net.py towards its parent, without training anything.

Ten evaluations, one every 10 iterations; the score rises to a maximum that depends on the
foreground threshold: 40 x (1 - |fg - 0.5|), less 5 with a frozen FPN; with another SEED than the
search it is 1 less, with the threshold FAKE_LUCKY 10 less. What else happens is in the environment
variable FAKE, a list of words: trial 0 takes the first and so on; trials after
the last word take none. It never sleeps for a time, so that no test depends on who is faster:
FAKE_UNTIL names a file without which it does not begin, and with FAKE_JUDGED it goes on after an
evaluation when the file ``judged`` of its folder holds the iterations of that evaluation. SIGTERM
ends every wait, and so do two minutes, which fail the test.
"""

from __future__ import annotations

import ast
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ITERATIONS, PERIOD = 100, 10


def main() -> None:
    arguments = sys.argv[1:]
    assert arguments[0] == "--config-file"
    assert Path(arguments[1]).is_file()
    assert arguments[2] == "--resume"
    options = dict(zip(arguments[3::2], arguments[4::2], strict=True))
    folder = Path(options["OUTPUT_DIR"])
    words = os.environ.get("FAKE", "").split()
    number = int(folder.name)
    word = words[number] if number < len(words) else ""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))

    def wait(fulfilled: Callable[[], bool]) -> None:
        end = time.monotonic() + 120
        while not asked and not fulfilled():
            if time.monotonic() > end:
                sys.exit("error: the fake waited in vain")
            time.sleep(0.01)

    def judged(done: int) -> bool:
        file = folder / "judged"
        text = file.read_text() if file.exists() else ""
        return text.isdecimal() and int(text) >= done

    last = folder / "last_checkpoint"
    start = int((folder / last.read_text()).read_text()) if last.exists() else 0
    with (folder / "runs.txt").open("a") as file:
        file.write(f"{os.getpid()} {start}\n")
    print(f"Starting training from iteration {start}", flush=True)

    low, high = ast.literal_eval(options["MODEL.ROI_HEADS.IOU_THRESHOLDS"])
    assert low == high / 2
    top = 40 * (1 - abs(high - 0.5)) - 5 * (options["MODEL.FPN.FREEZE"] == "True")
    if "SEED" in options:
        top -= 10 if str(high) == os.environ.get("FAKE_LUCKY") else 1
    if "FAKE_UNTIL" in os.environ:
        wait(Path(os.environ["FAKE_UNTIL"]).exists)
    for done in range(start + PERIOD, ITERATIONS + 1, PERIOD):
        if done > ITERATIONS // 2 and word == "crash":
            raise RuntimeError("index 8 is out of bounds")
        if done > ITERATIONS // 2 and word == "memory":
            print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
            sys.exit(1)
        if word == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if done > ITERATIONS // 2 and word == "diverge":
            print("error: training diverged: loss became infinite; lower SOLVER.BASE_LR")
            sys.exit(1)
        if word == "hang":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            (folder / "hangs").touch()
            time.sleep(600)
        entry = {"iteration": done - 1, "total_loss": 1 / done}
        if word != "scoreless":
            entry["segm/AP"] = top * done / ITERATIONS
        with (folder / "metrics.json").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        (folder / f"model_{done:07d}.pth").write_text(str(done))
        # Whole or not at all: tests wait for the file and kill this process.
        part = folder / "last_checkpoint.part"
        part.write_text(f"model_{done:07d}.pth")
        part.replace(last)
        if word == "hold":
            wait(lambda: False)
        if "FAKE_JUDGED" in os.environ:
            wait(partial(judged, done))
        if asked:
            sys.exit(128 + asked[0])


if __name__ == "__main__":
    main()
