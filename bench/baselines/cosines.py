"""What the baselines share: unit rows, and a row per sample out of a matrix per sample."""

import torch
from torch import Tensor


def unit(x: Tensor) -> Tensor:
    """(..., D) -> rows of norm 1 (a zero row stays zero), float32 (float64 for float64)."""
    return torch.nn.functional.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def similarity(visual: Tensor) -> Tensor:
    """(B, N, D) -> cosines of all pairs (B, N, N)."""
    rows = unit(visual)
    return rows @ rows.mT


def row(matrix: Tensor, index: Tensor) -> Tensor:
    """matrix (B, N, N), index (B,) -> matrix[b, index[b]] (B, N)."""
    return matrix.gather(1, index[:, None, None].expand(-1, 1, matrix.shape[2])).squeeze(1)
