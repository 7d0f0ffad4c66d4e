from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from cityscapes_maskrcnn.engine.output_folder import take_output_folder
from cityscapes_maskrcnn.utils.errors import InputError

TAKE = (
    "import sys, time\n"
    "from cityscapes_maskrcnn.engine.output_folder import take_output_folder\n"
    "take_output_folder(sys.argv[1])\n"
    "print('taken', flush=True)\n"
    "time.sleep(100)\n"
)


def test_a_folder_is_taken_as_long_as_its_process_lives(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    command = [sys.executable, "-c", TAKE, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "taken\n"
        start = time.monotonic()
        with pytest.raises(InputError, match=r"new/run: another training is at work there"):
            take_output_folder(folder, patience=0.5)
        assert time.monotonic() - start >= 0.5
        other.kill()
        take_output_folder(folder)
    # The process that has it may ask again.
    take_output_folder(folder, patience=0)
    assert [path.name for path in folder.iterdir()] == [".train_net.lock"]
    assert not (folder / ".train_net.lock").stat().st_size


def test_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, message in [
        ("", "OUTPUT_DIR is empty"),
        (tmp_path / "file", "a file where a folder is needed"),
        (tmp_path / "file" / "run", "cannot be written"),
    ]:
        with pytest.raises(InputError, match=message):
            take_output_folder(name)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / ".train_net.lock").symlink_to("/dev/full")
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        take_output_folder(tmp_path)
