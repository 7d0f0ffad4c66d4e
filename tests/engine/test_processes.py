from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

from cityscapes_maskrcnn.engine import processes


class Ending:
    """Has ended when it is asked the third time: after its sentinel was ready."""

    sentinel = 0

    def __init__(self) -> None:
        self.codes = iter([None, None])

    @property
    def exitcode(self) -> int | None:
        return next(self.codes, 1)


def test_a_process_that_ends_between_two_looks_counts_as_failed() -> None:
    with mock.patch.object(processes, "connection", SimpleNamespace(wait=lambda *_, **__: [])):
        assert processes._wait([Ending()], end_others=lambda: None) == 0
