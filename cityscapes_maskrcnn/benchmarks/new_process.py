"""One function in a process of its own, where nothing else has run."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def in_new_process(
    function: Callable[Parameters, Result],
    *arguments: Parameters.args,
    **options: Parameters.kwargs,
) -> Result:
    """Call a function in a new process, which ends with it.

    Args:
        function: of a module; it is sent to the process, as are its arguments and its result.
        arguments: of it.
        options: of it, by name.

    Raises:
        BrokenProcessPool: the process was killed.
        Exception: what the function raised.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **options).result()
