"""Weight files: downloaded once and checked, read without running code from them."""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlparse

import torch

from cityscapes_maskrcnn.modeling.pickle_contents import TANGLED, scan_archive, scan_pickles
from cityscapes_maskrcnn.modeling.safe_pickles import Unknown, load_archive, load_arrays
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write, read_file
from cityscapes_maskrcnn.utils.locks import file_lock
from cityscapes_maskrcnn.utils.text import printable

TORCHVISION_SCHEME, TIMM_SCHEME = "torchvision://", "timm://"
# What the names of :func:`fetch_published` begin with.
PUBLISHED_SCHEMES = (TORCHVISION_SCHEME, TIMM_SCHEME)
TORCHVISION_DEEPLAB = "torchvision://deeplabv3_resnet50"
# Name -> torchvision's name of the weights.
_TORCHVISION_NAMES = {
    TORCHVISION_DEEPLAB: "DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1",
    "torchvision://deeplabv3_resnet101": "DeepLabV3_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1",
    "torchvision://resnet101": "ResNet101_Weights.IMAGENET1K_V1",
    "torchvision://convnext_tiny": "ConvNeXt_Tiny_Weights.IMAGENET1K_V1",
    "torchvision://convnext_small": "ConvNeXt_Small_Weights.IMAGENET1K_V1",
    "torchvision://convnext_base": "ConvNeXt_Base_Weights.IMAGENET1K_V1",
    "torchvision://maskrcnn_resnet50_fpn": "MaskRCNN_ResNet50_FPN_Weights.COCO_V1",
    "torchvision://maskrcnn_resnet50_fpn_v2": "MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1",
}
_TIMM_NAME = re.compile(r"timm://(convnext_(?:tiny|small|base))(?:\.([A-Za-z0-9_]+))?")
# What timm takes for a name without a tag.
_TIMM_TAGS = {
    "convnext_tiny": "in12k_ft_in1k",
    "convnext_small": "in12k_ft_in1k",
    "convnext_base": "fb_in22k_ft_in1k",
}

# A .safetensors file's: 100 bytes for each of 40,000 tensors.
_MAX_HEADER = 4_000_000
# Where a .safetensors file of this project says, in JSON, what a .pth file holds beside weights. It
# is one entry only: safetensors writes several in any order, and the same model would have files of
# different digests.
_METADATA_KEY = "cityscapes_maskrcnn"

# Under which key a training script puts the weights beside optimizer, epoch and so on.
_NESTING_KEYS = ("model", "model_state_dict", "model_state", "state_dict")


def fetch_published(name: str) -> Path:
    """Get the file of weights that torchvision or timm publish, from its cache or by a download.

    Args:
        name: of :func:`fetch_torchvision` or :func:`fetch_timm`.

    Raises:
        InputError: see there.
    """
    return fetch_timm(name) if name.startswith(TIMM_SCHEME) else fetch_torchvision(name)


def fetch_timm(name: str) -> Path:
    """Find or download timm's weights of a ConvNeXt; neither timm nor huggingface_hub is needed.

    Args:
        name: ``timm://convnext_tiny``, ``_small`` or ``_base``, with the tag of the weights as in
            ``timm://convnext_tiny.in12k_ft_in1k``, or without for timm's default.

    Returns:
        ``<torch.hub.get_dir()>/checkpoints/<the name with its tag>.safetensors``; ``TORCH_HOME``
        moves it. The environment variable ``HF_ENDPOINT`` names a mirror of the Hugging Face hub.
        A download must be a whole file; unlike torchvision's, its address holds no hash.

    Raises:
        InputError: another name; the hub has no such weights; they cannot be downloaded or stored.
    """
    match = _TIMM_NAME.fullmatch(name)
    if match is None:
        raise InputError(
            f"{name}: unknown; the names of this kind are timm://convnext_tiny, _small and _base, "
            "with one of timm's tags, such as timm://convnext_tiny.in12k_ft_in1k"
        )
    weights = f"{match[1]}.{match[2] or _TIMM_TAGS[match[1]]}"
    hub = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    url = f"{hub.rstrip('/')}/timm/{weights}/resolve/main/model.safetensors"
    path = _cache_folder() / f"{weights}.safetensors"

    def fetch() -> None:
        part = path.with_suffix(".part")
        try:
            torch.hub.download_url_to_file(url, str(part))
            # A connection that breaks leaves a part, and nobody says so.
            _read_safetensors(part, url)
            part.replace(path)
        except HTTPError as error:
            # The hub answers 401, too, where there is nothing.
            if error.code in (401, 403, 404):
                raise InputError(
                    f"{name}: not on the Hugging Face hub, or not public there: {url}: {error}"
                ) from error
            raise
        finally:
            part.unlink(missing_ok=True)

    _fetch_once(path, url, fetch)
    return path


def fetch_torchvision(name: str) -> Path:
    """Find torchvision's weights in its cache, or :func:`download` them there.

    Args:
        name: ``torchvision://deeplabv3_resnet50`` or ``101``: trained on COCO with the labels of
            Pascal VOC; ``torchvision://maskrcnn_resnet50_fpn`` or ``..._v2``: trained on COCO;
            ``torchvision://resnet101``, ``torchvision://convnext_tiny``, ``_small`` or ``_base``:
            trained on ImageNet.

    Raises:
        InputError: another name, or see :func:`download`.
    """
    if name not in _TORCHVISION_NAMES:
        raise InputError(
            f"{name}: unknown; the names of this kind are {', '.join(_TORCHVISION_NAMES)}"
        )
    # Imported here, because everything else in this file needs torch alone.
    from torchvision.models import get_weight

    return download(get_weight(_TORCHVISION_NAMES[name]))


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
    path = _cache_folder() / PurePosixPath(urlparse(weights.url).path).name
    _fetch_once(
        path,
        weights.url,
        lambda: weights.get_state_dict(progress=True, check_hash=True, weights_only=True),
    )
    # torchvision checks the hash of what it downloads, but not of what lies in the cache.
    digest = hashlib.sha256(read_file(path)).hexdigest()
    expected = path.stem.rpartition("-")[2]
    if not digest.startswith(expected):
        raise InputError(
            f"{path}: its SHA-256 begins with {digest[: len(expected)]}, not {expected}, so it is "
            "damaged or another file; delete it and it is downloaded again"
        )
    return path


def _cache_folder() -> Path:
    return Path(torch.hub.get_dir(), "checkpoints")


def _fetch_once(path: Path, url: str, fetch: Callable[[], object]) -> None:
    """Let one of many processes that ask at the same time download a file, unless it is there."""
    try:
        if not path.is_file():
            # Inheritable locks are those that hold between the threads of a process, too.
            with file_lock(path.with_suffix(".lock"), inheritable=True):
                if not path.is_file():
                    fetch()
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        raise InputError(
            f"{url}: cannot be downloaded: {error}; without a connection, download it elsewhere "
            f"and put it at {path}"
        ) from error


def read_checkpoint(
    path: str | Path, name: str = "", *, skip_objects: bool = False
) -> dict[str, Any]:
    """Read a ``.safetensors`` file or anything that ``torch.save`` wrote, running no code from it.

    Args:
        path: the file.
        name: what to call it in messages; default: ``path``.
        skip_objects: read a file that holds objects of other classes than tensors too: each becomes
            a :class:`.safe_pickles.Unknown`. By default such a file is refused.

    Returns:
        What the file holds, with the tensors by name under ``"model"`` wherever they were: under
        ``model``, ``model_state_dict``, ``model_state`` or ``state_dict``, one in the other, or at
        the top.

    Raises:
        InputError: it is a pickle file, cannot be read, is damaged, would execute code, would take
            much more memory than its size, or holds no dense tensors by name.
    """
    source = name or str(path)
    suffix = Path(path).suffix
    if suffix == ".pkl":
        raise InputError(
            f"{source}: pickle files are refused, because loading one can execute code; save the "
            "weights with torch.save(model.state_dict(), 'weights.pth')"
        )
    if Path(path).exists() and not Path(path).is_file():
        raise InputError(f"{source}: cannot be read: it is a folder or device, not a file")
    content = (
        _read_safetensors(path, source)
        if suffix == ".safetensors"
        else _read_torch(path, source, skip_objects)
    )
    rest: dict[str, Any] = {}
    while isinstance(content, Mapping) and (
        key := next((key for key in _NESTING_KEYS if isinstance(content.get(key), Mapping)), None)
    ):
        rest = {**{name: value for name, value in content.items() if name != key}, **rest}
        content = content[key]
    if isinstance(content, Mapping) and any(
        isinstance(content.get(key), Unknown) for key in _NESTING_KEYS
    ):
        raise InputError(
            f"{source}: holds a pickled model, not its weights; where its code is installed, and "
            "if you trust it, save them with torch.save(model.state_dict(), 'weights.pth')"
        )
    if (
        not isinstance(content, Mapping)
        or not any(map(torch.is_tensor, content.values()))
        or not all(isinstance(name, str) for name in content)
    ):
        raise InputError(f"{source}: not a checkpoint: holds no tensors by name")
    check_tensors(content, source)
    return {**rest, "model": dict(content)}


def read_pickle(path: str | Path, name: str = "") -> dict[str, Any]:
    """Read a ``.pkl`` file as those of Detectron2's model zoo, running no code from it.

    Args:
        path: the file.
        name: what to call it in messages; default: ``path``.

    Returns:
        What the file holds, with the tensors by name under ``"model"`` wherever they were: under
        ``model`` or Caffe2's ``blobs``, or at the top.

    Raises:
        InputError: it cannot be read, is damaged, would execute code, or holds no arrays by name.
    """
    source = name or str(path)
    try:
        content = load_arrays(path)
    except InputError:
        raise
    except Exception as error:  # garbage makes an unpickler raise errors of any type
        raise InputError(f"{source}: not loaded: not a file of plain arrays: {error}") from error
    rest: dict[str, Any] = {}
    arrays = content
    if isinstance(content, dict):
        for key in ("model", "blobs"):
            if key in content:
                arrays = content[key]
                rest = {other: value for other, value in content.items() if other != key}
                break
    if (
        not isinstance(arrays, dict)
        or not all(isinstance(each, str) for each in arrays)
        or not any(map(torch.is_tensor, arrays.values()))
    ):
        raise InputError(f"{source}: not a checkpoint: holds no arrays by name")
    return {**rest, "model": arrays}


def write_tensors(path: str | Path, content: Any) -> None:
    """Write a ``.pth`` file, whole or not at all.

    Raises:
        InputError: the disk is full or the folder cannot be written.
    """
    try:
        with atomic_write(path) as file:
            torch.save(content, file)
    except RuntimeError as error:
        # torch replaces the system's reason by one of its own.
        raise InputError(
            f"{path}: cannot be written; the disk is probably full: {error}"
        ) from error


def write_safetensors(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a ``.safetensors`` file that :func:`read_checkpoint` reads, whole or not at all.

    Args:
        path: the file.
        content: tensors by name under ``model``, of any types. The rest goes into the header as
            JSON.

    Raises:
        InputError: it cannot be written, or the header would be larger than what is read.
    """
    from safetensors.torch import save

    # Of any layout in memory; copies, because none may share memory with another.
    tensors = {
        name: value.detach().cpu().contiguous().clone() for name, value in content["model"].items()
    }
    rest = {key: value for key, value in content.items() if key != "model"}
    written = save(tensors, {_METADATA_KEY: json.dumps(rest, sort_keys=True)})
    if int.from_bytes(written[:8], "little") > _MAX_HEADER:
        raise InputError(
            f"{path}: cannot be written: what it says beside its tensors, such as the list of seen "
            f"images, takes more than {_MAX_HEADER} bytes"
        )
    with atomic_write(path) as file:
        file.write(written)


def check_tensors(content: Mapping[str, Any], source: str) -> None:
    """Raise if what stands under a tensor's name is no dense tensor of its own size.

    Args:
        content: tensors by name; a name without a dot may stand for anything else.
        source: the file, for messages.

    Raises:
        InputError: a name has invisible characters; a value is no tensor, or one without values
            (meta), sparse, nested, quantized, of 8 bits a float, or a view that is larger than
            what the file stores.
    """
    for name, value in content.items():
        if printable(name) != name:
            raise InputError(
                f"{source}: {printable(name, 100)}: not a valid tensor name: it has invisible "
                "characters, or more than 1000"
            )
        if not torch.is_tensor(value):
            if "." in name and not name.endswith("._extra_state"):
                raise InputError(
                    f"{source}: {name} holds a value of type {type(value).__name__}, not a tensor"
                )
        elif problem := _problem(value):
            raise InputError(
                f"{source}: {name} is {problem}; save dense tensors of 16, 32 or 64 bits"
            )


def _problem(value: torch.Tensor) -> str | None:
    if value.is_meta:
        return "a meta tensor, which has no values"
    if value.layout != torch.strided or value.is_nested:
        return "a sparse or nested tensor"
    if value.is_quantized or (value.is_floating_point() and value.element_size() < 2):
        return f"of type {str(value.dtype).removeprefix('torch.')}"
    # Such a file of a few bytes would take any amount of memory as soon as it is computed with.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"of shape {tuple(value.shape)}, but the file does not store as many values"
    return None


def check_values(
    tensors: Mapping[str, torch.Tensor], source: str, integers: Collection[str] = ()
) -> None:
    """Raise if tensors hold what no trained parameter or statistic can hold.

    Args:
        tensors: by name.
        source: the file, for messages.
        integers: names of tensors that are integers; all others must be real floats.

    Raises:
        InputError: a tensor has another type, values that are not finite in float32, or a negative
            variance.
    """
    for name, value in tensors.items():
        if name in integers:
            continue
        if not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise InputError(f"{source}: {name} is of type {kind}, where floats are expected")
        if not torch.isfinite(value.float()).all():
            raise InputError(f"{source}: {name} holds values that are not finite")
        if name.endswith("running_var") and (value < 0).any():
            raise InputError(f"{source}: {name} holds negative variances")


def _read_torch(path: str | Path, source: str, skip_objects: bool) -> Any:
    try:
        with Path(path).open("rb") as file:
            is_archive = file.read(4) == b"PK\3\4"  # as torch decides
            file.seek(0)
            # torch's older format: five pickles, and then the bytes of the tensors.
            contents = scan_archive(file, source) if is_archive else scan_pickles(file, count=5)
            if contents.is_tangled:
                raise InputError(f"{source}: not a checkpoint: {TANGLED}")
            if contents.unknown:
                whole = contents.is_object or contents.is_script or contents.is_quantized
                if is_archive and skip_objects and not whole:
                    return load_archive(file)
                raise InputError(f"{source}: {contents.explain(source, is_archive)}")
            if contents.is_modern:
                if is_archive:
                    return load_archive(file)
                raise InputError(
                    f"{source}: torch's older format with a pickle_protocol of 4 or more is not "
                    "read; save it again with torch.save(torch.load(FILE), NEW_FILE)"
                )
        # torchvision's scripts save their command line too: a Namespace, mere values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error}") from error
    except InputError:
        raise
    except Exception as error:
        # Garbage makes both readers raise errors of any type. Their text stays out of the message:
        # torch advises to load without its protection.
        raise InputError(f"{source}: not a checkpoint: {_what_it_is(path)}") from error


def _what_it_is(path: str | Path) -> str:
    """Recognise what often lies in the place of a checkpoint."""
    with Path(path).open("rb") as file:
        start = file.read(100)
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; fetch the file itself with git lfs pull"
    if start.lstrip().startswith(b"<"):
        return "it is a web page; download the file itself"
    return "it is damaged, or no file of torch.save" if start else "it is empty"


def _read_safetensors(path: str | Path, source: str) -> dict[str, Any]:
    # Imported where needed: everything else in this file needs torch alone.
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with Path(path).open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > _MAX_HEADER:
            raise InputError(
                f"{source}: not a .safetensors file of weights, or damaged: its header has {size} "
                f"bytes; at most {_MAX_HEADER} are read"
            )
        with safe_open(path, "pt") as file:
            rest = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
        return {**(rest if isinstance(rest, dict) else {}), "model": load_file(path)}
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{source}: damaged: {error}, in what it says of its making") from error
    # Of torch, in many lines, such as a TypeError for a size beyond 64 bits.
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{source}: damaged: it has a shape that no tensor can have") from error
    except SafetensorError as error:
        raise InputError(f"{source}: not a .safetensors file, or damaged: {error}") from error
