from __future__ import annotations

import errno
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import CfgNode

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.run_setup import (
    environment,
    lock_output_dir,
    save_config,
    start_logs,
)
from cityscapes_maskrcnn.engine.terminal import TerminalHandler, find_terminal
from cityscapes_maskrcnn.utils.errors import InputError


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    return build_config("", ["OUTPUT_DIR", str(tmp_path / "run"), "SEED", "5"])


def test_the_saved_config_is_plain_yaml(cfg: CfgNode) -> None:
    save_config(cfg, scoring=False)
    saved = Path(cfg.OUTPUT_DIR) / "config.yaml"
    content = yaml.safe_load(saved.read_text())
    assert content["SEED"] == 5
    assert content == yaml.safe_load(build_config(str(saved), []).dump())
    assert [path.name for path in saved.parent.iterdir()] == ["config.yaml"]


def test_scoring_keeps_the_config_of_a_training(cfg: CfgNode) -> None:
    saved = Path(cfg.OUTPUT_DIR) / "config.yaml"
    weights = saved.parent / "model_0000009.pth"
    weights.parent.mkdir()
    weights.touch()

    def seed_after_saving(seed: int, scoring: bool) -> int:
        cfg.SEED = seed
        save_config(cfg, scoring=scoring)
        return yaml.safe_load(saved.read_text())["SEED"]

    assert seed_after_saving(5, scoring=True) == 5  # there is none to keep
    assert seed_after_saving(6, scoring=True) == 5
    assert seed_after_saving(7, scoring=False) == 7
    weights.unlink()
    assert seed_after_saving(8, scoring=True) == 8


LOCK = """
import sys
from cityscapes_maskrcnn.engine.run_setup import lock_output_dir
lock_output_dir(sys.argv[1])
print("locked", flush=True)
sys.stdin.read()
"""


def test_an_output_dir_is_locked_as_long_as_its_process_lives(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with subprocess.Popen(
        [sys.executable, "-c", LOCK, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"locked\n"
        with pytest.raises(InputError, match=r"new/run: another training is running there"):
            lock_output_dir(str(folder), timeout=0)
        other.kill()
        lock_output_dir(str(folder))
    # The process that has it may ask again.
    lock_output_dir(str(folder), timeout=0)
    assert [path.name for path in folder.iterdir()] == [".train_net.lock"]
    assert not (folder / ".train_net.lock").stat().st_size


@pytest.mark.parametrize("name", ["last_checkpoint", "model_final.pth", "config.yaml"])
def test_a_folder_in_the_place_of_a_file_of_the_run(tmp_path: Path, name: str) -> None:
    """Found before training, and not when the file is written."""
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"{name}: a folder where training writes a file; move it"):
        lock_output_dir(str(tmp_path))


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "inference" / "analysis"
    folder.mkdir(parents=True)
    left = [tmp_path / ".model_0000003.pth.k2_x7abc.tmp", folder / ".confusion.csv.aaaa0000.tmp"]
    kept = [
        tmp_path / ".mine.tmp",
        tmp_path / "model.pth.k2_x7abc.tmp",
        tmp_path / "7" / left[0].name,
    ]
    for path in left + kept:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "metrics.json").write_text('{"iteration": 0}\n{"iterat')
    lock_output_dir(str(tmp_path))
    assert [path.exists() for path in left + kept] == [False] * 2 + [True] * 3
    assert (tmp_path / "metrics.json").read_text() == '{"iteration": 0}\n'


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "OUTPUT_DIR is empty"),
        ("file", "a file where a folder is needed"),
        ("file/run", "cannot be written"),
    ],
)
def test_what_cannot_be_an_output_dir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(InputError, match=message):
        lock_output_dir(name)


def test_a_full_disk_is_noticed_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.pwrite", write)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        lock_output_dir(str(tmp_path))


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    rows = environment()
    assert rows["torch"] == torch.__version__
    assert rows["numpy"] == np.__version__
    assert rows["DETECTRON2_DATASETS"] == "/data"
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    assert [value for name, value in rows.items() if name.startswith("GPU ")] == gpus


@pytest.fixture
def loggers() -> Iterator[list[logging.Logger]]:
    """The loggers that a run writes, without handlers; afterwards they are as they were."""
    found = [logging.getLogger(name) for name in ("fvcore", "detectron2", "cityscapes_maskrcnn")]
    before = [(each, each.level, each.propagate, each.handlers[:]) for each in found]
    for each in found:
        each.handlers.clear()
    yield found
    for each, level, propagate, handlers in before:
        for handler in set(each.handlers) - set(handlers):
            handler.close()
        each.setLevel(level)
        each.propagate = propagate
        each.handlers[:] = handlers


def messages(folder: Path) -> list[str]:
    """Of the log in a folder, each line without time, place and level."""
    lines = (folder / "log.txt").read_text().splitlines()
    return [line.partition(": ")[2] for line in lines]


def test_each_run_of_a_process_has_its_own_log(
    tmp_path: Path, loggers: list[logging.Logger], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "stage_1", tmp_path / "stage_2"
    own_file = tmp_path / "own.txt"
    own = logging.FileHandler(own_file)
    loggers[1].addHandler(own)
    said, files = [], []
    # The last one resumes the first.
    for number, folder in enumerate((first, second, first)):
        start_logs(str(folder))
        for each in loggers:
            each.info("run %d of %s", number, each.name)
        said.append([f"run {number} of {each.name}" for each in loggers])
        terminal = find_terminal()
        assert terminal is not None
        assert terminal.stage == folder.name
        for each in loggers:
            # pytest has its own, where a logger does not propagate.
            (stream,) = (one for one in each.handlers if isinstance(one, TerminalHandler))
            assert stream is terminal
            (file,) = (
                one
                for one in each.handlers
                if isinstance(one, logging.FileHandler) and Path(one.baseFilename) != own_file
            )
        files.append(file)
    assert messages(first) == [*said[0], *said[2]]
    assert messages(second) == said[1]
    # Each line once, and on the terminal too.
    shown = [line.partition("]: ")[2] for line in capsys.readouterr().out.splitlines()]
    assert shown == [*said[0], *said[1], *said[2]]
    # Other handlers than a run's are left alone.
    assert own in loggers[1].handlers
    assert len(own_file.read_text().splitlines()) == 3
    assert [file.stream is None for file in files] == [True, True, False]


def test_what_writes_no_folder_ends_the_log_of_the_run_before(
    tmp_path: Path, loggers: list[logging.Logger]
) -> None:
    start_logs(str(tmp_path))
    loggers[0].info("of the run")
    start_logs(None)
    loggers[0].info("of what follows")
    assert messages(tmp_path) == ["of the run"]
    terminal = find_terminal()
    assert terminal is not None
    assert terminal.stage == ""
