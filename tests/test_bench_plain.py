"""This package's algorithm in plain PyTorch, which the benchmarks compare with: it gives the package's answer."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import mi_pruner
from bench import cases
from bench.baselines import plain

MODES = [
    {},
    {"marginal": "prior", "redundancy": "chain"},
    {"redundancy": "chain", "redundancy_weight": 2.0},
    {"redundancy": "max", "redundancy_weight": 0.5},
    {"redundancy": "none"},
    {"redundancy_weight": 0.0},
    {"bandwidth": 0.3, "visual_bandwidth": 0.4},
]


def reference(visual, text, keep, **options):
    with mi_pruner.backend("reference"):
        return mi_pruner.prune(visual, text, keep, **options)


def features(tokens=75, keep=17, width=48, text=5, batch=2, dtype=torch.float64):
    """Random rows: in float64 no two gains are near enough to change places by rounding."""
    given = cases.inputs(cases.Case("test", tokens, keep, width, text, batch, dtype), seed=1)[0]
    return given.visual, given.text, keep


def assert_same(ours, theirs, tolerance=1e-9):
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("prune", [plain.prune, plain.prune_symmetric], ids=["full", "symmetric"])
@pytest.mark.parametrize("options", MODES, ids=str)
def test_plain_gives_the_reference_answer(prune, options):
    inputs = features()
    assert_same(prune(*inputs, **options), reference(*inputs, **options))


@pytest.mark.parametrize("options", MODES, ids=str)
def test_plain_with_priors_and_more_slots_than_tokens(options):
    visual, text, _ = features()
    visual_prior = torch.rand(2, 75, dtype=torch.float64)
    visual_prior[0, 10:] = 0
    visual_prior[1, 3] = torch.nan
    text_prior = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]], dtype=torch.bool)
    options = {"visual_prior": visual_prior, "text_prior": text_prior, **options}
    assert_same(plain.prune(visual, text, 17, **options), reference(visual, text, 17, **options))


def test_triangle_of_many_bands():
    visual, text, keep = features(tokens=2 * plain.CPU_TRIANGLE_BAND + 31)
    assert_same(plain.prune_symmetric(visual, text, keep), reference(visual, text, keep))


@pytest.mark.slow
@pytest.mark.parametrize("redundancy", ["mean", "max"])
def test_compiled_twin(redundancy):
    visual, text, keep = features(tokens=41, batch=1)
    assert keep % plain.STEPS, "the last compiled call must run past keep"
    assert_same(
        plain.prune_compiled(visual, text, keep, redundancy=redundancy),
        reference(visual, text, keep, redundancy=redundancy),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_plain_accumulates_in_float32(dtype):
    visual, text, keep = features(dtype=dtype)
    gains = plain.prune(visual, text, keep)[2]
    exact = reference(visual.double(), text.double(), keep)[2]
    assert gains.dtype == torch.float32
    torch.testing.assert_close(gains.sort()[0].double(), exact.sort()[0], rtol=1e-3, atol=1e-5)


def test_plain_depends_on_no_value():
    """Under fake tensors any look at a value raises: no sync, so a CUDA graph can capture the call."""
    with FakeTensorMode():
        tokens, indices, gains = plain.prune(torch.empty(2, 300, 8), torch.empty(2, 3, 8), 7)
    assert tokens.shape == (2, 7, 8)
    assert indices.shape == gains.shape == (2, 7)
