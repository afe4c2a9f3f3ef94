"""The launches: each function here sizes one kernel's grid, owns the memory that it leaves, and starts it.

Dense batches are packed ones whose samples lie at equal distances, without `cu_*`. No launch fuses multiply-adds:
kernels that share arithmetic must give the same bits.
"""

from __future__ import annotations

import functools
import math
import struct
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from . import gather, greedy_on_gram, normaliser, score, similarity, tiles, top_k

INTERPRETED = bool(triton.knobs.runtime.interpret)
EXACT = {"enable_fp_fusion": False}


@dataclass(frozen=True)
class Tokens:
    """Tokens (B, count, D), or packed (total, D) with `cu` (B + 1,) and at most `bound` in a sample."""

    features: Tensor
    prior: Tensor | None
    cu: Tensor | None
    bound: int

    @property
    def longest(self) -> int:
        return self.bound if self.cu is None else min(self.bound, self.features.shape[0])

    @property
    def samples(self) -> int:
        return self.features.shape[0] if self.cu is None else self.cu.shape[0] - 1

    @property
    def total(self) -> int:
        return self.features.shape[:-1].numel()

    @property
    def place(self) -> tuple[Tensor | None, int, int]:
        """What kernels find a sample's tokens by."""
        return self.cu, self.total, self.longest

    @functools.cached_property
    def rows(self) -> Tensor:
        """The features as tiles read them: vectors of 16 elements, so that all are read in one layout of registers.

        A copy padded by zeros where D, a stride or the address is odd; zeros change no bit of a sum.
        """
        given = self.features
        if all(x % 16 == 0 for x in (given.shape[-1], *given.stride()[:-1], given.data_ptr())):
            return given
        padded = given.new_zeros(*given.shape[:-1], round_up(given.shape[-1], 16))
        padded[..., : given.shape[-1]] = given
        return padded

    def strides(self, features: Tensor) -> tuple[int, int]:
        """From a sample to the next, and from a token to the next, in `features` or their copy."""
        return (0 if self.cu is not None else features.stride(0)), features.stride(-2)

    def floats(self, *shape: int) -> Tensor:
        return self.features.new_empty(shape, dtype=torch.float32)

    def ints(self, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return self.features.new_empty(shape, dtype=dtype)


@dataclass(frozen=True)
class Slots:
    """Where picks go: (B, bound), or packed by `cu` into `total`, at most `bound` of a sample."""

    cu: Tensor | None
    bound: int
    total: int

    @property
    def longest(self) -> int:
        return self.bound if self.cu is None else min(self.bound, self.total)

    @property
    def place(self) -> tuple[Tensor | None, int, int]:
        return self.cu, self.total, self.longest


@dataclass(frozen=True)
class Selection:
    """How to select: the operators' options."""

    visual_bandwidth: float
    redundancy: str
    redundancy_weight: float
    min_gain: float | None
    ratio: float | None
    budget: Tensor | None = None  # packed samples have none beside their slots

    def path(self, tokens: int) -> str:
        """ "top-k", "gram" or "long", for samples of at most `tokens`; a pure function of the call."""
        if self.redundancy == "none" or self.redundancy_weight == 0:
            return "top-k"
        return "gram" if tokens <= tiles.GRAM_TOKENS else "long"

    @property
    def kappa(self) -> float:
        return self.visual_bandwidth**-2

    @property
    def threshold(self) -> float:
        return -math.inf if self.min_gain is None else self.min_gain

    @property
    def ratio_bits(self) -> int | None:
        """The bits of the ratio in float64: as a number, Triton would take it for a float32."""
        return None if self.ratio is None else int.from_bytes(struct.pack("<d", self.ratio), "little")


@dataclass(frozen=True)
class Similarities:
    """What `similarity_kernel` leaves, of some of the batch's samples."""

    samples: range
    tile: tiles.Tile
    visual_inverse: Tensor  # (total N,)
    text_inverse: Tensor  # (total M,)
    cosines: Tensor  # (total N, M)
    moments: Tensor  # (B, row tiles, text tiles, 3)
    gram: Tensor  # (total N, or N of one sample; N) log K
    part_top: Tensor  # (row tiles, as many)
    part_sum: Tensor
    row_tiles: int
    text_tiles: int


@dataclass(frozen=True)
class Normalisers:
    """What `normaliser_kernel` leaves."""

    text_top: Tensor  # (chunks, total M)
    text_sum: Tensor
    kappa: Tensor  # (B,) 1/h²
    log_total: Tensor  # (B,) log of the priors' sum
    visual_log_z: Tensor  # (total N,)


def _architecture(device: torch.device) -> int:
    if device.type != "cuda":
        return 90  # the interpreter follows the tiles of a GPU
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def round_up(value: int, to: int) -> int:
    return triton.cdiv(value, to) * to


def tile_options(tile: tiles.Tile, dtype: torch.dtype) -> dict:
    """The constants of `similarity_kernel`, and its warps."""
    return {
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "DEPTH": tile.depth,
        "WIDEN": INTERPRETED,
        "PRECISION": "tf32x3" if dtype == torch.float32 else "ieee",
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        **EXACT,
    }


def similarities(
    visual: Tokens, text: Tokens | None, gram_rows: int, visual_kappa: float, samples: range | None = None
) -> Similarities:
    """Norms of the tokens of all samples, or of some, cosines with the text, and log K of the visual tokens in a table
    of `gram_rows`: `visual.total` for all samples, `visual.longest` for one, 0 for none."""
    samples = range(visual.samples) if samples is None else samples
    size = tiles.tile(visual.features.dtype, _architecture(visual.features.device))
    row_tiles = triton.cdiv(visual.longest, size.rows)
    visual_tiles = triton.cdiv(visual.longest, size.columns) if gram_rows else 0
    text = text or Tokens(visual.rows, None, visual.cu, 0)
    text_tiles = triton.cdiv(text.longest, size.columns)
    if visual_tiles == 0:
        text_tiles = max(1, text_tiles)  # one tile, if an empty one, takes the norms
    found = Similarities(
        samples,
        size,
        visual.floats(visual.total),
        visual.floats(text.total),
        visual.floats(visual.total if text.longest else 0, round_up(max(1, text.longest), 16)),  # never a stride of 1
        visual.floats(visual.samples, row_tiles, text_tiles, 3),
        visual.floats(gram_rows, round_up(visual.longest, 16)),
        visual.floats(row_tiles, gram_rows),
        visual.floats(row_tiles, gram_rows),
        row_tiles,
        text_tiles,
    )
    similarity.similarity_kernel[(len(samples) * row_tiles * (text_tiles + visual_tiles),)](
        visual.rows,
        *visual.strides(visual.rows),
        *visual.place,
        visual.prior,
        text.rows,
        *text.strides(text.rows),
        *text.place,
        text.prior,
        visual.rows.shape[-1],
        visual_kappa,
        found.visual_inverse,
        found.text_inverse,
        found.cosines,
        found.cosines.stride(0),
        found.moments,
        found.gram,
        gram_rows,
        found.gram.stride(0),
        found.part_top,
        found.part_sum,
        samples.start,
        row_tiles,
        text_tiles,
        visual_tiles,
        **tile_options(size, visual.features.dtype),
    )
    return found


def normalisers(visual: Tokens, text: Tokens | None, found: Similarities, bandwidth: float | None) -> Normalisers:
    """Of the text and, where log K was found, of the visual tokens."""
    gram_rows = found.gram.shape[0]
    text_programs = 0 if text is None else max(1, triton.cdiv(text.longest, normaliser.NORMALISER_COLUMNS))
    chunks = triton.cdiv(visual.longest, normaliser.NORMALISER_CHUNK)
    visual_programs = triton.cdiv(visual.longest, normaliser.NORMALISER_ROWS) if gram_rows else 0
    text = text or Tokens(visual.rows, None, visual.cu, 0)
    left = Normalisers(
        visual.floats(chunks if text_programs else 0, text.total),
        visual.floats(chunks if text_programs else 0, text.total),
        visual.floats(visual.samples),
        visual.floats(visual.samples),
        visual.floats(visual.total if gram_rows else 0),
    )
    normaliser.normaliser_kernel[(len(found.samples) * (text_programs * chunks + visual_programs),)](
        *visual.place,
        visual.prior,
        *text.place,
        found.visual_inverse,
        found.cosines,
        found.cosines.stride(0),
        found.moments,
        found.row_tiles,
        found.text_tiles,
        0.0 if bandwidth is None else bandwidth**-2,
        left.text_top,
        left.text_sum,
        left.kappa,
        left.log_total,
        found.part_top,
        found.part_sum,
        gram_rows,
        left.visual_log_z,
        found.samples.start,
        chunks,
        text_programs * chunks,
        visual_programs,
        RULE=bandwidth is None,
        TILE_ROWS=found.tile.rows,
        TILE_COLUMNS=found.tile.columns,
        ROWS=normaliser.NORMALISER_ROWS,
        COLUMNS=normaliser.NORMALISER_COLUMNS,
        CHUNK=normaliser.NORMALISER_CHUNK,
        **EXACT,
    )
    return left


def scores(visual: Tokens, text: Tokens, found: Similarities, left: Normalisers, marginal: str) -> Tensor:
    """a (B, N), or packed (total N,)."""
    out = visual.floats(*visual.features.shape[:-1])
    programs = triton.cdiv(visual.longest, score.SCORE_ROWS)
    score.score_kernel[(visual.samples * programs,)](
        *visual.place,
        visual.prior,
        *text.place,
        text.prior,
        found.visual_inverse,
        found.text_inverse,
        found.cosines,
        found.cosines.stride(0),
        left.text_top,
        left.text_sum,
        left.kappa,
        left.log_total,
        out,
        visual.samples,
        programs,
        JOINT=marginal == "joint",
        ROWS=score.SCORE_ROWS,
        COLUMNS=score.SCORE_COLUMNS,
        CHUNK=normaliser.NORMALISER_CHUNK,
        **EXACT,
    )
    return out


def empty_slots(visual: Tokens, slots: Slots) -> tuple[Tensor, Tensor]:
    shape = (slots.total,) if visual.cu is not None else (visual.samples, slots.longest)
    return visual.ints(*shape, dtype=torch.int64), visual.floats(*shape)


def top_k_picks(visual: Tokens, ranks: Tensor, inverse: Tensor, slots: Slots, how: Selection) -> tuple[Tensor, Tensor]:
    """Indices and gains in the order of the picks, by score alone."""
    indices, gains = empty_slots(visual, slots)
    programs = triton.cdiv(visual.longest, top_k.TOP_K_ROWS)
    top_k.top_k_kernel[(visual.samples * programs,)](
        ranks,
        *visual.place,
        visual.prior,
        inverse,
        *slots.place,
        how.budget,
        how.ratio_bits,
        how.threshold,
        indices,
        gains,
        visual.samples,
        programs,
        STOPS=how.min_gain is not None,
        ROWS=top_k.TOP_K_ROWS,
        CHUNK=top_k.TOP_K_CHUNK,
        **EXACT,
    )
    return indices, gains


def gram_picks(
    visual: Tokens, ranks: Tensor, found: Similarities, left: Normalisers, slots: Slots, how: Selection
) -> tuple[Tensor, Tensor]:
    """Indices and gains in the order of the picks, from log K of all pairs."""
    indices, gains = empty_slots(visual, slots)
    tokens = max(128, triton.next_power_of_2(visual.longest))
    greedy_on_gram.greedy_kernel[(visual.samples,)](
        ranks,
        *visual.place,
        visual.prior,
        found.visual_inverse,
        found.gram,
        found.gram.stride(0),
        left.visual_log_z,
        left.log_total,
        how.redundancy_weight,
        *slots.place,
        how.budget,
        how.ratio_bits,
        how.threshold,
        indices,
        gains,
        visual.samples,
        REDUNDANCY=how.redundancy,
        STOPS=how.min_gain is not None,
        TOKENS=tokens,
        num_warps=min(16, max(1, tokens // 256)),  # 8 tokens a lane
        **EXACT,
    )
    return indices, gains


def gathered(visual: Tokens, indices: Tensor, gains: Tensor, slots: Slots) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, indices and gains in ascending order of the indices."""
    dim = visual.features.shape[-1]
    tokens = visual.features.new_empty((*indices.shape, dim))
    indices_out, gains_out = torch.empty_like(indices), torch.empty_like(gains)
    picks = 1 if slots.longest <= 1024 else 8  # many programs for few picks; fewer counts for many
    programs = max(1, triton.cdiv(slots.longest, picks))  # one, at least, writes the slots of no sample
    gather.gather_kernel[(visual.samples * programs,)](
        visual.features,
        *visual.strides(visual.features),
        *visual.place,
        *slots.place,
        indices,
        gains,
        dim,
        tokens,
        indices_out,
        gains_out,
        visual.samples,
        programs,
        PICKS=picks,
        CHUNK=gather.GATHER_CHUNK,
        DEPTH=1024 // picks,
        **EXACT,
    )
    return tokens, indices_out, gains_out
