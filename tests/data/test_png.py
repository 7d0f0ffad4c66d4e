"""The quick PNG reader against Pillow, over all filters and damages."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cityscapes_maskrcnn.data.png import decode_rows, inflate_grey, occupied_rows


def encode(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


def filtered(pixels: np.ndarray, kinds: np.ndarray) -> bytes:
    """A PNG whose rows have the filters 0 (none), 1 (left), 2 (above), 3 (mean) or 4 (Paeth)."""
    height, width = pixels.shape
    padded = np.zeros((height + 1, width + 1), dtype=np.int64)
    padded[1:, 1:] = pixels
    here, left, above, corner = padded[1:, 1:], padded[1:, :-1], padded[:-1, 1:], padded[:-1, :-1]
    distances = np.abs([above - corner, left - corner, left + above - 2 * corner])
    paeth = np.choose(distances.argmin(axis=0), [left, above, corner])
    guesses = np.array([np.zeros_like(here), left, above, (left + above) // 2, paeth])
    rows = (here - guesses[kinds, np.arange(height)]) % 256
    raw = np.concatenate([kinds[:, None], rows], axis=1).astype(np.uint8).tobytes()
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def test_same_pixels_as_pillow() -> None:
    random = np.random.default_rng(0)
    for trial in range(300):
        height, width = random.integers(1, 20, size=2).tolist()
        pixels = np.zeros((height, width), dtype=np.uint8)
        rows = slice(*sorted(random.integers(0, height + 1, size=2).tolist()))
        # Stripes down to the last row: the filter "above" stores them as rows of zeros.
        pixels[rows] = random.choice([0, 255, 7], size=width) if trial % 2 else 255
        pixels[rows][random.random(pixels[rows].shape) < random.choice([0, 0.3])] = 0
        data = filtered(pixels, random.integers(0, 5, size=height))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
        png = inflate_grey(data)
        assert png is not None
        np.testing.assert_array_equal(decode_rows(png, 0, height), pixels)
        first, occupied = occupied_rows(png)
        rebuilt = np.zeros_like(pixels)
        rebuilt[first : first + len(occupied)] = occupied
        np.testing.assert_array_equal(rebuilt, pixels)


def test_sixteen_bits() -> None:
    pixels = np.random.default_rng(0).integers(0, 2**16, size=(9, 7)).astype(np.uint16)
    png = inflate_grey(encode(pixels))
    assert png is not None
    decoded = decode_rows(png, 0, 9)
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, pixels)


def test_other_kinds_are_left_to_others() -> None:
    grey = np.zeros((4, 4), dtype=np.uint8)
    assert inflate_grey(encode(np.zeros((4, 4, 3), dtype=np.uint8))) is None
    assert inflate_grey(encode(grey.astype(bool))) is None  # 1 bit
    palette = io.BytesIO()
    Image.fromarray(grey).convert("P").save(palette, "PNG")
    assert inflate_grey(palette.getvalue()) is None
    assert inflate_grey(b"") is None
    assert inflate_grey(b"\xff\xd8 a photograph") is None


def test_no_damage_goes_unnoticed() -> None:
    pixels = (np.random.default_rng(0).random((20, 30)) < 0.3).astype(np.uint8) * 255
    data = encode(pixels)
    for length in range(33, len(data)):
        with pytest.raises(ValueError, match=r".+"):
            inflate_grey(data[:length])
    start = data.index(b"IDAT")
    for position in range(start + 4, len(data) - 12):
        damaged = bytearray(data)
        damaged[position] ^= 4
        with pytest.raises(ValueError, match="check sum"):
            inflate_grey(bytes(damaged))


def test_unknown_filter() -> None:
    data = filtered(np.ones((3, 3), dtype=np.uint8), np.zeros(3, dtype=np.int64))
    png = inflate_grey(data)
    assert png is not None
    rows = png.rows.copy()
    rows[1, 0] = 9
    with pytest.raises(ValueError, match="unknown filter"):
        decode_rows(png._replace(rows=rows), 0, 3)


def test_more_pixels_than_announced_are_not_inflated() -> None:
    """A file of 200 kB that inflates to 200 MB, with the header of a small image."""
    header = struct.pack(">IIBBBBB", 30, 20, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(200_000_000), 9)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    )
    tracemalloc.start()
    with pytest.raises(ValueError, match="another number of bytes"):
        inflate_grey(data)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
