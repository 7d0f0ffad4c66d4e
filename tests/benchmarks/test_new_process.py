"""A function in a process of its own: its result, and what becomes of a process that is killed."""

from __future__ import annotations

import os
from concurrent.futures.process import BrokenProcessPool

import pytest

from cityscapes_maskrcnn.benchmarks.new_process import in_new_process


def test_every_call_has_a_process_of_its_own() -> None:
    assert len({os.getpid(), in_new_process(os.getpid), in_new_process(os.getpid)}) == 3
    assert in_new_process(int, "11", base=2) == 3


def test_what_goes_wrong_is_raised() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        in_new_process(int, "few")
    with pytest.raises(BrokenProcessPool):
        in_new_process(os._exit, 1)
