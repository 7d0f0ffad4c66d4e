"""The folders that come with the package: tools, configs, and the scripts for datasets."""

from __future__ import annotations

from pathlib import Path


def shipped_folder(name: str) -> Path:
    """Find one of ``tools``, ``configs`` and ``datasets``.

    A wheel holds them inside the package; in a checkout they are beside it.
    """
    package = Path(__file__).resolve().parents[1]
    inside = package / name
    return inside if inside.is_dir() else package.parent / name
