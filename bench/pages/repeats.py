"""The table of what was tried to tell repeats in videos: at the budget of a frame, in the last run."""

from bench.repeats import CUTS, Trial
from mi_pruner.integrations.video import REPEAT_COSINE

from .markdown import NONE, made, table

SHOWN = (None, 0.85, 0.9, 0.95)


def block(trials: list[Trial]) -> str:
    """Videos as rows; the places and the coverage at each threshold, and more at the one in use."""
    if not trials:
        return NONE
    last = [t for t in trials if t.date == trials[-1].date and t.keep == t.tokens]
    of = {(t.video, t.repeat_cosine): t for t in last}
    head = (
        "video: places, coverage",
        "cosines",
        *("no repeats" if c is None else f"{c:g}" for c in SHOWN),
        f"new at {REPEAT_COSINE:g}",
        "picks as without",
        "score",
    )
    lines = []
    for video in dict.fromkeys(t.video for t in last):
        chosen = of[video, REPEAT_COSINE]
        lines.append(
            [
                video,
                f"{chosen.cosine_1:.3f} – {chosen.cosine_99:.3f}",
                *(f"{of[video, c].places:.0f}, {of[video, c].coverage:.3f}" for c in SHOWN),
                _percent(chosen.new) + ("" if chosen.found is None else f" (changed: {_percent(chosen.found)})"),
                _percent(chosen.same_picks),
                f"{chosen.score:.2f}",
            ]
        )
    return f"{table(head, lines)}\n\n{_unlike(of[CUTS, None])}{made(last[-1])}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _unlike(cuts: Trial) -> str:
    before = "" if cuts.encoded_99 is None else f", before the projector {cuts.encoded_99:.3f}"
    return f"One of 100 cosines across a cut is above {cuts.cosine_99:.3f}{before}. "
