"""The cases: shapes of real models, and features that resemble theirs, or are those of photographs.

A model's case is named `model/keep`. Widths are those of the language model, after the multimodal projector; token
counts are those of one image at its usual size (LLaVA-NeXT: four tiles and the overview; Qwen: 1008 x 1008 and about
2000 x 2000 pixels), or of a video. The other cases vary one thing at a time. Those with features of photographs are
named `source-tokens/keep`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .photographs import features as photographs

Hard = Literal["rank-2", "rank-4", "rank-8", "40-rows"]  # few dimensions, or few distinct rows


@dataclass(frozen=True)
class Case:
    """One selection problem: keep `keep` of (batch, tokens, width) given (batch, text, width).

    With `sizes` it is a packed batch of samples of those sizes: then tokens = their sum and keep = the total, which the
    samples share in proportion.
    """

    name: str
    tokens: int  # N
    keep: int  # K
    width: int  # D
    text: int = 32  # M, of each sample
    batch: int = 1  # B
    dtype: torch.dtype = torch.float32
    sizes: tuple[int, ...] = ()
    features: Literal["synthetic"] | Hard | photographs.Source = "synthetic"

    @property
    def samples(self) -> list[tuple[int, int]]:
        """(tokens, keep) of each sample."""
        if not self.sizes:
            return [(self.tokens, self.keep)] * self.batch
        return [(size, size * self.keep // self.tokens) for size in self.sizes]


class Inputs(NamedTuple):
    """What every competitor is given; lists of samples (1, n, D) for packed cases."""

    visual: Tensor
    text: Tensor
    saliency: Tensor  # (B, N) float32: a stand-in for the attention scores of a vision encoder


def _model(name: str, tokens: int, width: int, *keeps: int) -> list[Case]:
    return [Case(f"{name}/{keep}", tokens, keep, width) for keep in keeps]


def _packed(name: str, width: int, sizes: tuple[int, ...], one_of: int) -> Case:
    """Keeps one token of every `one_of`; the sizes are multiples of it."""
    return Case(name, sum(sizes), sum(sizes) // one_of, width, batch=len(sizes), sizes=sizes)


def of_photographs(case: Case) -> Case:
    """The same shape with features of photographs: of a film where one has too few tokens."""
    longest = max(tokens for tokens, _ in case.samples)
    return replace(case, features="photograph" if longest <= photographs.PHOTOGRAPH else "film")


def _photographs(tokens: int, keep: int) -> Case:
    case = of_photographs(Case("", tokens, keep, 4096))
    return replace(case, name=f"{case.features}-{tokens}/{keep}")


def _both(*cases: Case) -> tuple[Case, ...]:
    """Of photographs, named `real-`, and synthetic."""
    return (*(replace(of_photographs(case), name=f"real-{case.name}") for case in cases), *cases)


SWEEP_WIDTH = 2048  # Qwen3-VL-2B's: the sweeps stay feasible on a CPU
LLAVA = Case("llava-1.5/64", 576, 64, 4096)

SETS: dict[str, tuple[Case, ...]] = {
    "models": (
        *_model("llava-1.5", 576, 4096, 64, 128, 192),
        *_model("llava-next", 2880, 4096, 160, 320, 640),
        *_model("qwen2.5-vl-7b", 1296, 3584, 130, 324, 648),
        *_model("qwen3-vl-2b", 1024, 2048, 102, 256, 512),
        *_model("qwen3-vl-8b", 1024, 4096, 102, 256, 512),
        *_model("qwen2.5-vl-7b-large", 5000, 3584, 500, 1250, 2500),
    ),
    "video": (*_model("video-16k", 16384, 3584, 1638), *_model("video-32k", 32768, 3584, 3277)),
    "text": _both(*(Case(f"text-{m}", LLAVA.tokens, LLAVA.keep, LLAVA.width, text=m) for m in (16, 64, 256))),
    "batches": _both(*(replace(LLAVA, name=f"{LLAVA.name}x{b}", batch=b) for b in (8, 32, 128))),
    "packed": _both(_packed("packed-8", 3584, (288, 360, 576, 729, 900, 1296, 1521, 2304), 9)),
    "photographs": (
        _photographs(576, 64),
        _photographs(2880, 320),
        _photographs(8192, 512),
        _photographs(10000, 1000),
        _photographs(32768, 2048),
    ),
    "hard": tuple(Case(f"{kind}-2880/320", 2880, 320, 4096, features=kind) for kind in get_args(Hard)),
    "sweep-tokens": _both(*(Case(f"tokens-{n}", n, n // 9, SWEEP_WIDTH) for n in (288, 576, 1152, 2304, 4608, 9216))),
    "sweep-keep": _both(*(Case(f"keep-{k}", 1152, k, SWEEP_WIDTH) for k in (32, 64, 128, 256, 512))),
    "sweep-batch": _both(*(Case(f"batch-{b}", 576, 64, SWEEP_WIDTH, batch=b) for b in (1, 2, 4, 8, 32, 128))),
}
CASES: dict[str, Case] = {case.name: case for cases in SETS.values() for case in cases}

QUICK = ("photograph-576/64", "photograph-2880/320")
# Memory is measured for these, and the compiled baseline takes part: both cost seconds for each competitor and shape.
CORE = (*QUICK, "film-10000/1000", "llava-1.5/64", "llava-next/320", "qwen2.5-vl-7b-large/500")
# Too long for a run of all cases in half an hour on two cores.
TOO_LONG_FOR_A_CPU = {
    "qwen2.5-vl-7b-large/1250",
    "qwen2.5-vl-7b-large/2500",
    "video-16k/1638",
    "video-32k/3277",
    "llava-next/640",
    "qwen2.5-vl-7b/648",
    "qwen3-vl-8b/512",
    *(real + name for real in ("", "real-") for name in ("llava-1.5/64x32", "llava-1.5/64x128")),
    "film-8192/512",
    "film-32768/2048",
    *(real + name for real in ("", "real-") for name in ("tokens-9216", "batch-32", "batch-128")),
}


def usual(device: str, sets: Iterable[str] = SETS) -> tuple[list[str], list[str]]:
    """The names of the cases of some sets; those that take too long on a CPU apart."""
    names = [case.name for name in sets for case in SETS[name]]
    left_out = [name for name in names if device == "cpu" and name in TOO_LONG_FOR_A_CPU]
    return [name for name in names if name not in left_out], left_out


# The parts of a visual token. Together they give a cosine of about 0.84 within a cluster and 0.36 across clusters.
COMMON = 0.6  # the mean of all tokens
CENTRE = 0.7  # the centre of its cluster
NOISE = 0.4  # its own
ALIGNMENT = 0.08  # pull of a text token towards a cluster: 5 times the 0.016 that chance gives in 4096 dimensions


def inputs(case: Case, seed: int = 0, device: str = "cpu") -> list[Inputs]:
    """One `Inputs` of the whole batch, or, of a packed case, one for each sample (1, n, D). Alike for a seed on every
    device; those of photographs up to the rounding of their projection."""
    generator = torch.Generator().manual_seed(seed)
    if case.features == "photograph" or case.features == "film":
        samples = _photographed(case, case.features, generator, device)
    else:
        samples = [_sample(tokens, case, generator) for tokens, _ in case.samples]
    return [_batch([sample], device) for sample in samples] if case.sizes else [_batch(samples, device)]


Sample = tuple[Tensor, Tensor, Tensor]  # visual (N, D), text (M, D), saliency (N,)


def _batch(samples: list[Sample], device: str) -> Inputs:
    return Inputs(*(torch.stack(parts).to(device) for parts in zip(*samples, strict=True)))


def _photographed(case: Case, source: photographs.Source, generator: torch.Generator, device: str) -> list[Sample]:
    """Each sample is of another photograph, or another part of one or of the film; its saliency is random."""
    project = photographs.projector(case.width, generator, device)
    samples = []
    for number, (tokens, _) in enumerate(case.samples):
        visual = project(photographs.features(source, tokens, number))
        text = photographs.words(visual, case.text, generator)
        samples.append((visual.to(case.dtype), text.to(case.dtype), _saliency(tokens, generator)))
    return samples


def _saliency(tokens: int, generator: torch.Generator) -> Tensor:
    """(N,): falls off as attention does."""
    return torch.softmax(torch.randn(tokens, generator=generator), dim=0)


def _sample(tokens: int, case: Case, generator: torch.Generator) -> Sample:
    """One synthetic sample.

    Visual tokens are clustered as those of an image are (about N / 10 clusters of uneven size, a common mean, norms
    that vary by a fifth); every other text token leans towards one cluster.
    """
    clusters = max(1, tokens // 10)
    centres = torch.randn(clusters, case.width, generator=generator)
    common = torch.randn(case.width, generator=generator)
    member = (torch.rand(tokens, generator=generator).square() * clusters).long()
    norms = torch.exp(0.2 * torch.randn(tokens, 1, generator=generator))
    rows = torch.randn(tokens, case.width, generator=generator).mul_(NOISE)
    rows.add_(centres.mul_(CENTRE)[member]).add_(common, alpha=COMMON).mul_(norms)
    words = torch.randn(case.text, case.width, generator=generator)
    subject = torch.randint(clusters, (case.text,), generator=generator)
    words[::2] += ALIGNMENT / CENTRE * centres[subject[::2]]
    if case.features in get_args(Hard):
        rows = _hard(rows, case.features, generator)
    return rows.to(case.dtype), words.to(case.dtype), _saliency(tokens, generator)


def _hard(rows: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """(N, D): `rank-R`, random of that rank; `N-rows`, the first N of the rows over and over."""
    if kind.endswith("-rows"):
        return rows[torch.arange(len(rows)) % int(kind.removesuffix("-rows"))]
    rank = int(kind.removeprefix("rank-"))
    few = torch.randn(len(rows), rank, generator=generator)
    return few @ torch.randn(rank, rows.shape[1], generator=generator)
