"""The Triton kernels against the reference, on a GPU or, with TRITON_INTERPRET=1, in the interpreter on CPU tensors."""

from __future__ import annotations

import pytest
import torch

import mi_pruner
from mi_pruner._dispatch import BACKENDS

from . import inputs
from .test_backends import batch_of, check_scores, check_selection
from .test_invariances import check_batch_invariance

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 1, 1, 1), (2, 5, 3, 7), (2, 140, 70, 33))  # B, N, M, D: the last spans tiles of every kernel


@pytest.fixture
def device():
    """Runs the test on the Triton kernels; where their tensors live."""
    triton = BACKENDS["triton"]
    if triton.missing is not None:
        pytest.skip(f"{triton.missing}; TRITON_INTERPRET=1 runs the kernels on the CPU")
    if triton.device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU; TRITON_INTERPRET=1 runs the kernels on the CPU")
    with mi_pruner.backend("triton"):
        yield triton.device


@pytest.mark.parametrize("marginal", inputs.MARGINALS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scores_err_no_more_than_rounding(shape, dtype, marginal, device):
    for prior, bandwidth in ((None, None), ("odd", None), ("float", 0.2)):
        check_scores(batch_of(shape, dtype, prior), device, marginal=marginal, bandwidth=bandwidth)


@pytest.mark.parametrize("redundancy", inputs.REDUNDANCIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_picks_are_greedy_and_gains_err_no_more_than_rounding(shape, dtype, redundancy, device):
    check_selection(batch_of(shape, dtype, "odd"), device, min(shape[1], 20), redundancy=redundancy)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_not_finite_or_of_extreme_norm(dtype, device):
    s = batch_of((2, 37, 19, 22), dtype, "float")
    s.visual, s.text = inputs.odd_rows(s.visual, 1), inputs.odd_rows(s.text, 2)
    check_scores(s, device, bandwidth=0.3)
    check_selection(s, device, 37)


@pytest.mark.parametrize("redundancy", ["mean", "none"])
def test_a_sample_gives_the_same_bits_alone_in_a_batch_and_packed(redundancy, device):
    many = [inputs.make_sample("duplicates", 30, 5, 40, torch.float32, seed, "float") for seed in range(3)]
    check_batch_invariance([s.to(device) for s in many], 9, redundancy=redundancy, min_gain=-0.5)
