"""Who is measured: name -> a prune call with the defaults of the package."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch import Tensor

import mi_pruner
from mi_pruner._dispatch import BACKENDS

from . import timing
from .baselines import plain
from .shapes import Case, features

Pruner = Callable[[Tensor, Tensor, int], object]

BASELINE = "plain"
COMPILED = ("plain-compiled",)  # compile for each shape: warmed up on it before memory is measured
TINY = Case("tiny", tokens=16, keep=4, width=64, text=4)


def _ours(name: str) -> Pruner:
    def prune(visual: Tensor, text: Tensor, keep: int) -> object:
        with mi_pruner.backend(name):
            return mi_pruner.prune(visual, text, keep)

    return prune


COMPETITORS: dict[str, Pruner] = {
    **{f"ours-{name}": _ours(name) for name in BACKENDS},
    "plain": plain.prune,
    "plain-symmetric": plain.prune_symmetric,
    "plain-compiled": plain.prune_compiled,
}


def why_not(name: str, device: str) -> str | None:
    """Why a competitor cannot run on this device, None where it can."""
    prefix, _, backend = name.partition("-")
    return BACKENDS[backend].why_not(device) if prefix == "ours" else None


def calls(case: Case, names: list[str], device: str = "cpu") -> dict[str, timing.Call]:
    """Name -> a call on the case's features, the same tensors for all."""
    visual, text = features(case, device=device)
    return {name: _call(COMPETITORS[name], visual, text, case.keep) for name in names}


def _call(prune: Pruner, visual: Tensor, text: Tensor, keep: int) -> timing.Call:
    return lambda: prune(visual, text, keep)


def peak_extra_mb(case: Case, name: str, device: str = "cpu") -> float:
    """`timing.peak_extra_mb` of one competitor, in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_peak_here, case, name, device, torch.get_num_threads()).result()


def _peak_here(case: Case, name: str, device: str, threads: int) -> float:
    torch.set_num_threads(threads)
    call = calls(case, [name], device)[name]
    warm_up = call if name in COMPILED else calls(TINY, [name], device)[name]
    warm_up()
    return timing.peak_extra_mb(call, device)
