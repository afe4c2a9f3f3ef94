"""Run in a process of its own on a build of the host twin for the thread sanitizer: its path, and "gram" or "rows".

Every kernel on the smallest inputs that give several warps, blocks and products work: to the sanitizer each CUDA thread
is a thread, and costs it half a megabyte. A report of a race is what fails. The last line says that all was run.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

import mi_pruner
from mi_pruner._dispatch import BACKENDS
from tests.cuda_host import build

MANY = 4100  # beyond all redundancies


def features(g, dtype, *shape):
    return torch.randn(*shape, generator=g).to(dtype)


def gram(g, dtype, blocks, clusters="0", groups="0", width=456, **options):
    os.environ.update(MI_PRUNER_HOST_BLOCKS=blocks, MI_PRUNER_HOST_CLUSTERS=clusters, MI_PRUNER_HOST_GROUPS=groups)
    # 456: stages of the ring are filled again, and the last is not a whole one
    mi_pruner.prune(features(g, dtype, 1, 35, width), features(g, dtype, 1, 3, width), 4, **options)


def packed(g, dtype):
    visual, text = features(g, dtype, 18, 19), features(g, dtype, 4, 19)
    cu = [torch.tensor(x, dtype=torch.int32) for x in ([0, 5, 17], [0, 3, 4], [0, 2, 4])]
    mi_pruner.prune_varlen(visual, text, *cu, 12, 3, 2, 5)


def top_k(g, dtype):
    mi_pruner.greedy_select(torch.rand(1, 300, generator=g), features(g, dtype, 1, 300, 8), 20, redundancy="none")


def with_bound(g, dtype, clusters, groups="0", bound=1030, width=8, blocks="16"):  # 1030: several warps
    os.environ.update(MI_PRUNER_HOST_BLOCKS=blocks, MI_PRUNER_HOST_CLUSTERS=clusters, MI_PRUNER_HOST_GROUPS=groups)
    cu = [torch.tensor([0, last], dtype=torch.int32) for last in (300, 4, 12)]
    mi_pruner.prune_varlen(features(g, dtype, 300, width), features(g, dtype, 4, width), *cu, bound, 4, 12, 12)


def rows(g, dtype, clusters):
    """A team of a block or a cluster, and another one beside it that does parts of its products, in a random order."""
    os.environ.update(MI_PRUNER_HOST_BLOCKS="2", MI_PRUNER_HOST_CLUSTERS=clusters, MI_PRUNER_HOST_GROUPS="0")
    os.environ.update(MI_PRUNER_HOST_TOGETHER="2", MI_PRUNER_HOST_SEED="1")
    mi_pruner.greedy_select(torch.rand(1, MANY, generator=g), features(g, dtype, 1, MANY, 8), 70)
    del os.environ["MI_PRUNER_HOST_TOGETHER"], os.environ["MI_PRUNER_HOST_SEED"]


def main():
    library, part = sys.argv[1:]
    BACKENDS["cuda"] = build.backend(Path(library))
    g = torch.Generator().manual_seed(0)
    with mi_pruner.backend("cuda"):
        if part == "gram":
            gram(g, torch.bfloat16, "5")
            gram(g, torch.float32, "1", width=70, redundancy="chain")  # fewer stages than the ring has
            gram(g, torch.float32, "5", width=320)  # the last stage where the sums are to be
            gram(g, torch.float32, "5", clusters="1", width=560)  # eighths of a sum by eight blocks
            gram(g, torch.bfloat16, "1", groups="1", width=1104)  # by groups of warps
            gram(g, torch.float16, "50", clusters="1", groups="1", width=1104)  # and eight blocks
            packed(g, torch.float32)
            top_k(g, torch.bfloat16)
            with_bound(g, torch.float32, "0")
            with_bound(g, torch.bfloat16, "1", groups="1")
        else:
            rows(g, torch.float32, "0")
            rows(g, torch.bfloat16, "2")
            with_bound(g, torch.float16, "0", groups="1", bound=MANY, width=456, blocks="2")  # rows
    print("all was run")


if __name__ == "__main__":
    main()
