"""Who takes part in the study: name -> a function from questions and a count to answers and the tokens kept."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench.baselines import cdpruner, cosines, dart, divprune, mmr, mmtok, ranking, scope, trimtokenator
from bench.quality import in_decoder
from bench.quality.asked import Asked
from bench.quality.in_decoder import Answered
from mi_pruner import greedy_select, histogram_mi_scores, mi_scores, prune

Scores = Callable[[Asked], Tensor]  # -> (Q, N), what each token is worth by itself
Select = Callable[[Asked, int], Tensor]  # -> (Q, K) int64, in any order

OURS, SELECTOR, RANKING, DYNAMIC, BOUND = "ours", "selector", "ranking", "in the decoder", "bound"  # the families
PAPER: dict[str, Any] = {"marginal": "prior", "redundancy": "chain"}  # MI-Pruner's literal reading


@dataclass(frozen=True)
class Method:
    """One method; `run(questions, keep)` answers them."""

    label: str
    family: str
    run: Callable[[Asked, int], Answered]


def before_the_model(select: Select) -> Callable[[Asked, int], Answered]:
    """Answers from the selected tokens alone, at their places."""

    def run(asked: Asked, keep: int) -> Answered:
        # DART selects 4 + 8 floor(K / 8) tokens: cut where that is more than K, and fewer where it is less.
        kept = select(asked, keep)[:, :keep].sort(dim=1).values
        answer = asked.model.answer(cosines.rows(asked.visual, kept), kept, asked.text).argmax(dim=1)
        return Answered(answer, kept, kept.shape[1])

    return run


def ours(**options: Any) -> Callable[[Asked, int], Answered]:
    """`mi_pruner.prune` with these options."""
    return before_the_model(lambda asked, keep: prune(asked.visual, asked.text, keep, **options)[1])


def top(scores: Scores) -> Callable[[Asked, int], Answered]:
    """The tokens of the largest scores."""
    return before_the_model(lambda asked, keep: scores(asked).topk(keep, dim=1).indices)


def histogram(asked: Asked, bins: int = 16) -> Tensor:
    """The histogram estimator's scores, as shares of the sample like those of the densities."""
    return histogram_mi_scores(asked.visual, asked.text, bins=bins) / asked.visual.shape[1]


def by_histogram(bins: int = 16, **options: Any) -> Callable[[Asked, int], Answered]:
    """Greedy selection on the histogram estimator's scores."""
    return before_the_model(lambda asked, keep: greedy_select(histogram(asked, bins), asked.visual, keep, **options)[0])


def _selector(select: Callable[[Tensor, Tensor, Tensor, int], Tensor]) -> Callable[[Asked, int], Answered]:
    return before_the_model(lambda asked, keep: select(asked.visual, asked.text, asked.saliency, keep))


def _cdpruner(sign: int) -> Callable[[Asked, int], Answered]:
    """One question at a time: its relevance is normalised over the batch. sign: 1 as published, -1 for more relevance
    where the cosine with the text is larger."""

    def select(asked: Asked, keep: int) -> Tensor:
        pairs = zip(asked.visual.split(1), (sign * asked.text).split(1), strict=True)
        return torch.cat([cdpruner.select(visual, text, None, keep) for visual, text in pairs])

    return before_the_model(select)


def _anew(asked: Asked, keep: int) -> Answered:
    """Answers from the tokens that layer 2 of an unpruned run attends to; its two layers are paid for, too."""
    done = top(in_decoder.layer_attention)(asked, keep)
    dense = 2 * asked.visual.shape[1] / len(asked.model.decoder)
    return replace(done, tokens_per_layer=done.tokens_per_layer + dense)


def _by_chance(asked: Asked, keep: int) -> Tensor:
    return _noise(asked).topk(keep, dim=1).indices


def _noise(asked: Asked) -> Tensor:
    """(Q, N) in 0 .. 1, the same for a scene and kind in every run."""
    rows = []
    for scene, kind in zip(asked.scene.tolist(), asked.kind.tolist(), strict=True):
        generator = torch.Generator().manual_seed(8 * scene + kind)
        rows.append(torch.rand(asked.visual.shape[1], generator=generator))
    return torch.stack(rows)


def _by_truth(asked: Asked, keep: int) -> Tensor:
    """The patches that the answer rests on, then those of other digits, then of the background; equals by chance."""
    worth = 2 * asked.needed.float() + (asked.owner >= 0).float() + _noise(asked)
    return worth.topk(keep, dim=1).indices


def _everything(asked: Asked, keep: int) -> Tensor:
    return torch.arange(keep).expand(len(asked.visual), -1)


DENSE = Method("all tokens", BOUND, before_the_model(_everything))  # with keep = N
DEFAULT = "mi"
METHODS: dict[str, Method] = {
    DEFAULT: Method("mi_pruner", OURS, ours()),
    "mi-paper": Method("mi_pruner, the paper's preset", OURS, ours(**PAPER)),
    "mi-top": Method("mi_pruner without redundancy", OURS, ours(redundancy="none")),
    "histogram": Method("histogram MI, with redundancy", OURS, by_histogram()),
    "histogram-top": Method("histogram MI, top-k", OURS, top(histogram)),
    "cosine": Method("top-k cosine", RANKING, _selector(ranking.by_cosine)),
    "encoder-attention": Method("top-k encoder attention", RANKING, _selector(ranking.by_attention)),
    "divprune": Method("DivPrune", SELECTOR, _selector(divprune.select)),
    "cdpruner": Method("CDPruner", SELECTOR, _cdpruner(1)),
    "cdpruner-turned": Method("CDPruner, sign of the relevance turned", SELECTOR, _cdpruner(-1)),
    "mmtok": Method("MMTok", SELECTOR, _selector(mmtok.select)),
    "scope": Method("SCOPE", SELECTOR, _selector(scope.select)),
    "trimtokenator": Method("TrimTokenator", SELECTOR, _selector(trimtokenator.select)),
    "mmr": Method("MMR", SELECTOR, _selector(mmr.select)),
    "dart": Method("DART", SELECTOR, _selector(dart.select)),
    "llm-attention": Method("attention of LLM layer 2, then anew", DYNAMIC, _anew),
    "fastv": Method("FastV-like: cut after layer 2", DYNAMIC, in_decoder.fastv),
    "fastv-first": Method("FastV-like: cut after layer 1", DYNAMIC, in_decoder.fastv_first),
    "pyramid": Method("PyramidDrop-like", DYNAMIC, in_decoder.pyramid),
    "sparse": Method("SparseVLM-like", DYNAMIC, in_decoder.sparse),
    "random": Method("random", BOUND, before_the_model(_by_chance)),
    "oracle": Method("oracle: knows the needed patches", BOUND, before_the_model(_by_truth)),
}

SCORES: dict[str, tuple[str, Scores]] = {  # name -> label, what is ranked: for specificity
    "mi": ("MI, joint", lambda asked: mi_scores(asked.visual, asked.text)),
    "mi-prior": ("MI, prior (the paper's)", lambda asked: mi_scores(asked.visual, asked.text, marginal="prior")),
    "histogram": ("histogram MI", histogram),
    "cosine": ("largest cosine", lambda asked: ranking.text_cosine(asked.visual, asked.text)),
    "encoder-attention": ("encoder attention", lambda asked: asked.saliency),
    "llm-attention": ("attention of LLM layer 2", in_decoder.layer_attention),
}


def _variants() -> dict[str, tuple[str, str, Callable[[Asked, int], Answered]]]:
    """Name -> what varies, its value, the method: everything that has a default, around its default."""
    made = {}
    for marginal in ("joint", "prior"):
        for redundancy in ("none", "mean", "chain", "max"):
            value = f"{marginal} + {redundancy}"
            made[value] = ("marginal + redundancy", value, ours(marginal=marginal, redundancy=redundancy))
    for weight in (0.25, 0.5, 2.0, 4.0):
        made[f"weight-{weight:g}"] = ("redundancy weight", f"{weight:g}", ours(redundancy_weight=weight))
    for h in (0.1, 0.2, 0.3, 0.5, 0.8, 1.2):
        made[f"h-{h:g}"] = ("bandwidth", f"{h:g}", ours(bandwidth=h))
    for h in (0.2, 0.4, 0.5, 0.8, 1.0, 1.5):
        made[f"visual-h-{h:g}"] = ("visual bandwidth", f"{h:g}", ours(visual_bandwidth=h))
    for bins in (4, 8, 16, 32):
        made[f"bins-{bins}"] = ("histogram bins", f"{bins}", by_histogram(bins))
        made[f"bins-{bins}-top"] = ("histogram bins, top-k", f"{bins}", top(lambda asked, b=bins: histogram(asked, b)))
    return made


VARIANTS = _variants()
