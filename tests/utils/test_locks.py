from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.locks import LockTimeoutError, acquire_lock, file_lock

HOLD = """
import sys, time
from pathlib import Path
from cityscapes_maskrcnn.utils.locks import file_lock
with file_lock(Path(sys.argv[1]), inheritable=sys.argv[2] == "True"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("inheritable", [False, True])
def test_one_process_at_a_time(tmp_path: Path, inheritable: bool) -> None:
    path = tmp_path / "new" / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), str(inheritable)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        start = time.monotonic()
        with pytest.raises(LockTimeoutError):
            acquire_lock(path, timeout=0.3, inheritable=inheritable)
        assert time.monotonic() - start >= 0.3
        other.communicate()
    os.close(acquire_lock(path, timeout=0, inheritable=inheritable))


def test_a_child_holds_an_inherited_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with file_lock(path, inheritable=True) as descriptor:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[descriptor])
    with pytest.raises(LockTimeoutError):
        acquire_lock(path, timeout=0, inheritable=True)
    child.kill()
    child.wait()
    os.close(acquire_lock(path, timeout=5, inheritable=True))


def test_a_lock_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/lock: cannot be written: File exists"):
        acquire_lock(tmp_path / "file" / "lock")
