"""How a checkpoint was made: what a run records in it, and what can be read from any file."""

from __future__ import annotations

import argparse
import hashlib
import json
import reprlib
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
import yaml

import cityscapes_maskrcnn
from cityscapes_maskrcnn.data.provenance import SEEN_IMAGES_KEY, read_history, to_plain
from cityscapes_maskrcnn.modeling.safe_pickles import Unknown
from cityscapes_maskrcnn.modeling.weight_files import read_checkpoint, read_pickle
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import file_digest
from cityscapes_maskrcnn.utils.text import printable
from cityscapes_maskrcnn.utils.yaml_files import check_yaml

ORIGIN_KEY: Final = "cityscapes_maskrcnn.origin"

PROGRAM: Final = "cityscapes_maskrcnn"
_NOT_RECORDED: Final = "not recorded"
# What other programs call the settings of a training.
_SETTINGS: Final = ("hyper_parameters", "args", "cfg", "config", "opt")


def origin_of_run(
    *,
    config: str,
    seed: int,
    device: str,
    environment: Mapping[str, str],
    parents: Sequence[Mapping[str, str]],
    classes: Sequence[str] = (),
) -> dict[str, Any]:
    """Gather what a checkpoint says of the run that writes it.

    There is no time in it: a training that is repeated writes the same bytes.

    Args:
        config: yaml.
        seed: that all random choices follow from.
        device: what trains the model.
        environment: versions of packages and other circumstances, by name.
        parents: files that the weights come from, nearest first, see :func:`parent_of`.
        classes: names of the model's instance classes, by contiguous id.
    """
    return {
        "code": f"{cityscapes_maskrcnn.__version__}, sources {_sources_digest()}",
        "command": shlex.join(sys.argv),
        "seed": seed,
        "device": device,
        # torch's version is no plain text, so that safe loading would refuse the checkpoint.
        "environment": {name: str(value) for name, value in environment.items()},
        "parents": [dict(parent) for parent in parents],
        "classes": list(classes),
        "config": config,
    }


def _sources_digest() -> str:
    """First twelve digits of a SHA-256 over names and contents of the package's files."""
    package = Path(cityscapes_maskrcnn.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()} {file_digest(path)}\n".encode())
    return digest.hexdigest()[:12]


def parent_of(file: str, sha256: str, content: Mapping[str, Any]) -> dict[str, str]:
    """Describe a file that weights come from.

    Args:
        file: as it was named.
        sha256: of it; empty: not known.
        content: of it; the weights may be missing.

    Returns:
        ``file``, ``sha256`` and, of a checkpoint of this project that says what it came from and
        which images it has seen, ``program``. All other weights may have owners and terms.
    """
    parent = {"file": file, "sha256": sha256}
    if _origin_in(content) and content.get(SEEN_IMAGES_KEY):
        parent["program"] = PROGRAM
    return parent


def parents_in(content: Mapping[str, Any]) -> list[dict[str, str]]:
    """List the parents that a checkpoint names; none of a file without an origin."""
    parents = _origin_in(content).get("parents")
    return [
        {
            "file": _text(parent.get("file")),
            "sha256": _text(parent.get("sha256")),
            **({"program": PROGRAM} if parent.get("program") == PROGRAM else {}),
        }
        for parent in (parents if isinstance(parents, list) else [])
        if isinstance(parent, dict)
    ]


def classes_in(content: Mapping[str, Any]) -> list[str]:
    """List the instance classes that a checkpoint names; none of a file without them."""
    classes = _origin_in(content).get("classes")
    return list(map(_text, classes)) if isinstance(classes, list) else []


def config_in(content: Mapping[str, Any]) -> dict[str, Any]:
    """Read the config of the run that wrote a checkpoint; empty for a file without one."""
    text = _origin_in(content).get("config")
    try:
        if isinstance(text, str):
            check_yaml("config", text)
            config = yaml.safe_load(text)
            return config if isinstance(config, dict) else {}
    except (InputError, ValueError, yaml.YAMLError):
        pass
    return {}


def foreign_classes_in(content: Mapping[str, Any]) -> list[str]:
    """List the classes that a checkpoint of MMDetection names; none of a file without them."""
    meta = content.get("meta")
    found = meta if isinstance(meta, dict) else {}
    if isinstance(dataset := found.get("dataset_meta"), dict):
        found = dataset  # of MMDetection 3
    names = found.get("classes", found.get("CLASSES"))
    return list(map(_text, names)) if isinstance(names, (list, tuple)) else []


def _origin_in(content: Mapping[str, Any]) -> dict[str, Any]:
    origin = content.get(ORIGIN_KEY)
    return origin if isinstance(origin, dict) else {}


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """Describe a file of weights of any program, running no code from it.

    Args:
        path: a ``.pth``, ``.ckpt``, ``.safetensors`` or ``.pkl`` file.

    Returns:
        ``file``, ``sha256``, ``bytes``, ``program``, ``code``, ``command``, ``seed``, ``device``,
        ``environment``, ``parents``, ``data``, ``config``, ``tensors`` and ``others``; None for
        what the file does not say. All of it is text, numbers, lists and dictionaries.

    Raises:
        InputError: the file cannot be read, is damaged, or holds no tensors by name.
    """
    content = (
        read_pickle(path) if path.suffix == ".pkl" else read_checkpoint(path, skip_objects=True)
    )
    origin = _origin_in(content)
    program, config = _foreign(content)
    environment = origin.get("environment")
    others = {
        _line(key): _short(value)
        for key, value in content.items()
        if key not in ("model", ORIGIN_KEY)
    }
    return {
        "file": str(path),
        "sha256": file_digest(path),
        "bytes": path.stat().st_size,
        "program": PROGRAM if origin else program,
        **{
            key: _line(origin[key]) if key in origin else None
            for key in ("code", "command", "seed", "device")
        },
        "environment": {_line(key): _line(value) for key, value in environment.items()}
        if isinstance(environment, dict)
        else None,
        "parents": parents_in(content) if origin else None,
        "data": _data(content, str(path)),
        "config": _text(origin.get("config")) if origin else config,
        "tensors": _tensors(content["model"]),
        "others": others,
    }


def _foreign(content: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Recognise another program by what it writes, and find its settings."""
    meta = content.get("meta")
    if isinstance(meta, dict) and isinstance(meta.get("cfg"), str):
        return "MMEngine (MMDetection 3)", meta["cfg"]
    program = None
    if "pytorch-lightning_version" in content:
        program = f"PyTorch Lightning {_short(content['pytorch-lightning_version'])}"
    elif "__author__" in content:
        program = f"Detectron2's model zoo ({_short(content['__author__'])})"
    elif "trainer" in content or {"optimizer", "scheduler", "iteration"} <= content.keys():
        program = "Detectron2"
    for key in _SETTINGS:
        settings = content.get(key)
        if isinstance(settings, argparse.Namespace):
            settings = vars(settings)
        if isinstance(settings, dict):
            return program, "\n".join(f"{_line(k)}: {_short(v)}" for k, v in settings.items())
        if isinstance(settings, str):
            return program, settings
    return program, None


def _data(content: Mapping[str, Any], source: str) -> list[dict[str, Any]] | None:
    """Summarise the images that the model has seen: one entry a dataset and use."""
    entries = to_plain(read_history(content, source))
    data = []
    for entry in entries:
        use = {key: entry.pop(key) for key in ("dataset", "role", "images", "generated")}
        digest = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
        data.append({**use, "dataset": _line(use["dataset"]), "sha256": digest})
    return data or None


def _tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """Count tensors and their values, by part and type; and classes, where heads tell them."""
    tensors = {name: value for name, value in state.items() if torch.is_tensor(value)}
    classes = {
        _line(name): value.shape[0] - 1
        for name, value in tensors.items()
        if name.endswith("box_predictor.cls_score.weight") and value.dim() == 2
    }
    parts = Counter(_line(name).partition(".")[0] for name in tensors)
    return {
        "count": len(tensors),
        "values": sum(value.numel() for value in tensors.values()),
        "types": dict(Counter(str(v.dtype).removeprefix("torch.") for v in tensors.values())),
        "parts": dict(parts.most_common(20)),
        "classes": classes or None,
    }


def _line(value: object) -> str:
    return printable(value, 2000)


def _text(value: object) -> str:
    return value if isinstance(value, str) else _short(value)


def _short(value: object) -> str:
    """Show a value of any kind in a few words, however much it holds."""
    if isinstance(value, Unknown):
        return "an object, not loaded"
    if isinstance(value, (str, int, float, bool)) or value is None:
        return printable(value, 100)
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, (list, tuple, dict, set)):
        return f"{type(value).__name__} of {len(value)}"
    return printable(reprlib.repr(value), 100)


def format_description(description: Mapping[str, Any], *, with_config: bool = False) -> str:
    """Write a description as text.

    Args:
        description: of :func:`describe_checkpoint`.
        with_config: write the config too, hundreds of lines, and first: a terminal shows the end.
    """
    tensors = description["tensors"]
    by_part = ", ".join(f"{part} {count}" for part, count in tensors["parts"].items())
    rows: dict[str, Sequence[str]] = {
        "file": [_line(description["file"])],
        "sha256": [description["sha256"]],
        "bytes": [f"{description['bytes']:,}"],
        "program": [description["program"] or "not known"],
        "tensors": [
            f"{tensors['count']} of {tensors['values']:,} values ({', '.join(tensors['types'])})",
            by_part,
        ],
        "classes": [str(number) for number in (tensors["classes"] or {}).values()],
        **{
            key: [_NOT_RECORDED if description[key] is None else description[key]]
            for key in ("code", "command", "seed", "device")
        },
        "packages": [f"{k} {v}" for k, v in (description["environment"] or {}).items()]
        or [_NOT_RECORDED],
        "data": [
            f"{use['role']} on {use['dataset']}: {use['images']} "
            f"{'generated ' * use['generated']}images, sha256 {use['sha256']}"
            for use in description["data"] or ()
        ]
        or [_NOT_RECORDED],
        "parents": _parent_rows(description["parents"]),
        "also holds": [f"{key}: {value}" for key, value in description["others"].items()],
    }
    lines = [
        f"{name if not index else '':12}{text}"
        for name, texts in rows.items()
        for index, text in enumerate(texts)
    ]
    config = description["config"]
    if config is None:
        return "\n".join([*lines, f"{'config':12}{_NOT_RECORDED}"])
    config_lines = config.splitlines()
    if not with_config:
        return "\n".join([*lines, f"{'config':12}{len(config_lines)} lines; --config shows them"])
    return "\n".join(["config:", *(f"  {_indented(each)}" for each in config_lines), *lines])


def _parent_rows(parents: Sequence[Mapping[str, str]] | None) -> list[str]:
    if parents is None:
        return [_NOT_RECORDED]
    rows = [f"{_line(each['file'])}, sha256 {_line(each['sha256'])}" for each in parents]
    return rows or ["none: it began with random weights"]


def _indented(line: str) -> str:
    # The indentation of yaml is meant to be spaces.
    text = line.lstrip(" ")
    return " " * (len(line) - len(text)) + _line(text)
