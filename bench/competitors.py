"""Who is measured: name -> a call that takes the features of a case and gives pruned tokens and their indices."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import mi_pruner
from mi_pruner._dispatch import BACKENDS

from .baselines import cdpruner, cosines, dart, divprune, mmr, mmtok, plain, ranking, scope, trimtokenator
from .cases import Case, Inputs, inputs
from .measure import Call, cuda, memory
from .measure.floor import Work

Pruner = Callable[[Inputs, int], tuple[Tensor, Tensor]]  # inputs, K -> tokens (B, K, D), indices (B, K) ascending
Selector = Callable[[Tensor, Tensor, Tensor, int], Tensor]
Masked = Callable[[Inputs, Tensor, int], Tensor]  # with valid (B, N) bool -> indices (B, K)
Packed = Callable[[list[Inputs], list[int]], Callable[[], object]]

OURS = "ours"  # the families
SAME = "same"
OTHER = "other"
RANKING = "ranking"

BASELINE = "plain"
TINY = Case("tiny", tokens=16, keep=4, width=64, text=4)
REFERENCE_TOKENS = 1024  # it is written to be read: beyond this it would take most of the run
# K N^2 of the methods that pass over the whole matrix in each step: seconds a call.
FULL_PASSES = {"cpu": 3e8, "cuda": 1e12}
CORE_PASSES = 10  # times as many in the main cases


@dataclass(frozen=True)
class Competitor:
    """One method: how it is called, what its result needs, and where it can't take part."""

    name: str
    label: str
    family: str
    prune: Pruner
    work: Work
    packed: Packed | None = None  # one call for samples of different sizes; None: one call for each
    masked: Masked | None = None  # with padding; None: the method has no notion of it
    full_passes: bool = False  # K passes over (N, N)
    compiles: bool = False  # for each shape
    capturable: bool = True  # by a CUDA graph


def _ours(name: str) -> Competitor:
    def prune(given: Inputs, keep: int) -> tuple[Tensor, Tensor]:
        with mi_pruner.backend(name):
            return mi_pruner.prune(given.visual, given.text, keep)[:2]

    def masked(given: Inputs, valid: Tensor, keep: int) -> Tensor:
        with mi_pruner.backend(name):
            return mi_pruner.prune(given.visual, given.text, keep, visual_prior=valid)[1]

    def packed(samples: list[Inputs], keeps: list[int]) -> Callable[[], object]:
        arguments = _pack(samples, keeps)

        def call() -> object:
            with mi_pruner.backend(name):
                return mi_pruner.prune_varlen(*arguments)

        return call

    reads = name == "reference"  # cu_seqlens, on the host
    work = Work(text=True, rows="keep")
    return Competitor(f"ours-{name}", f"mi_pruner ({name})", OURS, prune, work, packed, masked, capturable=not reads)


def _pack(samples: list[Inputs], keeps: list[int]) -> tuple:
    """The arguments of `prune_varlen`."""
    device = samples[0].visual.device

    def cumulated(lengths: list[int]) -> Tensor:
        return torch.tensor([0, *lengths], device=device).cumsum(0).int()

    visual, text = [s.visual[0] for s in samples], [s.text[0] for s in samples]
    sizes, words = [len(v) for v in visual], [len(t) for t in text]
    offsets = (cumulated(sizes), cumulated(words), cumulated(keeps))
    return torch.cat(visual), torch.cat(text), *offsets, max(sizes), max(words), max(keeps), sum(keeps)


def _same(name: str, label: str, prune: Callable[..., tuple[Tensor, Tensor, Tensor]], compiles=False) -> Competitor:
    def call(given: Inputs, keep: int) -> tuple[Tensor, Tensor]:
        return prune(given.visual, given.text, keep)[:2]

    def masked(given: Inputs, valid: Tensor, keep: int) -> Tensor:
        return prune(given.visual, given.text, keep, visual_prior=valid)[1]

    work = Work(text=True, rows="keep")
    return Competitor(name, label, SAME, call, work, masked=masked, compiles=compiles)


def _mmtok_masked(given: Inputs, valid: Tensor, keep: int) -> Tensor:
    return mmtok.select(given.visual, given.text, None, keep, valid)


def _other(name: str, label: str, select: Selector, work: Work, family: str = OTHER, **more: Any) -> Competitor:
    def prune(given: Inputs, keep: int) -> tuple[Tensor, Tensor]:
        indices = select(given.visual, given.text, given.saliency, keep).sort(dim=1).values
        return cosines.rows(given.visual, indices), indices

    return Competitor(name, label, family, prune, work, **more)


COMPETITORS: dict[str, Competitor] = {
    competitor.name: competitor
    for competitor in (
        *(_ours(name) for name in BACKENDS),
        _same("plain", "the same in plain PyTorch", plain.prune),
        _same("plain-symmetric", "plain, half the product", plain.prune_symmetric),
        _same("plain-compiled", "plain, torch.compile", plain.prune_compiled, compiles=True),
        _other("cdpruner", "CDPruner", cdpruner.select, Work(text=True, rows="keep")),
        _other("divprune", "DivPrune", divprune.select, Work(text=False, rows="all")),
        _other("mmtok", "MMTok", mmtok.select, Work(True, "all"), full_passes=True, masked=_mmtok_masked),
        _other("scope", "SCOPE", scope.select, Work(False, "all"), full_passes=True),
        _other("trimtokenator", "TrimTokenator", trimtokenator.select, Work(text=True, rows="keep")),
        _other("mmr", "MMR", mmr.select, Work(text=True, rows="keep")),
        _other("dart", "DART", dart.select, Work(text=False, rows="pivots")),
        _other("cosine", "top-k cosine", ranking.by_cosine, Work(text=True, rows="none"), RANKING),
        _other("attention", "top-k given attention", ranking.by_attention, Work(False, "none", False), RANKING),
        _other("random", "random", ranking.by_chance, Work(False, "none", False), RANKING),
    )
}


def why_not(name: str, device: str) -> str | None:
    """Why a competitor cannot run on this device, None where it can."""
    prefix, _, backend = name.partition("-")
    return BACKENDS[backend].why_not(device) if prefix == "ours" else None


def too_long(name: str, case: Case, core: bool, device: str) -> str | None:
    """Why a competitor that was not asked for by name sits this case out, None where it doesn't."""
    competitor = COMPETITORS[name]
    if name == "ours-reference" and case.tokens * (1 if case.sizes else case.batch) > REFERENCE_TOKENS:
        return f"written to be read: up to {REFERENCE_TOKENS} tokens"
    if competitor.compiles and not core:
        return "compiles for each shape: the main cases only"
    passes = sum(keep * tokens**2 for tokens, keep in case.samples)
    if competitor.full_passes and passes > FULL_PASSES[device] * (CORE_PASSES if core else 1):
        return f"K passes over the (N, N) matrix: {passes:.0e} elements"
    return None


def calls(case: Case, names: list[str], device: str = "cpu") -> dict[str, Call]:
    """Name -> a call on the case's features, the same tensors for all."""
    given = inputs(case, device=device)
    return {name: _call(COMPETITORS[name], given, case) for name in names}


def _call(competitor: Competitor, given: list[Inputs], case: Case) -> Call:
    if not case.sizes:
        return lambda: competitor.prune(given[0], case.keep)
    keeps = [keep for _, keep in case.samples]
    if competitor.packed is not None:
        return competitor.packed(given, keeps)
    return lambda: [competitor.prune(one, keep) for one, keep in zip(given, keeps, strict=True)]


def peak_extra_mb(case: Case, name: str, device: str) -> float:
    """Peak memory of one call, in MB: on a CPU in a fresh process."""
    if device == "cuda":
        return cuda.peak_extra_mb(calls(case, [name], device)[name])
    return memory.in_a_process(_peak_here, case, name, torch.get_num_threads())


def _peak_here(case: Case, name: str, threads: int) -> float:
    torch.set_num_threads(threads)
    call = calls(case, [name])[name]
    warm_up = call if COMPETITORS[name].compiles else calls(TINY, [name])[name]
    warm_up()
    return memory.peak_extra_mb(call)
