"""Validation of every operator's arguments: the one place, shared by the real and the fake (meta) path.

Only shapes, dtypes, devices and Python numbers are looked at, never the values on the device: those are clamped or
masked by the kernels. Every error names the argument, what was expected and what came.
"""

from __future__ import annotations

import math
from types import SimpleNamespace as Arguments  # of a call, all of them by name: `_schema.Signature.bind`
from typing import NoReturn

import torch
from torch import Tensor

MARGINALS = ("joint", "prior")
REDUNDANCIES = ("mean", "chain", "max", "none")
MIN_BANDWIDTH, MAX_BANDWIDTH = 1e-3, 1e3
MIN_BINS, MAX_BINS = 2, 64  # 64² cells are about as many as a token has coordinates: more would nearly all stay empty
MAX_WEIGHT = 1e6  # of the redundancy: gains of finite scores stay finite in float32

_FEATURE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 features, float32 for all others: the dtype of sums, scores and gains."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fail(name: str, expected: str, got: object, error: type[Exception] = ValueError) -> NoReturn:
    raise error(f"{name}: expected {expected}, got {got}")


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        _fail(name, "a tensor", f"{type(value).__module__}.{type(value).__name__}", TypeError)
    if value.layout != torch.strided:
        _fail(name, "a dense tensor", f"layout {value.layout}", TypeError)


def _check_number(name: str, value: object, optional: bool = False) -> None:
    if not (optional and value is None) and not isinstance(value, int | float | torch.SymInt | torch.SymFloat):
        _fail(name, "a number or None" if optional else "a number", repr(value), TypeError)


def _check_shape(name: str, tensor: Tensor, shape: tuple, letters: str) -> None:
    _check_tensor(name, tensor)
    if tensor.dim() != len(shape) or any(have != want for have, want in zip(tensor.shape, shape, strict=True)):
        _fail(name, f"{letters} = {tuple(shape)}", _describe(tensor))


def _check_device(name: str, tensor: Tensor, visual: Tensor) -> None:
    if tensor.device != visual.device:
        _fail(name, f"the device of visual, {visual.device}", _describe(tensor))


def _check_features(name: str, tensor: Tensor, letters: str) -> None:
    _check_tensor(name, tensor)
    if tensor.dim() != letters.count(",") + 1:
        _fail(name, f"{letters} floating point", _describe(tensor))
    if tensor.dtype not in _FEATURE_DTYPES:
        _fail(name, f"{letters} float16, bfloat16, float32 or float64", _describe(tensor), TypeError)
    if tensor.dtype == torch.float64 and tensor.device.type not in ("cpu", "meta"):
        _fail(name, "float16, bfloat16 or float32 (float64 on the CPU only)", _describe(tensor), TypeError)


def _check_text(text: Tensor, visual: Tensor, letters: str) -> None:
    _check_features("text", text, letters)
    _check_device("text", text, visual)
    if text.dtype != visual.dtype:
        _fail("text", f"the dtype of visual, {visual.dtype}", _describe(text), TypeError)
    if text.shape[-1] != visual.shape[-1]:
        _fail("text", f"D = {visual.shape[-1]} as in visual", _describe(text))


def _check_prior(name: str, prior: Tensor | None, tokens: Tensor, letters: str) -> None:
    if prior is None:
        return
    _check_shape(name, prior, tuple(tokens.shape[:-1]), letters)
    if not (prior.dtype.is_floating_point or prior.dtype == torch.bool):
        _fail(name, "floating point or bool (an integer mask: mask.bool())", _describe(prior), TypeError)
    _check_device(name, prior, tokens)


def _check_integers(name: str, tensor: Tensor, visual: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        _fail(name, names, _describe(tensor), TypeError)
    _check_device(name, tensor, visual)


def _check_cu(name: str, cu: Tensor, visual: Tensor, like: Tensor | None = None) -> None:
    _check_tensor(name, cu)
    if cu.dim() != 1 or cu.shape[0] < 1:
        _fail(name, "(B + 1,) int32", _describe(cu))
    if like is not None and cu.shape[0] != like.shape[0]:
        _fail(name, f"(B + 1,) = ({like.shape[0]},) int32, as cu_seqlens_visual", _describe(cu))
    _check_integers(name, cu, visual, (torch.int32,))


def _check_size(name: str, value: int) -> None:
    if value < 0:
        _fail(name, "an integer >= 0", value)


def _check_mode(name: str, value: str, modes: tuple[str, ...]) -> None:
    if value not in modes:
        _fail(name, " or ".join(repr(mode) for mode in modes), repr(value))


def _check_bandwidth(name: str, value: float | None, optional: bool = False) -> None:
    _check_number(name, value, optional)
    if value is not None and not MIN_BANDWIDTH <= value <= MAX_BANDWIDTH:
        _fail(name, f"{MIN_BANDWIDTH} <= h <= {MAX_BANDWIDTH}", value)


def check_score_options(bandwidth: float | None, marginal: str) -> None:
    """ValueError unless both are in the range that `mi_scores` takes."""
    _check_bandwidth("bandwidth", bandwidth, optional=True)
    _check_mode("marginal", marginal, MARGINALS)


def check_select_options(
    visual_bandwidth: float, redundancy: str, redundancy_weight: float, min_gain: float | None
) -> None:
    """ValueError unless all are in the range that `greedy_select` takes."""
    _check_bandwidth("visual_bandwidth", visual_bandwidth)
    _check_mode("redundancy", redundancy, REDUNDANCIES)
    _check_number("redundancy_weight", redundancy_weight)
    if not 0 <= redundancy_weight <= MAX_WEIGHT:
        _fail("redundancy_weight", f"0 <= weight <= {MAX_WEIGHT:g}", redundancy_weight)
    _check_number("min_gain", min_gain, optional=True)
    if min_gain is not None and math.isnan(min_gain):
        _fail("min_gain", "a number or None", min_gain)


def _check_ratio(ratio: float | None) -> None:
    _check_number("ratio", ratio, optional=True)
    if ratio is not None and not 0 < ratio <= 1:
        _fail("ratio", "0 < ratio <= 1, or None", ratio)


def check_keep(keep: int | float, ratio: float | None = None) -> None:
    """TypeError / ValueError unless `keep` is a count >= 1 (int), or a ratio in (0, 1] (float) without another."""
    if isinstance(keep, float):
        if not 0 < keep <= 1:
            _fail("keep", "a ratio in (0, 1] (a count of tokens is an int)", keep)
        if ratio is not None:
            _fail("ratio", f"None beside keep = {keep}, a ratio itself (or pass keep as a count)", ratio, TypeError)
    elif isinstance(keep, bool) or not isinstance(keep, (int, torch.SymInt)):
        _fail("keep", "an int (tokens) or a float (ratio)", repr(keep), TypeError)
    elif keep < 1:
        _fail("keep", "at least 1 token (a ratio is a float in (0, 1])", keep)


def check_visual(visual: Tensor) -> None:
    """ValueError / TypeError unless visual is (B, N, D) with N >= 1."""
    _check_features("visual", visual, "(B, N, D)")
    if visual.shape[1] < 1:
        _fail("visual", "(B, N, D) with N >= 1", _describe(visual))


def _check_tokens(visual: Tensor, visual_prior: Tensor | None, budget: Tensor | None = None) -> None:
    check_visual(visual)
    _check_prior("visual_prior", visual_prior, visual, "(B, N)")
    if budget is not None:
        _check_shape("budget", budget, (visual.shape[0],), "(B,)")
        _check_integers("budget", budget, visual, (torch.int32, torch.int64))


def _check_keep_count(keep: int, visual: Tensor) -> None:
    # As a minimum, and not keep <= N, of which torch.export can't prove that it holds where keep is a ratio of N.
    if keep < 1 or keep != torch.sym_min(keep, visual.shape[1]):
        _fail("keep", f"1 <= keep <= N = {visual.shape[1]}", keep)


def _check_scores(scores: Tensor, visual: Tensor, letters: str) -> None:
    _check_shape("scores", scores, tuple(visual.shape[:-1]), letters)
    if not scores.dtype.is_floating_point:
        _fail("scores", f"{letters} floating point", _describe(scores), TypeError)
    _check_device("scores", scores, visual)


def _check_both(call: Arguments) -> None:
    visual, text = call.visual, call.text
    _check_tokens(visual, call.visual_prior)
    _check_text(text, visual, "(B, M, D)")
    if text.shape[0] != visual.shape[0]:
        _fail("text", f"B = {visual.shape[0]} samples as in visual", _describe(text))
    if text.shape[1] < 1:
        _fail("text", "(B, M, D) with M >= 1", _describe(text))
    _check_prior("text_prior", call.text_prior, text, "(B, M)")


def _check_how(call: Arguments) -> None:
    check_select_options(call.visual_bandwidth, call.redundancy, call.redundancy_weight, call.min_gain)
    _check_ratio(call.ratio)


def _check_packed_keep(call: Arguments) -> None:
    _check_cu("cu_keep", call.cu_keep, call.visual, call.cu_seqlens_visual)
    _check_size("max_keep", call.max_keep)
    _check_size("total_keep", call.total_keep)


def check_mi_scores(call: Arguments) -> None:
    _check_both(call)
    check_score_options(call.bandwidth, call.marginal)


def check_histogram_mi_scores(call: Arguments) -> None:
    _check_both(call)
    if not MIN_BINS <= call.bins <= MAX_BINS:
        _fail("bins", f"{MIN_BINS} <= bins <= {MAX_BINS}", call.bins)


def check_greedy_select(call: Arguments) -> None:
    _check_tokens(call.visual, call.visual_prior, call.budget)
    _check_scores(call.scores, call.visual, "(B, N)")
    _check_keep_count(call.keep, call.visual)
    _check_how(call)


def check_prune(call: Arguments) -> None:
    _check_tokens(call.visual, call.visual_prior, call.budget)
    check_mi_scores(call)
    _check_keep_count(call.keep, call.visual)
    _check_how(call)


def check_mi_scores_varlen(call: Arguments) -> None:
    _check_features("visual", call.visual, "(total_N, D)")
    _check_text(call.text, call.visual, "(total_M, D)")
    _check_cu("cu_seqlens_visual", call.cu_seqlens_visual, call.visual)
    _check_cu("cu_seqlens_text", call.cu_seqlens_text, call.visual, call.cu_seqlens_visual)
    _check_size("max_seqlen_visual", call.max_seqlen_visual)
    _check_size("max_seqlen_text", call.max_seqlen_text)
    _check_prior("visual_prior", call.visual_prior, call.visual, "(total_N,)")
    _check_prior("text_prior", call.text_prior, call.text, "(total_M,)")
    check_score_options(call.bandwidth, call.marginal)


def check_greedy_select_varlen(call: Arguments) -> None:
    _check_features("visual", call.visual, "(total_N, D)")
    _check_scores(call.scores, call.visual, "(total_N,)")
    _check_cu("cu_seqlens_visual", call.cu_seqlens_visual, call.visual)
    _check_packed_keep(call)
    _check_size("max_seqlen_visual", call.max_seqlen_visual)
    _check_prior("visual_prior", call.visual_prior, call.visual, "(total_N,)")
    _check_how(call)


def check_prune_varlen(call: Arguments) -> None:
    check_mi_scores_varlen(call)
    _check_packed_keep(call)
    _check_how(call)
