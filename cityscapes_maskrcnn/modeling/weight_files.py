"""Files of weights: fetched with their hash checked, read without running code from them."""

from __future__ import annotations

import argparse
import hashlib
import http.client
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

import torch

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.locks import file_lock

TORCHVISION_SCHEME = "torchvision://"
TORCHVISION_DEEPLAB = "torchvision://deeplabv3_resnet50"

# Under which key a training script puts the weights beside optimizer, epoch and so on.
_NESTING_KEYS = ("model", "model_state_dict", "state_dict")


def fetch_torchvision(name: str) -> Path:
    """Find torchvision's weights in its cache, or :func:`download` them there.

    Args:
        name: ``torchvision://deeplabv3_resnet50``: trained on COCO with the labels of Pascal VOC.

    Raises:
        InputError: another name, or see :func:`download`.
    """
    if name != TORCHVISION_DEEPLAB:
        raise InputError(f"{name}: unknown; the one name of this kind is {TORCHVISION_DEEPLAB}")
    # Imported here, because everything else in this file needs torch alone.
    from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights

    return download(DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1)


def download(weights: Any) -> Path:
    """Find or download the file of a torchvision weights enum, and check its hash.

    Of many processes that ask at the same time, one downloads and the others wait.

    Args:
        weights: a member of a :class:`torchvision.models.WeightsEnum`. Its URL ends in
            ``-<the first digits of the SHA-256>.pth``.

    Returns:
        ``<torch.hub.get_dir()>/checkpoints/<the URL's last part>``; ``TORCH_HOME`` moves it.

    Raises:
        InputError: it cannot be downloaded or stored, or its content does not fit its hash.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(urlparse(weights.url).path).name)
    try:
        if not path.is_file():
            # Inheritable locks are those that hold between the threads of a process, too.
            with file_lock(path.with_suffix(".lock"), inheritable=True):
                if not path.is_file():
                    weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
        # torchvision checks the hash of what it downloads, but not of what lies in the cache.
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise InputError(
            f"{weights.url}: cannot be downloaded: {error}; without a connection, download it "
            f"elsewhere and put it at {path}"
        ) from error
    expected = path.stem.rpartition("-")[2]
    if not digest.startswith(expected):
        raise InputError(
            f"{path}: its SHA-256 begins with {digest[: len(expected)]}, not {expected}, so it is "
            "damaged or another file; delete it and it is downloaded again"
        )
    return path


def read_checkpoint(path: str | Path, name: str = "") -> dict[str, Any]:
    """Read a ``.safetensors`` file or anything that ``torch.save`` wrote, running no code from it.

    Args:
        path: the file.
        name: what to call it in messages; default: ``path``.

    Returns:
        What the file holds, with the tensors by name under ``"model"`` wherever they were: under
        ``model``, ``model_state_dict`` or ``state_dict``, one in the other, or at the top.

    Raises:
        InputError: it is a pickle file, cannot be read, is damaged, would execute code, or holds
            no tensors by name.
    """
    source = name or str(path)
    suffix = Path(path).suffix
    if suffix == ".pkl":
        raise InputError(
            f"{source}: pickle files are refused, because loading one can execute code; save the "
            "weights with torch.save(model.state_dict(), 'weights.pth')"
        )
    read = _read_safetensors if suffix == ".safetensors" else _read_torch
    content = read(path, source)
    rest: dict[str, Any] = {}
    while isinstance(content, Mapping) and (
        key := next((key for key in _NESTING_KEYS if isinstance(content.get(key), Mapping)), None)
    ):
        rest = {**{name: value for name, value in content.items() if name != key}, **rest}
        content = content[key]
    if (
        not isinstance(content, Mapping)
        or not any(map(torch.is_tensor, content.values()))
        or not all(isinstance(name, str) for name in content)
    ):
        raise InputError(f"{source}: not a checkpoint: holds no tensors by name")
    return {**rest, "model": dict(content)}


def _read_torch(path: str | Path, source: str) -> Any:
    damaged: str | None = None
    try:
        if zipfile.is_zipfile(path):  # torch's older format has no check sums
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch does not look
        if not damaged:
            # torchvision's scripts save their command line too: a Namespace, mere values.
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error}") from error
    except Exception as error:
        # Garbage makes both readers raise errors of any type. Their text stays out of the message:
        # torch advises to load without its protection.
        raise InputError(
            f"{source}: not a checkpoint that can be loaded safely: it is damaged, or holds more "
            "than tensors"
        ) from error
    raise InputError(f"{source}: damaged: the check sum of {damaged} is wrong; fetch it again")


def _read_safetensors(path: str | Path, source: str) -> dict[str, torch.Tensor]:
    # Imported where needed: everything else in this file needs torch alone.
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error}") from error
    except SafetensorError as error:
        raise InputError(f"{source}: not a .safetensors file, or damaged: {error}") from error
