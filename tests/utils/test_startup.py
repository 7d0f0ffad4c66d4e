from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SCRIPT = """
from cityscapes_maskrcnn.utils.startup import start_tool
start_tool()
import os, signal
print(os.environ.get("GOMP_SPINCOUNT"))
os.kill(os.getpid(), signal.SIGTERM)
signal.pause()
"""


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),
    ],
)
def test_threads_sleep_soon_unless_the_user_wants_otherwise(
    variables: dict[str, str], expected: str
) -> None:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    done = subprocess.run(
        [sys.executable, "-u", "-c", SCRIPT],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (143, f"{expected}\n", "terminated\n")


@pytest.mark.parametrize(
    "script",
    [*PROJECT.glob("tools/*.py"), *PROJECT.glob("datasets/*.py")],
    ids=lambda path: path.stem,
)
def test_every_tool_starts_so_before_its_slow_imports(script: Path) -> None:
    before, call, _ = script.read_text().partition("\nstart_tool()")
    assert call
    slow = r"^(?:from|import) (?:torch|detectron2|cityscapes_maskrcnn(?!\.utils\.startup))"
    assert not re.search(slow, before, re.MULTILINE)


def test_a_package_that_is_not_installed_is_named_in_a_line(
    tmp_path: Path, without_other_packages: Callable[..., str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(without_other_packages("score"))
    done = subprocess.run(
        [sys.executable, PROJECT / "tools" / "train_net.py", "--help"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(PROJECT)])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {sys.executable} has no package ")
    assert "pip install -e '.[train]'" in line


def test_a_part_that_an_installed_package_lacks_keeps_its_traceback() -> None:
    code = (
        "from cityscapes_maskrcnn.utils.startup import start_tool\nstart_tool()\nimport json.none\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'json.none'\n")
