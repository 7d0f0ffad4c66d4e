from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write
from cityscapes_maskrcnn.utils.tool import count, folder, run_tool


class Broken(Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise InputError("scene.png: truncated,\n  or not an image")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_input_is_one_line(num_workers: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_tool(lambda: list(DataLoader(Broken(), num_workers=num_workers))) == 1
    assert capfd.readouterr().err == "error: scene.png: truncated, or not an image\n"


def test_a_path_that_cannot_be_used_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run_tool((tmp_path / "file" / "folder").mkdir) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/file/folder: Not a directory\n"

    def write_over_a_folder() -> None:
        with atomic_write(tmp_path, "w") as file:
            file.write("scores")

    # The temporary file that could not be renamed is nobody's concern.
    assert run_tool(write_over_a_folder) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}: cannot be written: Is a directory\n"


def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(lambda: Path("/dev/full").write_text("x")) == 1
    error = "error: No space left on device: a file could not be written\n"
    assert capsys.readouterr().err == error


def test_what_names_bring_along_is_shown_and_not_obeyed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise InputError("unknown label 'car  \u200b':\n  see \x1b[2J\udcff.json\n")

    assert run_tool(main) == 1
    shown = r"unknown label 'car \x20\u200b': see \x1b[2J\udcff.json"
    assert capsys.readouterr().err == f"error: {shown}\n"
    assert run_tool((tmp_path / "new\nyork" / "\x9b5n").touch) == 1
    missing = rf"{tmp_path}/new\nyork/\x9b5n: No such file or directory"
    assert capsys.readouterr().err == f"error: {missing}\n"


def test_other_errors_are_defects_and_keep_their_traceback() -> None:
    def main(error: Exception) -> None:
        raise error

    for error in (OSError("no file in it"), ValueError("x")):
        with pytest.raises(type(error), match=str(error)):
            run_tool(lambda error=error: main(error))


@pytest.mark.parametrize("status", [None, 0, 3])
def test_the_status_is_mains(status: int | None) -> None:
    assert run_tool(lambda: status) == (status or 0)


def test_interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    assert run_tool(main) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_output_that_nobody_reads() -> None:
    """As in ``tool | head``; the text is longer than what a pipe holds."""
    program = (
        "from cityscapes_maskrcnn.utils.tool import run_tool; import sys; "
        "sys.exit(run_tool(lambda: print('line\\n' * 100000)))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_other_broken_pipes_are_defects() -> None:
    """As of a worker process that died when it was started."""

    def main() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        run_tool(main)


def test_values_of_flags() -> None:
    assert count("3") == 3
    for text in ("0", "-2", "1.5", "x"):
        with pytest.raises(ValueError):
            count(text)
    assert folder("--output")(".") == Path()
    with pytest.raises(InputError, match=r"^--output is empty: name a folder$"):
        folder("--output")("")
