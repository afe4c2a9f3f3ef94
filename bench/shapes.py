"""Shapes of real models, and features that resemble theirs.

A name is `model/keep`. Widths are those of the language model, after the multimodal projector; token counts are those
of one image at its usual size (LLaVA-NeXT: four tiles and the overview; Qwen: 1008 x 1008 and about 2000 x 2000
pixels), or of a video.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One selection problem: keep `keep` of (batch, tokens, width) given (batch, text, width)."""

    name: str
    tokens: int  # N
    keep: int  # K
    width: int  # D
    text: int = 32  # M
    batch: int = 1  # B
    dtype: torch.dtype = torch.float32

    @property
    def flops(self) -> int:
        """Multiply-adds count 2. What any exact method must do: text products, and one row of the visual-visual
        product for each kept token."""
        return 2 * self.batch * self.tokens * self.width * (self.text + self.keep)

    @property
    def bytes(self) -> int:
        """What any method must move: both inputs read once, the kept tokens written."""
        return self.batch * (self.tokens + self.text + self.keep) * self.width * self.dtype.itemsize


def _model(name: str, tokens: int, width: int, *keeps: int) -> list[Case]:
    return [Case(f"{name}/{keep}", tokens, keep, width) for keep in keeps]


CASES = {
    case.name: case
    for case in [
        *_model("llava-1.5", 576, 4096, 64, 128, 192),
        *_model("llava-next", 2880, 4096, 160, 320, 640),
        *_model("qwen2.5-vl-7b", 1296, 3584, 130, 324, 648),
        *_model("qwen2.5-vl-7b-large", 5000, 3584, 500, 1250, 2500),
        *_model("qwen3-vl-2b", 1024, 2048, 102, 256, 512),
        *_model("qwen3-vl-8b", 1024, 4096, 102, 256, 512),
        *_model("video-16k", 16384, 3584, 1638),
        *_model("video-32k", 32768, 3584, 3277),
        *_model("large", 10000, 4096, 1000),
    ]
}

CORE = ("llava-1.5/64", "llava-next/320", "large/1000")
QUICK = CORE[:2]

# The parts of a visual token. Together they give a cosine of about 0.84 within a cluster and 0.36 across clusters.
COMMON = 0.6  # the mean of all tokens
CENTRE = 0.7  # the centre of its cluster
NOISE = 0.4  # its own
ALIGNMENT = 0.08  # pull of a text token towards a cluster: 5 times the 0.016 that chance gives in 4096 dimensions


def features(case: Case, seed: int = 0, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Visual (B, N, D) and text (B, M, D), alike for a seed on every device.

    Visual tokens are clustered as those of an image are (about N / 10 clusters of uneven size, a common mean, norms
    that vary by a fifth); every other text token leans towards one cluster.
    """
    generator = torch.Generator().manual_seed(seed)
    clusters = max(1, case.tokens // 10)
    visual = torch.empty(case.batch, case.tokens, case.width, dtype=case.dtype)
    text = torch.empty(case.batch, case.text, case.width, dtype=case.dtype)
    for sample in range(case.batch):
        centres = torch.randn(clusters, case.width, generator=generator)
        common = torch.randn(case.width, generator=generator)
        member = (torch.rand(case.tokens, generator=generator).square() * clusters).long()
        norms = torch.exp(0.2 * torch.randn(case.tokens, 1, generator=generator))
        rows = torch.randn(case.tokens, case.width, generator=generator).mul_(NOISE)
        rows.add_(centres.mul_(CENTRE)[member]).add_(common, alpha=COMMON).mul_(norms)
        words = torch.randn(case.text, case.width, generator=generator)
        subject = torch.randint(clusters, (case.text,), generator=generator)
        words[::2] += ALIGNMENT / CENTRE * centres[subject[::2]]
        visual[sample], text[sample] = rows, words
    return visual.to(device), text.to(device)
