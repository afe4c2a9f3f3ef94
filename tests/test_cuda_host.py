"""What is particular to the CUDA kernels, on their host twin (MI_PRUNER_CUDA_HOST=1).

Both ways of selecting, any number of blocks, any order of the threads. The rest of the suite runs on the twin, too; how
it works: tests/cuda_host.
"""

from __future__ import annotations

import ctypes
import itertools
import re

import pytest
import torch

import mi_pruner

from . import inputs
from .cuda_host import build as cuda_host
from .test_backends import batch_of, check_scores, check_selection

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GRAM_TOKENS, SHORT_TOKENS = (
    int(re.search(rf"{name} = (\d+)", (cuda_host.CUDA / "base/paths.h").read_text()).group(1))
    for name in ("kGramTokens", "kShortSample")
)
# Bounds on the length that make a sample's selection one by several warps, and on rows as needed; else by a warp.
WARPS, ROWS = SHORT_TOKENS + 1, GRAM_TOKENS + 1
CHUNK_ROWS = int(re.search(r"kChunkRows = (\d+)", (cuda_host.CUDA / "base/arguments.h").read_text()).group(1))
MODES = (
    *({"redundancy": name} for name in inputs.REDUNDANCIES),
    {"redundancy": "max", "redundancy_weight": 3.0},
    {"redundancy": "mean", "ratio": 0.3},
)


on_the_host = pytest.mark.skipif(
    not inputs.CUDA_ON_HOST, reason="MI_PRUNER_CUDA_HOST=1 runs the CUDA kernels on the CPU"
)
pytestmark = on_the_host


@pytest.fixture(autouse=True)
def _on_the_host():
    with mi_pruner.backend("cuda"):
        yield


def packed_arguments(samples, keep, bound=0):
    """Arguments of `prune_varlen`; tokens of no sample raise the bound on the length to `bound`, if it is lower."""
    visual, text = (torch.cat([getattr(s, name) for s in samples]) for name in ("visual", "text"))
    prior = torch.cat([s.visual_prior for s in samples])
    longest = max(s.n for s in samples)
    if bound > longest:
        unowned = bound - longest
        visual = torch.cat([visual, torch.full((unowned, visual.shape[1]), torch.nan, dtype=visual.dtype)])
        prior = torch.cat([prior, torch.ones(unowned)])
        longest = bound
    cu = [inputs.cu_seqlens(n) for n in ([s.n for s in samples], [len(s.text) for s in samples], keep)]
    sizes = (longest, max(len(s.text) for s in samples), max(keep), sum(keep) + 2)
    return (visual, text, *cu, *sizes), {"visual_prior": prior}


def assert_same(samples, keep, **options):
    """By a warp, by several warps, on rows as needed."""
    outputs = []
    for bound in (0, WARPS, ROWS):
        arguments, priors = packed_arguments(samples, keep, bound)
        outputs.append(mi_pruner.prune_varlen(*arguments, **priors, **options))
        assert all(inputs.same_bits(a, b) for a, b in zip(outputs[0], outputs[-1], strict=True))


# ---- ways of selecting -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("dtype", "options"), [*zip(itertools.cycle(DTYPES), MODES), *((dtype, MODES[1]) for dtype in DTYPES)], ids=str
)
def test_every_way_gives_the_same_bits(dtype, options):
    kinds = {
        1: ("separated", "float"),
        37: ("duplicates", "odd"),
        300: ("clustered", "float"),
        90: ("identical", "bool"),
    }
    samples = [inputs.make_sample(kind, n, 3, 33, dtype, n, prior) for n, (kind, prior) in kinds.items()]
    assert_same(samples, [1, 40, 120, 90], **options)


def low_rank(n):
    """Tokens of rank 4: every pick reorders the others, and guesses are wrong."""
    g = torch.Generator().manual_seed(3)
    visual = torch.randn(n, 4, generator=g) @ torch.randn(4, 20, generator=g)
    return inputs.Sample(visual, visual[:5].clone(), torch.rand(n, generator=g) + 0.1)


@pytest.mark.parametrize(
    ("redundancy", "clusters", "row_bytes"), [("max", 0, 0), ("chain", 2, 0), ("max", 0, 2**30)], ids=str
)
def test_rows_are_computed_again_when_the_ring_has_gone_round(redundancy, clusters, row_bytes, monkeypatch):
    """It has 256 rows; and where there is memory, as many as are picked, so that none is forgotten."""
    monkeypatch.setenv("MI_PRUNER_HOST_ROW_BYTES", str(row_bytes))
    in_clusters(monkeypatch, clusters)
    assert_same([low_rank(560)], [560], redundancy=redundancy, redundancy_weight=50.0, visual_bandwidth=0.2)


@pytest.mark.parametrize("blocks", ["1", "2", "5"])
def test_rows_stop_at_min_gain(blocks, monkeypatch):
    """A team of one block goes on to the next sample with a product on offer that nobody needs any more."""
    monkeypatch.setenv("MI_PRUNER_HOST_BLOCKS", blocks)
    samples = [inputs.make_sample("clustered", n, 3, 16, torch.float32, n, "float") for n in (200, 90)]
    for seed in "01":
        monkeypatch.setenv("MI_PRUNER_HOST_SEED", seed)
        assert_same(samples, [150, 60], min_gain=0.002)


@pytest.mark.parametrize("clusters", [0, 3])
@pytest.mark.parametrize("together", ["1", "2", "4"])
def test_who_computes_rows_changes_no_bit(together, clusters, monkeypatch):
    """A team by itself, as where the process has a small part of the GPU, the rest of the launch after it; or others
    beside it, which do what is on offer while it takes steps, also of a sample that is given up."""
    in_clusters(monkeypatch, clusters)
    monkeypatch.setenv("MI_PRUNER_HOST_TOGETHER", together)
    samples = [low_rank(230), inputs.make_sample("clustered", 100, 3, 20, torch.float32, 1, "float")]
    for seed in "012":
        monkeypatch.setenv("MI_PRUNER_HOST_SEED", seed)
        assert_same(samples, [170, 70], visual_bandwidth=0.2, min_gain=-0.05)


MANY_CLUSTERS = 8  # so that one or two samples are selected from by a cluster each


def in_clusters(monkeypatch, clusters):
    """From now on, the twin runs that many clusters at a time; 0: none."""
    monkeypatch.setenv("MI_PRUNER_HOST_CLUSTERS", str(clusters))
    monkeypatch.setenv("MI_PRUNER_HOST_BLOCKS", str(8 * clusters if clusters else 5))


@pytest.mark.parametrize(("options", "dtype"), list(zip((MODES[0], MODES[1], MODES[4]), DTYPES, strict=True)), ids=str)
def test_a_cluster_gives_the_bits_of_the_whole_matrix(options, dtype, monkeypatch):
    """Two teams of a cluster for three samples."""
    samples = [inputs.make_sample("clustered", n, 3, 33, dtype, n, "odd") for n in (300, 37, 150)]
    in_clusters(monkeypatch, 2)
    assert_same(samples, [60, 20, 0], **options)


@pytest.mark.parametrize("clusters", [0, 1])
def test_rows_of_many_warps(clusters, monkeypatch):
    """Of a block all warps propose, and threads have several quads of tokens; of a cluster 20 warps of 64."""
    in_clusters(monkeypatch, clusters)
    monkeypatch.setenv("MI_PRUNER_HOST_SEED", "1")
    assert_same([low_rank(2500)], [90], redundancy="max", redundancy_weight=50.0, visual_bandwidth=0.2)


@pytest.mark.parametrize("options", MODES[:4], ids=str)
def test_tokens_in_memory_give_the_bits_of_those_in_registers(options, monkeypatch):
    """The one block of a team holds 4,096 tokens; a cluster holds all of these."""
    n = GRAM_TOKENS + 300
    s = inputs.make_sample("clustered", n, 2, 8, torch.float32, 5, "odd")
    scores = torch.rand(1, n, generator=torch.Generator().manual_seed(n))
    outputs = []
    for clusters in (0, 1):
        in_clusters(monkeypatch, clusters)
        priors = {"visual_prior": s.visual_prior[None]}
        outputs.append(mi_pruner.greedy_select(scores, s.visual[None], 150, **priors, **options))
    assert (outputs[0][0] >= GRAM_TOKENS).sum() > 5
    assert all(inputs.same_bits(a, b) for a, b in zip(*outputs, strict=True))


@pytest.mark.parametrize("options", MODES[:3], ids=str)
@pytest.mark.parametrize(("n", "keep"), [(SHORT_TOKENS + 1, 30), (2300, 12), (GRAM_TOKENS, 9)])
def test_the_warps_of_a_cluster_give_the_bits_of_those_of_a_block(n, keep, options, monkeypatch):
    """Each length has another number of tokens a thread, and the last blocks of the first two have none."""
    s = inputs.make_sample("clustered", n, 2, 12, torch.bfloat16, n, "odd")
    scores = torch.rand(1, n, generator=torch.Generator().manual_seed(n))
    outputs = []
    for clusters in (0, MANY_CLUSTERS):
        in_clusters(monkeypatch, clusters)
        outputs.append(mi_pruner.greedy_select(scores, s.visual[None], keep, **options))
    assert all(inputs.same_bits(a, b) for a, b in zip(*outputs, strict=True))


@pytest.mark.parametrize("redundancy", ["mean", "chain"])
def test_tokens_beyond_the_registers_change_no_bit(redundancy, monkeypatch):
    """4,096 tokens are what one block holds; 5 blocks or a cluster hold all."""
    s = inputs.make_sample("clustered", GRAM_TOKENS + 40, 2, 12, seed=4, visual_prior="float")
    outputs = []
    for clusters, blocks in ((0, "5"), (0, "1"), (1, "8")):
        in_clusters(monkeypatch, clusters)
        monkeypatch.setenv("MI_PRUNER_HOST_BLOCKS", blocks)
        scores = torch.linspace(0, 1e-3, s.n)[None]  # the last tokens first
        outputs.append(mi_pruner.greedy_select(scores, s.visual[None], 40, redundancy=redundancy))
    for other in outputs[1:]:
        assert all(inputs.same_bits(a, b) for a, b in zip(outputs[0], other, strict=True))


@pytest.mark.parametrize("blocks", ["1", "2", "7", "16"])
def test_the_number_of_blocks_changes_no_bit(blocks, monkeypatch):
    samples = [inputs.make_sample("clustered", n, 3, 16, torch.bfloat16, n, "float") for n in (260, 33, 140)]
    arguments, priors = packed_arguments(samples, [100, 33, 70], ROWS)
    expected = mi_pruner.prune_varlen(*arguments, **priors)
    monkeypatch.setenv("MI_PRUNER_HOST_BLOCKS", blocks)
    outputs = mi_pruner.prune_varlen(*arguments, **priors)
    assert all(inputs.same_bits(a, b) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.parametrize("redundancy", ["mean", "max"])
def test_picks_from_many_tokens_are_greedy(redundancy):
    check_selection(batch_of((1, GRAM_TOKENS + 5, 2, 12), torch.float32, "odd"), "cpu", 70, redundancy=redundancy)


@pytest.mark.parametrize("clusters", [0, MANY_CLUSTERS])
@pytest.mark.parametrize("n", [700, 1025, 1500, GRAM_TOKENS])
def test_the_lowest_index_wins_among_equals_wherever_they_are(n, clusters, monkeypatch):
    """Of a thread, of a warp, of a block, of a cluster: redundancy that weighs nothing leaves scores."""
    in_clusters(monkeypatch, clusters)
    g = torch.Generator().manual_seed(n)
    scores = torch.randint(1, 4, (1, n), generator=g) / 8
    scores[0, : n // 2] -= 0.5  # the best are the last
    scores[0, ::7] = -torch.inf
    keep = n if n < 1500 else 70
    indices, _ = mi_pruner.greedy_select(scores, torch.randn(1, n, 3, generator=g), keep, redundancy_weight=1e-30)
    assert indices[0].tolist() == scores[0].argsort(descending=True, stable=True)[:keep].tolist()


@pytest.mark.parametrize("kind", ["duplicates", "identical"])
def test_equal_tokens_of_a_long_sample_give_the_bits_of_the_other_way(kind):
    samples = [inputs.make_sample(kind, n, 2, 5, torch.float32, n, "odd") for n in (1300, 200)]
    assert_same(samples, [40, 60])


# ---- tiles and chunks ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("m", [64, 70])
@pytest.mark.parametrize(
    ("dtype", "width"), [*itertools.product(DTYPES[:2], (150, 456, 1104)), (torch.float16, 150)], ids=str
)
def test_the_shape_of_a_tile_changes_no_bit(dtype, width, m, monkeypatch):
    """64 columns by warps, 128 by groups of them, short text beside those on the diagonal, longer text by warps; the
    eighths of a long sum by one block, or each by a block of a cluster; rows of redundancies by a warp, or by a block,
    or as they are needed, by warps or groups, with norms that were left.
    Stages that are filled again need a width of more than four; whole ones, rows at multiples of 16 bytes."""
    kinds = ((150, m, "clustered"), (33, 3, "duplicates"), (64, 64, "separated"), (1, 1, "clustered"))
    samples = [inputs.make_sample(kind, n, m, width, dtype, n, "odd") for n, m, kind in kinds]
    outputs = []
    for clusters, groups, bound in itertools.product("01", "01"[: 1 + (dtype.itemsize == 2)], (0, WARPS, ROWS)):
        arguments, priors = packed_arguments(samples, [60, 33, 9, 1], bound)
        monkeypatch.setenv("MI_PRUNER_HOST_BLOCKS", "8" if bound == ROWS and clusters == "0" else "1000")
        monkeypatch.setenv("MI_PRUNER_HOST_CLUSTERS", clusters)
        monkeypatch.setenv("MI_PRUNER_HOST_GROUPS", groups)
        scores = mi_pruner.mi_scores_varlen(*arguments[:4], *arguments[5:7], **priors)
        outputs.append((scores[: sum(s.n for s in samples)], *mi_pruner.prune_varlen(*arguments, **priors)))
    for other in outputs[1:]:
        assert all(inputs.same_bits(a, b) for a, b in zip(outputs[0], other, strict=True))


@pytest.mark.parametrize("n", [CHUNK_ROWS, CHUNK_ROWS + 1, 3 * CHUNK_ROWS - 5])
@pytest.mark.parametrize("marginal", ["joint", "prior"])
def test_scores_of_many_rows(n, marginal):
    """Log Z of the text is summed in chunks of rows: against float64, and the same bits beside another sample."""
    check_scores(batch_of((1, n, 6, 20), torch.float32, "odd"), "cpu", marginal=marginal)
    samples = [
        inputs.make_sample("clustered", size, m, 20, torch.float16, m, "float") for size, m in ((n, 6), (40, 70))
    ]
    arguments, priors = packed_arguments(samples, [1, 1])
    together = mi_pruner.mi_scores_varlen(*arguments[:4], n, 70, **priors, marginal=marginal)
    first = samples[0]
    alone = mi_pruner.mi_scores(
        first.visual[None], first.text[None], visual_prior=first.visual_prior[None], marginal=marginal
    )
    assert inputs.same_bits(together[:n], alone[0])


# ---- launches --------------------------------------------------------------------------------------------------------
def counter(name):
    return ctypes.c_uint.in_dll(ctypes.CDLL(str(cuda_host.PLAIN.library)), name)


@pytest.mark.parametrize("clusters", ["0", "2"])
@pytest.mark.parametrize("redundancy", ["mean", "none"])
@pytest.mark.parametrize("bound", [0, WARPS, ROWS], ids=["warp", "warps", "rows"])
def test_a_prune_is_four_launches_four_allocations_and_no_question(bound, redundancy, clusters, monkeypatch):
    """Of these one is for all that lies between; the runtime is asked in the first call of a kind."""
    monkeypatch.setenv("MI_PRUNER_HOST_CLUSTERS", clusters)
    launches, questions = counter("mi_pruner_host_launches"), counter("mi_pruner_host_questions")
    arguments, priors = packed_arguments(
        [inputs.make_sample("clustered", 20, 3, 8, seed=1, visual_prior="float")], [5], bound
    )

    def prune():
        return torch.ops.mi_pruner_cuda.prune_varlen(*arguments, **priors, redundancy=redundancy)

    prune()
    launched, asked = launches.value, questions.value
    called, allocated = inputs.traced(prune)
    assert launches.value - launched == 4
    assert questions.value == asked
    assert called == ["mi_pruner_cuda::prune_varlen"]
    assert len(allocated) == 4


def test_the_runtime_is_asked_once_for_each_device_and_kernel(monkeypatch):
    questions, asked = counter("mi_pruner_host_questions"), []
    visual, text = torch.randn(1, 20, 8), torch.randn(1, 3, 8)
    for processors in ("77", "77", "78", "77"):  # to the launches: a device each
        monkeypatch.setenv("MI_PRUNER_HOST_BLOCKS", processors)
        before = questions.value
        mi_pruner.prune(visual, text, 5)
        asked.append(questions.value - before)
    assert asked[0] == asked[2] > 0
    assert asked[1] == asked[3] == 0


def test_rows_may_be_far_apart():
    """128 MiB, of which only what is used is ever touched: distances of 32 bits would be too short."""
    x = inputs.make_sample("clustered", 36, 2, 64, torch.bfloat16).visual[None]
    stride = 2**26
    far = torch.empty(36 * stride, dtype=torch.bfloat16).as_strided((1, 36, 64), (36 * stride, stride, 1))
    far.copy_(x)
    assert inputs.same_bits(mi_pruner.mi_scores(x, far), mi_pruner.mi_scores(x, x))
    assert inputs.same_bits(mi_pruner.mi_scores(far, x), mi_pruner.mi_scores(x, x))


# ---- threads ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", ["1", "2", "3"])
@pytest.mark.parametrize(
    "way", ["warp", "warps", "warps of a cluster", "rows", "rows by a cluster", "groups", "rows by groups"]
)
def test_the_order_of_the_threads_changes_no_bit(way, seed, monkeypatch):
    """Groups of warps: of a D whose shares have several stages, so that one is filled while products are made."""
    bound = ROWS if "rows" in way else WARPS if "warps" in way else 0
    groups = "groups" in way
    first = int(seed) - 1
    dtypes, width = (torch.float32, torch.float16), 70
    if groups:
        dtypes, width = (torch.bfloat16, torch.float16)[first % 2 :][:1], 2304
        monkeypatch.setenv("MI_PRUNER_HOST_GROUPS", "1")
    modes = MODES[:1] if way == "rows by a cluster" or groups else MODES[first : first + 2]  # four, between seeds
    in_clusters(monkeypatch, {"rows by a cluster": 2, "warps of a cluster": MANY_CLUSTERS}.get(way, 0))
    for dtype, options in zip(itertools.cycle(dtypes), modes, strict=False):
        # Of several warps in a row of 1,024 tokens, or blocks of 256, each has some.
        sizes = ((1100, 3), (20, 3)) if "warps" in way else ((150, 70), (20, 3))
        samples = [inputs.make_sample("clustered", n, m, width, dtype, n, "float") for n, m in sizes]
        arguments, priors = packed_arguments(samples, [50, 20], bound)
        monkeypatch.delenv("MI_PRUNER_HOST_SEED", raising=False)
        expected = mi_pruner.prune_varlen(*arguments, **priors, **options)
        monkeypatch.setenv("MI_PRUNER_HOST_SEED", seed)
        outputs = mi_pruner.prune_varlen(*arguments, **priors, **options)
        assert all(inputs.same_bits(a, b) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.parametrize("m", [1, 7])
@pytest.mark.parametrize("marginal", ["joint", "prior"])
def test_scores_wait_for_what_other_blocks_leave(marginal, m, monkeypatch):
    """All blocks of the launch run at a time, in any order."""
    s = inputs.make_sample("clustered", 33, m, 20, seed=2)
    visual, text = s.visual[None], s.text[None]
    monkeypatch.delenv("MI_PRUNER_HOST_SEED", raising=False)
    expected = mi_pruner.mi_scores(visual, text, marginal=marginal)
    for seed in "123456":
        monkeypatch.setenv("MI_PRUNER_HOST_SEED", seed)
        assert inputs.same_bits(mi_pruner.mi_scores(visual, text, marginal=marginal), expected)


# ---- one home per fact -----------------------------------------------------------------------------------------------
def test_every_instruction_has_a_twin():
    """What ptx.cuh defines for the GPU, cuda_host.h defines for the host."""
    names = re.compile(r"\b([a-z_0-9]+)\([^;{}]*\)\s*\{")
    numbers = {"shared_address", "matrix_at"}  # for others
    gpu = set(names.findall((cuda_host.CUDA / "base/ptx.cuh").read_text())) - numbers
    host = set(
        names.findall("".join(path.read_text() for path in cuda_host.HERE.glob("*.*") if path.suffix in (".h", ".cpp")))
    )
    assert len(gpu) >= 8
    assert gpu <= host
