"""What only a GPU can show, on each of its backends: real sizes, the same bits run to run and in any batch, no
synchronisation, CUDA graphs, other streams, torch.compile, memory. The suite's other tests run there, too:
MI_PRUNER_TEST_BACKENDS=triton pytest (bench/gpu_check.sh does both)."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch

import mi_pruner
from mi_pruner._dispatch import BACKENDS

from . import inputs, oracle
from .test_backends import batch_of, check_selection
from .test_invariances import check_batch_invariance

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() or inputs.INTERPRETED, reason="no GPU"),
]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MODELS = {  # B, N, M, D, K
    "LLaVA-1.5": (2, 576, 32, 4096, 64),
    "LLaVA-NeXT": (1, 2880, 77, 4096, 320),
    "Qwen2.5-VL": (1, 5000, 33, 3584, 500),
    "odd": (3, 123, 5, 123, 60),
    "one": (1, 1, 1, 1, 1),
}


@pytest.fixture(params=("triton", "cuda"))
def gpu(request):
    """The name of a GPU backend, which runs every operator called in the test."""
    with inputs.running(request.param):
        yield request.param


def clustered(shape, dtype, seed=0):
    """visual (B, N, D) in N / 8 clusters and text (B, M, D) near some of them, made on the GPU."""
    b, n, m, d, _ = shape
    g = torch.Generator("cuda").manual_seed(seed)
    centres = torch.randn(b, max(1, n // 8), d, device="cuda", generator=g)
    own = torch.randint(0, centres.shape[1], (b, n), device="cuda", generator=g)
    visual = centres.gather(1, own[..., None].expand(b, n, d))
    visual = visual + 0.5 * torch.randn(b, n, d, device="cuda", generator=g)
    text = visual[:, torch.randint(0, n, (m,), device="cuda", generator=g)]
    text = text + torch.randn(b, m, d, device="cuda", generator=g)
    return visual.to(dtype), text.to(dtype)


def reference(call, *arguments, **options):
    """What the reference computes of the same features in float64, on the CPU, as numpy arrays of the first sample."""
    arguments = [x.double().cpu() if isinstance(x, torch.Tensor) else x for x in arguments]
    with mi_pruner.backend("reference"):
        return call(*arguments, **options)


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_scores_and_picks_at_the_sizes_of_real_models(model, dtype, gpu):
    *_, n, _, _, keep = shape = MODELS[model]
    visual, text = clustered(shape, dtype)
    exact = reference(mi_pruner.mi_scores, visual, text)
    scores = mi_pruner.mi_scores(visual, text)
    deviation = (exact.std() if exact.numel() > 1 else exact.abs().sum()).item()
    assert (scores.cpu() - exact).abs().max().item() <= 1e-4 * max(deviation, 1 / n)
    indices, gains = mi_pruner.greedy_select(scores, visual, keep)
    a, features = scores[0].double().cpu().numpy(), visual[0].double().cpu().numpy()
    valid = oracle.is_valid(features)
    table = oracle.redundancy_table(features)
    picks = indices[0].cpu().numpy(), gains[0].double().cpu().numpy()
    judged = oracle.replay(*picks, a, table, oracle.normalise(None, valid), valid)
    assert judged.picks == keep
    assert judged.error <= 1e-4 * max(abs(table).max(), 1 / n)
    assert judged.regret <= 2e-4 * max(abs(table).max(), 1 / n)
    tokens, ascending, _ = mi_pruner.prune(visual, text, keep)
    assert torch.equal(ascending, indices.sort().values)
    assert torch.equal(tokens, visual.gather(1, ascending[..., None].expand_as(tokens)))


@pytest.mark.parametrize("redundancy", inputs.REDUNDANCIES)
def test_separated_tokens_are_picked_index_for_index(redundancy, gpu):
    s = batch_of((2, 700, 9, 256), torch.float32, kind="separated").to("cuda")
    scores = torch.rand(2, 700, generator=torch.Generator().manual_seed(1)).to("cuda")
    indices, _ = mi_pruner.greedy_select(scores, s.visual, 200, redundancy=redundancy)
    expected, _ = reference(mi_pruner.greedy_select, scores, s.visual, 200, redundancy=redundancy)
    assert torch.equal(indices.cpu(), expected)


@pytest.mark.parametrize("n", [577, 2880, 4500])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_run_to_run_alone_in_a_batch_and_packed(n, dtype, gpu):
    visual, text = clustered((4, n, 33, 1000, 0), dtype)
    prior = torch.rand(4, n, device="cuda").round(decimals=1)
    many = [inputs.Sample(v, t, p, None) for v, t, p in zip(visual, text, prior, strict=True)]
    check_batch_invariance(many, n // 9)
    first, *others = (mi_pruner.prune(visual, text, n // 9, visual_prior=prior) for _ in range(4))
    for run in others:
        assert all(inputs.same_bits(a, b) for a, b in zip(run, first, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_short_sample_packed_with_a_long_one_gives_the_bits_it_gives_alone(dtype, gpu):
    """The long one takes both over another path: rows of log K instead of all (cuda), or steps in chunks (triton)."""
    short, text = clustered((1, 1500, 20, 512, 0), dtype)
    long, _ = clustered((1, 6000, 20, 512, 0), dtype, seed=1)
    cu_visual, cu_text, cu_keep = (inputs.cu_seqlens(x, "cuda") for x in ([1500, 6000], [20, 20], [300, 300]))
    packed = mi_pruner.prune_varlen(
        torch.cat([short[0], long[0]]), torch.cat([text[0]] * 2), cu_visual, cu_text, cu_keep, 6000, 20, 300, 600
    )
    alone = mi_pruner.prune(short, text, 300)
    assert all(inputs.same_bits(flat[:300], dense[0]) for flat, dense in zip(packed, alone, strict=True))


def has_histograms(backend):
    return "histogram_mi_scores" not in BACKENDS[backend].lacks


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_histograms_at_the_sizes_of_real_models(model, dtype, gpu):
    if not has_histograms(gpu):
        pytest.skip(f"backend {gpu!r} has no histogram_mi_scores")
    visual, text = clustered(MODELS[model], dtype)
    scores = mi_pruner.histogram_mi_scores(visual, text)
    some = slice(None, None, max(1, visual.shape[1] // 64))  # a score takes the reference a millisecond a text token
    with mi_pruner.backend("reference"):  # in the same dtype, so with the same counts
        exact = mi_pruner.histogram_mi_scores(visual[:, some].cpu(), text.cpu())
    assert (scores[:, some].cpu() - exact).abs().max().item() <= 1e-5
    assert inputs.same_bits(mi_pruner.histogram_mi_scores(visual[-1:], text[-1:]), scores[-1:])


@contextlib.contextmanager
def synchronisation_is_an_error():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def every_call(visual, text, histograms):
    """All operators, with options that only the device knows."""
    b, n, d = visual.shape
    m, keep = text.shape[1], max(1, n // 9)
    prior = torch.ones(b, n, device=visual.device)
    budget = torch.full((b,), keep - 1, dtype=torch.int32, device=visual.device)
    cu = [torch.arange(b + 1, dtype=torch.int32, device=visual.device) * size for size in (n, m, keep)]
    sizes = (n, m, keep, keep * b)

    def call():
        scores = mi_pruner.mi_scores(visual, text, visual_prior=prior)
        return [
            scores,
            *mi_pruner.greedy_select(scores, visual, keep, budget=budget, min_gain=-1.0),
            *mi_pruner.greedy_select(scores, visual, keep, redundancy="none", ratio=0.1),
            *mi_pruner.prune(visual, text, 0.1, visual_prior=prior),
            *mi_pruner.prune_varlen(visual.reshape(-1, d), text.reshape(-1, d), *cu, *sizes, ratio=0.1),
            *([mi_pruner.histogram_mi_scores(visual, text, visual_prior=prior)] if histograms else []),
        ]

    return call


@pytest.mark.parametrize("n", [576, 4500])
def test_nothing_waits_for_the_device(n, gpu):
    call = every_call(*clustered((2, n, 32, 512, 0), torch.bfloat16), has_histograms(gpu))
    call()
    with synchronisation_is_an_error():
        call()


@pytest.mark.parametrize("n", [576, 4500])
def test_a_cuda_graph_replays_with_other_inputs(n, gpu):
    visual, text = clustered((2, n, 32, 512, 0), torch.bfloat16)
    call = every_call(visual, text, has_histograms(gpu))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for seed in (1, 2):
        for old, new in zip((visual, text), clustered((2, n, 32, 512, 0), torch.bfloat16, seed), strict=True):
            old.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        assert all(inputs.same_bits(a, b) for a, b in zip(captured, call(), strict=True))


def test_calls_on_several_streams_do_not_mix(gpu):
    many = [clustered((1, 700, 9, 256, 0), torch.bfloat16, seed) for seed in range(4)]
    expected = [mi_pruner.prune(visual, text, 100) for visual, text in many]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in many]
    found = []
    for stream, (visual, text) in zip(streams, many, strict=True):
        with torch.cuda.stream(stream):
            found.append(mi_pruner.prune(visual, text, 100))
    torch.cuda.synchronize()
    for one, other in zip(found, expected, strict=True):
        assert all(inputs.same_bits(a, b) for a, b in zip(one, other, strict=True))


def test_compiled_once_for_all_sizes(gpu):
    from torch._dynamo.testing import CompileCounter  # two seconds, for this test alone

    compiled = torch.compile(lambda v, t: mi_pruner.prune(v, t, v.shape[1] // 4), fullgraph=True, dynamic=True)
    counter = CompileCounter()
    counted = torch.compile(
        lambda v, t: mi_pruner.prune(v, t, v.shape[1] // 4), fullgraph=True, dynamic=True, backend=counter
    )
    for n in (576, 729, 1296):
        visual, text = clustered((2, n, 32, 512, 0), torch.bfloat16)
        expected = mi_pruner.prune(visual, text, n // 4)
        for call in (compiled, counted):
            assert all(inputs.same_bits(a, b) for a, b in zip(call(visual, text), expected, strict=True))
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    "shape",
    [(8, 576, 32, 4096, 64), (1, 2880, 32, 4096, 320), (1, 16384, 32, 1024, 512), (2, 8192, 32, 1024, 512)],
    ids=str,
)
def test_memory_is_what_the_documentation_says(shape, gpu):
    """docs/kernels.md: N (M + N) floats a sample up to 4,096 tokens; beyond, N M a sample and N² once. The compiled
    kernels': N (M + 6 K + 512) a sample. 10 % for what is small."""
    b, n, m, _, keep = shape
    visual, text = clustered(shape, torch.bfloat16)
    mi_pruner.prune(visual, text, keep)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    outputs = mi_pruner.prune(visual, text, keep)
    used = torch.cuda.max_memory_allocated() - before - sum(x.nbytes for x in outputs)
    beyond = n * n if gpu == "triton" else b * n * (6 * keep + 512)
    tables = b * n * n if n <= 4096 else beyond
    assert used <= 1.1 * 4 * (b * n * m + tables) + 2**22


def test_indices_beyond_32_bits(gpu):
    """Features of more than 2³¹ elements; the last sample lies beyond."""
    need = 3 * 2**31 * 2
    if torch.cuda.mem_get_info()[0] < need:
        pytest.skip(f"needs {need / 2**30:.0f} GiB of free GPU memory")
    n, d = 2048, 4096
    visual = torch.empty(257, n, d, dtype=torch.bfloat16, device="cuda")
    visual[:-1] = 1
    visual[-1:], text = clustered((1, n, 9, d, 0), torch.bfloat16)
    scores = torch.zeros(257, n, device="cuda")
    scores[-1] = mi_pruner.mi_scores(visual[-1:], text)[0]
    indices, gains = mi_pruner.greedy_select(scores, visual, 5)
    expected = mi_pruner.greedy_select(scores[-1:].clone(), visual[-1:].clone(), 5)
    assert inputs.same_bits(indices[-1:], expected[0])
    assert inputs.same_bits(gains[-1:], expected[1])


def test_rows_that_are_hard_to_guess_end_exactly(gpu):
    """Features of rank 3 reorder at every pick, so that more rows are needed than were planned."""
    g = torch.Generator("cuda").manual_seed(0)
    visual = torch.randn(1, 6000, 3, device="cuda", generator=g) @ torch.randn(3, 64, device="cuda", generator=g)
    scores = torch.rand(1, 6000, device="cuda", generator=g) * 1e-3
    indices, gains = mi_pruner.greedy_select(scores, visual, 1000, redundancy_weight=50.0)
    assert len(set(indices[0].tolist())) == 1000
    fewer = mi_pruner.greedy_select(scores, visual, 100, redundancy_weight=50.0)
    assert inputs.same_bits(indices[:, :100], fewer[0])
    assert inputs.same_bits(gains[:, :100], fewer[1])
    assert not math.isnan(gains.sum().item())


def test_odd_shapes_against_the_reference(gpu):
    for shape in ((2, 5, 3, 7), (1, 123, 5, 123), (3, 33, 17, 64), (2, 577, 9, 100)):
        for redundancy in inputs.REDUNDANCIES:
            check_selection(batch_of(shape, torch.bfloat16, "odd"), "cuda", min(shape[1], 99), redundancy=redundancy)
