"""What the results of an ablation hold for: its configs, the code and the machine."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import cv2
import detectron2
import numpy as np
import torch
from detectron2.config import CfgNode

import cityscapes_maskrcnn
from cityscapes_maskrcnn.benchmarks.rows import device_name
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import read_json, write_json
from cityscapes_maskrcnn.utils.locks import file_lock

_FILE: Final = "settings.json"


def digest_of(configs: Sequence[CfgNode], *others: object) -> str:
    """Compute the first twelve digits of a SHA-256 over configs and other values.

    Args:
        configs: where a model is trained, and where its files lie, does not count.
        others: values whose text says all about them.
    """
    digest = hashlib.sha256()
    for cfg in configs:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR, cfg.MODEL.DEVICE, cfg.INCLUDE = "", "", ()
        cfg.MODEL.WEIGHTS = Path(cfg.MODEL.WEIGHTS).name
        digest.update(cfg.dump().encode())
    digest.update(repr(others).encode())
    return digest.hexdigest()[:12]


def claim_folder(folder: Path, common: Mapping[str, Any], arms: Mapping[str, str]) -> None:
    """Write down what a folder's results hold for, or verify that they hold for the same.

    Args:
        folder: of the ablation.
        common: what all arms share, as JSON holds it.
        arms: digest of each arm's settings, by name; those of other arms in the folder stay.

    Raises:
        InputError: the folder's results are of other settings, or it has some without settings.
    """
    file = folder / _FILE
    with file_lock(folder / "settings.lock"):
        if file.exists():
            advice = "choose another --output"
            known = read_json(
                file, form={"common": {"*": object}, "arms": {"*": str}}, advice=advice
            )
        elif any(folder.glob("*/seed_*/*")) or (folder / "start").exists():
            raise InputError(f"{folder}: has results but no {_FILE}: choose another --output")
        else:
            known = {"common": dict(common), "arms": {}}
        changed = [name for name in common if known["common"].get(name) != common[name]]
        changed += [name for name in arms if known["arms"].get(name, arms[name]) != arms[name]]
        if changed:
            raise InputError(
                f"{folder}: its results are of other settings ({', '.join(changed)}): choose "
                "another --output"
            )
        write_json(file, {"common": common, "arms": {**known["arms"], **arms}})


def machine() -> dict[str, str]:
    """Name the code, the packages and the device of this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "device": device_name(device),
        "commit": _commit(),
        "cityscapes_maskrcnn": cityscapes_maskrcnn.__version__,
        "torch": str(torch.__version__),
        "detectron2": detectron2.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }


def _commit() -> str:
    """Get the git commit of the package, with a "+" if files were changed; or "unknown"."""
    command = ("git", "describe", "--always", "--abbrev=7", "--dirty=+", "--exclude=*")
    folder = Path(cityscapes_maskrcnn.__file__).parent
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
