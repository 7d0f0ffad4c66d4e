"""The short campaign; `make faults` runs the full one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_short_campaign() -> None:
    """A few kills, full disks, processes at once, interruptions and damaged files of each kind."""
    program = Path(__file__).with_name("run.py")
    done = subprocess.run(
        [sys.executable, program, "--size", "short"], capture_output=True, text=True
    )
    print(done.stderr)
    assert done.returncode == 0, done.stdout
