"""Values of a config, or of what a config file holds, by their whole key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def value_at(config: object, key: str) -> Any:
    """Look up a value such as that of ``SOLVER.BASE_LR``.

    Args:
        config: sections in each other; what a damaged file holds is no error.
        key: the whole name.

    Returns:
        None if there is no such key.
    """
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
