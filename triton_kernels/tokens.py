"""Device functions that every kernel shares: where a sample's tokens lie, which are valid, their weights in log form.

A token's inverse norm is NaN where its squared norm is not finite, and 0 for a zero row. Priors are optional: a null
one is uniform. Sums run over chunks of a fixed length, so that no bit depends on the longest sample of a batch. Packed
samples (`cu_*`) need not cover their tensor: what belongs to no sample is written, too, by its neighbour's program.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Sizes that Triton must not compile for one by one: it would for every value divisible by 16, with other layouts of
# registers and so another order of sums. What is left to it (dtypes, None, strides of features and tables) is the same
# for a sample alone and in any batch: `launches.py` sees to the strides.
COUNTS = (
    "visual_total", "longest_visual", "text_total", "longest_text", "keep_total", "longest_keep", "samples",
    "sample", "first_sample", "programs", "row_programs", "text_programs", "visual_programs", "chunks", "row_tiles",
    "text_tiles", "visual_tiles", "gram_rows", "longest", "bins", "ratio_bits",
)  # fmt: skip
LOG_CHUNK = tl.constexpr(1024)  # tokens a step of `log_total`: 8 a lane
FILL_CHUNK = tl.constexpr(512)  # not LOG_CHUNK: vectors of one length may get one layout, and the sums its order
SCAN_CHUNK = tl.constexpr(256)  # samples of a packed batch looked at in one step
_TINY = tl.constexpr(2.0**-126)  # the smallest normal float32
_SCALE = tl.constexpr(2.0**64)  # brings denormal priors into the range of the logarithm
_LOG_SCALE = tl.constexpr(44.3614195558365)  # log 2^64


@triton.jit
def _ends(cu_ptr, sample, total):
    """Where a packed sample begins and ends: the entries clamped to [0, total] and made non-decreasing."""
    begin = tl.full((), 0, tl.int32)
    for first in range(0, sample + 1, SCAN_CHUNK):
        at = first + tl.arange(0, SCAN_CHUNK)
        begin = tl.maximum(begin, tl.max(tl.load(cu_ptr + at, mask=at <= sample, other=0), axis=0))
    begin = tl.minimum(begin, total)
    return begin, tl.maximum(begin, tl.minimum(tl.load(cu_ptr + sample + 1), total))


@triton.jit
def span(cu_ptr, sample, total, longest):
    """First place (int64) and number of places of a sample: `longest` at most, and for all where `cu_ptr` is null."""
    if cu_ptr is None:
        start = sample.to(tl.int64) * longest
        count = longest
    else:
        first, end = _ends(cu_ptr, sample, total)
        start = first.to(tl.int64)
        count = tl.minimum(end - first, longest)
    return start, count


@triton.jit
def first_row(ptr, batch_stride, stride, cu_ptr, sample, start):
    """Where the features of a sample's first token lie: dense samples `batch_stride` apart, packed ones at `start`."""
    if cu_ptr is None:
        ptr += sample.to(tl.int64) * batch_stride
    else:
        ptr += start * stride
    return ptr


@triton.jit
def first_gram_row(start, total, gram_rows):
    """A sample's first row (int64) in a table of log K: `start` in one of all `total` tokens, 0 in one of itself."""
    return tl.where(gram_rows == total, start, 0)


@triton.jit
def fill(ptr, value, first, end):
    """ptr[first:end] = value."""
    at = tl.arange(0, FILL_CHUNK)
    values = tl.full((FILL_CHUNK,), value, ptr.dtype.element_ty)
    for chunk in range(first, end, FILL_CHUNK):
        tl.store(ptr + chunk + at, values, mask=chunk + at < end)


@triton.jit
def fill_unowned(ptr, value, width, cu_ptr, sample, samples, total, longest):
    """Writes `value` to the places (of `width` elements) of no sample: after `sample`'s own, and before the first's."""
    if cu_ptr is not None:
        first, end = _ends(cu_ptr, sample, total)
        own_end = (first + tl.minimum(end - first, longest)).to(tl.int64)
        fill(ptr, value, own_end * width, tl.where(sample == samples - 1, total, end).to(tl.int64) * width)
        if sample == 0:
            fill(ptr, value, first.to(tl.int64) * 0, first.to(tl.int64) * width)


@triton.jit
def in_fours(at, count):
    """Which of the places `at` are before `count`, or after it in the same four: a lane reads four at once. Arrays that
    are read so are padded."""
    return at // 4 * 4 < count


@triton.jit
def inverse_norm(square):
    """1 / norm from squared norms: 0 below the smallest normal number, NaN where not finite."""
    inverse = tl.where(square >= _TINY, 1 / tl.sqrt(tl.maximum(square, _TINY)), 0.0)
    return tl.where(square < float("inf"), inverse, float("nan"))


@triton.jit
def log_weight(prior_ptr, at, inverse, mask):
    """log of the prior, not normalised, at `at`; -inf for tokens that are absent or masked. An infinite prior counts as
    the largest finite one."""
    valid = mask & (inverse == inverse)
    if prior_ptr is None:
        weight = tl.where(valid, 0.0, float("-inf"))
    else:
        prior = tl.load(prior_ptr + at, mask=mask, other=0.0)
        small = prior < 1e-18
        scaled = tl.where(small, prior * _SCALE, tl.minimum(prior, 3.4028234663852886e38))
        valid = valid & (prior > 0)  # not `scaled`: a GPU's minimum drops a NaN
        log_prior = tl.log(tl.where(valid, scaled, 1.0)) - tl.where(small, _LOG_SCALE, 0.0)
        weight = tl.where(valid, log_prior, float("-inf"))
    return weight


@triton.jit
def add_exp(top, total, new_top, new_total):
    """(max, sum of exp relative to it) of the union of two sets; -inf and 0 stand for the empty one."""
    most = tl.maximum(top, new_top)
    shift = tl.where(most == float("-inf"), 0.0, most)
    return most, total * tl.exp(top - shift) + new_total * tl.exp(new_top - shift)


@triton.jit
def log_total(prior_ptr, inverse_ptr, start, count):
    """log of the sum of the priors of a sample's valid tokens (-inf: none), and how many they are.

    Lanes sum by themselves, and once together. The order follows the number of warps: kernels that call this have 4.
    """
    at = tl.arange(0, LOG_CHUNK)
    tops = tl.full((LOG_CHUNK,), float("-inf"), tl.float32)
    totals = tl.zeros((LOG_CHUNK,), tl.float32)
    numbers = tl.zeros((LOG_CHUNK,), tl.int32)
    for first in range(0, count, LOG_CHUNK):
        mask = first + at < count
        inverse = tl.load(inverse_ptr + start + first + at, mask=mask, other=float("nan"))
        weight = log_weight(prior_ptr, start + first + at, inverse, mask)
        present = weight > float("-inf")
        tops, totals = add_exp(tops, totals, weight, tl.where(present, 1.0, 0.0))
        numbers += present.to(tl.int32)
    top = tl.max(tops, axis=0)
    total = tl.sum(totals * tl.exp(tops - tl.where(top == float("-inf"), 0.0, top)), axis=0)
    valid = tl.sum(numbers, axis=0)
    return tl.where(valid > 0, top + tl.log(tl.where(valid > 0, total, 1.0)), float("-inf")), valid
