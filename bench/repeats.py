"""Which cosine makes a token of a video a repeat of what was last new at its place: thresholds, on videos of each kind.

Videos are of the kept features of a film through a random projector, or synthetic. A selection gives repeats a score of
-inf, and is held against the selection without repeats. Noise comes before the projector, as much as gives two noisy
copies of a frame a cosine behind it, on average: places differ. The film's features have little in common; how a
threshold fares where tokens have more, a vector added to all of them shows.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

import mi_pruner
from bench import record
from bench.photographs import features
from bench.photographs.make import FRAMES, PHOTOGRAPHS
from bench.record import rounded
from mi_pruner.integrations.video import repeats

FILE = "repeats.csv"
THRESHOLDS = (None, 0.8, 0.85, 0.9, 0.95, 0.98)  # None: no token is a repeat
SHOTS = len(PHOTOGRAPHS)
SAMPLES = 2 * SHOTS  # of each kind of video, each with its own text: two for each shot that a video begins with
SHOWN = 16  # frames of a video, or as many as a shot has
WIDTH = 1024  # of the tokens: cosines are those of 4096 within 0.02, in a ninth of the time
TEXT = 32  # tokens
QUARTER = 4  # the smaller budget is one of so many parts of a frame
CHANGED, SINCE = 4, 8  # side of the region that changes, in places of a frame; the first frame of the change
SIDE = 16  # places along a frame's side
COMMON = 2.0  # length of the vector that some tokens have in common, in their own
LIKELY = torch.tensor([0.01, 0.5, 0.99])  # quantiles of cosines
CUTS = "a cut every frame"


class Video(NamedTuple):
    """One sample; its frames have P tokens."""

    visual: Tensor  # (T, P, D)
    text: Tensor  # (M, D)
    encoded: Tensor | None = None  # (T, P, WIDTH): before the projector
    changed: Tensor | None = None  # (T, P) bool: which tokens show what was not there before


@dataclass(frozen=True)
class Trial(record.Run):
    """One threshold and budget on one kind of video, the mean of its samples."""

    video: str
    samples: int
    frames: int
    tokens: int  # of a frame
    width: int
    keep: int  # of the whole video
    repeat_cosine: float | None
    cosine_1: float  # 1st percentile of the cosines of a token and the one at its place in the frame before
    cosine_50: float
    cosine_99: float
    encoded_99: float | None  # that of features before the projector
    new: float  # share of the tokens after the first frame
    places: float  # that have a kept token in some frame
    same_picks: float  # share that the selection without repeats has, too
    coverage: float  # mean over all tokens of the largest cosine with a kept token
    score: float  # mean of the kept tokens, over that without repeats
    found: float | None  # share of the changed tokens that are new


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench repeats`."""
    record.add_out(parser)


@torch.no_grad()
def main(options: argparse.Namespace) -> int:
    """Tries every threshold on every kind of video, prints and keeps what came."""
    run = record.this_run("cpu")
    for name, video in VIDEOS.items():
        kept = trials(run, name, [video(number) for number in range(SAMPLES)])
        record.append(options.out / FILE, Trial, kept)
        print(f"{name}: cosines {kept[0].cosine_1}, {kept[0].cosine_50}, {kept[0].cosine_99}; {kept[0].encoded_99}")
        for t in kept:
            found = "" if t.found is None else f", found {t.found:.3f}"
            what = f"new {t.new:.3f}, {t.places:5.1f} places, same {t.same_picks:.3f}, coverage {t.coverage:.3f}"
            print(f"    {t.repeat_cosine!s:5}{t.keep:4}  {what}, score {t.score:.3f}{found}", flush=True)
    print(f"\nappended to {options.out / FILE}")
    return 0


def trials(run: record.Run, name: str, videos: list[Video]) -> list[Trial]:
    """A line for each threshold and budget; videos are of one size."""
    frames, tokens, width = videos[0].visual.shape
    samples = [dict(_compared(video)) for video in videos]
    what: dict[str, Any] = {"video": name, "samples": len(videos), "frames": frames, "tokens": tokens, "width": width}
    lines = []
    for threshold, keep in samples[0]:
        measured = [sample[threshold, keep] for sample in samples]
        means: dict[str, Any] = {"encoded_99": None, "found": None}  # where there are none
        means |= {key: rounded(sum(m[key] for m in measured) / len(measured)) for key in measured[0]}
        lines.append(Trial(**asdict(run), **what, keep=keep, repeat_cosine=threshold, **means))
    return lines


def _compared(video: Video) -> Iterator[tuple[tuple[float | None, int], dict[str, float]]]:
    """(threshold, budget) and the measures of Trial."""
    frames, tokens, _ = video.visual.shape
    visual = video.visual.flatten(0, 1)
    unit = normalize(visual, dim=1)
    scores = mi_pruner.mi_scores(visual[None], video.text[None])[0]
    cosines = dict(zip(("cosine_1", "cosine_50", "cosine_99"), _cosines(video.visual), strict=True))
    if video.encoded is not None:
        cosines["encoded_99"] = _cosines(video.encoded)[-1]
    without: Tensor | None = None
    for threshold in THRESHOLDS:
        repeated = torch.zeros(len(visual), dtype=torch.bool)
        if threshold is not None:
            repeated = repeats(visual, frames, threshold)
        picks = mi_pruner.greedy_select(scores[None].masked_fill(repeated, -torch.inf), visual[None], tokens)[0][0]
        without = picks if without is None else without
        measures = {**cosines, "new": float((~repeated[tokens:]).float().mean())}
        if video.changed is not None:
            measures["found"] = float((~repeated[video.changed.flatten()]).float().mean())
        for keep in (tokens, tokens // QUARTER):  # nested
            kept = picks[:keep]
            yield (
                (threshold, keep),
                {
                    **measures,
                    "places": float(len((kept % tokens).unique())),
                    "same_picks": float(torch.isin(kept, without[:keep]).float().mean()),
                    "coverage": float((unit @ unit[kept].T).amax(1).mean()),
                    "score": float(scores[kept].mean() / scores[without[:keep]].mean()),
                },
            )


def _cosines(shown: Tensor) -> list[float]:
    """Percentiles of the cosines with the frame before, of shown (T, P, D)."""
    return cosine_similarity(shown[1:], shown[:-1], dim=-1).flatten().quantile(LIKELY).tolist()


@cache
def _project() -> Callable[[Tensor], Tensor]:
    return features.projector(WIDTH, torch.Generator().manual_seed(0), "cpu")


@cache
def _film() -> Tensor:
    """(SHOTS, FRAMES, P, features.WIDTH)."""
    return features.features("film", SHOTS * FRAMES * features.VIEW).view(SHOTS, FRAMES, features.VIEW, -1)


def _video(
    encoded: Tensor, number: int, cosine: float = 1.0, common: float = 0.0, changed: Tensor | None = None
) -> Video:
    """Of encoded (T, P, features.WIDTH), with noise of a cosine, and a vector that all tokens have in common."""
    generator = torch.Generator().manual_seed(number)
    noise = torch.randn(encoded.shape, generator=generator) * encoded.std()
    encoded = encoded + _strength(encoded[0], noise[:2], cosine) * noise
    visual = _project()(encoded)
    vector = normalize(torch.randn(WIDTH, generator=generator), dim=0)
    visual = visual + common * visual.norm(dim=-1).mean() * vector
    return Video(visual, features.words(visual.flatten(0, 1), TEXT, generator), encoded, changed)


def _strength(frame: Tensor, noise: Tensor, cosine: float) -> float:
    """That gives a frame (P, features.WIDTH) with either of two noises (2, P, features.WIDTH) this mean cosine."""
    if cosine == 1:
        return 0.0
    least, most = 0.0, 1.0
    while most - least > 1e-3:
        middle = (least + most) / 2
        one, other = _project()(frame + middle * noise)
        if cosine_similarity(one, other, dim=-1).mean() < cosine:
            most = middle
        else:
            least = middle
    return most


def _still(number: int, cosine: float) -> Video:
    """One frame again and again, from the middle of a shot."""
    return _video(_film()[number % SHOTS, FRAMES // 2].expand(SHOWN, -1, -1), number, cosine)


def _moving(number: int, step: int, cosine: float) -> Video:
    """Every step-th frame of a shot."""
    return _video(_film()[number % SHOTS, ::step][:SHOWN], number, cosine)


def _cutting(number: int, frames: int, common: float = 0.0) -> Video:
    """All shots in turn, a few consecutive frames of each."""
    shown = torch.arange(SHOWN)
    shots = (number + shown // frames) % SHOTS
    turns = shown // (SHOTS * frames)  # of all shots; frames of one are far from those of another
    apart = FRAMES * SHOTS * frames // SHOWN
    return _video(_film()[shots, (number + turns * apart + shown % frames) % FRAMES], number, common=common)


def _changing(number: int, cosine: float = 1.0, common: float = 0.0) -> Video:
    """A still frame, a region of which shows another shot's from some frame on."""
    middle = _film()[:, FRAMES // 2]
    region = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    region[SIDE // 2 :, SIDE // 2 :][:CHANGED, :CHANGED] = True
    shown = middle[number % SHOTS].repeat(SHOWN, 1, 1)
    shown[SINCE:, region.flatten()] = middle[(number + 1) % SHOTS, region.flatten()]
    changed = torch.zeros(shown.shape[:2], dtype=torch.bool)
    changed[SINCE] = region.flatten()
    return _video(shown, number, cosine, common, changed)


def _synthetic(number: int, noise: float) -> Video:
    """A still frame of 8 clusters of background, and of 20 tokens that lean towards one of 12 words each."""
    generator = torch.Generator().manual_seed(number)
    tokens, relevant = 196, 20
    words, clusters, own, leaning = (
        torch.randn(rows, WIDTH, generator=generator) for rows in (12, 8, tokens, relevant)
    )
    frame = clusters[torch.randint(len(clusters), (tokens,), generator=generator)] + 0.5 * own
    named = torch.randperm(tokens, generator=generator)[:relevant]
    frame[named] = 0.3 * words[torch.arange(relevant) % len(words)] + 0.95 * leaning
    return Video(frame + noise * torch.randn(SHOWN, tokens, WIDTH, generator=generator), words)


def _noisy(name: str, cosine: float) -> str:
    return name if cosine == 1 else f"{name}, noise {cosine:g}"


VIDEOS: dict[str, Callable[[int], Video]] = {  # of a sample's number; noise by its cosine
    **{_noisy("still", c): partial(_still, cosine=c) for c in (1, 0.998, 0.97)},
    **{
        _noisy(f"moving, {which} frame", c): partial(_moving, step=step, cosine=c)
        for step, which in ((1, "every"), (2, "every 2nd"), (4, "every 4th"))
        for c in (1, 0.998)
    },
    "a cut every 4 frames": partial(_cutting, frames=4),
    CUTS: partial(_cutting, frames=1),
    f"{CUTS}, much in common": partial(_cutting, frames=1, common=COMMON),
    **{_noisy("still but for a region", c): partial(_changing, cosine=c) for c in (1, 0.97)},
    "still but for a region, noise 0.97, much in common": partial(_changing, cosine=0.97, common=COMMON),
    **{_noisy("synthetic, still", c): partial(_synthetic, noise=n) for c, n in ((1, 0), (0.998, 0.05), (0.97, 0.2))},
}
