"""The Markdown tables of docs/quality.md, from the CSV files of the study."""

from collections.abc import Sequence

from bench.pages.markdown import NONE, table
from bench.quality.methods import DEFAULT, DYNAMIC, METHODS, SCORES, VARIANTS
from bench.quality.models import GROUPS, SCALES
from bench.quality.study import KEEPS, Accuracy, Specificity
from mi_pruner.demo.model import TOKENS
from mi_pruner.demo.questions import KINDS

AHEAD, BEHIND = "▲", "▼"
KINDS_AT = 20  # of 81
OWN = ("mi", "mi-paper", "mi-top", "oracle")  # not to be lost to
ASKS = {
    "digit": "what digit is red",
    "colour": "what colour is the seven",
    "where": "where is …",
    "left": "left of …",
    "count": "how many",
}


def blocks(
    main: Sequence[Accuracy],
    specificity: Sequence[Specificity],
    varied: Sequence[Accuracy],
    ideas: Sequence[Accuracy],
    null_word: Sequence[Accuracy],
) -> dict[str, str]:
    """Name of a block -> its Markdown. varied: what has a default; ideas: what was tried and not kept; null_word: runs
    of the commits before it and after."""
    filled = {
        "run": run(main),
        "run-dev": run(varied),
        "run-ideas": run(ideas),
        "ideas": variants(ideas, "idea"),
        "null-word": commits(null_word),
        "run-null-word": run(null_word[-1:]),
        "models": dense(main),
        "specificity": specific(specificity),
        "verdict": verdict(main),
        "losses": losses(main),
        "readme": readme(main),
    }
    for group in GROUPS:
        of_group = [row for row in main if row.group == group]
        filled[f"accuracy-{group}"] = accuracy(of_group)
        filled[f"kinds-{group}"] = kinds(of_group)
    for vary in dict.fromkeys(vary for vary, _, _ in VARIANTS.values()):
        filled[f"vary-{vary.replace(' ', '-').replace('+', 'and').replace(',', '')}"] = variants(varied, vary)
    return filled


def percent(share: float) -> str:
    """One digit behind the point."""
    return f"{100 * share:.1f}"


def label(row: Accuracy) -> str:
    """Ours in bold."""
    name = METHODS[row.method].label if row.method in METHODS else "all tokens"
    return f"**{name}**" if row.method == DEFAULT else name


def mark(row: Accuracy) -> str:
    """Is it ahead of mi_pruner, or behind, beyond the band?"""
    return f" {AHEAD}" if row.ahead_low > 0 else f" {BEHIND}" if row.ahead_high < 0 else ""


def run(rows: Sequence[Accuracy]) -> str:
    """Where the numbers are from."""
    if not rows:
        return NONE
    row = rows[0]
    return (
        f"By `{row.command}` at commit {row.commit}, {row.date[:10]}; {row.machine}, {row.threads} CPU threads, torch "
        f"{row.torch}; {row.split} scenes."
    )


def dense(rows: Sequence[Accuracy]) -> str:
    """The models, with all of their tokens."""
    lines = [
        [GROUPS[row.group], str(row.seeds), f"{percent(row.least)} – {percent(row.most)}"]
        + [percent(getattr(row, kind)) for kind in KINDS]
        for row in rows
        if row.method == "dense"
    ]
    header = ["models", "seeds", "accuracy with all tokens, %", *(ASKS[kind] for kind in KINDS)]
    return table(header, lines) if lines else NONE


def accuracy(rows: Sequence[Accuracy]) -> str:
    """Accuracy of each method at each budget, marked where it differs from ours for sure."""
    if not rows:
        return NONE
    found = {(row.method, row.keep): row for row in rows}
    lines = []
    for name in sorted(METHODS, key=lambda name: METHODS[name].family == DYNAMIC):
        if (name, KEEPS[0]) in found:
            some = [found[name, keep] for keep in KEEPS]
            costs = ", ".join(f"{row.tokens_per_layer:.0f}" for row in some)
            cost = costs if some[0].family == DYNAMIC else "the same"
            lines.append([label(some[0]), *(_marked(row) for row in some), cost])
    scale = SCALES[rows[0].group]
    return table(["accuracy, %; tokens kept:", *(f"{keep * scale}" for keep in KEEPS), "visual tokens a layer"], lines)


def _asked_for(row: Accuracy) -> int:
    return row.keep * SCALES[row.group]


def _kept(row: Accuracy) -> int:
    """Tokens left at the end: fewer than asked for where a method selects in steps."""
    return _asked_for(row) if row.family == DYNAMIC else round(row.tokens_per_layer)


def _marked(row: Accuracy) -> str:
    few = "" if _kept(row) == _asked_for(row) else f" ({_kept(row)} kept)"
    return percent(row.accuracy) + mark(row) + few


def kinds(rows: Sequence[Accuracy]) -> str:
    """Accuracy by kind of question, and whose patches are kept, at one budget."""
    if not rows:
        return NONE
    header = ["%", *(ASKS[kind] for kind in KINDS), "patches kept: asked digit's / others' / background's"]
    found = {row.method: row for row in rows if row.keep == KINDS_AT}
    lines = []
    for name in METHODS:
        if name in found:
            row = found[name]
            kept = " / ".join(f"{100 * share:.0f}" for share in (row.asked_kept, row.others_kept, row.background_kept))
            lines.append([label(row), *(percent(getattr(row, kind)) for kind in KINDS), kept])
    return table(header, lines)


def specific(rows: Sequence[Specificity]) -> str:
    """AUC of each score in each group of models."""
    if not rows:
        return NONE
    found = {(row.scores, row.group): row for row in rows}
    groups = [group for group in GROUPS if any(row.group == group for row in rows)]
    lines = [[text, *(f"{found[name, group].auc:.2f}" for group in groups)] for name, (text, _) in SCORES.items()]
    return table(["AUC of", *(GROUPS[group] for group in groups)], lines)


def variants(rows: Sequence[Accuracy], vary: str) -> str:
    """Accuracy of the variants of one option at both budgets, with the default's, and the difference from it."""
    groups = [group for group in GROUPS if any(row.group == group for row in rows)]
    if not groups:
        return NONE
    found = {(row.group, row.method, row.keep): row for row in rows}
    names = [DEFAULT, *dict.fromkeys(row.method for row in rows if row.vary == vary)]
    values = {row.method: row.value for row in rows}
    keeps = sorted({row.keep for row in rows if row.method == DEFAULT}, reverse=True)
    lines = []
    for name in names:
        cells = [found[group, name, keep] for group in groups for keep in keeps]
        lines.append(["**default**" if name == DEFAULT else values[name], *(_marked(row) for row in cells)])
    return table([vary, *(f"{GROUPS[group]}: {keep}" for group in groups for keep in keeps)], lines)


def commits(rows: Sequence[Accuracy]) -> str:
    """Accuracy of each method at each budget, a column for each commit, of the methods of which they differ."""
    names = list(dict.fromkeys(row.commit for row in rows))
    found = {(row.method, row.keep, row.commit): percent(row.accuracy) for row in rows}
    values = {row.method: f"{row.vary} {row.value}" if row.value else "**default**" for row in rows}
    keeps = sorted({row.keep for row in rows if row.method == DEFAULT}, reverse=True)
    lines = []
    for method, what in values.items():
        cells = [found.get((method, keep, commit), "") for keep in keeps for commit in names]
        if any(len(set(cells[k : k + len(names)])) > 1 for k in range(0, len(cells), len(names))):
            lines.append([what, *cells])
    header = ["accuracy, %; kept of 81:", *(f"{keep}, at {commit}" for keep in keeps for commit in names)]
    return table(header, lines) if rows else NONE


def _rivals(rows: Sequence[Accuracy]) -> list[Accuracy]:
    """All that keeps as many tokens; of the bounds, random ones."""
    equal = (row for row in rows if row.method in METHODS and _kept(row) == _asked_for(row))
    return [row for row in equal if row.method not in OWN]


def verdict(rows: Sequence[Accuracy]) -> str:
    """How many comparisons with others are won and lost beyond the band."""
    lines = []
    for group in GROUPS:
        of_group = [row for row in _rivals(rows) if row.group == group]
        for title, dynamic in (("before the model", False), ("in the decoder, by attention", True)):
            chosen = [row for row in of_group if (row.family == DYNAMIC) == dynamic]
            lost, won = sum(row.ahead_low > 0 for row in chosen), sum(row.ahead_high < 0 for row in chosen)
            lines.append([GROUPS[group], title, str(won), str(len(chosen) - won - lost), str(lost)])
    header = ["models", "rivals that select", "mi_pruner ahead", "undecided", "mi_pruner behind"]
    return table(header, lines) if rows else NONE


def losses(rows: Sequence[Accuracy]) -> str:
    """Every comparison that mi_pruner loses beyond the band, with the band in points."""
    lines = []
    for row in sorted(_rivals(rows), key=lambda row: (list(GROUPS).index(row.group), -row.keep, -row.ahead)):
        if row.ahead_low > 0:
            band = f"+{100 * row.ahead:.1f} ({100 * row.ahead_low:+.1f} to {100 * row.ahead_high:+.1f})"
            kept = f"{_asked_for(row)} of {TOKENS * SCALES[row.group]}"
            lines.append([GROUPS[row.group], kept, label(row), band, f"{row.tokens_per_layer:.0f}"])
    if not lines:
        return "None." if rows else NONE
    return table(["models", "kept", "who is ahead", "by points (band)", "its visual tokens a layer"], lines)


def readme(rows: Sequence[Accuracy]) -> str:
    """The short table: a few methods, both kinds of small models, all budgets."""
    shown = (DEFAULT, "mmtok", "divprune", "cdpruner", "cosine", "encoder-attention", "fastv", "random")
    found = {(row.group, row.method, row.keep): row for row in rows}
    groups = [group for group in GROUPS if (group, DEFAULT, KEEPS[0]) in found]
    if not groups:
        return NONE
    lines = []
    for name in shown:
        cells = [_marked(found[group, name, keep]) for group in groups for keep in KEEPS]
        lines.append([label(found[groups[0], name, KEEPS[0]]), *cells])
    header = ["accuracy, %; kept of 81:", *(f"{GROUPS[group]}: {keep}" for group in groups for keep in KEEPS)]
    return table(header, lines)
