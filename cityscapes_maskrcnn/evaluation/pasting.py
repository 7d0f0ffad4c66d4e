"""Masks of a network pasted into their boxes, pixel for pixel as Detectron2 does it, as runs.

A mask head gives M x M probabilities over a box. Detectron2's ``paste_masks_in_image`` interpolates
them at every pixel of the image and compares with 0.5. The comparison can only change where two
neighbouring probabilities lie on different sides of 0.5, so here the outline is traced instead: in
every column of pixels, between the M rows of the mask, the interpolated value is a straight line,
and where it crosses 0.5 a run of pixels begins or ends.

Detectron2 computes in float32, where the last bits decide which side a pixel falls on that is
almost exactly 0.5. Such pixels, one in some ten thousand, are computed as the function does that
Detectron2 calls, ``torch.nn.functional.grid_sample`` on the CPU, rounding for rounding.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.evaluation.masks import IntArray, RunMask
from cityscapes_maskrcnn.utils.errors import InputError

THRESHOLD: Final = 0.5
# Bound of the error of an interpolated probability, in units of M: about ten roundings in each
# direction (2^-24 each, in coordinates from -1 to 1), twice, because both sides round, and doubled.
_ROUNDING: Final = 4e-6
# Pixels that are interpolated at once.
_CHUNK: Final = 2**18

FloatArray = npt.NDArray[np.float32]


def paste_masks(
    probabilities: FloatArray, boxes: FloatArray, height: int, width: int
) -> list[RunMask]:
    """Paste the masks of one image.

    Args:
        probabilities: shape (N, M, M), dtype float32: what the mask head gives over each box.
        boxes: shape (N, 4), dtype float32: (x0, y0, x1, y1) in pixels of the image, (0, 0) being
            the upper left corner of the first pixel. They may reach out of the image.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        The N masks. Those of boxes without area are empty.

    Raises:
        InputError: a probability or a box is NaN or infinite.
    """
    if not (np.isfinite(probabilities).all() and np.isfinite(boxes).all()):
        raise InputError("the model predicts NaN or infinite boxes or masks; training diverged")
    # Every frame gets a position that is outside, so that no run goes on in the next frame.
    stride = height * width + 1
    edges, doubtful = _trace(probabilities, boxes, height, width)
    mask, position = np.divmod(doubtful, stride)
    column, row = np.divmod(position, height)
    inside = _sample(probabilities, boxes, mask, column, row) >= THRESHOLD
    # Pixels before which an odd number of edges lies are inside.
    was_inside = np.searchsorted(edges, doubtful, side="right") % 2 == 1
    flips = doubtful[inside != was_inside]
    edges = _odd(np.concatenate([edges, flips, flips + 1]))
    starts, ends = edges[0::2], edges[1::2]
    limits = np.searchsorted(starts, np.arange(len(boxes) + 1) * stride)
    return [
        RunMask(
            starts=starts[first:last] - index * stride,
            ends=ends[first:last] - index * stride,
            height=height,
            width=width,
        )
        for index, (first, last) in enumerate(pairwise(limits.tolist()))
    ]


def _trace(
    probabilities: FloatArray, boxes: FloatArray, height: int, width: int
) -> tuple[IntArray, IntArray]:
    """Find where the masks' columns enter and leave, and which pixels are too close to tell.

    Returns:
        The positions, each ``mask * (height * width + 1) + column * height + row``, ascending, of
        the edges (the first pixels inside and the first ones outside again) and of the pixels.
    """
    size = probabilities.shape[1]
    tolerance = _ROUNDING * size * max(1.0, float(np.abs(probabilities).max(initial=0)))
    has_area = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    # Detectron2 looks at the pixels of this window only.
    limits = [width, height, width, height]
    x0, y0, x1, y1 = (
        np.clip(edge, 0, limit).astype(np.int64)
        for edge, limit in zip(
            [*(np.floor(boxes[:, :2]) - 1).T, *(np.ceil(boxes[:, 2:]) + 1).T], limits, strict=True
        )
    )
    num_columns = np.where(has_area, np.maximum(x1 - x0, 0), 0)
    mask = np.repeat(np.arange(len(boxes)), num_columns)
    x = np.arange(len(mask)) - np.repeat(np.cumsum(num_columns) - num_columns - x0, num_columns)

    # Interpolate between the columns of the mask, in a border of zeros, at every column of pixels.
    padded = np.zeros((len(boxes), size + 2, size + 2), dtype=np.float32)
    padded[:, 1:-1, 1:-1] = probabilities.swapaxes(1, 2)
    at = (_grid(x, boxes[mask, 0], boxes[mask, 2]) + 1) * np.float32(size / 2) - np.float32(0.5)
    at = np.clip(at, -1, size)
    left = np.minimum(np.floor(at), size - 1)
    lines, line = padded.reshape(-1, size + 2), mask * (size + 2) + left.astype(np.int64) + 1
    nodes = lines.take(line, axis=0)
    nodes += (lines.take(line + 1, axis=0) - nodes) * (at - left)[:, None]

    # Row r of the mask, from -1 to M, has its centre at the image's row (r + 0.5) * scale + top.
    scale = (boxes[:, 3].astype(np.float64) - boxes[:, 1])[mask] / size
    top = boxes[mask, 1].astype(np.float64) - 0.5
    first, last = y0[mask], y1[mask]
    offset = mask * (height * width + 1) + x * height
    # One array for all columns, which is quicker; they begin and end outside, with a zero.
    values = nodes.ravel()
    is_inside = values >= THRESHOLD
    crossed = np.flatnonzero(is_inside[1:] != is_inside[:-1])
    column, band = np.divmod(crossed, size + 2)
    above = values[crossed].astype(np.float64)
    slope = values[crossed + 1] - above
    crossing = (band - 0.5 + (THRESHOLD - above) / slope) * scale[column] + top[column]
    row = np.clip(np.ceil(crossing), first[column], last[column]).astype(np.int64)
    edges = _odd(offset[column] + row)

    # Pixels whose value may be on either side: beside a crossing, and where a whole stretch
    # between two rows of the mask, though not crossing, comes close.
    margin = (np.minimum(tolerance / np.abs(slope), 1) + tolerance) * scale[column]
    close = np.flatnonzero(np.abs(values - np.float32(THRESHOLD)) <= 2 * tolerance)
    close_column, close_node = np.divmod(close, size + 2)
    centre = (close_node - 0.5) * scale[close_column] + top[close_column]
    reach = (1 + tolerance) * scale[close_column]
    near = np.concatenate([column, close_column])
    low = np.ceil(np.concatenate([crossing - margin, centre - reach]))
    high = np.floor(np.concatenate([crossing + margin, centre + reach])) + 1
    low = np.clip(low, first[near], last[near]).astype(np.int64)
    high = np.clip(high, first[near], last[near]).astype(np.int64)
    count = np.maximum(high - low, 0)
    rows = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count - low, count)
    return edges, np.unique(np.repeat(offset[near], count) + rows)


def _grid(pixels: npt.NDArray[Any], begin: FloatArray, end: FloatArray) -> FloatArray:
    """Where pixels lie in their boxes, from -1 to 1, in the order of Detectron2's operations."""
    centres = pixels.astype(np.float32) + np.float32(0.5)
    # A box may be so narrow that a pixel beside it is infinitely far away.
    with np.errstate(over="ignore"):
        grid: FloatArray = (centres - begin) / (end - begin) * np.float32(2) - np.float32(1)
    return grid


def _sample(
    probabilities: FloatArray, boxes: FloatArray, mask: IntArray, column: IntArray, row: IntArray
) -> FloatArray:
    """Interpolate as Detectron2 does at single pixels; masks (ascending), columns and rows."""
    values = np.empty(len(mask), dtype=np.float32)
    # An untrained mask head gives 0.5 nearly everywhere, so that there are millions of pixels.
    for begin in range(0, len(mask), _CHUNK):
        chunk = slice(begin, begin + _CHUNK)
        index = mask[chunk]
        values[chunk] = grid_sample(
            probabilities,
            index,
            _grid(column[chunk], boxes[index, 0], boxes[index, 2]),
            _grid(row[chunk], boxes[index, 1], boxes[index, 3]),
        )
    return values


def grid_sample(
    maps: FloatArray, index: IntArray, grid_x: FloatArray, grid_y: FloatArray
) -> FloatArray:
    """Interpolate as ``torch.nn.functional.grid_sample``, ``align_corners=False``, on the CPU.

    The results are bit-equal to those of torch's kernels for AVX2 and AVX-512, in which four sums
    of products are rounded once (fused multiply-add).

    Args:
        maps: shape (N, M, M), float32; zero outside.
        index: which of the maps, (P,) of P points.
        grid_x: (P,), float32, from -1 at the left edge to 1 at the right one.
        grid_y: (P,), from the upper edge to the lower one.

    Returns:
        Shape (P,), float32.

    Source: ``aten/src/ATen/native/cpu/GridSamplerKernel.cpp`` of PyTorch.
    """
    size = maps.shape[1]
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1)))
    half, one = np.float32(size / 2), np.float32(1)
    x, y = (_fused(each + one, half, np.float32(-0.5)) for each in (grid_x, grid_y))
    left, top = np.floor(x), np.floor(y)
    # A point may be infinitely far away. It gets NaN, as in torch.
    with np.errstate(invalid="ignore"):
        west, north = x - left, y - top
        east, south = one - west, one - north
        x0, x1, y0, y1 = (
            np.nan_to_num(np.clip(each, -1, size), nan=-1).astype(np.int64) + 1
            for each in (left, left + one, top, top + one)
        )
        value = padded[index, y0, x0] * (east * south)
        value = _fused(padded[index, y0, x1], west * south, value)
        value = _fused(padded[index, y1, x0], east * north, value)
        return _fused(padded[index, y1, x1], west * north, value)


def _fused(factor: FloatArray, other: Any, summand: Any) -> FloatArray:
    """Multiply and add float32 with one rounding: the product of two is exact in float64."""
    total: npt.NDArray[np.float64] = factor.astype(np.float64) * other + summand
    return total.astype(np.float32)


def _odd(positions: IntArray) -> IntArray:
    """Keep, sorted, the positions that appear an odd number of times: two edges cancel."""
    values, counts = np.unique(positions, return_counts=True)
    odd: IntArray = values[counts % 2 == 1]
    return odd
