#!/usr/bin/env python
r"""Kill the real chain at random moments, and see that the same command ends it all the same.

Run by hand, because it trains the whole demo more than twice:

    python tests/recipe/kill_chain.py OUTPUT --kills 10 -- --config-dir configs/demo \
        --trials 2 --confirm 1

With a narrow network and few steps it takes a few minutes, and stages are killed as often:

    python tests/recipe/kill_chain.py OUTPUT --kills 4 -- --config-dir configs/demo \
        --trials 2 --confirm 0 $(cat tests/tiny_network.txt) SOLVER.EPOCHS 0 \
        SOLVER.MAX_ITER 12 SOLVER.CHECKPOINT_PERIOD 3 TEST.EVAL_PERIOD 6

It runs the chain once undisturbed into OUTPUT/whole, then into OUTPUT/killed with SIGKILL at random
moments, and compares the weights that every stage ended with, bit by bit. What follows ``--`` goes
to tools/train_stages.py.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import torch

from cityscapes_maskrcnn.recipe.stage_table import STAGES

PROJECT = Path(__file__).parents[2]


def start(output: Path, words: list[str]) -> subprocess.Popen[bytes]:
    output.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(PROJECT / "tools" / "train_stages.py"), "--output", str(output)]
    with (output / "terminal.log").open("ab") as log:
        return subprocess.Popen(
            [*command, *words], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def left_over(output: Path) -> list[str]:
    """Command lines of processes that still work on a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(output) in line and str(os.getpid()) != path.parent.name:
            found.append(line[:120])
    return found


def same_weights(first: Path, second: Path) -> bool:
    a, b = (torch.load(path, weights_only=True)["model"] for path in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args, words = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    whole, killed = args.output.resolve() / "whole", args.output.resolve() / "killed"

    begin = time.monotonic()
    if start(whole, words).wait():
        sys.exit(f"the undisturbed chain failed, see {whole / 'terminal.log'}")
    length = time.monotonic() - begin
    print(f"undisturbed: {length:.0f} s", flush=True)
    moments = random.Random(args.seed)
    for number in range(args.kills):
        process = start(killed, words)
        known = set(killed.rglob("model_*.pth"))
        # Any moment; mostly while a process starts, which is most of a small chain's time.
        end = time.monotonic() + moments.uniform(0.05, 0.35) * length
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
            if number % 2 and set(killed.rglob("model_*.pth")) - known:
                # In the middle of a training: a moment after its next checkpoint.
                time.sleep(moments.uniform(0, 5))
                break
        if process.poll() is not None:
            print(f"the chain ended with status {process.returncode} after {number} kills")
            break
        process.kill()
        process.wait()
        end = time.monotonic() + 10
        while left_over(killed) and time.monotonic() < end:
            time.sleep(0.1)
        if left_over(killed):
            sys.exit(f"these outlived the chain: {left_over(killed)}")
        complete = sorted(path.parent.name for path in killed.rglob("complete.json"))
        print(f"kill {number + 1}: complete so far {complete}", flush=True)
    status = start(killed, words).wait()
    print(f"the same command at last: status {status}")
    if status:
        return 1
    equal = {
        stage: same_weights(whole / stage / "model_final.pth", killed / stage / "model_final.pth")
        for stage in STAGES
        if (whole / stage).is_dir()
    }
    print(f"weights bit-equal to the undisturbed chain's: {equal}")
    return int(not all(equal.values()))


if __name__ == "__main__":
    sys.exit(main())
