"""Seeded damage: to bytes, to nested values, to PNG files, zip archives and lines of text."""

from __future__ import annotations

import copy
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

SURROGATE = "\ud83d"  # half a character
#: What stands where something else was expected.
ODD: Sequence[Any] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63) - 1, 10**40),
    *(0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), float("-inf")),
    *("", " ", "nan", "24", "car", "a\nb", "\x1b[31mred\x07", "\u202eabc", "\x00", "x" * 100_000),
    *("../../etc/passwd", "/dev/zero", "%s{0}$HOME", SURROGATE, "0" * 5000),
    *([], {}, [[]], [None], [1, 2], {"": 0}, {"a": {"b": []}}, [0.5] * 10_000, [[1, 2]] * 3),
)


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Damage bytes in one to three places."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        size = len(content)
        at = rng.randrange(size) if size else 0
        stop = min(size, at + rng.choice((1, 2, 4, 16, 256)))
        action = rng.randrange(9)
        if action == 0 and size:
            content[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            content[at:stop] = rng.randbytes(stop - at)
        elif action == 2:
            del content[at:]
        elif action == 3:
            del content[at:stop]
        elif action == 4:
            content[at:at] = rng.randbytes(rng.choice((1, 3, 64)))
        elif action == 5:
            content[at:at] = content[at:stop] * rng.choice((1, 2, 50))
        elif action == 6:
            content[at:stop] = bytes(stop - at)
        elif action == 7:
            number = struct.pack(rng.choice("<>") + "I", rng.choice(_INTERESTING))
            content[at : at + 4] = number
        else:
            other = rng.randrange(size) if size else 0
            content[at:stop] = content[other : other + stop - at]
    return bytes(content)


def mutate_tree(rng: random.Random, tree: Any, odd: Sequence[Any] = ODD) -> Any:
    """Change one to three nodes of nested dicts and lists; the argument stays as it is."""
    root = [copy.deepcopy(tree)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        # Half of the time near the root, where the structure is, not among thousands of leaves.
        depth = rng.choice((1, 2, 3, 9))
        places = _places(root, depth)
        container, key = rng.choice(places)
        action, value = rng.randrange(9), container[key]
        if action <= 2:
            container[key] = copy.deepcopy(rng.choice(odd))
        elif action == 3 and container is not root:
            del container[key]
        elif action == 4:
            container[key] = rng.choice(([value], {"value": value}, str(value)[:1000]))
        elif action == 5:
            other, name = rng.choice(_places(root, 9))
            container[key] = copy.deepcopy(other[name])
        elif action == 6 and isinstance(container, dict):
            container[_other_name(rng, key)] = container.pop(key)
        elif action == 7 and isinstance(container, dict):
            container[_other_name(rng, key)] = copy.deepcopy(rng.choice(odd))
        elif action == 7 and container is not root:
            container.insert(key, copy.deepcopy(rng.choice((value, rng.choice(odd)))))
        elif type(value) in (int, float):
            factor = rng.choice((-1, 0.5, 1.001, 100, 1e6, 1e30))
            container[key] = type(value)(value * factor) if abs(value) < 1e200 else -value
        elif isinstance(value, list) and len(value) < 1000:
            container[key] = rng.choice((value[:1], value[::-1], value * rng.choice((2, 500))))
    return root[0]


def _places(root: list[Any], depth: int) -> list[tuple[Any, Any]]:
    """Every (container, key) down to a depth."""
    found, level = [], [(root, 0)]
    for _ in range(depth):
        found += level
        level = [
            (container[key], inner)
            for container, key in level
            if isinstance(container[key], (dict, list))
            for inner in (
                list(container[key])
                if isinstance(container[key], dict)
                else range(len(container[key]))
            )
        ]
    return found + level


def _other_name(rng: random.Random, name: Any) -> Any:
    if not isinstance(name, str):
        return rng.choice((str(name), None, -1, 2**70, 1.5))
    odd = ("", name.upper(), f"{name} ", f"{name}\x1b[2J", name[:-1], f"module.{name}", 7, None)
    return rng.choice(odd)


def mutate_lines(rng: random.Random, text: str, odd: Sequence[str]) -> bytes:
    """Change fields and separators of lines; the result is bytes, not always of UTF-8."""
    lines = [line.split(" ") for line in text.splitlines()]
    for _ in range(rng.choice((1, 1, 2, 3))):
        fields = rng.choice(lines)
        at = rng.randrange(len(fields)) if fields else 0
        action = rng.randrange(6)
        if action <= 2 and fields:
            fields[at] = rng.choice(odd)
        elif action == 3 and fields:
            del fields[at]
        elif action == 4:
            fields.insert(at, rng.choice(("", rng.choice(odd))))
        else:
            lines.insert(rng.randrange(len(lines)), list(fields) * rng.choice((0, 1, 2)))
    space, end = (
        rng.choice((" ", " ", " ", " ", "\t", "  ", "\xa0")),
        rng.choice("\n\n\n\r\x85\x00"),
    )
    content = end.join(space.join(fields) for fields in lines) + rng.choice((end, "", end * 2))
    encoding = rng.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
    return content.replace("\r", "\r\n").encode(encoding, "replace")


# PNG -------------------------------------------------------------------------------------------


def _chunks(png: bytes) -> list[list[bytes]]:
    found, at = [], 8
    while at + 8 <= len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        found.append([png[at + 4 : at + 8], png[at + 8 : at + 8 + length]])
        at += length + 12
    return found


def _pack(chunks: Sequence[Sequence[bytes]]) -> bytes:
    return PNG_MAGIC + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def without_remarks(png: bytes) -> bytes:
    """A PNG file without texts, profiles and the like, which Pillow reads and may refuse."""
    if not png.startswith(PNG_MAGIC):
        return png
    return _pack([chunk for chunk in _chunks(png) if chunk[0][:1].isupper() or chunk[0] == b"tRNS"])


def mutate_png(rng: random.Random, png: bytes) -> bytes:
    """Damage a PNG file: its bytes, its chunks (with right check sums), its pixels or its kind."""
    mutate = rng.choice((mutate_bytes, _other_header, _other_chunks, _other_stream, _other_image))
    return mutate(rng, png)


def _other_header(rng: random.Random, png: bytes) -> bytes:
    chunks = _chunks(png)
    fields = list(struct.unpack(">IIBBBBB", chunks[0][1]))
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(7)
        sizes = (0, 1, fields[0] + 1, fields[1] * 2, 65535, 2**20, 2**31 - 1, 2**32 - 1)
        fields[at] = rng.choice(sizes if at < 2 else (0, 1, 2, 3, 4, 6, 8, 16, 255))
    chunks[0][1] = struct.pack(">IIBBBBB", *fields)
    return _pack(chunks)


def _other_chunks(rng: random.Random, png: bytes) -> bytes:
    chunks = _chunks(png)
    at = rng.randrange(len(chunks))
    action = rng.randrange(6)
    if action == 0:
        del chunks[at]
    elif action == 1:
        chunks.insert(rng.randrange(len(chunks)), chunks[at])
    elif action == 2:
        rng.shuffle(chunks)
    elif action == 3:
        names = (b"tRNS", b"PLTE", b"gAMA", b"iCCP", b"tEXt", b"zTXt", b"eXIf", b"acTL", b"IEND")
        content = rng.randbytes(rng.choice((0, 2, 6, 8, 768, 2**20)))
        chunks.insert(rng.randrange(len(chunks)), [rng.choice(names), content])
    elif action == 4:
        bomb = b"Comment\x00\x00" + zlib.compress(bytes(80 * 2**20), 9)
        chunks.insert(1, [rng.choice((b"zTXt", b"iCCP")), bomb])
    else:
        # A length that is not there.
        packed = bytearray(_pack(chunks))
        place = packed.index(chunks[at][0]) - 4
        packed[place : place + 4] = struct.pack(">I", rng.choice(_INTERESTING))
        return bytes(packed)
    return _pack(chunks)


def _other_stream(rng: random.Random, png: bytes) -> bytes:
    chunks = _chunks(png)
    first = next(at for at, chunk in enumerate(chunks) if chunk[0] == b"IDAT")
    raw = zlib.decompress(b"".join(data for kind, data in chunks if kind == b"IDAT"))
    chunks = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
    action = rng.randrange(5)
    if action == 0:
        raw = raw[: rng.randrange(len(raw))]
    elif action == 1:
        raw += rng.randbytes(rng.choice((1, 1000, 2**22)))
    elif action == 2:
        raw = mutate_bytes(rng, raw)
    elif action == 3:
        raw = bytes(rng.choice((0, 100 * 2**20)))
    data = zlib.compress(raw, 9)
    if action == 4:
        data = mutate_bytes(rng, data)
    cut = rng.randrange(len(data) + 1)
    chunks[first:first] = [[b"IDAT", data[:cut]], [b"IDAT", data[cut:]]]
    return _pack(chunks)


def _other_image(rng: random.Random, png: bytes) -> bytes:
    """The same picture as another kind of file, or another picture of this kind."""
    image = Image.open(BytesIO(png))
    pixels = np.array(image)
    if rng.random() < 0.5:
        levels = rng.choice(((0, 255), (0, 1), (7, 26), (24, 255), range(256)))
        noise = np.random.default_rng(rng.randrange(2**32))
        pixels = noise.choice(np.array(levels), pixels.shape).astype(pixels.dtype)
        image = Image.fromarray(pixels)
    if rng.random() < 0.3:
        image = image.resize(rng.choice(((1, 1), (64, 128), (128, 63), (256, 128))))
    modes: tuple[str, ...] = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK")
    formats = ("PNG", "PNG", "PNG", "PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP")
    content = BytesIO()
    try:
        image.convert(rng.choice(modes)).save(content, format=rng.choice(formats))
    except (OSError, ValueError):  # not every mode becomes every other, or every kind of file
        return mutate_bytes(rng, png)
    return content.getvalue()


# Zip -------------------------------------------------------------------------------------------


def mutate_zip(
    rng: random.Random,
    archive: bytes,
    names: Sequence[str],
    mutate_entry: Callable[[random.Random, bytes], bytes],
) -> bytes:
    """Damage the bytes of a zip archive, or its names, flags, sizes and the contents of its files.

    Args:
        rng: random numbers.
        archive: the archive.
        names: others for its files.
        mutate_entry: damages the content of a file.
    """
    if rng.random() < 0.3:
        return mutate_bytes(rng, archive)
    with zipfile.ZipFile(BytesIO(archive)) as source:
        entries = [(info.filename, source.read(info)) for info in source.infolist()]
    at = rng.randrange(len(entries))
    name, content = entries[at]
    action = rng.randrange(6)
    if action == 0:
        entries[at] = rng.choice((*names, f"{name} ", name.upper(), f"a/{name}")), content
    elif action == 1:
        del entries[at]
    elif action == 2:
        entries.insert(rng.randrange(len(entries)), (rng.choice((name, *names)), content))
    elif action == 3:
        entries[at] = name, mutate_entry(rng, content)
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as target:
        for entry, data in entries:
            info = zipfile.ZipInfo(entry)
            info.compress_type = zipfile.ZIP_DEFLATED
            if action == 4 and data is content:
                info.external_attr = rng.choice((0o120777, 0o040755, 0o010644)) << 16
                info.extra = rng.choice((b"", rng.randbytes(8), b"\x01\x00\x08\x00" + bytes(8)))
                info.compress_type = rng.choice((0, 8, 12, 14))
            if action == 5 and data is content:
                data = bytes(rng.choice((100 * 2**20, 2**20)))
            target.writestr(info, data)
    result = bytearray(packed.getvalue())
    if action == 4:
        # Flags, method, check sum and sizes of the central directory are the reader's to doubt.
        place = result.index(b"PK\x01\x02") + rng.choice((8, 10, 16, 20, 24, 42))
        result[place : place + 2] = struct.pack("<H", rng.choice((1, 0x800, 99, 0xFFFF)))
    return bytes(result)
