"""Memory of this process."""

from __future__ import annotations

import resource
from pathlib import Path


def peak_resident_bytes() -> int:
    """Get the largest resident memory of this process so far, in bytes."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        # Starts with the memory of the parent, so it is asked only where the other is not told.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
