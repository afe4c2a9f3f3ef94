"""Run in a process of its own with a sanitizer build: every operator over dtypes, odd shapes, strides, packed garbage.

    python -m tests.sanitizer_workload            # the backend "cpu"
    python -m tests.sanitizer_workload triton     # under compute-sanitizer: fewer types and less garbage, as it is slow
    python -m tests.sanitizer_workload cuda few   # fewer calls still, for its racecheck

The results are checked elsewhere; here a report of the sanitizers is what fails. The last line says that all was run.
"""

from __future__ import annotations

import itertools
import math
import sys

import torch

import mi_pruner
from mi_pruner._dispatch import BACKENDS

BACKEND = sys.argv[1] if len(sys.argv) > 1 else "cpu"
DEVICE = "cpu" if BACKEND == "cpu" else BACKENDS[BACKEND].device
SLOW = BACKEND != "cpu"
FEW = sys.argv[2:] == ["few"]
DTYPES = (torch.bfloat16, torch.float32) if SLOW else (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHAPES = (
    (1, 1, 1, 1),
    (2, 5, 3, 7),
    (3, 33, 17, 64),
    (1, 123, 5, 123),
    (2, 130, 33, 100),
    (0, 4, 3, 8),
    (1, 300, 1, 31),
)
OPTIONS = (
    {},
    {"redundancy": "chain", "marginal": "prior", "bandwidth": 1e-3},
    {"redundancy": "max", "visual_bandwidth": 1e3, "min_gain": -1e-3},
    {"redundancy": "none", "bandwidth": 1e3},
    {"redundancy_weight": 0.0, "visual_bandwidth": 1e-3},
    {"redundancy_weight": 1e6, "redundancy": "max"},
)
ODD = (math.nan, math.inf, -math.inf, 0.0, 1e30, 1e-30)
LIMITS = (-(2**31), -1, 0, 3, 40, 2**31 - 1)


def tensors(shape, dtype, seed):
    b, n, m, d = shape
    g = torch.Generator().manual_seed(seed)
    visual, text = torch.randn(b, n, d, generator=g), torch.randn(b, m, d, generator=g)
    visual[:, n // 2 :] = visual[:, : n - n // 2].clone()  # duplicates
    priors = {"visual_prior": torch.rand(b, n, generator=g) - 0.2, "text_prior": torch.rand(b, m, generator=g) > 0.3}
    return visual.to(DEVICE, dtype), text.to(DEVICE, dtype), {name: prior.to(DEVICE) for name, prior in priors.items()}


def dense(shape, dtype, seed):
    b, n, _, d = shape
    visual, text, priors = tensors(shape, dtype, seed)
    odd = visual.clone()
    for i, value in enumerate(ODD):
        odd[:, (i * 5) % n, i % d] = value
    budget = torch.arange(b, device=DEVICE) - 1
    for v, options in itertools.product((visual, odd), OPTIONS):
        keep = max(1, n // 2)
        mi_pruner.prune(v, text, keep, **options)
        mi_pruner.prune(v, text, n, **priors, budget=budget, **options)
        mi_pruner.prune(v, text, 0.3, **priors, **options)
    if "histogram_mi_scores" not in BACKENDS[BACKEND].lacks:
        for v, bins in itertools.product((visual, odd), (2, 16, 64)):
            mi_pruner.histogram_mi_scores(v, text, **priors, bins=bins)
    # every second sample, rows inside wider ones, rows that stand still
    wide = torch.zeros(2 * b, n, d + 3, dtype=dtype, device=DEVICE)[::2, :, 1 : d + 1]
    mi_pruner.prune(wide, text, keep)
    mi_pruner.prune(visual[:, :1].expand_as(visual), text[:, :1].expand_as(text), keep)


def packed(dtype, seed):
    g = torch.Generator().manual_seed(seed)
    visual, text = (torch.randn(count, 19, generator=g).to(DEVICE, dtype) for count in (41, 13))
    prior = (torch.rand(41, generator=g) - 0.2).to(DEVICE)
    ragged = [torch.tensor(x, dtype=torch.int32) for x in ([0, 7, 7, 40, 41], [0, 3, 5, 13, 13], [0, 3, 5, 20, 23])]
    garbage = (
        torch.tensor(LIMITS)[torch.randint(0, len(LIMITS), (3, 5), generator=g)].int() for _ in range(3 if SLOW else 30)
    )
    for cu in ([x.to(DEVICE) for x in three] for three in (ragged, *garbage)):
        for bound in (0, 5, 50):
            for options in OPTIONS:
                mi_pruner.prune_varlen(visual, text, *cu, bound, bound, bound, 23, visual_prior=prior, **options)
    empty = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    mi_pruner.prune_varlen(visual[:0], text[:0], empty, empty, empty, 0, 0, 0, 0)


def main():
    with mi_pruner.backend(BACKEND):
        for seed, dtype in enumerate(DTYPES[:1] if FEW else DTYPES):
            for shape in SHAPES[:4] if FEW else SHAPES:
                dense(shape, dtype, seed)
            packed(dtype, seed)
            scores = torch.tensor([[math.nan, math.inf, -math.inf, 1.0, -1.0]], device=DEVICE)
            mi_pruner.greedy_select(scores, torch.randn(1, 5, 3).to(DEVICE, dtype), 5)
            if SLOW:  # a GPU's other ways to select; text beside wide tiles, and apart; tiles that clusters share
                mi_pruner.prune(*tensors((1, 4500, 3, 40), dtype, 1)[:2], 300)
                mi_pruner.prune(*tensors((1, 1100, 3, 72), dtype, 1)[:2], 100)
                mi_pruner.prune(*tensors((9, 1100, 3, 8), dtype, 1)[:2], 30)  # too many samples for clusters
                mi_pruner.prune(*tensors((2, 300, 33, 456), dtype, 1)[:2], 30)
                mi_pruner.prune(*tensors((2, 300, 70, 456), dtype, 1)[:2], 150)
                mi_pruner.prune(*tensors((1, 140, 33, 1104), dtype, 1)[:2], 30)
                mi_pruner.mi_scores(*tensors((1, 140, 33, 1104), dtype, 1)[:2])
    print("all was run")


if __name__ == "__main__":
    main()
