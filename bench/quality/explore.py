"""Ideas that could be better at the same cost, on the dev scenes: what wins is built in, what doesn't goes."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.quality.asked import Asked
from bench.quality.in_decoder import Answered
from bench.quality.methods import before_the_model
from mi_pruner import greedy_select


def scores(
    visual: Tensor,
    text: Tensor,
    per_word: bool = False,
    perplexity: float | None = None,
    weigh: str = "uniform",
    scale: float = 1.0,
) -> Tensor:
    """MI scores (Q, N), joint marginal: with a bandwidth for each word, and words weighed by what they tell."""
    cosine = F.normalize(visual, dim=2) @ F.normalize(text, dim=2).mT
    spread = cosine.std(dim=1, correction=0) if per_word else cosine.std(dim=(1, 2), correction=0)[:, None]
    square = (scale * spread).clamp_min(1e-4)
    if perplexity is not None:
        square = _square_of(cosine, perplexity * visual.shape[1])
    logit = cosine / square[:, None]
    log_p = logit.log_softmax(dim=1)
    p = log_p.exp()
    told = (p * (log_p - torch.tensor(1 / visual.shape[1]).log())).sum(dim=1)  # KL(P[.|j] || uniform), (Q, M)
    weight = torch.ones_like(told)
    if weigh == "told":
        weight = told
    elif weigh == "norm":
        weight = text.norm(dim=2)
    elif weigh == "distinct":  # distance of the word's density from the mean density
        mean = p.mean(dim=2, keepdim=True)
        weight = (p * (log_p - mean.log())).sum(dim=1)
    weight = weight / weight.sum(dim=1, keepdim=True)
    q = (p * weight[:, None]).sum(dim=2)
    return (p * log_p * weight[:, None]).sum(dim=2) - q * q.log()


def _square_of(cosine: Tensor, wanted: float) -> Tensor:
    """h^2 (Q, M) for which each word's density has a perplexity of `wanted` tokens; bisection in log h^2."""
    low, high = cosine.new_full(cosine[:, 0].shape, -9.0), cosine.new_full(cosine[:, 0].shape, 5.0)
    for _ in range(25):
        middle = (low + high) / 2
        log_p = (cosine / middle.exp()[:, None]).log_softmax(dim=1)
        wide = -(log_p.exp() * log_p).sum(dim=1) > torch.tensor(wanted).log()
        low, high = torch.where(wide, low, middle), torch.where(wide, middle, high)
    return low.exp()


def centred(x: Tensor) -> Tensor:
    """Minus the sample's mean."""
    return x - x.mean(dim=1, keepdim=True)


def idea(
    visual: Callable[[Tensor], Tensor] = lambda x: x,
    text: Callable[[Tensor], Tensor] = lambda x: x,
    redundancy: Callable[[Tensor], Tensor] = lambda x: x,
    prior: Callable[[Asked], Tensor] | None = None,
    options: dict[str, Any] | None = None,
    **how: Any,
) -> Callable[[Asked, int], Answered]:
    """Scores on transformed features, redundancy on others."""

    def select(asked: Asked, keep: int) -> Tensor:
        a = scores(visual(asked.visual), text(asked.text), **how)
        given = {} if prior is None else {"visual_prior": prior(asked)}
        if prior is not None:
            a = a * given["visual_prior"] / given["visual_prior"].mean(dim=1, keepdim=True)
        return greedy_select(a, redundancy(asked.visual), keep, **given, **(options or {}))[0]

    return before_the_model(select)


def norm_prior(asked: Asked) -> Tensor:
    """Longer tokens are likelier."""
    return asked.visual.norm(dim=2)


def placed(x: Tensor, strength: float) -> Tensor:
    """Unit features with the place of each patch beside them."""
    side = round(x.shape[1] ** 0.5)
    axis = torch.linspace(-1, 1, side)
    place = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=2).reshape(1, -1, 2).expand(len(x), -1, -1)
    ring = torch.cat([torch.sin(place * 1.5), torch.cos(place * 1.5)], dim=2) / 2**0.5
    return torch.cat([F.normalize(x, dim=2), strength * ring], dim=2)


IDEAS = {
    "visual centred, both roles": idea(visual=centred, redundancy=centred),
    "visual centred, scores": idea(visual=centred),
    "visual centred, redundancy": idea(redundancy=centred),
    "text centred": idea(text=centred),
    "all centred": idea(visual=centred, text=centred, redundancy=centred),
    "all centred, redundancy h 1": idea(
        visual=centred, text=centred, redundancy=centred, options={"visual_bandwidth": 1.0}
    ),
    "scores centred": idea(visual=centred, text=centred),
    "bandwidth per word": idea(per_word=True),
    "perplexity 0.5": idea(perplexity=0.5),
    "perplexity 0.25": idea(perplexity=0.25),
    "perplexity 0.1": idea(perplexity=0.1),
    "words by what they tell": idea(weigh="told"),
    "words by norm": idea(weigh="norm"),
    "words by distinctness": idea(weigh="distinct"),
    "prior by norm": idea(prior=norm_prior),
    "place 0.3": idea(redundancy=lambda x: placed(x, 0.3)),
    "place 0.6": idea(redundancy=lambda x: placed(x, 0.6)),
    "redundancy centred, weight 0.5": idea(redundancy=centred, options={"redundancy_weight": 0.5}),
    "redundancy centred, h 0.5": idea(redundancy=centred, options={"visual_bandwidth": 0.5}),
    "redundancy centred, h 0.8": idea(redundancy=centred, options={"visual_bandwidth": 0.8}),
    "redundancy centred, place 0.3": idea(redundancy=lambda x: placed(centred(x), 0.3)),
}
