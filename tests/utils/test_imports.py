from __future__ import annotations

import gc

from cityscapes_maskrcnn.utils.imports import paused_garbage_collection


def test_collection_goes_on_as_before_without_what_was_imported() -> None:
    assert gc.isenabled()
    with paused_garbage_collection():
        assert not gc.isenabled()
        imported = [object()]
    assert gc.isenabled()
    assert not any(each is imported for each in gc.get_objects())
