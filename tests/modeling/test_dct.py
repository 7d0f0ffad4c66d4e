"""Masks as vectors of frequencies, against SciPy's discrete cosine transform."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from cityscapes_maskrcnn.modeling.dct import dct_matrix, join_patches, split_patches


def disc(size: int, radius: float) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return ((x - 3) ** 2 + y**2 < radius**2).astype(np.float64)


def test_the_order_is_jpegs_zigzag() -> None:
    coefficients = dctn(np.random.default_rng(0).normal(size=(8, 8)), norm="ortho")
    mask = torch.from_numpy(idctn(coefficients, norm="ortho")).float()
    zigzag = [(0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (0, 3), (1, 2), (2, 1), (3, 0)]
    expected = [coefficients[cell] for cell in zigzag]
    assert (dct_matrix(8, 10) @ mask.flatten()).tolist() == pytest.approx(expected, abs=1e-5)


def test_300_of_112_are_the_frequencies_below_24() -> None:
    # 24 x 25 / 2 = 300 cells with row + column < 24.
    mask = disc(112, 40)
    matrix = dct_matrix(112, 300)
    vector = matrix @ torch.from_numpy(mask).float().flatten()
    coefficients = dctn(mask, norm="ortho")
    is_kept = np.add.outer(np.arange(112), np.arange(112)) < 24
    assert sorted(vector.tolist()) == pytest.approx(sorted(coefficients[is_kept]), abs=1e-4)
    assert vector[0].item() == pytest.approx(112 * mask.mean(), abs=1e-4)
    decoded = (vector @ matrix).view(112, 112).numpy()
    expected = idctn(np.where(is_kept, coefficients, 0), norm="ortho")
    np.testing.assert_allclose(decoded, expected, atol=1e-5)
    both, either = (decoded > 0.5) & (mask > 0), (decoded > 0.5) | (mask > 0)
    assert both.sum() / either.sum() > 0.98


def test_all_frequencies_decode_to_the_mask() -> None:
    mask = torch.from_numpy(disc(8, 3)).float().flatten()
    matrix = dct_matrix(8, 64)
    torch.testing.assert_close(mask @ matrix.T @ matrix, mask)


def test_patches() -> None:
    mask = torch.arange(16.0).view(1, 4, 4)
    patches = split_patches(mask, 2)
    assert patches.shape == (1, 2, 2, 4)
    assert patches[0, 0, 1].tolist() == [2, 3, 6, 7]
    assert patches[0, 1, 0].tolist() == [8, 9, 12, 13]
    assert torch.equal(join_patches(patches, 2), mask)
    assert join_patches(split_patches(torch.zeros(0, 4, 4), 2), 2).shape == (0, 4, 4)
