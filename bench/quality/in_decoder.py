"""Pruning inside the language model, by its own attention: what needs attention maps, and a model that is changed.

The decoder of the demo has three blocks where the published ones have about thirty: a layer here stands for ten.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.quality.asked import Asked

# (attention of the layer just passed (Q, H, L, L), visual tokens left and text tokens after that layer (Q, n, D),
# (Q, M, D)) -> what each visual token is worth (Q, n)
Ranking = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Answered:
    """What came of Q questions: answer (Q,) int64; kept (Q, K) int64 ascending, the tokens left at the end;
    tokens_per_layer: visual tokens, the mean over the decoder's layers."""

    answer: Tensor
    kept: Tensor
    tokens_per_layer: float


def by_last_token(attention: Tensor, visual: Tensor, text: Tensor) -> Tensor:
    """A ranking: attention from the last token of the question, the mean over heads."""
    return attention[:, :, -1, : visual.shape[1]].mean(dim=1)


def by_raters(attention: Tensor, visual: Tensor, text: Tensor) -> Tensor:
    """A ranking after SparseVLM's (arXiv 2410.04417): attention from the text tokens that the picture bears on, the
    raters: those whose mean over the visual tokens of softmax_j <v_i, t_j> is at least the average. Here they are
    chosen anew after each layer, from its tokens."""
    bearing = (visual @ text.mT).softmax(dim=2).mean(dim=1)
    raters = (bearing >= bearing.mean(dim=1, keepdim=True)).to(visual.dtype)
    from_text = attention[:, :, visual.shape[1] :, : visual.shape[1]].mean(dim=1)
    return (raters[:, None] @ from_text)[:, 0]


def answered(asked: Asked, schedule: list[int], ranking: Ranking) -> Answered:
    """Runs the decoder; after its layer l + 1, schedule[l] visual tokens are left: those that rank highest."""
    model, count = asked.model, asked.text.shape[1]
    total = asked.visual.shape[1]
    place = torch.arange(total + count).expand(len(asked.visual), -1)
    left, x = place[:, :total], torch.cat([asked.visual, asked.text], dim=1)
    layers = 0
    for block, keep in zip(model.decoder, schedule, strict=True):
        visible = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        position = torch.cat([left, place[:, total:]], dim=1)
        attention = block.attention(x, position, visible)
        x = block(x, position, visible)
        layers += left.shape[1]
        if keep < left.shape[1]:
            visual, text = x[:, :-count], x[:, -count:]
            best = ranking(attention, visual, text).topk(keep, dim=1).indices.sort(dim=1).values
            left = left.gather(1, best)
            x = torch.cat([visual.gather(1, best[..., None].expand(-1, -1, x.shape[2])), text], dim=1)
    return Answered(model.head(x[:, -1]).argmax(dim=1), left, layers / len(model.decoder))


def fastv(asked: Asked, keep: int) -> Answered:
    """FastV's (arXiv 2403.06764) cut after layer 2: K of N tokens go on, those that the last text token attends to."""
    total = asked.visual.shape[1]
    return answered(asked, [total, keep, keep], by_last_token)


def fastv_first(asked: Asked, keep: int) -> Answered:
    """The same after layer 1: of three layers, the nearest to two of thirty."""
    return answered(asked, [keep, keep, keep], by_last_token)


def _shrinking(asked: Asked, keep: int) -> list[int]:
    """By one factor after each of the first two layers."""
    return [round((asked.visual.shape[1] * keep) ** 0.5), keep, keep]


def pyramid(asked: Asked, keep: int) -> Answered:
    """PyramidDrop's (arXiv 2410.17247), N to K tokens: fewer after each stage, by the last text token's attention."""
    return answered(asked, _shrinking(asked, keep), by_last_token)


def sparse(asked: Asked, keep: int) -> Answered:
    """SparseVLM's (arXiv 2410.04417) raters, N to K tokens, fewer from layer to layer; their number is not adapted to a
    rank, and dropped tokens are not recycled."""
    return answered(asked, _shrinking(asked, keep), by_raters)


def layer_attention(asked: Asked, layer: int = 2) -> Tensor:
    """What the last text token attends to in a layer of the whole, unpruned model: (Q, N)."""
    total = asked.visual.shape[1]
    x = torch.cat([asked.visual, asked.text], dim=1)
    place = torch.arange(x.shape[1]).expand(len(x), -1)
    visible = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    for block in asked.model.decoder[: layer - 1]:
        x = block(x, place, visible)
    attention = asked.model.decoder[layer - 1].attention(x, place, visible)
    return by_last_token(attention, x[:, :total], x[:, total:])
