"""A wheel, installed somewhere else: its commands, its configs, and the processes they start."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
import torch

from cityscapes_maskrcnn.commands import with_command_names

PROJECT = Path(__file__).parents[1]
SCRIPTS = sorted([*PROJECT.glob("tools/*.py"), *PROJECT.glob("datasets/*.py")])

Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a wheel of this checkout was installed into."""
    folder = tmp_path_factory.mktemp("wheel")
    # Building writes into the folder of the sources.
    sources = folder / "sources"
    for name in ("cityscapes_maskrcnn", "configs", "tools"):
        shutil.copytree(
            PROJECT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    (sources / "datasets").mkdir()
    for path in (PROJECT / "setup.py", PROJECT / "pyproject.toml", *PROJECT.glob("datasets/*.py")):
        shutil.copy2(path, sources / path.relative_to(PROJECT))
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", folder, sources]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("*.whl")
    target = folder / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True)
    return target


@pytest.fixture(scope="module")
def environment(installed: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(installed)}


@pytest.fixture
def command(installed: Path, environment: dict[str, str], tmp_path: Path) -> Callable[..., Done]:
    """Run an installed command in an empty folder: ``command("train", "--help")``."""

    def run(name: str, *arguments: object) -> Done:
        return subprocess.run(
            [installed / "bin" / f"cityscapes-{name}", *map(str, arguments)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    return run


def test_every_script_has_a_command(installed: Path) -> None:
    (info,) = installed.glob("*.dist-info")
    entries = PathDistribution(info).entry_points
    assert sorted(entry.attr for entry in entries) == sorted(path.stem for path in SCRIPTS)
    assert all(entry.name.startswith("cityscapes-") for entry in entries)


def test_every_script_is_executable() -> None:
    assert [path.name for path in SCRIPTS if not os.access(path, os.X_OK)] == []


def test_a_wheel_holds_all_that_tools_read(installed: Path) -> None:
    package = installed / "cityscapes_maskrcnn"
    files = [path for path in (PROJECT / "cityscapes_maskrcnn").rglob("*") if path.is_file()]
    files = [path for path in files if "__pycache__" not in path.parts]
    files += [path for path in PROJECT.glob("configs/**/*.*") if path.suffix != ".md"]
    files += SCRIPTS
    inside = {path.relative_to(package).as_posix() for path in package.rglob("*")}
    names = {
        path.relative_to(PROJECT).as_posix().removeprefix("cityscapes_maskrcnn/") for path in files
    }
    assert names - inside == set()
    assert {"recipe/published_scores.yaml", "configs/demo/start_weights.safetensors"} <= names


def test_train_reads_the_config_in_the_package(command: Callable[..., Done]) -> None:
    # Found, with the file that it is based on: what is wrong are the weights.
    config = ["--config-file", "configs/demo/stage_1_heads.yaml"]
    done = command("train", *config, "--eval-only", "MODEL.WEIGHTS", "gone.pth")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: gone.pth: no such file")


def test_describe_reads_a_checkpoint(command: Callable[..., Done], tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(3, 5)}}, tmp_path / "model.pth")
    done = command("describe", "model.pth")
    assert done.returncode == 0, done.stderr
    assert "model.pth" in done.stdout


def test_help_names_the_command(command: Callable[..., Done]) -> None:
    done = command("make-data", "--help")
    assert done.stdout.startswith("usage: cityscapes-make-data [-h]")
    assert "\n    cityscapes-make-data /tmp/streets --train 96 --val 24\n" in done.stdout
    assert "make_synthetic_cityscapes.py" not in done.stdout


def test_torchrun_starts_commands_as_programs() -> None:
    started = "torchrun --nproc-per-node 8 cityscapes-train"
    assert with_command_names(f"by torchrun:\n  {started}") == (
        "by torchrun:\n  torchrun --no-python --nproc-per-node 8 cityscapes-train"
    )


def test_processes_that_a_command_starts(command: Callable[..., Done], tmp_path: Path) -> None:
    size = ["--height", 96, "--width", 192, "--num-workers", 2]
    done = command("make-data", "streets", "--train", 2, "--val", 2, *size)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.rglob("*_leftImg8bit.png"))) == 4


def test_sigterm_while_a_command_imports(installed: Path, environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        [installed / "bin" / "cityscapes-train", "--config-file", "none.yaml"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    mask = 0
    while not mask >> (signal.SIGTERM - 1) & 1:
        assert process.poll() is None
        time.sleep(0.01)
        status = Path(f"/proc/{process.pid}/status").read_text()
        mask = int(status.partition("SigCgt:")[2].split()[0], 16)
    process.terminate()
    assert process.communicate(timeout=300)[1] == "terminated\n"
    assert process.returncode == 143
