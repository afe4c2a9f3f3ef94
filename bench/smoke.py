"""On a GPU: one way through the kernels, eager and from a CUDA graph, against the float64 reference.

Each way in a process of its own (`bench/gpu_check.sh` runs them side by side): one that hangs or breaks its context
takes no other along.
"""

import argparse
import sys

import torch

import mi_pruner
from mi_pruner._dispatch import BACKENDS

WAYS = {  # name -> backend, and (B, N, M, D, K) of the calls
    "gram": ("cuda", ((1, 1, 1, 1, 1), (2, 576, 32, 4096, 64), (1, 2880, 32, 512, 320))),
    "rows": ("cuda", ((1, 5000, 32, 512, 300), (2, 32768, 8, 64, 200))),
    "rows-in-memory": ("cuda", ((1, 33000, 8, 64, 200),)),
    "triton": ("triton", ((2, 576, 32, 4096, 64), (1, 5000, 32, 512, 300))),
}
ALLOWED = 1e-4  # standard deviations of the scores, as tests/test_gpu.py allows


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench smoke`."""
    parser.add_argument("way", choices=WAYS)


def main(options: argparse.Namespace) -> int:
    """The exit status: 2 where it can't run, 1 if a result is wrong."""
    backend, shapes = WAYS[options.way]
    why = BACKENDS[backend].why_not("cuda")
    if why is not None:
        print(f"smoke: backend {backend!r}: {why}", file=sys.stderr)
        return 2
    return max(_check(backend, shape, "cuda") for shape in shapes)


def _check(backend: str, shape: tuple[int, ...], device: str) -> int:
    b, n, m, d, keep = shape
    generator = torch.Generator().manual_seed(0)
    visual, text = (torch.randn(b, count, d, generator=generator).bfloat16() for count in (n, m))
    given = visual.to(device), text.to(device)
    with mi_pruner.backend(backend):
        scores = mi_pruner.mi_scores(*given).cpu()
        eager = mi_pruner.prune(*given, keep)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = mi_pruner.prune(*given, keep)
        graph.replay()
        torch.cuda.synchronize()
    with mi_pruner.backend("reference"):
        exact = mi_pruner.mi_scores(visual.double(), text.double())
    spread = max(exact.std(correction=0).item(), 1 / n)
    off = (scores - exact).abs().max().item() / spread
    distinct = all(len(set(row)) == keep for row in eager[1].tolist())
    same = all(torch.equal(x, y) for x, y in zip(captured, eager, strict=True))
    right = off <= ALLOWED and distinct and same
    print(f"{shape}: scores off by {off:.1e} deviations, {distinct=}, from a graph {same=}: {right}", flush=True)
    return 0 if right else 1
