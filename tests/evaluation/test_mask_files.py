"""Masks and instance ids whose header lies."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from cityscapes_maskrcnn.evaluation.mask_files import read_instance_ids, read_mask
from cityscapes_maskrcnn.utils.errors import InputError


def forged_png(width: int, height: int, colour: int) -> bytes:
    """A sound PNG file, but for its size: it has 100 bytes of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    pixels = zlib.compress(bytes(100))
    chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize("colour", [0, 2], ids=["grey", "RGB"])
def test_a_forged_size_is_one_line(tmp_path: Path, colour: int) -> None:
    file = tmp_path / "forged.png"
    file.write_bytes(forged_png(2**31 - 1, 2**31 - 1, colour))
    with pytest.raises(InputError, match=r"forged\.png"):
        read_mask(file, 8, 8)
    with pytest.raises(InputError, match=r"forged\.png"):
        read_instance_ids(file)
