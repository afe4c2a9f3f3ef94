"""Every Triton kernel and tile, compiled for three generations of GPUs without having one: errors that the interpreter
does not see, registers, spills, shared memory, tensor-core instructions, the number of launches."""

from __future__ import annotations

import re

import pytest
import torch

from bench.speed import machine_code

from .inputs import INTERPRETED

pytest.importorskip("triton", reason="triton is not installed")
if INTERPRETED:
    pytest.skip("under TRITON_INTERPRET=1 Triton compiles nothing", allow_module_level=True)

from mi_pruner.triton_kernels import tokens

from .triton_launches import call, recorded

pytestmark = pytest.mark.slow

ARCHITECTURES = (80, 90, 100)
SHARED = {80: 164, 90: 228, 100: 228}  # KB a multiprocessor
MMA = {80: "mma.sync", 90: "wgmma", 100: "tcgen05"}
TILED = {"similarity_kernel"}
COUNTING = {"bin_kernel", "histogram_kernel"}
REGISTERS = 65536  # of a multiprocessor
SUMMING = {"similarity_kernel", "normaliser_kernel", "score_kernel"}  # across lanes
OF_ALL_SIZES = SUMMING | {"chunked_greedy_kernel"}  # one program
BINS = (16, 32, 64)  # each another tile; fewer than 16 are counted as 16


def features(batch, n, m, d, dtype):
    """visual and text on the meta device."""
    return torch.empty(batch, n, d, dtype=dtype, device="meta"), torch.empty(batch, m, d, dtype=dtype, device="meta")


def prior(batch, n):
    return torch.empty(batch, n, device="meta")


def launches_of_every_tile(dtype):
    """Calls that launch every kernel that multiplies tiles."""
    visual, text = features(8, 576, 32, 4096, dtype)
    call("prune", visual, text, 64)
    call("mi_scores", visual, text)
    visual, text = features(1, 5000, 33, 3584, dtype)
    call("prune", visual, text, 1025)


def launches_of_every_kernel(dtype):
    """Calls that launch every kernel of scores and selection."""
    visual, text = features(8, 576, 32, 4096, dtype)
    call("prune", visual, text, 64)
    call("greedy_select", prior(8, 576), visual, 64, redundancy="none", min_gain=0.0, ratio=0.1)
    visual, _ = features(1, 4096 + 1, 33, 3584, dtype)
    call("greedy_select", prior(1, 4097), visual, 1025)


def launches_of_every_kind(dtype):
    """Calls that between them launch every kernel with each of its constants, on dense and on packed samples."""
    launches_of_every_kernel(dtype)
    visual, text = features(8, 576, 32, 4096, dtype)
    call(
        "prune", visual, text, 64, visual_prior=prior(8, 576), text_prior=prior(8, 32), bandwidth=0.2, marginal="prior",
        redundancy="chain", budget=torch.empty(8, dtype=torch.int64, device="meta"), min_gain=0.0, ratio=0.1,
    )  # fmt: skip
    visual, _ = features(1, 2880, 32, 4096, dtype)
    call("greedy_select", prior(1, 2880), visual, 320, redundancy="max")
    visual, _ = features(1, 4096 + 1, 33, 3584, dtype)
    for redundancy in ("chain", "max"):
        call("greedy_select", prior(1, 4097), visual, 1025, redundancy=redundancy, min_gain=0.0, ratio=0.1)
    cu = torch.empty(5, dtype=torch.int32, device="meta")
    flat = torch.empty(9000, 1152, dtype=dtype, device="meta")
    call("prune_varlen", flat, flat, cu, cu, cu, 2880, 77, 320, 1280)
    call("prune_varlen", flat, flat, cu, cu, cu, 5000, 77, 320, 1280, visual_prior=prior(1, 9000)[0])


def check_budgets(launches, architecture):
    """Stack, registers; two programs a multiprocessor by shared memory; tensor cores where tiles are multiplied."""
    different = {launch.compiled.hash: launch for launch in launches}.values()
    for launch in different:
        what, used = f"{launch.kernel} {launch.options}", launch.resources()
        assert used["LOCAL"] == 0, f"{what}: {used}"
        # Values that live across a loop, written and read once; spilling in a loop takes hundreds of bytes.
        assert used["STACK"] <= 24, f"{what} spills: {used}"
        assert used["REG"] * launch.threads <= REGISTERS, f"{what}: {used}"
        assert used["SHARED"] <= SHARED[architecture] * 1024 // 2, f"{what} leaves room for one program only: {used}"
        if launch.kernel in TILED | {"histogram_kernel"}:
            assert MMA[architecture] in launch.compiled.asm["ptx"], f"{what} does not use {MMA[architecture]}"
    return {launch.kernel for launch in different}


# In bfloat16 every kernel is compiled below; float16 differs from it in one instruction.
@pytest.mark.parametrize(
    ("architecture", "dtype"), [*((x, torch.float32) for x in ARCHITECTURES), (90, torch.float16)], ids=str
)
def test_every_tile_compiles_to_tensor_cores_within_its_budget(architecture, dtype):
    with recorded(architecture, compiles=TILED) as launches:
        launches_of_every_tile(dtype)
    assert check_budgets(launches, architecture) == TILED


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_no_product_is_in_flight_while_its_stage_is_overwritten(dtype):
    """On sm_90, Triton fills the stage that a product reads once `warp_group_dot_wait` lets that product be pending:
    seen on an H100 as results that differ from run to run. Features that are also squared get no stage more."""
    with recorded(90, compiles=TILED) as launches:
        launches_of_every_tile(dtype)
    for launch in launches:
        loops = [loop for loop in re.split(r"scf\.for", launch.compiled.asm["ttgir"]) if "warp_group_dot" in loop]
        assert loops, launch.kernel
        for loop in loops:
            pending = re.findall(r"warp_group_dot_wait[^\n]*pendings = (\d+)", loop.split("scf.yield")[0])
            assert set(pending) == {"0"}, f"{launch.kernel}: {pending}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_within_its_budget(architecture):
    calls = launches_of_every_kind if architecture == 90 else launches_of_every_kernel
    with recorded(architecture, compiles=True) as launches:
        calls(torch.bfloat16)
    assert check_budgets(launches, architecture) == TILED | {
        "normaliser_kernel", "score_kernel", "greedy_kernel", "chunked_greedy_kernel", "top_k_kernel", "gather_kernel",
    }  # fmt: skip


@pytest.mark.parametrize(("n", "most_instructions", "most_stalls"), [(576, 215, 575), (2880, 230, 615)])
def test_a_step_of_the_selection_is_short(n, most_instructions, most_stalls):
    visual, _ = features(1, n, 1, 4096, torch.bfloat16)
    with recorded(90, compiles={"greedy_kernel"}) as launches:
        call("greedy_select", prior(1, n), visual, 64)
    step = machine_code.turn(launches[0].instructions(), "BAR")
    assert len(step) <= most_instructions
    assert machine_code.stalls(step) <= most_stalls


def test_a_step_in_chunks_reduces_once_not_once_a_chunk():
    visual, _ = features(1, 5000, 1, 4096, torch.bfloat16)
    with recorded(90, compiles={"chunked_greedy_kernel"}) as launches:
        call("greedy_select", prior(1, 5000), visual, 64)
    chunk = " ".join(x.text for x in machine_code.turn(launches[0].instructions(), "FFMA"))
    assert "BAR" not in chunk
    assert "SHFL" not in chunk
    assert len(re.findall("LDG", chunk)) == len(re.findall("LDG.E.128", chunk)) == 8, "of 8 tokens: 4 arrays, in fours"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_histograms_compile_within_their_budget(architecture):
    visual, text = features(8, 576, 32, 4096, torch.bfloat16)
    with recorded(architecture, compiles=True) as launches:
        for bins in BINS if architecture == 90 else BINS[-1:]:
            call("histogram_mi_scores", visual, text, visual_prior=prior(8, 576), text_prior=prior(8, 32), bins=bins)
        for dtype in (torch.float32, torch.float16) if architecture == 90 else ():
            call("histogram_mi_scores", *features(1, 576, 32, 1000, dtype))
    assert check_budgets(launches, architecture) == COUNTING


@pytest.mark.parametrize("d", [4096, 1000])
def test_no_size_changes_the_machine_code_of_histograms(d):
    with recorded(90, compiles=True) as launches:
        for batch, n, m in ((1, 576, 32), (2, 577, 20), (3, 1, 1), (16, 2880, 77)):
            call("histogram_mi_scores", *features(batch, n, m, d, torch.bfloat16), bins=16 if n > 1 else 9)
    for kernel in COUNTING:
        assert len({x.compiled.hash for x in launches if x.kernel == kernel}) == 1, kernel


def test_the_grid_of_histograms_covers_every_pair_once():
    visual, text = features(2, 577, 33, 4096, torch.bfloat16)
    with recorded(90, compiles=False) as launches:
        call("histogram_mi_scores", visual, text)
    assert [launch.kernel for launch in launches] == ["bin_kernel", "bin_kernel", "histogram_kernel"]
    assert [launch.grid for launch in launches] == [(2 * -(-577 // 4),), (2 * -(-33 // 4),), (2 * -(-577 // 4),)]


def launches_of_many_sizes(d, padding, packed):
    """Samples of several lengths, in rows of `d` features that may lie inside wider ones."""
    with recorded(90, compiles=OF_ALL_SIZES) as launches:
        for n, m in ((576, 32), (577, 20), (2880, 77), (5000, 1), (6001, 64)):
            visual, text = (x[..., :d] for x in features(2, n, m, d + padding, torch.bfloat16))
            if packed:
                cu = torch.empty(3, dtype=torch.int32, device="meta")
                call("prune_varlen", visual[0], text[0], cu, cu, cu, n, m, 64, 128, visual_prior=prior(1, n)[0])
            else:
                call("prune", visual, text, 64, visual_prior=prior(2, n))
    return launches


@pytest.mark.parametrize(("d", "padding"), [(4096, 0), (1000, 0), (1024, 5)], ids=str)
def test_no_size_changes_the_machine_code(d, padding):
    """One program for every N, M, K and B, and for rows wherever they lie: so equal bits. Dense and packed calls differ
    by where a sample begins, but not in the layouts of their sums across lanes."""
    layouts = []
    for packed in (False, True):
        launches = launches_of_many_sizes(d, padding, packed)
        for kernel in OF_ALL_SIZES:
            assert len({x.compiled.hash for x in launches if x.kernel == kernel}) == 1, kernel
        layouts.append({launch.kernel: layouts_of_sums(launch) for launch in launches})
    assert layouts[0] == layouts[1]
    assert layouts[0]["similarity_kernel"]
    totals = {name: {x for x in sums if x[0] == (tokens.LOG_CHUNK.value,)} for name, sums in layouts[0].items()}
    assert totals["normaliser_kernel"], "the sum of a prior: the same wherever it is taken"
    assert totals["normaliser_kernel"] == totals["score_kernel"]
    assert not layouts[0]["chunked_greedy_kernel"], "in the steps no sum crosses lanes"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cosines_are_of_one_program_on_both_paths(architecture):
    """With the text, among the visual tokens of all samples, and of one: equal bits rest on it."""
    with recorded(architecture, compiles=TILED) as launches:
        for n in (2880, 5000):
            visual, text = features(2, n, 32, 4096, torch.bfloat16)
            call("prune", visual, text, 320)
            call("greedy_select", prior(2, n), visual, 320)
    assert len(launches) == 2 + 5
    assert len({launch.compiled.hash for launch in launches}) == 1


def layouts_of_sums(launch):
    """Shapes and layouts of all floating-point sums across lanes."""
    text = launch.compiled.asm["ttgir"]
    named = dict(re.findall(r"^(#\w+) = (.*)$", text, re.MULTILINE))
    found = []
    for block in re.split(r'"tt\.reduce"', text)[1:]:
        of = re.search(r"\(tensor<([\dx]+)xf32, (#\w+)>\)", block)
        if of and "arith.addf" in block.split("tt.reduce.return")[0]:
            found.append((tuple(map(int, of[1].split("x"))), named[of[2]]))
    return found


def test_a_prune_is_five_launches_and_three_a_sample_above_4096_tokens():
    visual, text = features(2, 576, 32, 4096, torch.bfloat16)
    with recorded(90, compiles=False) as launches:
        call("prune", visual, text, 64)
    assert [launch.kernel for launch in launches] == [
        "similarity_kernel", "normaliser_kernel", "score_kernel", "greedy_kernel", "gather_kernel",
    ]  # fmt: skip
    visual, text = features(2, 32768, 32, 4096, torch.bfloat16)
    with recorded(90, compiles=False) as launches:
        call("prune", visual, text, 2048)
    of_a_sample = [("similarity_kernel", 256 * 512), ("normaliser_kernel", 128), ("chunked_greedy_kernel", 1)]
    assert [(launch.kernel, *launch.grid) for launch in launches[3:-1]] == of_a_sample * 2
    assert [launch.kernel for launch in launches[:3] + launches[-1:]] == [
        "similarity_kernel", "normaliser_kernel", "score_kernel", "gather_kernel",
    ]  # fmt: skip
    with recorded(90, compiles=False) as launches:
        call("prune", visual, text, 2048, redundancy="none")
    assert len(launches) == 5


@pytest.mark.parametrize(("batch", "n", "m"), [(1, 576, 32), (8, 2880, 77), (128, 576, 256), (1, 32768, 64)])
def test_the_grid_covers_every_tile_once(batch, n, m):
    """Bytes and flops that the headers state, from the grids: a program reads its rows and columns once."""
    visual, text = features(batch, n, m, 4096, torch.bfloat16)
    with recorded(90, compiles=False) as launches:
        call("mi_scores", visual, text)
    (grid,), tile = launches[0].grid, launches[0].options
    rows, columns = -(-n // tile["ROWS"]), -(-m // tile["COLUMNS"])
    assert grid == batch * rows * columns
    flops = 2 * grid * tile["ROWS"] * tile["COLUMNS"] * 4096
    assert flops <= 2 * batch * (n + tile["ROWS"]) * (m + tile["COLUMNS"]) * 4096  # no more than the edges' padding
    assert launches[1].grid == (batch * -(-m // 8) * -(-n // 2048),)
    assert launches[2].grid == (batch * -(-n // 32),)
