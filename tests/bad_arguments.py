"""What the operators refuse: valid arguments of each, and the table of wrong ones with the errors they give."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

B, N, M, D = 2, 6, 3, 4


def features(*shape, dtype=torch.float32):
    return lambda device: torch.zeros(shape, dtype=dtype, device=device)


def integers(*shape, dtype=torch.int32):
    return features(*shape, dtype=dtype)


DENSE = {"visual": features(B, N, D), "text": features(B, M, D)}
PACKED = {"visual": features(B * N, D), "text": features(B * M, D)}
CU = {name: integers(B + 1) for name in ("cu_seqlens_visual", "cu_seqlens_text", "cu_keep")}
VALID = {
    "mi_scores": DENSE,
    "greedy_select": {"scores": features(B, N), "visual": DENSE["visual"], "keep": 2},
    "prune": {**DENSE, "keep": 2},
    "mi_scores_varlen": {
        **PACKED,
        **{name: CU[name] for name in ("cu_seqlens_visual", "cu_seqlens_text")},
        "max_seqlen_visual": N,
        "max_seqlen_text": M,
    },
    "greedy_select_varlen": {
        "scores": features(B * N),
        "visual": PACKED["visual"],
        **{name: CU[name] for name in ("cu_seqlens_visual", "cu_keep")},
        "max_seqlen_visual": N,
        "max_keep": 2,
        "total_keep": 4,
    },
    "prune_varlen": {
        **PACKED,
        **CU,
        "max_seqlen_visual": N,
        "max_seqlen_text": M,
        "max_keep": 2,
        "total_keep": 4,
    },
    "histogram_mi_scores": DENSE,
}
DENSE_OPERATORS = ("mi_scores", "greedy_select", "prune", "histogram_mi_scores")
PACKED_OPERATORS = ("mi_scores_varlen", "greedy_select_varlen", "prune_varlen")
TEXT = ("mi_scores", "prune", "histogram_mi_scores")
SCORE = ("mi_scores", "prune")
TEXT_PACKED = ("mi_scores_varlen", "prune_varlen")
SELECT = ("greedy_select", "prune")
SELECT_PACKED = ("greedy_select_varlen", "prune_varlen")


@dataclass
class Case:
    """Wrong arguments, the error they give in each of the operators, and the operators."""

    operators: tuple
    change: dict
    message: str  # "{on}" stands for the device
    error: type = ValueError
    name: str = field(init=False)

    def __post_init__(self):
        self.name = " ".join(self.change) + ": " + self.message.partition(", got ")[2]


HALF, DOUBLE = torch.float16, torch.float64

CASES = (
    # visual
    Case(
        DENSE_OPERATORS,
        {"visual": features(N, D)},
        "visual: expected (B, N, D) floating point, got (6, 4) float32 on {on}",
    ),
    Case(
        DENSE_OPERATORS,
        {"visual": integers(B, N, D, dtype=torch.int64)},
        "visual: expected (B, N, D) float16, bfloat16, float32 or float64, got (2, 6, 4) int64 on {on}",
        TypeError,
    ),
    Case(
        DENSE_OPERATORS,
        {"visual": features(B, N, D, dtype=torch.complex64)},
        "visual: expected (B, N, D) float16, bfloat16, float32 or float64, got (2, 6, 4) complex64 on {on}",
        TypeError,
    ),
    Case(
        DENSE_OPERATORS,
        {"visual": features(B, 0, D)},
        "visual: expected (B, N, D) with N >= 1, got (2, 0, 4) float32 on {on}",
    ),
    Case(
        PACKED_OPERATORS,
        {"visual": features(B, N, D)},
        "visual: expected (total_N, D) floating point, got (2, 6, 4) float32 on {on}",
    ),
    Case(
        PACKED_OPERATORS,
        {"visual": integers(B * N, D, dtype=torch.bool)},
        "visual: expected (total_N, D) float16, bfloat16, float32 or float64, got (12, 4) bool on {on}",
        TypeError,
    ),
    # text
    Case(TEXT, {"text": features(M, D)}, "text: expected (B, M, D) floating point, got (3, 4) float32 on {on}"),
    Case(
        TEXT,
        {"text": features(B, M, D, dtype=HALF)},
        "text: expected the dtype of visual, torch.float32, got (2, 3, 4) float16 on {on}",
        TypeError,
    ),
    Case(
        TEXT,
        {"text": integers(B, M, D)},
        "text: expected (B, M, D) float16, bfloat16, float32 or float64, got (2, 3, 4) int32 on {on}",
        TypeError,
    ),
    Case(TEXT, {"text": features(B, M, 5)}, "text: expected D = 4 as in visual, got (2, 3, 5) float32 on {on}"),
    Case(TEXT, {"text": features(1, M, D)}, "text: expected B = 2 samples as in visual, got (1, 3, 4) float32 on {on}"),
    Case(TEXT, {"text": features(B, 0, D)}, "text: expected (B, M, D) with M >= 1, got (2, 0, 4) float32 on {on}"),
    Case(
        TEXT_PACKED,
        {"text": features(1, B * M, D)},
        "text: expected (total_M, D) floating point, got (1, 6, 4) float32 on {on}",
    ),
    Case(TEXT_PACKED, {"text": features(B * M, 3)}, "text: expected D = 4 as in visual, got (6, 3) float32 on {on}"),
    Case(
        TEXT_PACKED,
        {"text": features(B * M, D, dtype=DOUBLE)},
        "text: expected the dtype of visual, torch.float32, got (6, 4) float64 on {on}",
        TypeError,
    ),
    # priors
    Case(
        DENSE_OPERATORS,
        {"visual_prior": features(B, M)},
        "visual_prior: expected (B, N) = (2, 6), got (2, 3) float32 on {on}",
    ),
    Case(
        DENSE_OPERATORS,
        {"visual_prior": features(N)},
        "visual_prior: expected (B, N) = (2, 6), got (6,) float32 on {on}",
    ),
    Case(
        DENSE_OPERATORS,
        {"visual_prior": integers(B, N)},
        "visual_prior: expected floating point or bool (an integer mask: mask.bool()), got (2, 6) int32 on {on}",
        TypeError,
    ),
    Case(TEXT, {"text_prior": features(B, N)}, "text_prior: expected (B, M) = (2, 3), got (2, 6) float32 on {on}"),
    Case(
        TEXT,
        {"text_prior": integers(B, M, dtype=torch.int64)},
        "text_prior: expected floating point or bool (an integer mask: mask.bool()), got (2, 3) int64 on {on}",
        TypeError,
    ),
    Case(
        PACKED_OPERATORS,
        {"visual_prior": features(B, N)},
        "visual_prior: expected (total_N,) = (12,), got (2, 6) float32 on {on}",
    ),
    Case(
        TEXT_PACKED,
        {"text_prior": features(5)},
        "text_prior: expected (total_M,) = (6,), got (5,) float32 on {on}",
    ),
    # scores
    Case(
        ("greedy_select",),
        {"scores": features(B, M)},
        "scores: expected (B, N) = (2, 6), got (2, 3) float32 on {on}",
    ),
    Case(
        ("greedy_select",),
        {"scores": integers(B, N, dtype=torch.int64)},
        "scores: expected (B, N) floating point, got (2, 6) int64 on {on}",
        TypeError,
    ),
    Case(
        ("greedy_select_varlen",),
        {"scores": features(B, N)},
        "scores: expected (total_N,) = (12,), got (2, 6) float32 on {on}",
    ),
    Case(
        ("greedy_select_varlen",),
        {"scores": integers(B * N, dtype=torch.bool)},
        "scores: expected (total_N,) floating point, got (12,) bool on {on}",
        TypeError,
    ),
    # counts
    Case(SELECT, {"keep": 7}, "keep: expected 1 <= keep <= N = 6, got 7"),
    Case(SELECT, {"budget": integers(B, 1)}, "budget: expected (B,) = (2,), got (2, 1) int32 on {on}"),
    Case(SELECT, {"budget": integers(3)}, "budget: expected (B,) = (2,), got (3,) int32 on {on}"),
    Case(
        SELECT,
        {"budget": features(B)},
        "budget: expected int32 or int64, got (2,) float32 on {on}",
        TypeError,
    ),
    Case(TEXT_PACKED, {"max_seqlen_text": -1}, "max_seqlen_text: expected an integer >= 0, got -1"),
    Case(PACKED_OPERATORS, {"max_seqlen_visual": -2}, "max_seqlen_visual: expected an integer >= 0, got -2"),
    Case(SELECT_PACKED, {"max_keep": -3}, "max_keep: expected an integer >= 0, got -3"),
    Case(SELECT_PACKED, {"total_keep": -4}, "total_keep: expected an integer >= 0, got -4"),
    # cu_*
    *(
        Case(
            operators,
            {name: integers(B + 1, dtype=torch.int64)},
            f"{name}: expected int32, got (3,) int64 on {{on}}",
            TypeError,
        )
        for operators, name in (
            (PACKED_OPERATORS, "cu_seqlens_visual"),
            (TEXT_PACKED, "cu_seqlens_text"),
            (SELECT_PACKED, "cu_keep"),
        )
    ),
    Case(
        PACKED_OPERATORS,
        {"cu_seqlens_visual": integers(0)},
        "cu_seqlens_visual: expected (B + 1,) int32, got (0,) int32 on {on}",
    ),
    Case(
        PACKED_OPERATORS,
        {"cu_seqlens_visual": integers(1, 3)},
        "cu_seqlens_visual: expected (B + 1,) int32, got (1, 3) int32 on {on}",
    ),
    Case(
        TEXT_PACKED,
        {"cu_seqlens_text": integers(4)},
        "cu_seqlens_text: expected (B + 1,) = (3,) int32, as cu_seqlens_visual, got (4,) int32 on {on}",
    ),
    Case(
        SELECT_PACKED,
        {"cu_keep": integers(2)},
        "cu_keep: expected (B + 1,) = (3,) int32, as cu_seqlens_visual, got (2,) int32 on {on}",
    ),
    # options
    *(
        Case(SCORE + TEXT_PACKED, {"bandwidth": h}, f"bandwidth: expected 0.001 <= h <= 1000.0, got {h}")
        for h in (0.0, -1.0, 9.9e-4, 1000.1, math.inf, math.nan)
    ),
    *(
        Case(
            SELECT + SELECT_PACKED,
            {"visual_bandwidth": h},
            f"visual_bandwidth: expected 0.001 <= h <= 1000.0, got {h}",
        )
        for h in (0.0, -0.63, 1e4, math.nan)
    ),
    Case(SCORE + TEXT_PACKED, {"marginal": "uniform"}, "marginal: expected 'joint' or 'prior', got 'uniform'"),
    Case(
        SELECT + SELECT_PACKED,
        {"redundancy": "sum"},
        "redundancy: expected 'mean' or 'chain' or 'max' or 'none', got 'sum'",
    ),
    *(
        Case(
            SELECT + SELECT_PACKED,
            {"redundancy_weight": w},
            f"redundancy_weight: expected 0 <= weight <= 1e+06, got {w}",
        )
        for w in (-0.1, 1.1e6, 1e39, math.inf, math.nan)
    ),
    *(
        Case(("histogram_mi_scores",), {"bins": bins}, f"bins: expected 2 <= bins <= 64, got {bins}")
        for bins in (-16, 0, 1, 65)
    ),
    Case(SELECT + SELECT_PACKED, {"min_gain": math.nan}, "min_gain: expected a number or None, got nan"),
    *(
        Case(SELECT + SELECT_PACKED, {"ratio": ratio}, f"ratio: expected 0 < ratio <= 1, or None, got {ratio}")
        for ratio in (0.0, -0.25, 1.001, 64.0, math.inf, math.nan)
    ),
)
