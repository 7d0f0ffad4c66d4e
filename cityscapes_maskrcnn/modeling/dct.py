"""Masks as vectors: the lowest frequencies of their two-dimensional discrete cosine transform."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dct_matrix(size: int, dim: int) -> Tensor:
    """Build the matrix that encodes square masks, and whose transpose decodes them.

    The transform is the orthonormal DCT-II, as ``scipy.fft.dctn(mask, norm="ortho")`` computes it;
    its coefficients are taken diagonal by diagonal in the zigzag of JPEG, lowest frequencies first.
    The rows are orthonormal: encoding what was decoded changes nothing, and decoding what was
    encoded is the nearest mask that the vectors can express.

    Args:
        size: height and width of the masks.
        dim: number of coefficients, at most ``size`` squared. The first one is ``size`` times the
            mean of the mask.

    Returns:
        Float32 of shape (dim, size * size), for masks in row-major order.
    """
    frequency = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi / size * frequency[:, None] * (frequency + 0.5))
    basis *= torch.where(frequency == 0, 1.0, math.sqrt(2)).div(math.sqrt(size))[:, None]
    cells = [(row, column) for row in range(size) for column in range(size)]
    # Odd diagonals run down, even ones up.
    cells.sort(key=lambda cell: (sum(cell), cell[sum(cell) % 2 == 0]))
    rows, columns = torch.tensor(cells[:dim]).unbind(1)
    return (basis[rows, :, None] * basis[columns, None, :]).flatten(1).float()


def split_patches(masks: Tensor, size: int) -> Tensor:
    """Split masks into square patches.

    Args:
        masks: (N, M, M), M a multiple of ``size``.
        size: height and width of a patch.

    Returns:
        Shape (N, M / size, M / size, size * size): row and column of the patch, then its pixels in
        row-major order.
    """
    cells = masks.shape[-1] // size
    return masks.view(-1, cells, size, cells, size).transpose(2, 3).flatten(3)


def join_patches(patches: Tensor, size: int) -> Tensor:
    """Join what :func:`split_patches` gives; (N, K, K, size * size) becomes (N, M, M)."""
    cells = patches.shape[1]
    rows = patches.unflatten(3, (size, size)).transpose(2, 3)
    return rows.reshape(-1, cells * size, cells * size)
