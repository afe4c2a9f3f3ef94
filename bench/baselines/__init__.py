"""Rival selectors, written anew from the published mathematics: one file each, small, in plain PyTorch.

Every one is `select(visual (B, N, D), text (B, M, D), saliency (B, N), keep) -> indices (B, K) int64` in the order of
selection; what a method does not use, it ignores. Sums are float32 (float64 for float64 features). Where the published
code of a method does not guard against duplicates, normalises over the batch, or returns another number of tokens than
K, so does the function here, and its docstring says so: bench/robustness.py shows the consequences.

`plain.py` is different: this package's own algorithm in plain PyTorch.
"""
