"""What the baselines share: cosines as a rescaled product (no normalised copy of the features), rows of matrices."""

import torch
from torch import Tensor


def accumulator(x: Tensor) -> torch.dtype:
    """float32, float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def accumulable(x: Tensor) -> Tensor:
    """Half types as they are where the product can accumulate in float32 (CUDA), else float32."""
    return x if x.is_cuda else x.to(accumulator(x))


def product(a: Tensor, b: Tensor) -> Tensor:
    """(B, n, D), (B, m, D), both `accumulable` -> inner products (B, n, m) in the accumulation type."""
    if a.dtype == accumulator(a):
        return torch.bmm(a, b.mT)
    return torch.bmm(a, b.mT, out_dtype=torch.float32)


def inverse_norms(x: Tensor) -> Tensor:
    """(B, n, D) -> 1 / norm (B, n), 0 for a zero vector."""
    norms = torch.linalg.vector_norm(x, dim=2, dtype=accumulator(x))
    return norms.reciprocal().masked_fill(norms == 0, 0)


def cosines(visual: Tensor, text: Tensor, inverse: Tensor) -> Tensor:
    """(B, N, D), (B, M, D), both `accumulable`, the inverse norms of the first (B, N) -> cosines (B, N, M)."""
    return product(visual, text).mul_(inverse[:, :, None]).mul_(inverse_norms(text)[:, None, :])


def similarity(visual: Tensor, inverse: Tensor | None = None) -> Tensor:
    """(B, N, D), its inverse norms (B, N) if they are known -> cosines of all pairs (B, N, N)."""
    visual = accumulable(visual)
    scale = inverse_norms(visual) if inverse is None else inverse
    return product(visual, visual).mul_(scale[:, :, None]).mul_(scale[:, None, :])


def row(matrix: Tensor, index: Tensor) -> Tensor:
    """matrix (B, N, N) contiguous, index (B,) -> matrix[b, index[b]] (B, N)."""
    batch, count, _ = matrix.shape
    if batch > 1:
        index = index + torch.arange(0, batch * count, count, device=index.device)
    return matrix.flatten(0, 1).index_select(0, index)


def rows(features: Tensor, indices: Tensor) -> Tensor:
    """(B, N, D), (B, K) -> the rows of each sample (B, K, D)."""
    batch, count, width = features.shape
    first_row = torch.arange(0, batch * count, count, device=indices.device)[:, None]
    return features.flatten(0, 1).index_select(0, (indices + first_row).flatten()).view(batch, -1, width)
