"""PNG files of one grey channel, decoded quickly.

Nearly all time of decoding a mask goes into inflating long runs of zeros, at which the zlib inside
of Pillow and OpenCV is ten times slower than zlib-ng. So the bytes are inflated by zlib-ng, and
what is left, undoing the filters of the rows, is OpenCV's work: it gets the rows as a PNG without
compression.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from zlib_ng import zlib_ng

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_MOST_PIXELS: Final = 2**27  # 64 times a Cityscapes image; a forged header may ask for any memory


class GreyPng(NamedTuple):
    """A PNG file with one grey channel, inflated.

    Attributes:
        depth: bits a pixel, 8 or 16.
        width: pixels.
        rows: shape (height, 1 + width * depth / 8), dtype uint8: every row's filter and bytes.
    """

    depth: int
    width: int
    rows: npt.NDArray[np.uint8]


def inflate_grey(data: bytes) -> GreyPng | None:
    """Inflate the pixels of a PNG file.

    Args:
        data: the file's bytes.

    Returns:
        Its rows; None if it is a PNG of another kind (colours, a palette, interlaced, other depths)
        or no PNG at all.

    Raises:
        ValueError: the file is truncated, damaged or absurdly large.
    """
    if data[:8] != _SIGNATURE or data[12:16] != b"IHDR" or len(data) < 33:
        return None
    width, height, depth, colour, *_, interlace = struct.unpack(">IIBBBBB", data[16:29])
    if colour or interlace or depth not in (8, 16):
        return None
    if width * height > _MOST_PIXELS:
        raise ValueError(f"it claims to have {width} x {height} pixels")
    parts = []
    position, kind = 8, b""
    while kind != b"IEND":
        if position + 12 > len(data):
            raise ValueError("it is truncated")
        (length,) = struct.unpack(">I", data[position : position + 4])
        kind, end = data[position + 4 : position + 8], position + 8 + length
        if kind in (b"IHDR", b"IDAT"):
            if data[end : end + 4] != struct.pack(">I", zlib.crc32(data[position + 4 : end])):
                raise ValueError("its check sum is wrong")
            if kind == b"IDAT":
                parts.append(data[position + 8 : end])
        position = end + 4
    row_bytes = 1 + width * depth // 8
    inflater = zlib_ng.decompressobj()
    try:
        # A byte more than there should be shows that there is more, without inflating all of it;
        # and the buffer is not made anew as in zlib_ng.decompress, which takes five times as long.
        raw = inflater.decompress(b"".join(parts), height * row_bytes + 1)
    except zlib_ng.error as error:  # type: ignore[misc]
        raise ValueError(str(error)) from error
    if len(raw) != height * row_bytes or not inflater.eof:
        raise ValueError("it holds another number of bytes than its size asks for")
    return GreyPng(depth, width, np.frombuffer(raw, np.uint8).reshape(height, row_bytes))


def decode_rows(png: GreyPng, first: int, last: int) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Decode some rows; those before have to be zero, since filters refer to the row before.

    Args:
        png: see :func:`inflate_grey`.
        first: row to begin with.
        last: row to end before.

    Returns:
        Shape (last - first, width), dtype uint8 or uint16.

    Raises:
        ValueError: a row has an unknown filter.
    """
    rows = png.rows[first:last]
    header = struct.pack(">IIBBBBB", png.width, len(rows), png.depth, 0, 0, 0, 0)
    pixels = zlib_ng.compress(rows.tobytes(), 0)
    plain = b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        # The same sum as zlib-ng's own, which is quicker.
        + struct.pack(">I", zlib_ng.crc32(kind + content))
        for kind, content in [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    )
    image = cv2.imdecode(np.frombuffer(_SIGNATURE + plain, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError("a row has an unknown filter")
    return image


def occupied_rows(png: GreyPng) -> tuple[int, npt.NDArray[np.unsignedinteger[Any]]]:
    """Decode the part of an image that is not all zero.

    Args:
        png: see :func:`inflate_grey`.

    Returns:
        Index of the first row that is not zero, and the pixels from there to the last one (or a
        little further); no rows if all are zero.

    Raises:
        ValueError: a row has an unknown filter.
    """
    # Up to the first bytes that are not zero every filter gives zero.
    stored = np.flatnonzero(png.rows[:, 1:].any(axis=1))
    if not len(stored):
        return 0, np.zeros((0, png.width), dtype=np.uint8)
    first, end = int(stored[0]), min(int(stored[-1]) + 2, len(png.rows))
    pixels = decode_rows(png, first, end)
    if end < len(png.rows) and pixels[-1].any():
        # Rows of zeros may repeat the row before; after a row of zeros they cannot.
        pixels = decode_rows(png, first, len(png.rows))
    return first, pixels
