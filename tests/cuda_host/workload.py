"""Run in a process of its own on a sanitizer build of the host twin, whose path is the argument.

Every kernel, odd shapes, packed garbage, both ways of selecting, several orders of the threads. The results are checked
elsewhere; here a report of the sanitizers is what fails. The last line says that all was run.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import torch

import mi_pruner
from mi_pruner._dispatch import BACKENDS
from tests.cuda_host import build

DTYPES = (torch.bfloat16, torch.float32)  # float16 differs from bfloat16 in one instruction
SHAPES = ((1, 1, 1, 1), (2, 5, 3, 7), (1, 130, 66, 40), (2, 33, 2, 129))  # B, N, M, D
OPTIONS = (
    {},
    {"redundancy": "chain", "marginal": "prior", "bandwidth": 1e-3, "min_gain": -1e-3},
    {"redundancy": "max", "redundancy_weight": 1e6},
    {"redundancy": "none"},
)
LIMITS = (-(2**31), -1, 0, 3, 40, 2**31 - 1)
LONG = 1100  # beyond what one warp selects from
MANY = 4100  # beyond all redundancies


def dense(shape, dtype, options, g):
    b, n, m, d = shape
    wide = torch.randn(b, n, d + 3, generator=g).to(dtype)
    text = torch.randn(b, m, d, generator=g).to(dtype)
    visual = wide[..., 1 : d + 1]  # rows that start anywhere
    visual[:, n // 2] = math.nan
    prior = torch.rand(b, n, generator=g) - 0.2
    mi_pruner.prune(visual, text, n, visual_prior=prior, budget=torch.arange(b), **options)
    mi_pruner.prune(visual.contiguous(), text, max(1, n // 3), **options)


def packed(dtype, options, total, bound, g, garbled=True):
    visual, text = torch.randn(total, 19, generator=g).to(dtype), torch.randn(13, 19, generator=g).to(dtype)
    ragged = [torch.tensor(x, dtype=torch.int32) for x in ([0, 7, 7, 40, 41], [0, 3, 5, 13, 13], [0, 3, 5, 20, 23])]
    garbage = [torch.tensor(LIMITS)[torch.randint(0, len(LIMITS), (5,), generator=g)].int() for _ in range(3)]
    for cu in (ragged, garbage) if garbled else (ragged,):
        mi_pruner.prune_varlen(visual, text, *cu, bound, bound, bound, 23, **options)


def main():
    BACKENDS["cuda"] = build.backend(Path(sys.argv[1]))
    g = torch.Generator().manual_seed(0)
    with mi_pruner.backend("cuda"):
        for seed, dtype in enumerate(DTYPES):
            os.environ["MI_PRUNER_HOST_SEED"] = str(seed)
            for k, shape in enumerate(SHAPES):
                for options in OPTIONS[(k + seed) % 2 :: 2]:  # all four between the dtypes
                    dense(shape, dtype, options, g)
            for options in OPTIONS:
                packed(dtype, options, 41, 50, g)
            for clusters in ("0", "1"):
                os.environ["MI_PRUNER_HOST_CLUSTERS"] = clusters
                os.environ["MI_PRUNER_HOST_GROUPS"] = "1"  # of halves
                os.environ["MI_PRUNER_HOST_BLOCKS"] = "8"
                options = OPTIONS[seed + int(clusters)]
                packed(dtype, options, MANY, MANY, g, garbled=seed == 0)
                os.environ["MI_PRUNER_HOST_BLOCKS"] = "64"  # room for clusters of four samples
                packed(dtype, options, 41, LONG, g, garbled=seed == 0)
                os.environ["MI_PRUNER_HOST_BLOCKS"] = "8"
                dense((1, 70, 3, 1104), dtype, options, g)  # all eighths of a long sum, by a block or by eight
            os.environ["MI_PRUNER_HOST_BLOCKS"] = "1"
            dense((1, 70, 3, 72), dtype, OPTIONS[seed], g)  # wide tiles apart from the text's
            os.environ.update(MI_PRUNER_HOST_GROUPS="0", MI_PRUNER_HOST_CLUSTERS="0")
    print("all was run")


if __name__ == "__main__":
    main()
