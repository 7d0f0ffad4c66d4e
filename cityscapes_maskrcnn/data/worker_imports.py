"""Imported by the process that loading workers are forked from, and by nobody else."""

import signal

from cityscapes_maskrcnn.utils.child import end_with_parent
from cityscapes_maskrcnn.utils.imports import paused_garbage_collection

# Otherwise it would finish its imports first, which takes seconds.
end_with_parent(signal.SIGKILL)

with paused_garbage_collection():
    import cityscapes_maskrcnn.data.loaders  # noqa: F401
