"""The installed commands, such as ``cityscapes-train``: each runs a script.

setup.py lists them: ``cityscapes-train = cityscapes_maskrcnn.commands:train_net`` calls what this
module has under the name of a script in ``tools`` or ``datasets``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType

from cityscapes_maskrcnn.utils.shipped import shipped_folder
from cityscapes_maskrcnn.utils.tool import run_tool


def __getattr__(name: str) -> Callable[[], int]:
    for folder in ("tools", "datasets"):
        script = shipped_folder(folder) / f"{name}.py"
        if script.is_file():
            return partial(run_script, script)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def run_script(script: Path) -> int:
    """Run a script as ``python script`` would; return its exit status.

    ``sys.argv`` stays as it is, so that usage and the recorded command name what was typed.
    """
    # Processes that the script spawns run its file under this name, and look for the functions that
    # they call there. With __main__ in its place, exec would run the script's last lines too.
    module = ModuleType("__mp_main__")
    module.__file__ = str(script)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    names = vars(module)
    exec(compile(script.read_bytes(), str(script), "exec"), names)
    if "EXAMPLES" in names:
        names["EXAMPLES"] = with_command_names(names["EXAMPLES"])
    return run_tool(names["main"])


def with_command_names(examples: str) -> str:
    """Write the examples of a script's ``--help`` with the installed commands."""
    for entry in distribution("cityscapes_maskrcnn").entry_points:
        examples = re.sub(rf"\b(tools|datasets)/{entry.attr}\.py\b", entry.name, examples)
    # torchrun takes what it starts for a Python file.
    return examples.replace("torchrun --", "torchrun --no-python --")
