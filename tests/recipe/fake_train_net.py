"""A program that behaves as tools/train_net.py towards its parent, without training anything.

Ten evaluations, one every 10 iterations; the score rises to a maximum that depends on the
foreground threshold: 40 x (1 - |fg - 0.5|), less 5 with a frozen FPN. What else happens is said by
the environment variable FAKE, a list of words: trial 0 takes the first and so on; trials after
the last word take none.
"""

from __future__ import annotations

import ast
import json
import os
import signal
import sys
import time
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
    seconds = float(os.environ.get("FAKE_SECONDS", "0"))

    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    last = folder / "last_checkpoint"
    start = int((folder / last.read_text()).read_text()) if last.exists() else 0
    with (folder / "runs.txt").open("a") as file:
        file.write(f"{os.getpid()} {start}\n")
    print(f"Starting training from iteration {start}", flush=True)

    low, high = ast.literal_eval(options["MODEL.ROI_HEADS.IOU_THRESHOLDS"])
    assert low == high / 2
    top = 40 * (1 - abs(high - 0.5)) - 5 * (options["MODEL.FPN.FREEZE"] == "True")
    for done in range(start + PERIOD, ITERATIONS + 1, PERIOD):
        time.sleep(seconds)
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
        last.write_text(f"model_{done:07d}.pth")
        if asked:
            sys.exit(128 + asked[0])


if __name__ == "__main__":
    main()
