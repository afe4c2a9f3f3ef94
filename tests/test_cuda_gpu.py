"""The CUDA kernels on a GPU, beyond what test_gpu.py and the suite ask of every backend."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import mi_pruner
from mi_pruner import _dispatch
from mi_pruner._dispatch import BACKENDS

from . import inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
# N, M, K: by one warp; by those of a cluster; on rows as needed, of tokens in registers alone and in memory, too
SIZES = ((576, 32, 64), (1200, 32, 64), (4100, 8, 130), (32800, 8, 130))
# Bounds on the length that take the steps to several warps, to rows as needed, and, in a cluster, to tokens that no
# registers hold.
BOUNDS = (1025, 4097, 32769)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.fixture(autouse=True)
def _on_cuda():
    why = BACKENDS["cuda"].unavailable()
    if why is not None:
        pytest.skip(why)
    with mi_pruner.backend("cuda"):
        yield


def batch_of(n, m, dtype, seed, d=128, samples=2):
    many = [inputs.make_sample("clustered", n, m, d, dtype, seed + i, "float") for i in range(samples)]
    return inputs.batch(many).to("cuda")


def packed(s, keep):
    """Arguments of `prune_varlen` for a batch."""
    b, n, _ = s.visual.shape
    m = s.text.shape[1]
    cu = [inputs.cu_seqlens([size] * b, "cuda") for size in (n, m, keep)]
    return (s.visual.flatten(0, 1), s.text.flatten(0, 1), *cu, n, m, keep, keep * b)


def prune(s, keep, **options):
    return mi_pruner.prune(s.visual, s.text, keep, visual_prior=s.visual_prior, **options)


def all_same(outputs, expected):
    return all(inputs.same_bits(a, b) for a, b in zip(outputs, expected, strict=True))


def test_calls_go_past_python_with_the_same_bits_and_errors(monkeypatch):
    s = batch_of(40, 6, torch.bfloat16, 1)
    expected, asked = prune(s, 9, ratio=0.5), []
    choose = _dispatch.choose
    monkeypatch.setattr(_dispatch, "choose", lambda *a: asked.append(a) or choose(*a))
    assert all_same(prune(s, 9, ratio=0.5), expected)
    assert asked == []
    another = _dispatch._ask("reference")
    assert all_same(prune(s, 9, ratio=0.5), expected)
    assert len(asked) == 1
    del another
    with pytest.raises(TypeError, match=r"^visual: expected float16, bfloat16 or float32"):
        mi_pruner.mi_scores(s.visual.double(), s.text.double())
    with pytest.raises(ValueError, match=r"^text: expected the device of visual, cuda:0, got .* on cpu"):
        mi_pruner.mi_scores(s.visual, s.text.cpu())


def test_it_is_the_default_for_cuda_tensors():
    with mi_pruner.backend("auto"):
        assert mi_pruner._dispatch.choose("cuda").name == "cuda"


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_captured_graph_of_packed_samples_follows_new_lengths(size):
    n, m, keep = size
    s = batch_of(n, m, torch.bfloat16, 0)
    arguments = packed(s, keep)
    mi_pruner.prune_varlen(*arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = mi_pruner.prune_varlen(*arguments)
    for lengths in ((n, n), (n // 3, n), (0, 7)):
        arguments[2].copy_(inputs.cu_seqlens(lengths, "cuda"))
        expected = mi_pruner.prune_varlen(*arguments)
        graph.replay()
        torch.cuda.synchronize()
        assert all_same(outputs, expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_streams_do_not_disturb_one_another(size):
    n, m, keep = size
    samples = [batch_of(n, m, torch.bfloat16, 10 * i) for i in range(4)]
    expected = [prune(s, keep) for s in samples]
    streams = [torch.cuda.Stream() for _ in samples]
    torch.cuda.synchronize()
    for _ in range(3):
        outputs = []
        for s, stream in zip(samples, streams, strict=True):
            with torch.cuda.stream(stream):
                outputs.append(prune(s, keep))
        torch.cuda.synchronize()
        assert all(all_same(a, b) for a, b in zip(outputs, expected, strict=True))


def test_threads_do_not_disturb_one_another():
    """Samples of different length need different amounts of shared memory, whose limit is a kernel's, not a call's."""
    samples = [batch_of(n, 8, torch.bfloat16, n, samples=1) for n in (1024, 4096)]
    expected = [prune(s, 50) for s in samples]

    def often(s):
        return [prune(s, 50) for _ in range(300)][-1]

    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(often, samples))
    assert all(all_same(a, b) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_tensors_of_another_device_run_there():
    s = batch_of(576, 32, torch.bfloat16, 0)
    other = s.to("cuda:1")
    outputs = prune(other, 64)
    assert all(x.device == other.visual.device for x in outputs)
    assert all_same([x.to("cuda:0") for x in outputs], prune(s, 64))


@pytest.mark.parametrize("redundancy", inputs.REDUNDANCIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_as_needed_give_the_bits_of_the_whole_matrix(dtype, redundancy):
    """The bound on the length chooses the way, and must not choose the result."""
    n, keep, bounds = 900, 500, (900, *BOUNDS)
    s = inputs.make_sample("clustered", n, 5, 256, dtype, 0, "float").to("cuda")
    unowned = max(bounds) - n
    visual = torch.cat([s.visual, torch.zeros(unowned, 256, dtype=dtype, device="cuda")])
    prior = torch.cat([s.visual_prior, torch.ones(unowned, device="cuda")])
    cu = [inputs.cu_seqlens([size], "cuda") for size in (n, 5, keep)]
    options = {"visual_prior": prior, "redundancy": redundancy, "redundancy_weight": 3.0}
    outputs = [mi_pruner.prune_varlen(visual, s.text, *cu, longest, 5, keep, keep, **options) for longest in bounds]
    assert all(all_same(other, outputs[0]) for other in outputs[1:])


@pytest.mark.parametrize(("m", "width"), [(70, 640), (5, 2200), (130, 2200)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_neither_the_tile_nor_who_sums_it_changes_a_bit(dtype, m, width):
    """The tiles of a sample alone are shared by clusters if D is long; in a batch, by nobody, and text of more than 64
    tokens has tiles of 64 columns in a launch of its own; where the bound is higher, a block makes a row of
    redundancies; on rows, all have 64 columns, and a pick's token is always one of these."""
    n, keep, batch = 300, 150, 64
    s = batch_of(n, m, dtype, 0, width, batch)
    together = [mi_pruner.mi_scores(s.visual, s.text, visual_prior=s.visual_prior)[0], *(x[0] for x in prune(s, keep))]
    visual, text, prior = s.visual[:1], s.text[:1], s.visual_prior[:1]
    alone = [mi_pruner.mi_scores(visual, text, visual_prior=prior)[0]]
    alone += [x[0] for x in mi_pruner.prune(visual, text, keep, visual_prior=prior)]
    assert all_same(alone, together)
    cu = [inputs.cu_seqlens([size], "cuda") for size in (n, m, keep)]
    for bound in BOUNDS[:2]:
        many = torch.cat([visual[0], torch.zeros(bound - n, width, dtype=dtype, device="cuda")])
        priors = {"visual_prior": torch.cat([prior[0], torch.ones(bound - n, device="cuda")])}
        other = mi_pruner.prune_varlen(many, text[0], *cu, bound, m, keep, keep, **priors)
        assert all_same(other, alone[1:])


@pytest.mark.parametrize("n", [1100, 2300, 4096])
@pytest.mark.parametrize("redundancy", inputs.REDUNDANCIES[:3])
def test_the_warps_of_a_cluster_give_the_bits_of_those_of_a_block(n, redundancy):
    """One sample is selected from by a cluster, many by a block each; often, since warps wait for one another."""
    keep, samples = 300, 24
    s = batch_of(n, 8, torch.bfloat16, n, samples=samples)
    together = prune(s, keep, redundancy=redundancy)
    for i in range(samples):
        alone = mi_pruner.prune(
            s.visual[i : i + 1], s.text[i : i + 1], keep, visual_prior=s.visual_prior[i : i + 1], redundancy=redundancy
        )
        assert all_same(alone, [x[i : i + 1] for x in together])


@pytest.mark.parametrize("n", [32768, 33000])
def test_many_tokens_give_the_same_bits_every_time(n):
    """All of a cluster's registers in use, or some tokens in memory; who computes rows, and when, differs."""
    s = inputs.make_sample("clustered", n, 5, 64, torch.bfloat16, 0, "float").to("cuda")
    outputs = [mi_pruner.prune(s.visual[None], s.text[None], 300, redundancy_weight=3.0) for _ in range(20)]
    assert all(all_same(other, outputs[0]) for other in outputs[1:])


@pytest.mark.parametrize("samples", [1, 2, 9])  # one team, two, more samples than teams
@pytest.mark.parametrize("bound", BOUNDS[1:])
def test_rows_as_needed_never_miss_what_another_multiprocessor_wrote(bound, samples):
    """A soak, as no tool checks counters in global memory, nor posts in a cluster, beside a busy stream."""
    n, m = 1100, 5
    # All picks but the last need a row, a product gives 64 at most: 18 products or more, over four turns of the ring.
    g = torch.Generator().manual_seed(3)
    # Tokens of rank 4: every pick reorders the others, and guesses are wrong.
    visual = (torch.randn(samples * n, 4, generator=g) @ torch.randn(4, 20, generator=g)).to("cuda")
    text = visual.unflatten(0, (samples, n))[:, :m].flatten(0, 1).clone()
    visual = torch.cat([visual, visual.new_zeros(max(0, bound - samples * n), 20)])  # of no sample
    cu = [inputs.cu_seqlens([size] * samples, "cuda") for size in (n, m, n)]
    options = {"redundancy_weight": 50.0, "visual_bandwidth": 0.2}
    expected = mi_pruner.prune_varlen(visual, text, *cu, n, m, n, samples * n, **options)
    load, busy = torch.randn(2048, 2048, device="cuda"), torch.cuda.Stream()
    torch.cuda.synchronize()
    for _ in range(100):
        with torch.cuda.stream(busy):
            torch.mm(load, load)
        outputs = mi_pruner.prune_varlen(visual, text, *cu, bound, m, n, samples * n, **options)
        assert all_same(outputs, expected)
    torch.cuda.synchronize()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_triton_picks_the_same_tokens(dtype):
    """Index for index on separated data, where no two gains are within rounding of each other."""
    triton = BACKENDS["triton"].unavailable()
    if triton is not None:
        pytest.skip(triton)
    for n, m, keep in ((576, 32, 64), (2880, 20, 320)):
        many = [inputs.make_sample("separated", n, m, 512, dtype, seed, "float") for seed in range(2)]
        s = inputs.batch(many).to("cuda")
        ours = prune(s, keep)
        with mi_pruner.backend("triton"):
            theirs = prune(s, keep)
        assert torch.equal(ours[1], theirs[1])
        assert inputs.same_bits(ours[0], theirs[0])
        assert torch.allclose(ours[2], theirs[2], rtol=1e-3, atol=1e-6)
