"""Selection of the tokens of many images in one packed operator call, each image with the text of its own sample."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..functional import count_from_ratio, greedy_select_varlen, mi_scores_varlen
from ..pruner import MIPruner
from .video import frames_in_turn, row_norms


@dataclass(frozen=True)
class PackedImages:
    """The visual tokens of U images, one image after another, with a text for each image.

    Attributes:
        visual: (ΣN, D) features after the projector.
        text: (ΣM, D) of the same dtype and device.
        visual_lengths, text_lengths: U ints each, summing to ΣN and ΣM.
        movable: (ΣN,) bool: False on structural rows, which take no part in the selection. None: all are movable.
        samples: U ints: the sample that each image belongs to.
        repeats: (ΣN,) bool: tokens that are picked after all others. None: there are none.
    """

    visual: Tensor
    text: Tensor
    visual_lengths: list[int]
    text_lengths: list[int]
    movable: Tensor | None
    samples: list[int]
    repeats: Tensor | None = None

    def movable_lengths(self) -> list[int]:
        """How many tokens of each image may be dropped."""
        if self.movable is None:
            return self.visual_lengths
        return [int(part.sum()) for part in self.movable.cpu().split(self.visual_lengths)]


@dataclass(frozen=True)
class Picks:
    """What was selected of U images, packed by `lengths`.

    Attributes:
        indices: (ΣK,) int64 in order of selection, counted from the image's own first token; −1: slot not used.
        gains: (ΣK,) in nats, in the same order; −inf: slot not used, or a repeat.
        lengths: U ints, summing to ΣK.
        scores: (ΣN,) of all tokens, in nats.
    """

    indices: Tensor
    gains: Tensor
    lengths: list[int]
    scores: Tensor


_ABOVE_REPEATS = torch.finfo(torch.float32).min  # a `min_gain` that every gain but that of a repeat reaches

# (images, tokens to pick of each) -> picks
Selector = Callable[[PackedImages, list[int]], Picks]


def cumulative(lengths: list[int], device: torch.device) -> Tensor:
    """(U + 1,) int32 starts of packed parts, as the packed operators take them."""
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)


def by_information(pruner: MIPruner) -> Selector:
    """mi_pruner's selection with the options of `pruner`: `mi_scores_varlen`, then `greedy_select_varlen`.

    Repeats get a score of −inf. After all other tokens those of largest score are taken, with a gain of −inf. The first
    pick of each image stays, also where its gain is less than `min_gain`.
    """

    def select(images: PackedImages, counts: list[int]) -> Picks:
        device = images.visual.device
        cu_visual = cumulative(images.visual_lengths, device)
        longest = max(images.visual_lengths)
        scores = mi_scores_varlen(
            images.visual,
            images.text,
            cu_visual,
            cumulative(images.text_lengths, device),
            longest,
            max(images.text_lengths),
            visual_prior=images.movable,
            bandwidth=pruner.bandwidth,
            marginal=pruner.marginal,
        )
        fresh = scores if images.repeats is None else scores.masked_fill(images.repeats, -math.inf)

        def pick(slots: list[int], min_gain: float | None) -> tuple[Tensor, Tensor]:
            return greedy_select_varlen(
                fresh,
                images.visual,
                cu_visual,
                cumulative(slots, device),
                longest,
                max(slots),
                sum(slots),
                visual_prior=images.movable,
                visual_bandwidth=pruner.visual_bandwidth,
                redundancy=pruner.redundancy,
                redundancy_weight=pruner.redundancy_weight,
                min_gain=min_gain,
            )

        def pick_all(slots: list[int]) -> tuple[Tensor, Tensor]:
            if images.repeats is None:
                return pick(slots, None)
            indices, gains = pick(slots, _ABOVE_REPEATS)
            return _with_repeats(indices, slots, images.repeats, scores, images.visual_lengths), gains

        if pruner.min_gain is None:
            return Picks(*pick_all(counts), counts, scores)
        indices, gains = pick(counts, pruner.min_gain)
        some = [min(count, 1) for count in counts]
        starts = cumulative(counts, device)[:-1][cumulative(some, device).diff() > 0].long()
        indices[starts], gains[starts] = pick_all(some)
        return Picks(indices, gains, counts, scores)

    return select


def _with_repeats(indices: Tensor, counts: list[int], repeats: Tensor, scores: Tensor, lengths: list[int]) -> Tensor:
    """The picks with repeats in the slots that are left (−1), those of largest score first; their gains are −inf."""
    filled = []
    parts = zip(indices.split(counts), repeats.split(lengths), scores.split(lengths), strict=True)
    for picks, again, score in parts:
        rows = again.nonzero()[:, 0]
        best = rows[score[rows].argsort(descending=True, stable=True)]
        used = int((picks >= 0).sum())
        filled.append(torch.cat([picks[:used], best, picks[used:]])[: len(picks)])
    return torch.cat(filled)


def select_images(
    images: PackedImages, keep: int | float, per: str, select: Selector, videos: list[int]
) -> tuple[Tensor, Picks]:
    """Which tokens stay (ΣN,) bool, structural rows among them, and the picks of each image or video.

    Args:
        keep: a ratio or a count of movable tokens, of each image (per="image"), of all images of a sample together
            (per="sample": shared among them by gain, at least one token each), or of a video whose frames are `images`
            (per="frame": shared among them by novelty, at least one token each).
        videos: U ints: the image or video that each belongs to; with another `per` than "frame" itself.

    Raises:
        ValueError: if `keep` has not a token for each, or an image or video keeps none since its features are not
            finite.
    """
    available = images.movable_lengths()
    turns: list[int] = []
    if per == "image":
        picks = select(images, [count_to_keep(keep, tokens) for tokens in available])
    elif per == "frame":
        turns = _turns_of_frames(keep, images, available, videos)
        picks = select(images, torch.tensor(turns).bincount(minlength=len(available)).tolist())
    else:
        totals = _sample_totals(keep, available, images.samples)
        counts = [min(tokens, totals[sample]) for tokens, sample in zip(available, images.samples, strict=True)]
        picks = _share(select(images, counts), images.samples, totals)
    kept = torch.zeros(len(images.visual), dtype=torch.bool, device=images.visual.device)
    starts = cumulative(images.visual_lengths, kept.device)[:-1].long()
    starts = starts.repeat_interleave(torch.tensor(picks.lengths, device=kept.device))
    kept[(starts + picks.indices)[picks.indices >= 0]] = True
    if per == "frame":
        picks = _joined(picks, turns, images.visual_lengths, videos)
    _check_some_kept(picks, list(dict(zip(videos, images.samples, strict=True)).values()))
    if images.movable is not None:
        kept |= ~images.movable
    return kept, picks


def count_to_keep(keep: int | float, tokens: int) -> int:
    """How many of `tokens` movable tokens a ratio or a count keeps: never more than there are."""
    return min(tokens, count_from_ratio(keep, tokens) if isinstance(keep, float) else keep)


def _members(owners: list[int]) -> dict[int, list[int]]:
    """Sample -> its images, or video -> its frames."""
    members: dict[int, list[int]] = {}
    for image, owner in enumerate(owners):
        members.setdefault(owner, []).append(image)
    return members


def _turns_of_frames(keep: int | float, images: PackedImages, available: list[int], videos: list[int]) -> list[int]:
    """Which frame has each token of the budget of its video, one video after another."""
    finite = row_norms(images.visual).isfinite()
    some = finite if images.movable is None else finite & images.movable
    new = some if images.repeats is None else some & ~images.repeats
    tokens, fresh = ([int(part.sum()) for part in each.cpu().split(images.visual_lengths)] for each in (some, new))
    turns: list[int] = []
    for frames in _members(videos).values():
        if not any(tokens[frame] for frame in frames):
            raise ValueError(_nothing_finite(images.samples[frames[0]]))
        total = count_to_keep(keep, sum(available[frame] for frame in frames))
        own = frames_in_turn([fresh[frame] for frame in frames], [tokens[frame] for frame in frames], total)
        turns += [frames[turn] for turn in own]
    return turns


def _joined(picks: Picks, turns: list[int], lengths: list[int], videos: list[int]) -> Picks:
    """The picks of frames as those of their videos, in turn, counted from the video's first token."""
    frames = torch.tensor(turns, device=picks.indices.device)
    order = frames.argsort(stable=True).argsort()  # the picks lie frame after frame
    starts = [0, *itertools.accumulate(lengths)]
    before = [starts[frame] - starts[videos.index(video)] for frame, video in enumerate(videos)]
    offsets = torch.tensor(before, device=frames.device)[frames]
    indices = picks.indices[order]
    indices = torch.where(indices < 0, indices, indices + offsets)
    of_video = torch.tensor(videos)[turns].bincount(minlength=max(videos) + 1).tolist()
    return Picks(indices, picks.gains[order], of_video, picks.scores)


def _check_some_kept(picks: Picks, samples: list[int]) -> None:
    for part, sample in zip(picks.indices.split(picks.lengths), samples, strict=True):
        if len(part) and not (part >= 0).any():
            raise ValueError(_nothing_finite(sample))


def _nothing_finite(sample: int) -> str:
    return (
        f"inputs: expected finite features of each image, got none of an image or video of sample {sample}: "
        "did the vision encoder overflow? Load the model in the dtype that it was made for, or in float32"
    )


def _sample_totals(keep: int | float, available: list[int], samples: list[int]) -> dict[int, int]:
    """Sample -> how many tokens its images keep together."""
    totals = {}
    for sample, images in _members(samples).items():
        totals[sample] = count_to_keep(keep, sum(available[image] for image in images))
        if totals[sample] < len(images):
            raise ValueError(
                f"keep: expected at least one token for each of the {len(images)} images of sample {sample}, got "
                f"{totals[sample]}"
            )
    return totals


def _share(picks: Picks, samples: list[int], totals: dict[int, int]) -> Picks:
    """Of each sample's picks the `totals[sample]` of largest gain, in prefixes: an image's picks stay nested.

    Always taking the image whose next pick gains most is taking in the order of the running minimum of each image's
    gains. The first pick of each image comes before all others.
    """
    keys = [part.cummin(0).values for part in picks.gains.split(picks.lengths)]
    slots = [part < 0 for part in picks.indices.split(picks.lengths)]
    for key in keys:
        key[:1] = math.inf
    lengths = list(picks.lengths)
    for sample, images in _members(samples).items():
        owner = torch.tensor(images).repeat_interleave(torch.tensor([lengths[image] for image in images]))
        unused = torch.cat([slots[image] for image in images])
        order = torch.cat([keys[image] for image in images]).argsort(descending=True, stable=True)
        order = order[unused[order].argsort(stable=True)].cpu()  # also after repeats, whose gains are −inf, too
        taken = owner[order[: totals[sample]]].bincount(minlength=len(samples))
        for image in images:
            lengths[image] = int(taken[image])
    indices = [part[:length] for part, length in zip(picks.indices.split(picks.lengths), lengths, strict=True)]
    gains = [part[:length] for part, length in zip(picks.gains.split(picks.lengths), lengths, strict=True)]
    return Picks(torch.cat(indices), torch.cat(gains), lengths, picks.scores)
