"""Yaml files whose few bytes could become gigabytes, or a recursion without end."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import yaml

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import read_file
from cityscapes_maskrcnn.utils.text import printable

# The largest config of Detectron2's and this project's has 450 values and four levels.
MAX_BYTES: Final = 1 << 20
_MAX_VALUES: Final = 100_000
_MAX_LEVELS: Final = 50
# Numbers, those to the base of 60 (1:59:59) among them: long ones cost minutes and have no decimal
# digits in Python, or are no float.
_LONG_NUMBER: Final = re.compile(r"[-+]?(?:0x[0-9a-fA-F_]{100,}|0?b?[0-9_.:]{100,})")


def read_yaml(path: Path) -> Any:
    """Read a file of plain yaml, which runs no code.

    Raises:
        InputError: the file is missing, no such yaml, or grows when it is read.
    """
    try:
        text = read_file(path, max_bytes=MAX_BYTES).decode("utf-8")
        check_yaml(str(path), text)
        return yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def check_yaml(filename: str, text: str) -> None:
    """Verify that yaml is no deeper and, its aliases written out, no larger than a config.

    Its numbers have fewer than 100 digits, and no mapping has a key twice, of which all but the
    last value would be lost.

    Args:
        filename: for the message.
        text: of the file, or its first ``MAX_BYTES + 1`` characters.

    Raises:
        InputError: it is, or it is longer than ``MAX_BYTES``.
    """
    if len(text) > MAX_BYTES:
        raise InputError(f"{filename}: more than {MAX_BYTES:,} bytes are no config")
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    # Of every open mapping its keys so far, of a list None; and how many keys and values.
    open_keys: list[set[str] | None] = [None]
    num_inside = [0]
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.NodeEvent):
            keys = open_keys[-1]
            is_key = num_inside[-1] % 2 == 0
            num_inside[-1] += 1
            if keys is not None and is_key and isinstance(event, yaml.ScalarEvent):
                if event.value in keys:
                    raise InputError(
                        f"{filename}: the key {printable(event.value)} is in one section twice, "
                        f"again in line {event.start_mark.line + 1}"
                    )
                keys.add(event.value)
        if isinstance(event, yaml.CollectionStartEvent):
            open_keys.append(set() if isinstance(event, yaml.MappingStartEvent) else None)
            num_inside.append(0)
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > _MAX_LEVELS:
                raise InputError(
                    f"{filename}: nested more than {_MAX_LEVELS} levels deep in line "
                    f"{event.start_mark.line + 1}"
                )
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
            open_keys.pop()
            num_inside.pop()
        elif isinstance(event, yaml.AliasEvent):
            if any(event.anchor == anchor for anchor, _ in open_nodes):
                raise InputError(f"{filename}: the alias *{event.anchor} is part of itself")
            anchor, size = None, sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
            if _LONG_NUMBER.fullmatch(event.value):
                raise InputError(
                    f"{filename}: a number of {len(event.value)} characters in line "
                    f"{event.start_mark.line + 1}"
                )
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        around, before = open_nodes[-1]
        open_nodes[-1] = around, before + size
        if before + size > _MAX_VALUES:
            raise InputError(
                f"{filename}: with its aliases written out it has more than {_MAX_VALUES:,} values"
            )
