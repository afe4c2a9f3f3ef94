"""What nvcc made of csrc/cuda, read from the installed library: architectures, registers, stack, instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from bench import __main__ as command
from bench import record
from bench.speed import machine_code
from mi_pruner import _native

pytestmark = pytest.mark.slow

ARCHITECTURES = {"sm_80", "sm_90a", "sm_100"}
# Registers a thread: what the launch bounds allow. 255 is where the hardware ends.
BUDGETS = {
    "similarity_kernel": 128,  # two blocks of 256 a multiprocessor
    "gram_kernel": 255,  # one
    "normaliser_kernel": 64,  # four blocks of 256 a multiprocessor
    "greedy_warp_kernel": 255,  # one
    "top_k_kernel": 64,
    "gather_kernel": 64,
    "rows_kernel": 255,  # one block a multiprocessor
}


def dump(*options):
    missing = _native.cuda_kernels_missing()
    if missing is not None:
        pytest.skip(missing)
    if machine_code.cuobjdump() is None:
        pytest.skip("no cuobjdump, from a CUDA toolkit or from Triton")
    return machine_code.dump(str(_native.library_path()), *options)


@dataclass(frozen=True)
class Kernel:
    architecture: str
    name: str  # mangled
    registers: int
    stack: int
    local: int
    shared: int


@pytest.fixture(scope="module")
def kernels():
    found, architecture, name = [], "", ""
    for line in dump("-res-usage").splitlines():
        if line.startswith("arch = "):
            architecture = line.removeprefix("arch = ")
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, match.groups())
            found.append(Kernel(architecture, name, registers, stack, local, shared))
    if {k.architecture for k in found} != ARCHITECTURES:
        pytest.skip(f"built for {sorted({k.architecture for k in found})} (CUDAARCHS)")
    return found


def test_every_kernel_is_there_for_every_architecture(kernels):
    for name in BUDGETS:
        # Of the dtypes, the similarities by one block or eight, and rows as needed; of two of them, by groups of warps
        # (maybe without a body), the Gram matrix by one block or eight, and rows; of the modes of redundancy, the
        # greedy ones, by one warp and by a cluster for three lengths each, by a block for one; of words, the copy.
        counts = {"similarity_kernel": 6, "gram_kernel": 4, "rows_kernel": 5}
        count = (counts | {"greedy_warp_kernel": 21, "gather_kernel": 3}).get(name, 1)
        for architecture in ARCHITECTURES:
            found = [k for k in kernels if k.architecture == architecture and name in k.name]
            assert len(found) == count, (name, architecture)


@pytest.mark.usefixtures("kernels")
def test_newer_architectures_are_served_by_ptx():
    assert "sm_100.ptx" in dump("-lptx")


def test_no_kernel_spills_or_needs_more_than_its_budget(kernels):
    for kernel in kernels:
        (budget,) = (registers for name, registers in BUDGETS.items() if name in kernel.name)
        # Beside the products registers are short; what is put aside is read once a stage or seldom. Of the normalisers
        # nvcc puts something aside for the oldest architecture alone, of floats' tiles by clusters for the newest.
        old = kernel.architecture == "sm_80" and "normaliser" in kernel.name
        new = kernel.architecture == "sm_100" and "similarity_kernelIf" in kernel.name
        beside = "similarity_kernel" in kernel.name and "ILi64ELi1E" in kernel.name
        stack = 48 if beside else 32 if old else 8 if new else 0
        assert kernel.stack <= stack, kernel
        assert kernel.local == 0, kernel
        assert kernel.registers <= budget, kernel
        assert kernel.shared <= 1024, f"{kernel}: shared memory is dynamic, but for what the driver reserves"


@pytest.mark.usefixtures("kernels")
def test_the_instructions_that_were_meant_are_used():
    code = dump("-sass", "-arch", "sm_90a")
    copies = "LDGSTS.E.BYPASS.LTC256B.128"
    matrices = ["HMMA.16816.F32.BF16", "HMMA.16816.F32 "]
    matrices += [f"HGMMA.64x{columns}x16.F32{kind}" for columns in (32, 64, 128) for kind in (".BF16", " ")]
    for instruction in (*matrices, "FENCE.VIEW.ASYNC", "LDSM.16.M88.4", copies, "REDUX.MAX"):
        assert instruction in code, instruction
    # Nothing is computed in float64 but the ratio of the valid tokens, which is not fused.
    assert sorted(re.findall(r"\b(DADD|DMUL|DFMA)\b", code)) == ["DADD", "DMUL"]


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_clusters_are_used_where_there_are_any(kernels, architecture):
    """Their barrier, stores to another block's shared memory, waits for these."""
    (name,) = {k.name for k in kernels if "rows_kernelIf" in k.name}
    code = dump("-sass", "-arch", architecture, "-fun", name)
    for instruction in ("UCGABAR_ARV", "UCGABAR_WAIT", "STAS.128", "SYNCS.PHASECHK"):
        assert (instruction in code) == (architecture != "sm_80"), instruction


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("loop", machine_code.LOOPS)
def test_the_hot_loops_are_short(loop):
    bounds = machine_code.LOOPS[loop]
    way = machine_code.turn_of(str(_native.library_path()), bounds)
    assert len(way) <= bounds.most_instructions
    assert machine_code.stalls(way) <= bounds.most_stalls


@pytest.mark.usefixtures("kernels")
def test_the_documents_reckon_with_the_machine_code_that_there_is():
    counts = record.read(record.RESULTS / machine_code.FILE, machine_code.Count)
    kept = {count.loop: count for count in counts if count.loop in machine_code.LOOPS}  # earlier code had others
    found = {count.loop: count for count in machine_code.count_all(str(_native.library_path()))}
    assert kept.keys() == found.keys()
    (kept_by,), (made_by,) = ({count.compiler for count in counts.values()} for counts in (kept, found))
    if kept_by != made_by:
        pytest.skip(f"counted for nvcc {kept_by}, the library is made by {made_by}")
    for loop, count in found.items():
        now = (count.instructions, count.stalls)
        assert now == (kept[loop].instructions, kept[loop].stalls), f"{loop}: python -m bench machine-code, then plot"


def listing(*texts):
    """As cuobjdump prints it: the upper word of an instruction is in the line after it. Stall counts from 1."""
    lines = ["Function : a_kernel"]
    for k, text in enumerate(texts):
        lines += [f"  /*{16 * k:04x}*/  {text} ;  /* 0x{0:016x} */", f"  /* 0x{(k + 1) << 41:016x} */"]
    return "\n".join(lines)


def test_a_turn_of_a_loop_takes_the_cheapest_way_that_meets_all_marks():
    text = listing(
        "MOV R1, R2", "@P0 BRA 0x30", "NOP", "REDUX.MAX UR4, R1", "@!P1 BRA 0x60", "MUFU.EX2 R1, R1", "BRA 0x10", "EXIT"
    )  # fmt: skip
    code = machine_code.instructions(text, "a_kernel")
    assert [x.stall for x in code] == list(range(1, 9))
    assert [x.address for x in machine_code.turn(code, "REDUX")] == [0x10, 0x30, 0x40, 0x60]
    assert [x.address for x in machine_code.turn(code, "REDUX", "REDUX|MUFU")] == [0x10, 0x30, 0x40, 0x50, 0x60]
    assert machine_code.instructions(text, "another") == []
    with pytest.raises(LookupError, match="no loop with HMMA"):
        machine_code.turn(code, "HMMA")


def test_a_turn_of_a_loop_stays_out_of_loops_inside():
    code = machine_code.instructions(
        listing("REDUX.MAX UR4, R1", "@P0 BRA 0x40", "MUFU.EX2 R1, R1", "@P1 BRA 0x20", "BRA 0x0"), "a_kernel"
    )
    assert [x.address for x in machine_code.turn(code, "REDUX", "REDUX|MUFU")] == [0x0, 0x10, 0x40]


def test_counts_need_kernels(tmp_path, capsys):
    library = tmp_path / "library.so"
    assert command.main(["machine-code", "--library", str(library), "--out", str(tmp_path)]) == 2
    assert "No such file" in capsys.readouterr().err
    library.write_bytes(b"")
    assert command.main(["machine-code", "--library", str(library), "--out", str(tmp_path)]) == 2
    expected = "expected the CUDA kernels, built for sm_90a" if machine_code.cuobjdump() else "expected cuobjdump"
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [library]
