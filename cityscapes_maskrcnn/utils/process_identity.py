"""Tell whether the process that did something is still alive, if that can be known here."""

from __future__ import annotations

import os
from pathlib import Path

_UNKNOWN = "unknown"


def this_process() -> str:
    """Name this process so that no other ever has the same name.

    Returns:
        Boot of the machine, process namespace (containers have their own), process id and the
        moment of its start, in clock ticks since the boot.
    """
    return f"{_place()} {os.getpid()} {_start_time(os.getpid())}"


def is_gone(identity: str) -> bool:
    """Whether a process has ended.

    Args:
        identity: from :func:`this_process`, of any machine.

    Returns:
        True only if that is certain: the process ran in this boot and namespace, and is there no
        longer.
    """
    place, _, process = identity.partition(" ")
    number, _, start = process.partition(" ")
    if place != _place() or _UNKNOWN in identity or not number.isdecimal():
        return False
    return _start_time(int(number)) != start


def seconds_since_start() -> float:
    """Get the age of this process, imports included; 0 where the system does not tell."""
    start = _start_time(os.getpid())
    if not start.isdecimal():
        return 0.0
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return max(0.0, uptime - int(start) / os.sysconf("SC_CLK_TCK"))


def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return _UNKNOWN


def _start_time(pid: int) -> str:
    try:
        # The second field, the program's name, may hold spaces and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "" if Path("/proc/self/stat").exists() else _UNKNOWN
    # A zombie has ended, even if its parent has not noticed.
    return "" if fields[0] == "Z" else fields[19]
