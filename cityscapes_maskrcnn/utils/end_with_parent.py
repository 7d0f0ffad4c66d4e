"""Have the kernel end a process when the one that started it ends, however that happens.

Usage for a command: ``python end_with_parent.py PARENT_PID PROGRAM ARGUMENT ...``. It tells the
kernel and then becomes the program. Started as a program rather than called between fork and exec,
where Python code may deadlock if the parent has threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def bound_to_this_process(command: Sequence[str]) -> list[str]:
    """Extend a command so that it dies by SIGKILL when the calling process dies.

    The command has to be started from the main thread: the kernel watches the thread.
    """
    return [sys.executable, "-I", str(Path(__file__).resolve()), str(os.getpid()), *command]


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def main() -> None:
    """Bind this process to its parent and become the program."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    end_with_parent()
    # The parent may have died before the kernel was told.
    if os.getppid() != parent:
        sys.exit(1)
    os.execvp(program[0], program)


if __name__ == "__main__":
    main()
