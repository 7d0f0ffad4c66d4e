"""What a tool does before its slow imports."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from multiprocessing import parent_process
from types import TracebackType

from cityscapes_maskrcnn.utils.stop import end_on_signals


def start_tool() -> None:
    """Prepare the process of a tool: call this before torch is imported.

    From now on SIGINT and SIGTERM end it at once, see :func:`.stop.end_on_signals`, and OpenMP
    threads that wait fall asleep soon: by default they spin, which slows training tenfold as soon
    as another program uses the same cores. Child processes inherit that; an ``OMP_WAIT_POLICY`` or
    ``GOMP_SPINCOUNT`` of the user's stays. A package that is not installed is reported in a line.
    """
    end_on_signals()
    sys.excepthook = partial(_report_missing_package, sys.excepthook)
    if "OMP_WAIT_POLICY" not in os.environ:
        # GNU's OpenMP, which torch comes with, reads it when it is loaded.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _report_missing_package(
    otherwise: Callable[[type[BaseException], BaseException, TracebackType | None], object],
    kind: type[BaseException],
    error: BaseException,
    traceback: TracebackType | None,
) -> None:
    """Print one line where an import fails because its package is not installed."""
    name = (getattr(error, "name", None) or "").partition(".")[0]
    # A part that an installed package lacks is another matter.
    if not isinstance(error, ModuleNotFoundError) or not name or find_spec(name):
        otherwise(kind, error, traceback)
        return
    print(  # noqa: T201
        f"error: {sys.executable} has no package {name}: use the Python of .venv, or install the"
        " extras that this command needs, such as pip install -e '.[train]' (docs/setup.md)",
        file=sys.stderr,
    )


def announce_imports() -> None:
    """Say on a terminal what takes long now; call it before the slow imports of a tool.

    Processes that the tool starts import it again, and say nothing.
    """
    if parent_process() is None and sys.stdout.isatty():
        print("Loading PyTorch ...", flush=True)  # noqa: T201
