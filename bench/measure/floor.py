"""What a machine can do at best, and what that means for a case: the floor under every competitor's latency.

    floor = max(bytes / copy bandwidth, flops / matmul rate)

with the bytes that must move, the flops that the *result* needs whatever the competitor does beyond them, and both
rates as measured in the same run, by the same library. Where the data come from a cache, a competitor can be below it.
"""

from dataclasses import dataclass

import torch

from bench.baselines import dart
from bench.cases import Case

from . import timing

COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}  # beyond every cache
MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
REPEATS = 5


@dataclass(frozen=True)
class Rates:
    """Of a machine, for one dtype."""

    copy_gb_per_s: float  # bytes read + bytes written
    matmul_gflop_per_s: float


@dataclass(frozen=True)
class Work:
    """What the result of a method needs."""

    text: bool  # cosines of all tokens with the text
    rows: str  # rows of visual-visual cosines: "none", "pivots", "keep" (of the kept tokens) or "all"
    features: bool = True  # reads the features of every token


def flops(case: Case, work: Work) -> int:
    """Multiply-adds count 2; of all rows, which are symmetric, one half."""
    total = 0.0
    for tokens, keep in case.samples:
        rows = {"none": 0, "pivots": dart.VISUAL_PIVOTS + dart.TEXT_PIVOTS, "keep": keep, "all": tokens / 2}[work.rows]
        total += 2 * tokens * case.width * (rows + (case.text if work.text else 0))
    return round(total)


def bytes_moved(case: Case, work: Work) -> int:
    """What is used of the inputs read once, the kept tokens written."""
    rows = 0
    for tokens, keep in case.samples:
        rows += keep + (tokens if work.features else keep) + (case.text if work.text else 0)
    return rows * case.width * case.dtype.itemsize


def floor_ms(case: Case, work: Work, rates: Rates) -> tuple[float, str]:
    """The floor in ms, and which of the two it is: "copy" or "matmul"."""
    copy = bytes_moved(case, work) / rates.copy_gb_per_s / 1e6
    matmul = flops(case, work) / rates.matmul_gflop_per_s / 1e6
    return (copy, "copy") if copy >= matmul else (matmul, "matmul")


def measure(device: str, dtype: torch.dtype) -> Rates:
    """The best of a few large copies and square matrix products."""
    source = torch.ones(COPY_BYTES[device], dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    copied = timing.fastest(lambda: target.copy_(source), device, REPEATS)
    size = MATMUL_SIZE[device]
    factor = torch.randn(size, size, device=device).to(dtype)
    product = torch.empty_like(factor)
    multiplied = timing.fastest(lambda: torch.mm(factor, factor, out=product), device, REPEATS)
    return Rates(2 * COPY_BYTES[device] / copied / 1e6, 2 * size**3 / multiplied / 1e6)
