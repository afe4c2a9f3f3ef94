"""The Triton kernels against the reference, on a GPU or, with TRITON_INTERPRET=1, in the interpreter on CPU tensors."""

from __future__ import annotations

import math
import weakref

import pytest
import torch

import mi_pruner
from mi_pruner._dispatch import BACKENDS

from . import inputs
from .test_backends import batch_of, check_scores, check_selection
from .test_invariances import check_batch_invariance
from .test_packed import OTHER_IN_FLOAT32, check_counts_of_ratios

pytest.importorskip("triton", reason="triton is not installed")
if not (inputs.INTERPRETED or torch.cuda.is_available()):
    pytest.skip("no GPU; `make test` runs these on CPU tensors with TRITON_INTERPRET=1", allow_module_level=True)

from mi_pruner.triton_kernels import greedy_in_chunks, launches, long_launches, tiles

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 1, 1, 1), (2, 5, 3, 7), (2, 140, 70, 33))  # B, N, M, D: the last spans tiles of every kernel


@pytest.fixture
def device():
    """Runs the test on the Triton kernels; where their tensors live."""
    with mi_pruner.backend("triton"):
        yield BACKENDS["triton"].device


@pytest.mark.parametrize("marginal", inputs.MARGINALS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scores_err_no_more_than_rounding(shape, dtype, marginal, device):
    settings = ((None, None), ("odd", None), ("float", 0.2))
    if inputs.INTERPRETED and shape == SHAPES[-1]:  # one of them with each dtype
        settings = (settings[DTYPES.index(dtype)],)
    for prior, bandwidth in settings:
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


@pytest.fixture(params=["gram", "long"])
def path(request, monkeypatch, small_chunks):
    """Which path selections take, whatever the number of tokens."""
    monkeypatch.setattr(tiles, "GRAM_TOKENS", 10**9 if request.param == "gram" else 0)
    return request.param


@pytest.fixture
def small_chunks(monkeypatch):
    """Steps in chunks of 128 tokens: samples of a few tiles have several, and the interpreter less work."""
    monkeypatch.setattr(greedy_in_chunks, "STEP_CHUNK", 128)


def exact_features(n, m, d, seed=0):
    """Small integers: their products are exact in any order, so that only what is done with them can differ."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(-8, 9, (2, count, d), generator=g).float() for count in (n, m)]


def of_each_path(monkeypatch, call):
    """What `call` returns on the Gram path and on that of long samples."""
    results = []
    for limit in (10**9, 0):
        monkeypatch.setattr(tiles, "GRAM_TOKENS", limit)
        results.append(call())
    return results


def check_same_bits(outputs):
    for a, b in zip(*outputs, strict=True):
        assert inputs.same_bits(a, b)


@pytest.mark.parametrize("redundancy", ["mean", "chain", "max"])
def test_a_sample_gives_the_same_bits_alone_in_a_batch_and_packed(redundancy, path, device):
    many = [inputs.make_sample("duplicates", 30, 5, 40, torch.float32, seed, "float") for seed in range(2)]
    check_batch_invariance([s.to(device) for s in many], 9, redundancy=redundancy, min_gain=-0.5)


@pytest.mark.parametrize("redundancy", ["mean", "chain", "max"])
def test_both_paths_give_the_same_bits(redundancy, device, monkeypatch, small_chunks):
    """160 tokens are two tiles of rows, and two chunks."""
    visual, text = (x.to(device) for x in exact_features(160, 3, 16))
    prior = torch.rand(2, 160, generator=torch.Generator().manual_seed(1)).round(decimals=1).to(device)
    options = {"visual_prior": prior, "redundancy": redundancy, "redundancy_weight": 3.0, "min_gain": -0.02}
    check_same_bits(of_each_path(monkeypatch, lambda: mi_pruner.prune(visual, text, 80, **options)))


def test_one_table_of_all_pairs_lives_at_a_time(device, monkeypatch):
    """Of the longest sample's size, whatever the batch."""
    monkeypatch.setattr(tiles, "GRAM_TOKENS", 0)
    tables = []

    def watched(*arguments):
        assert all(table() is None for table in tables)
        found = launches.similarities(*arguments)
        assert found.gram.shape == (40, 48)
        tables.append(weakref.ref(found.gram))
        return found

    monkeypatch.setattr(long_launches, "similarities", watched)
    visual, text = torch.randn(70, 16, device=device), torch.randn(3, 16, device=device)
    cu = [torch.tensor(x, dtype=torch.int32, device=device) for x in ([0, 20, 60, 70], [0, 1, 2, 3], [0, 4, 8, 12])]
    mi_pruner.prune_varlen(visual, text, *cu, 40, 1, 4, 12)
    assert len(tables) == 3


@pytest.mark.usefixtures("_overflows_seen")
@pytest.mark.parametrize("longest", [140, 1000])
def test_packed_samples_of_any_length_and_garbage_in_cu(longest, path, device):
    """Slots and tokens of no sample, an empty sample, more slots than tokens; a bound, and one above all tokens."""
    visual, text = (x[0].to(device) for x in exact_features(150, 12, 10))
    cu_visual, cu_text, cu_keep = (
        torch.tensor(x, dtype=torch.int32, device=device)
        for x in ([3, 140, 140, 100, 149], [1, 6, 6, 9, 50], [2, 12, 15, 15, 900])
    )
    tokens, indices, gains = mi_pruner.prune_varlen(visual, text, cu_visual, cu_text, cu_keep, longest, 9, 12, 30)
    scores = mi_pruner.mi_scores_varlen(visual, text, cu_visual, cu_text, longest, 9)
    assert scores[[0, 1, 2, 149]].tolist() == [0.0] * 4
    for (v, v_end), (t, t_end), (k, k_end) in (
        ((3, 140), (1, 6), (2, 12)), ((140, 149), (9, 12), (15, 24)),
    ):  # fmt: skip
        expected = mi_pruner.prune(visual[None, v:v_end], text[None, t:t_end], k_end - k)
        for flat, dense in zip((tokens, indices, gains), expected, strict=True):
            assert inputs.same_bits(flat[k:k_end], dense[0])
    unused = [0, 1, 12, 13, 14, *range(24, 30)]
    assert (tokens[unused] == 0).all()
    assert (indices[unused] == -1).all()
    assert (gains[unused] == -math.inf).all()


@pytest.mark.parametrize("redundancy", inputs.REDUNDANCIES)
def test_picks_are_nested_and_budgets_are_kept(redundancy, path, device):
    s = inputs.batch([inputs.make_sample("duplicates", 70, 3, 20, torch.float32, seed) for seed in range(2)]).to(device)
    scores = mi_pruner.mi_scores(s.visual, s.text)
    full = mi_pruner.greedy_select(scores, s.visual, 70, redundancy=redundancy)
    assert all(sorted(row.tolist()) == list(range(70)) for row in full[0])
    budget = torch.tensor([25, -3], device=device)
    fewer = mi_pruner.greedy_select(scores, s.visual, 40, redundancy=redundancy, budget=budget)
    for short, whole, empty in zip(fewer, full, (-1, -math.inf), strict=True):
        assert inputs.same_bits(short[0, :25], whole[0, :25])
        assert (short[0, 25:] == empty).all()
        assert (short[1] == empty).all()


@pytest.mark.parametrize("redundancy", inputs.REDUNDANCIES)
def test_a_ratio_is_of_the_valid_tokens(redundancy, path, device):
    """0.58 of 25 is less than 14.5, but not in float32. Tokens of gains below `min_gain` are valid, too."""
    s = inputs.make_sample("separated", 29, 3, 8).to(device)
    s.visual[3:6] = math.nan
    prior = torch.ones(1, 29, device=device).index_fill(1, torch.tensor([9], device=device), 0.0)
    scores = torch.arange(29, device=device).float()[None]
    options = {"visual_prior": prior, "redundancy": redundancy, "ratio": 0.58}
    for min_gain, count in ((None, 14), (19.5, 9)):  # scores of 20 to 28; redundancy is below 1
        indices, _ = mi_pruner.greedy_select(scores, s.visual[None], 29, min_gain=min_gain, **options)
        assert (indices >= 0).sum() == count


@pytest.mark.usefixtures("path")
def test_a_ratio_is_counted_in_float64(device):
    check_counts_of_ratios(OTHER_IN_FLOAT32[:7], device)


@pytest.mark.parametrize("marginal", inputs.MARGINALS)
def test_one_word_is_read_and_no_word_scores_zero(marginal, device):
    check_scores(batch_of((2, 40, 1, 16), torch.float32), device, marginal=marginal)
    s = batch_of((2, 40, 5, 16), torch.float32, "float")
    s.text[0] = math.nan
    s.text_prior[1, 1:] = 0
    check_scores(s, device, marginal=marginal)
    s = s.to(device)
    assert (mi_pruner.mi_scores(s.visual, s.text, **s.priors(), marginal=marginal)[0] == 0).all()


def test_no_tokens_at_all(device):
    visual = torch.randn(3, 8, device=device)
    cu = torch.zeros(3, dtype=torch.int32, device=device)
    none = visual[None][:0]
    assert [x.shape for x in mi_pruner.prune(none, none, 2)] == [(0, 2, 8), (0, 2), (0, 2)]
    tokens, indices, gains = mi_pruner.prune_varlen(visual, visual, cu, cu, cu, 3, 3, 2, 4)
    assert (tokens == 0).all()
    assert indices.tolist() == [-1] * 4
    assert gains.tolist() == [-math.inf] * 4


# ---- the traffic that the kernels' headers state, counted by the interpreter -----------------------------------------
@pytest.fixture
def traffic(device, monkeypatch):
    """Bytes loaded and stored, and flops of products, by kernel."""
    if not inputs.INTERPRETED:
        pytest.skip("the interpreter counts: TRITON_INTERPRET=1")
    from triton.runtime import interpreter

    counts = {}
    current = {}
    builder = type(interpreter.interpreter_builder)

    def add(key, amount):
        current["counts"][key] = current["counts"].get(key, 0) + int(amount)

    def counting(name, count):
        original = getattr(builder, name)

        def wrapper(self, *arguments):
            count(*arguments)
            return original(self, *arguments)

        monkeypatch.setattr(builder, name, wrapper)

    def of_type(pointers):
        return pointers.get_element_ty().primitive_bitwidth // 8

    counting("create_masked_load", lambda p, mask, *_: add("loaded", mask.data.sum() * of_type(p)))
    counting("create_masked_store", lambda p, value, mask, *_: add("stored", mask.data.sum() * of_type(p)))
    counting("create_load", lambda p, *_: add("loaded", p.data.size * of_type(p)))
    counting("create_store", lambda p, *_: add("stored", p.data.size * of_type(p)))
    counting("create_dot", lambda a, b, d, *_: add("flops", 2 * a.data.shape[0] * a.data.shape[1] * b.data.shape[1]))
    call = interpreter.GridExecutor.__call__

    def counted(self, *arguments, **options):
        current["counts"] = counts.setdefault(self.fn.__name__, {"launches": 0})
        current["counts"]["launches"] += 1
        return call(self, *arguments, **options)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", counted)
    return counts


def test_scores_read_the_features_once(traffic, device):
    n, m, d = 256, 64, 128
    visual, text = torch.randn(1, n, d, dtype=torch.bfloat16), torch.randn(1, m, d, dtype=torch.bfloat16)
    mi_pruner.mi_scores(visual, text)
    found = traffic["similarity_kernel"]
    features = 2 * n * d + 2 * (n // 128) * m * d  # visual once, the text once a tile of 128 rows
    assert features <= found["loaded"] <= 1.01 * features
    assert found["flops"] == 2 * n * m * d
    assert 4 * n * m <= found["stored"] <= 1.05 * 4 * n * m
    cosines = traffic["normaliser_kernel"]["loaded"] + traffic["score_kernel"]["loaded"]
    assert 3 * 4 * n * m <= cosines <= 1.35 * 3 * 4 * n * m  # three times; and the norms of a program's tokens


def test_a_step_of_the_gram_path_reads_one_row(traffic, device):
    n, keep = 500, 40
    visual = torch.randn(1, n, 64, dtype=torch.bfloat16)
    mi_pruner.greedy_select(torch.rand(1, n), visual, keep)
    assert traffic["similarity_kernel"]["flops"] == 2 * 512 * 512 * 64
    rows = 4 * n * keep
    assert rows <= traffic["greedy_kernel"]["loaded"] <= rows + 4 * 4 * n + 16 * keep


def test_a_step_in_chunks_moves_twenty_bytes_a_token(traffic, device, monkeypatch, small_chunks):
    monkeypatch.setattr(tiles, "GRAM_TOKENS", 0)
    n, keep = 500, 40
    visual = torch.randn(2, n, 64, dtype=torch.bfloat16)
    mi_pruner.greedy_select(torch.rand(2, n), visual, keep)
    assert traffic["similarity_kernel"]["flops"] == 2 * (2 * 512 * 512 * 64)
    found = traffic["chunked_greedy_kernel"]
    assert {kernel: counts["launches"] for kernel, counts in traffic.items()} == {
        "similarity_kernel": 2, "normaliser_kernel": 2, "chunked_greedy_kernel": 2,
    }  # fmt: skip
    steps = 2 * 20 * n * (keep - 1)
    first = 2 * (20 * n + 8 * n)  # the state before any pick, and the pass for the first
    assert 0 <= found["loaded"] + found["stored"] - steps - first <= 2 * 32 * keep  # of the pick itself
