"""Whether a Cityscapes tree holds generated street scenes instead of photographs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

# Written into ``cityscapes/`` by :mod:`cityscapes_maskrcnn.synthetic.dataset`.
MANIFEST: Final = "synthetic.json"


def is_generated(image_dir: str | os.PathLike[str]) -> bool:
    """Whether a folder such as ``cityscapes/leftImg8bit/val`` belongs to a generated set."""
    # Either the folder or all of the set may be a link into another one.
    folders = (Path(image_dir), Path(image_dir).resolve())
    return any((folder.parent.parent / MANIFEST).is_file() for folder in folders)
