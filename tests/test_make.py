"""Setting up with `make`: what cannot work is refused at once, with one line."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def setup_fails(folder: Path, *variables: str, **environment: str) -> str:
    """`make setup` must fail and leave nothing behind; returns its one line."""
    venv = folder / "venv"
    done = subprocess.run(
        ["make", "setup", f"PYTHON={sys.executable}", f"VENV={venv}", *variables],
        env={**os.environ, **environment},
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert done.returncode
    assert not venv.exists()
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("git+file:///nowhere/detectron2.git@0123abc", "no repository there"),
        ("nowhere/detectron2", "there is no such folder"),
        ("empty", "the folder has no setup.py"),
        ("nowhere.whl", "there is no such file"),
        ("junk.whl", "not a wheel of Detectron2"),
        ("other.whl", "not a wheel of Detectron2"),
        ("detectron2-0.6-cp27-cp27mu-linux_x86_64.whl", "the wheel is for another Python"),
    ],
)
def test_a_place_without_detectron2(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.whl").write_bytes(b"no zip file")
    for name in ("other.whl", "detectron2-0.6-cp27-cp27mu-linux_x86_64.whl"):
        with zipfile.ZipFile(tmp_path / name, "w") as wheel:
            wheel.writestr(f"{name.partition('-')[0]}/__init__.py", "")
    if "+" not in place:
        place = str(tmp_path / place)
    line = setup_fails(tmp_path, f"DETECTRON2={place}")
    assert f"no Detectron2 from {place}: " in line
    assert reason in line
    assert "Give a git+URL, a folder or a wheel: make DETECTRON2=" in line


def test_git_is_missing(tmp_path: Path) -> None:
    for name in ("bash", "sh", "env", "make"):
        program = shutil.which(name)
        assert program
        (tmp_path / name).symlink_to(program)
    assert "git is not installed" in setup_fails(tmp_path, PATH=str(tmp_path))


def test_python_is_no_good(tmp_path: Path) -> None:
    line = setup_fails(tmp_path, f"PYTHON={tmp_path}/python9")
    assert "is not Python 3.10 to 3.12; name one: make PYTHON=" in line
    # Debian's Python comes without ensurepip.
    (tmp_path / "ensurepip.py").write_text("raise ImportError")
    line = setup_fails(tmp_path, PYTHONPATH=str(tmp_path))
    assert "has no venv module; on Debian and Ubuntu: apt install python3-venv" in line


def test_the_environment_has_all_requirements() -> None:
    """``make setup`` installs them from constraints.txt, which must list them all."""
    todo, seen = [("cityscapes_maskrcnn", extra) for extra in ("", "dev")], set()
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for line in requires(name) or ():
            needed = Requirement(line)
            if needed.marker and not needed.marker.evaluate({"extra": extra}):
                continue
            if needed.name != "cityscapes_maskrcnn":
                assert needed.specifier.contains(version(needed.name), prereleases=True), line
            todo += [(needed.name, each) for each in ("", *needed.extras)]
    # A package on which Detectron2 depends alone.
    assert ("hydra-core", "") in seen


def test_a_folder_becomes_a_wheel_without_its_extension(tmp_path: Path) -> None:
    source, venv = tmp_path / "work tree", tmp_path / "venv"
    (source / "detectron2").mkdir(parents=True)
    (source / "detectron2" / "__init__.py").touch()
    (source / "detectron2" / "vision.cpp").write_text("#include <torch/extension.h>\n")
    (source / "setup.py").write_text(
        "from setuptools import Extension, setup\n"
        "extensions = [Extension('detectron2._C', ['detectron2/vision.cpp'])]\n"
        "setup(name='detectron2', packages=['detectron2'], ext_modules=extensions)\n"
    )
    before = sorted(source.rglob("*"))
    venv.mkdir()
    (venv / "bin").symlink_to(Path(sys.prefix) / "bin")

    def detectron2(action: str, place: Path) -> None:
        command = [PROJECT / ".ci" / "detectron2", action, place, venv]
        # No compiler.
        environment = {**os.environ, "CC": "/bin/false", "CXX": "/bin/false"}
        subprocess.run(command, env=environment, check=True, capture_output=True)

    detectron2("check", source)
    detectron2("build", source)
    (wheel,) = (venv / "wheels").glob("detectron2-*-py3-none-any.whl")
    assert sorted(source.rglob("*")) == before

    given = Path(shutil.copy(wheel, tmp_path))
    detectron2("check", given)
    detectron2("build", given)
    assert wheel.read_bytes() == given.read_bytes()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what make needs, below a folder with a space, and an environment that is ready."""
    folder = tmp_path / "my wörk" / "check out"
    shutil.copytree(PROJECT / ".ci", folder / ".ci")
    for name in ("Makefile", "setup.py", "constraints.txt"):
        shutil.copy2(PROJECT / name, folder)
    (folder / "my venv" / "bin").mkdir(parents=True)
    (folder / "my venv" / "bin" / "python").write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    (folder / "my venv" / "bin" / "python").chmod(0o755)
    (folder / "my venv" / ".ready").touch()
    return folder


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "-s", *arguments, "VENV=my venv", "DEMO=my out"],
        cwd=checkout,
        capture_output=True,
        text=True,
    )


def test_folders_with_spaces(checkout: Path) -> None:
    done = make(checkout, "demo")
    assert done.returncode == 0, done.stderr
    words = done.stdout.split("|")
    assert words[1] == "my out/datasets"
    assert words[words.index("--output") + 1] == "my out"
    assert "my out/datasets/cityscapes/leftImg8bit/val/*/*_00002[4-7]_*.png" in words
    assert "my out/stage_3/model_final.pth" in words
    assert make(checkout, "test").stdout == "-m|pytest|-q|-n|2|--dist|loadfile|"


def test_commands_are_shown_such_that_they_can_be_pasted(checkout: Path) -> None:
    done = make(checkout, "test")
    assert done.stderr == "$ my\\ venv/bin/python -m pytest -q -n 2 --dist loadfile\n"
    done = make(checkout, "demo")
    assert "about 12 minutes in all" in done.stdout.splitlines()[0]
    shown = [shlex.split(line) for line in done.stderr.splitlines() if line.startswith("$ ")]
    assert [words[-1] for words in shown if "tools/report.py" in words] == ["my out/report.html"]
    (train,) = (words for words in shown if "tools/train_stages.py" in words)
    assert train[1:4] == ["env", "DETECTRON2_DATASETS=my out/datasets", "my venv/bin/python"]
    assert done.stdout.splitlines()[-2].endswith("export DETECTRON2_DATASETS='my out/datasets'")


def test_deploy_demo_takes_what_the_demo_left(checkout: Path) -> None:
    done = make(checkout, "deploy-demo")
    assert done.returncode
    assert "error: my out/stage_3/model_final.pth is missing: run make demo first" in done.stderr
    (checkout / "my out" / "stage_3").mkdir(parents=True)
    (checkout / "my out" / "stage_3" / "model_final.pth").touch()
    done = make(checkout, "deploy-demo")
    assert done.returncode == 0, done.stderr
    called = [line.split("|") for line in done.stdout.splitlines() if "|" in line]
    assert [Path(words[0]).stem for words in called] == [
        "make_synthetic_cityscapes",
        "export_model",
        "compress_model",
        "compress_model",
        "compress_model",
        "train_net",
        "export_model",
        "compress_model",
        "make_video",
        "predict",
        "benchmark",
    ]
    assert called[1][-2] == "my out/stage_3/model_final.pth"
    assert "my out/deploy/pruned_int8/model.onnx" in called[-1]


def test_clean_removes_what_make_created_only(checkout: Path) -> None:
    for name in ("my", "out"):
        (checkout / name).mkdir()
    assert make(checkout, "demo").returncode == 0
    done = make(checkout, "clean")
    # The environment in this checkout is not make's.
    assert done.returncode
    assert "error: my venv: not removed, since make did not create it" in done.stderr
    assert not (checkout / "my out").exists()
    assert {"my", "out", "my venv"} <= {path.name for path in checkout.iterdir()}

    (checkout / "my out").mkdir()
    (checkout / "my out" / "thesis.tex").touch()
    assert make(checkout, "demo").returncode == 0
    assert "error: my out: not removed" in make(checkout, "clean").stderr
    assert (checkout / "my out" / "thesis.tex").exists()


# Stands for a Python whose pip says what it does, and for the environment that it makes.
FAKE_PYTHON = """#!/bin/bash
if [ "$1 $2" = "-m venv" ]; then
  mkdir -p "$3/bin"
  cp "$0" "$3/bin/python"
  printf '#!/bin/sh\\nmkdir -p "$6"\\necho Processing wheel\\ncp "$7" "$6"\\n' >"$3/bin/pip"
  chmod +x "$3/bin/pip"
elif [ "$1 $2" = "-m pip" ]; then
  echo "Collecting torch"
  echo "  Downloading torch-2.14.1-cp311.whl (797.2 MB) $(printf '%0100d' 0)"
  sleep 1.5
  [ ! -e fail ] || { echo "ERROR: No matching distribution found for torch"; exit 1; }
else
  exec python3 "$@"
fi
"""


@pytest.fixture
def new_setup(checkout: Path) -> list[str]:
    """The command that sets up an environment with the Python above, in ``checkout``."""
    python = checkout / "fake python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    wheel = checkout / "detectron2-0.6-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("detectron2/__init__.py", "")
    return ["make", "-s", "setup", f"PYTHON={python}", "VENV=new venv", f"DETECTRON2={wheel}"]


def test_a_terminal_sees_what_pip_does(
    checkout: Path, new_setup: list[str], on_terminal: Callable[..., tuple[int, str]]
) -> None:
    status, output = on_terminal(new_setup, cwd=checkout)
    assert status == 0, output
    lines = [line.rpartition("\x1b[K")[2].strip() for line in output.split("\r\n")]
    assert lines[0].startswith("Setting up new venv: about 7 GB")
    steps = ["pip: torch, torchvision", "building Detectron2 from", "pip: this project"]
    for number, step in enumerate(steps, 1):
        (begin,) = [line for line in lines if line.startswith(f"[{number}/3] {step}")]
        assert lines[lines.index(begin) + 1].startswith(f"[{number}/3] done after")
    shown = output.split("\r\x1b[K")
    assert "   0s  Collecting torch" in shown
    # Cut to the terminal's width, and counting on while nothing comes.
    waiting = [text for text in shown if "Downloading torch-2.14.1" in text]
    assert {text.split("s  ")[0].strip() for text in waiting} >= {"0", "1"}
    assert max(map(len, waiting)) == 78
    assert (checkout / "new venv" / ".ready").exists()


def test_a_log_gets_lines_about_pip(checkout: Path, new_setup: list[str]) -> None:
    done = subprocess.run(new_setup, cwd=checkout, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 7
    assert "\r" not in done.stdout
    assert "Collecting torch" in (checkout / "new venv" / "setup.log").read_text()


def test_what_pip_says_is_shown_when_it_fails(checkout: Path, new_setup: list[str]) -> None:
    (checkout / "fail").touch()
    done = subprocess.run(new_setup, cwd=checkout, capture_output=True, text=True)
    assert done.returncode
    errors = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert errors[-2] == "ERROR: No matching distribution found for torch"
    assert errors[-1].startswith("error: pip: torch, torchvision and what else is listed in")
    assert errors[-1].endswith("failed, see new venv/setup.log")
    assert not (checkout / "new venv" / ".ready").exists()


def test_missing_constraints(tmp_path: Path) -> None:
    line = setup_fails(tmp_path, f"CONSTRAINTS={tmp_path}/none.txt")
    assert line == f"error: CONSTRAINTS={tmp_path}/none.txt: there is no such file"
