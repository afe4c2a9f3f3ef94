"""The pictures of docs/quality.md, as SVG. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.pages import drawing
from bench.quality.methods import BOUND, DEFAULT, DYNAMIC, METHODS, OURS, RANKING, SELECTOR
from bench.quality.models import GROUPS, SCALES
from bench.quality.study import KEEPS, Accuracy
from bench.quality.tables import ASKS
from mi_pruner.demo.model import TOKENS

COLOURS = {
    OURS: drawing.BLUE,
    SELECTOR: drawing.GREEN,
    RANKING: drawing.PURPLE,
    DYNAMIC: drawing.ORANGE,
    BOUND: drawing.GREY,
}
SWEPT = ("bandwidth", "visual bandwidth", "redundancy weight", "histogram bins")
DEFAULTS = {"visual bandwidth": 0.63, "redundancy weight": 1.0}


def draw(main: Sequence[Accuracy], varied: Sequence[Accuracy], folder: Path) -> list[Path]:
    """Writes what can be drawn; the paths written.

    Raises:
        ImportError: without matplotlib.
    """
    drawing.start()
    figures: dict[str, Any] = {}
    if main:
        figures["quality-accuracy"] = _accuracy(main, "keep")
        figures["quality-cost"] = _accuracy(main, "tokens_per_layer")
        figures["quality-kinds"] = _kinds(main)
    if varied:
        figures["quality-sensitivity"] = _sensitivity(varied)
    return drawing.save(figures, folder)


def _panels(count: int, height: float = 4.2) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False, sharey=True)[0])


def _look(name: str, number: int) -> dict[str, Any]:
    family = METHODS[name].family
    ours = name == DEFAULT
    return {
        "label": METHODS[name].label,
        "color": COLOURS[family],
        "marker": drawing.marker(number),
        "markersize": 4.5,
        "linewidth": 3.0 if ours else 1.1,
        "linestyle": "--" if family == BOUND else "-",
        "zorder": 3 if ours else 2,
    }


def _accuracy(rows: Sequence[Accuracy], across: str) -> Any:
    """Accuracy against tokens kept, or against visual tokens a layer; a panel for each group of models."""
    groups = [group for group in GROUPS if any(row.group == group for row in rows)]
    figure, panels = _panels(len(groups), 5)
    for axes, group in zip(panels, groups, strict=True):
        of_group = [row for row in rows if row.group == group]
        _curves(axes, of_group, across, "accuracy")
        dense = next(row for row in of_group if row.method == "dense")
        axes.axhline(100 * dense.accuracy, color=drawing.GREY, linewidth=0.8, linestyle=":")
        axes.set_title(GROUPS[group], loc="left", fontsize=11)
        if across == "keep":
            _budgets(axes, SCALES[group])
        else:
            axes.set(xscale="log", xlabel="visual tokens a decoder layer, mean")
        axes.grid(True, **drawing.GRID)
    panels[0].set_ylabel("right answers, %  (dotted: all tokens)")
    _legend(figure, panels[0], 5)
    return figure


def _curves(axes: Any, rows: Sequence[Accuracy], across: str, share: str) -> None:
    """A curve for each method: one of its shares, in %, against another attribute."""
    for number, name in enumerate(METHODS):
        points = sorted((getattr(row, across), 100 * getattr(row, share)) for row in rows if row.method == name)
        axes.plot(*zip(*points, strict=True), **_look(name, number))


def _budgets(axes: Any, scale: int) -> None:
    """The horizontal axis of tokens kept, a tick for each budget."""
    axes.set(xscale="log", xlabel=f"tokens kept, of {TOKENS * scale}")
    axes.set_xticks(KEEPS, [str(keep * scale) for keep in KEEPS])
    axes.minorticks_off()


def _legend(figure: Any, axes: Any, columns: int) -> None:
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncol=columns, fontsize=8, frameon=False
    )


def _kinds(rows: Sequence[Accuracy]) -> Any:
    """Accuracy against tokens kept for each kind of question: the aligned small models."""
    group = next(iter(GROUPS))
    of_group = [row for row in rows if row.group == group]
    figure, panels = _panels(len(ASKS), 4.6)
    for axes, (kind, asks) in zip(panels, ASKS.items(), strict=True):
        _curves(axes, of_group, "keep", kind)
        axes.set_title(asks, loc="left", fontsize=11)
        _budgets(axes, SCALES[group])
        axes.grid(True, **drawing.GRID)
    panels[0].set_ylabel(f"right answers, %  ({GROUPS[group]})")
    _legend(figure, panels[0], 7)
    return figure


def _sensitivity(rows: Sequence[Accuracy]) -> Any:
    """Accuracy against each number that can be set; a curve for each group and budget, the default as a level."""
    groups = [group for group in GROUPS if any(row.group == group for row in rows)]
    keeps = sorted({row.keep for row in rows if row.method == DEFAULT}, reverse=True)
    figure, panels = _panels(len(SWEPT))
    for axes, vary in zip(panels, SWEPT, strict=True):
        for colour, group in zip((drawing.BLUE, drawing.ORANGE, drawing.GREEN), groups, strict=False):
            for style, keep in zip(("-", "--"), keeps, strict=True):
                chosen = [row for row in rows if (row.group, row.keep) == (group, keep)]
                default = next(row for row in chosen if row.method == DEFAULT)
                points = [(float(row.value), 100 * row.accuracy) for row in chosen if row.vary == vary]
                points += [(DEFAULTS[vary], 100 * default.accuracy)] if vary in DEFAULTS else []
                look: dict[str, Any] = {"color": colour, "linestyle": style}
                axes.plot(*zip(*sorted(points), strict=True), **look, marker="o", label=f"{GROUPS[group]}: {keep} kept")
                axes.axhline(100 * default.accuracy, **look, linewidth=0.6, alpha=0.6)
        axes.set(xscale="log", xlabel=vary)
        ticks = sorted({float(row.value) for row in rows if row.vary == vary} | {DEFAULTS.get(vary, 0.0)} - {0.0})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(True, **drawing.GRID)
    panels[0].set_ylabel("right answers, %  (thin: the defaults)")
    _legend(figure, panels[0], 3)
    return figure
