"""Inputs for the tests: tokens of several kinds, priors, hypothesis strategies, and what rounding may do to them."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import mi_pruner
from mi_pruner._dispatch import BACKENDS

from .cuda_host.build import CUDA_ON_HOST

# The backends that the suite runs on: with TRITON_INTERPRET=1 Triton's kernels, with MI_PRUNER_CUDA_HOST=1 the CUDA
# kernels, compiled as C++ (tests/cuda_host), both on CPU tensors.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SLOW = INTERPRETED or CUDA_ON_HOST  # a call takes a hundred times as long: what backends share is tried less often
_DEFAULT = "triton" if INTERPRETED else "cuda" if CUDA_ON_HOST else "reference,cpu"
UNDER_TEST = os.environ.get("MI_PRUNER_TEST_BACKENDS", _DEFAULT).split(",")
FULL = (torch.float32, torch.float64) if {"triton", "cuda"}.isdisjoint(UNDER_TEST) else (torch.float32,)
DTYPES = (torch.float16, torch.bfloat16, *FULL)
REDUNDANCIES = ("mean", "chain", "max", "none")
MARGINALS = ("joint", "prior")
KINDS = ("separated", "clustered", "duplicates", "identical")


@contextlib.contextmanager
def running(name: str) -> Iterator[None]:
    """Every operator called inside runs on this backend; a skip where it can't be used."""
    missing = BACKENDS[name].unavailable()
    if missing is not None:
        pytest.skip(f"backend {name!r}: {missing}")
    with mi_pruner.backend(name):
        yield


def visual_tokens(kind: str, n: int, d: int, seed: int) -> Tensor:
    """(n, d) float64 tokens of one sample."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=g, dtype=torch.float64)
    if kind == "separated":
        return rows
    if kind == "identical":
        return rows[:1].repeat(n, 1)
    groups = torch.randint(0, max(1, n // (2 if kind == "duplicates" else 8)), (n,), generator=g)
    if kind == "duplicates":
        return rows[groups]
    return rows[groups] + 0.2 * torch.randn(n, d, generator=g, dtype=torch.float64)


def text_tokens(visual: Tensor, m: int, seed: int) -> Tensor:
    """(m, d) text related to some of the visual tokens."""
    g = torch.Generator().manual_seed(seed + 1)
    near = visual[torch.randint(0, len(visual), (m,), generator=g)]
    return near + torch.randn(m, visual.shape[1], generator=g, dtype=torch.float64)


def prior_of(kind: str | None, n: int, seed: int) -> Tensor | None:
    """A prior (n,); "float" and "bool" have zeros, "odd" negative, NaN, infinite and denormal entries, too."""
    if kind is None:
        return None
    g = torch.Generator().manual_seed(seed + 2)
    prior = torch.rand(n, generator=g)
    absent = torch.rand(n, generator=g) < 0.3
    if kind == "bool":
        return ~absent
    prior = prior.add(0.05).masked_fill(absent, 0.0)
    if kind == "odd":
        for at, value in enumerate((-1.0, math.nan, 1e-40, -math.inf)):
            prior[(7 * at + seed) % n] = value
    return prior


@dataclass
class Sample:
    """One sample: visual (n, d), text (m, d) and priors, on the CPU."""

    visual: Tensor
    text: Tensor
    visual_prior: Tensor | None = None
    text_prior: Tensor | None = None

    @property
    def n(self) -> int:
        return self.visual.shape[0]

    def to(self, device: str) -> Sample:
        return Sample(*(x if x is None else x.to(device) for x in (self.visual, self.text, *self.priors().values())))

    def priors(self) -> dict[str, Tensor | None]:
        return {"visual_prior": self.visual_prior, "text_prior": self.text_prior}


def make_sample(kind, n, m, d, dtype=torch.float32, seed=0, visual_prior=None, text_prior=None) -> Sample:
    visual = visual_tokens(kind, n, d, seed)
    text = text_tokens(visual, m, seed)
    return Sample(visual.to(dtype), text.to(dtype), prior_of(visual_prior, n, seed), prior_of(text_prior, m, seed + 9))


def batch(samples: list[Sample]) -> Sample:
    """Samples of equal sizes as one batch: every field gets a leading B."""

    def stack(values):
        return None if values[0] is None else torch.stack(values)

    return Sample(*(stack([getattr(s, f) for s in samples]) for f in ("visual", "text", "visual_prior", "text_prior")))


def odd_rows(rows: Tensor, seed: int = 0) -> Tensor:
    """The rows (b, n, d) with NaN, infinite, overflowing, zero, huge and tiny ones among them (n >= 8)."""
    rows = rows.clone()
    n = rows.shape[-2]
    half = rows.dtype == torch.float16
    at = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    rows[..., at[0], 0] = math.nan
    rows[..., at[1], -1] = math.inf
    rows[..., at[2], :] = -math.inf
    rows[..., at[3], :] = 0.0
    rows[..., at[4], :] = rows[..., at[4], :].clamp(-2, 2) * (1e4 if half else 1e15)
    if not half:
        rows[..., at[5], :] *= 1e-15
        rows[..., at[6], 0] = 1e30 if rows.dtype != torch.float64 else 1e200  # its square is not finite
    return rows


def finite_rows(rows: Tensor) -> Tensor:
    """(…, n) bool: the rows with a finite squared norm in the accumulation dtype."""
    rows = rows if rows.dtype == torch.float64 else rows.float()
    return (rows * rows).sum(-1).isfinite()


def valid_rows(s: Sample) -> Tensor:
    """(n,) bool: the visual tokens of a sample that can be picked."""
    return finite_rows(s.visual) if s.visual_prior is None else finite_rows(s.visual) & (s.visual_prior > 0)


def cu_seqlens(lengths, device="cpu") -> Tensor:
    """(B + 1,) int32: where each of the packed samples starts."""
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)


def epsilon(dtype: torch.dtype) -> float:
    """The rounding unit of what is accumulated for features of this dtype."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


def rounding(dtype: torch.dtype, squared_bandwidth: float, n: int) -> float:
    """What rounding may change in a score or a gain: a few units of cosine / h², times |ℓ| ≲ 1 + log n."""
    return 16 * epsilon(dtype) * (1 + 1 / squared_bandwidth) * (1 + math.log(n + 1))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal shapes, dtypes and bits, NaN and the sign of zero included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))


@st.composite
def samples(draw, dtypes=(*FULL, torch.float16, torch.bfloat16), kinds=KINDS, max_n=48, min_n=1):
    """One sample of any size, kind, dtype and prior; at least one token of each side is valid or none has a prior."""
    return make_sample(
        draw(st.sampled_from(kinds)),
        draw(st.integers(min_n, max_n)),
        draw(st.integers(1, 9)),
        draw(st.integers(2, 40)),
        draw(st.sampled_from(dtypes)),
        draw(st.integers(0, 999)),
        draw(st.sampled_from([None, "float", "bool", "odd"])),
        draw(st.sampled_from([None, "float", "bool"])),
    )


def traced(call):
    """Runs it; the names of the operators that it called, in order, and the bytes of each allocation by PyTorch."""
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        outputs = call()  # lives until the end: nothing is given back meanwhile but what the call itself does
    events = profile.kineto_results.events()
    del outputs
    names = [event.name() for event in events if "::" in event.name()]
    return names, [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]
