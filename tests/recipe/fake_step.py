"""Stands for a training: counts to N, saves on the way, and goes on from what was saved.

Its result depends on what it starts from and on every number it counted, so that a number which
was left out, or counted twice, shows. With FAKE_HOLD in the environment it waits where it has saved
so many numbers, until SIGTERM comes or it is killed, so that a test can hit it there.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from pathlib import Path


def save(path: Path, text: str) -> None:
    path.with_suffix(".part").write_text(text)
    path.with_suffix(".part").replace(path)


def main(folder: Path, steps: int, seconds: float, *parents: str) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    (folder / "pid").write_text(str(os.getpid()))
    start = "".join(Path(parent).read_text() for parent in parents)
    saved = folder / "saved"
    done, digest = saved.read_text().split() if saved.exists() else ("0", start or "-")
    with (folder / "starts").open("a") as log:
        log.write(f"{done}\n")
    hold = int(os.environ.get("FAKE_HOLD", "0"))
    for number in range(int(done), steps):
        time.sleep(seconds)
        digest = hashlib.sha256(f"{digest} {number}".encode()).hexdigest()
        with (folder / "counted").open("a") as log:
            log.write(f"{number}\n")
        save(saved, f"{number + 1} {digest}")
        print(f"at {number}")
        end = time.monotonic() + 120
        while number + 1 == hold and not stopped:
            if time.monotonic() > end:
                print("error: the fake waited in vain")
                return 1
            time.sleep(0.01)
        if stopped:
            return 143
    if "fail" in folder.name:
        print("error: no weights fit")
        return 1
    save(folder / "result", digest)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:]))
