"""The pictures of docs/benchmarks.md, one message each, as SVG. Needs matplotlib.

Blue is ours, orange the same algorithm in plain PyTorch, green the other methods, grey what only ranks; curves carry
their names.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cases import CASES, CORE, SETS
from bench.competitors import COMPETITORS, OTHER, OURS, RANKING, SAME
from bench.speed.language_models import MODELS, PROMPT, SHOWN
from bench.speed.prefill import Prefill
from bench.speed.rows import Row

from . import drawing
from .kept import Newest, fastest_mode, ours
from .markdown import ms, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {OURS: drawing.BLUE, SAME: drawing.ORANGE, OTHER: drawing.GREEN, RANKING: drawing.GREY}
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
SWEEPS = {  # file -> set of cases, the attribute that varies, axis label, what stays the same
    "tokens": ("sweep-tokens", "tokens", "visual tokens N", "K = N / 9, D = 2048, batch 1"),
    "keep": ("sweep-keep", "keep", "kept tokens K", "N = 1152, D = 2048, batch 1"),
    "batch": ("sweep-batch", "batch", "batch", "N = 576, K = 64, D = 2048"),
}
PREFILL_RIVALS = ("plain", "divprune", "cdpruner", "mmtok")


def draw(rows: dict[str, list[Row]], prefills: list[Prefill], folder: Path) -> list[Path]:
    """Writes what can be drawn; the paths written.

    Raises:
        ImportError: without matplotlib.
    """
    drawing.start()
    figures: dict[str, Any] = {}
    for device, kept in rows.items():
        best = fastest_mode(kept)
        figures |= {f"bench-{device}-{name}": _sweep(best, name, device) for name in SWEEPS}
        figures[f"bench-{device}-floor"] = _floor(best, device)
        figures[f"bench-{device}-prefill"] = _prefill(best, prefills, device)
    return drawing.save({name: figure for name, figure in figures.items() if figure is not None}, folder)


def _figure(width: float, height: float) -> tuple[Any, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()


def _sweep(rows: Newest, name: str, device: str) -> Any:
    """Latency against one size, log-log, all competitors; None if fewer than two sizes were measured."""
    cases, attribute, label, constant = SWEEPS[name]
    real, synthetic = (_curves(rows, cases, attribute, of_real) for of_real in (True, False))
    if max((len(points) for points in (*real.values(), *synthetic.values())), default=0) < 2:
        return None
    figure, axes = _figure(8.5, 5.5)
    for number, competitor in enumerate(real | synthetic):
        family = COMPETITORS[competitor].family
        look: dict[str, Any] = {"color": COLOURS[family], "zorder": 3 if family == OURS else 2}
        width = 3.0 if family == OURS else 1.2
        if competitor in real:
            marker = {"marker": drawing.marker(number), "markersize": 4.5}
            axes.plot(*zip(*real[competitor], strict=True), linewidth=width, **marker, **look)
        if competitor in synthetic:
            axes.plot(*zip(*synthetic[competitor], strict=True), linewidth=0.6 * width, linestyle=(0, (3, 2)), **look)
    curves = synthetic | real
    axes.set(xscale="log", yscale="log", xlabel=label, ylabel="median latency of a call, ms")
    what = f"Selection time against {label} on a {DEVICES[device]}   ({constant}; dashed: synthetic features)"
    axes.set_title(what, loc="left", fontsize=10)
    _ticks(axes, sorted({x for points in curves.values() for x, _ in points}))
    axes.grid(True, which="major", **drawing.GRID)
    _end_labels(axes, curves)
    return figure


def _curves(rows: Newest, cases: str, attribute: str, real: bool) -> dict[str, list[tuple[float, float]]]:
    """Competitor -> (size, ms) of the cases with features of photographs, or of the others."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for case in SETS[cases]:
        for competitor in COMPETITORS:
            if competitor == "ours-reference" or (case.features != "synthetic") != real:  # the former is to be read
                continue
            row = rows.get((case.name, competitor))
            if row is not None:
                curves.setdefault(competitor, []).append((getattr(case, attribute), row.p50_ms))
    return curves


def _ticks(axes: Axes, values: list[float]) -> None:
    """One tick for each measured size; milliseconds in plain numbers."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set_xticks(values, [f"{value:,.0f}" for value in values])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))


def _plain(value: float, place: object = None) -> str:
    """0.1, 10, 1,000,000."""
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _end_labels(axes: Axes, curves: dict[str, list[tuple[float, float]]]) -> None:
    """Each curve's name, right of the axes, as near to its end as the other names allow; a thin line leads to it."""
    import math

    low, high = (math.log(limit) for limit in axes.get_ylim())
    right = max(x for points in curves.values() for x, _ in points)
    ends = sorted((math.log(points[-1][1]), name) for name, points in curves.items())
    gap = (high - low) / 24  # the height of a line of text
    places = _spread([y for y, _ in ends], gap, low, high)
    for place, (_, name) in zip(places, ends, strict=True):
        x, y = curves[name][-1]
        colour = COLOURS[COMPETITORS[name].family]
        at = (place - low) / (high - low)
        text = COMPETITORS[name].label + ("" if x == right else f" (to {x:,.0f})")
        axes.annotate(
            text,
            xy=(x, y),
            xytext=(1.05, at),
            textcoords="axes fraction",
            color=colour,
            fontsize=9,
            fontweight="bold" if COMPETITORS[name].family == OURS else "normal",
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6},
        )


def _spread(values: list[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending values moved apart to at least `gap`, each as little as the others allow, kept in [low, high]."""
    placed: list[float] = []
    for value in values:
        placed.append(max(value, low, placed[-1] + gap if placed else low))
    ceiling = high
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def _floor(rows: Newest, device: str) -> Any:
    """Share of the floor in the main cases: ours and the methods that compare tokens with tokens."""
    cases = [case for case in CORE if ours(rows, case) is not None]
    names = [n for n, c in COMPETITORS.items() if c.family != RANKING and any((case, n) in rows for case in cases)]
    names = [name for name in names if name not in ("ours-reference", "dart")]  # to read; hardly compares any
    if not cases:
        return None
    figure, axes = _figure(8, 0.6 * len(names) + 1.6)
    height = 0.84 / len(cases)
    for place, name in enumerate(reversed(names)):
        for number, case in enumerate(cases):
            row = rows.get((case, name))
            if row is not None:
                look: dict[str, Any] = {
                    "color": COLOURS[COMPETITORS[name].family],
                    "alpha": 1 - 0.8 * number / len(cases),
                    "height": 0.95 * height,
                }
                axes.barh(place + 0.42 - height * (number + 0.5), 100 * row.share_of_floor, **look)
    axes.set_yticks(range(len(names)), [COMPETITORS[name].label for name in reversed(names)])
    sizes = ", ".join(f"{CASES[case].features} {CASES[case].tokens:,} → {CASES[case].keep:,}" for case in cases)
    axes.set(xlabel="floor ÷ median latency, %", xlim=(0, 100))
    what = f"How near to what the {DEVICES[device]} can do at best; from dark to light:\n{sizes}"
    axes.set_title(what, loc="left", fontsize=9)
    axes.grid(True, axis="x", **drawing.GRID)
    axes.set_axisbelow(True)
    return figure


def _prefill(rows: Newest, prefills: list[Prefill], device: str) -> Any:
    """The selection of ours and of rivals beside the prefill time saved, for each language model."""
    from matplotlib.ticker import FuncFormatter

    measured = {p.case: p for p in prefills if p.device == device}
    groups = []
    for case, of_model in SHOWN.items():
        best, model = ours(rows, case), MODELS[of_model]
        if best is not None:
            figures = measured.get(of_model)
            rate = best.matmul_gflop_per_s
            saved = (model.seconds(best.tokens + PROMPT, rate) - model.seconds(best.keep + PROMPT, rate)) * 1e3
            if figures is not None:
                saved = figures.dense_ms - figures.pruned_ms
            kind = "\nphotographs" if case != of_model else ""
            groups.append((case, f"{model.name}\n{best.tokens:,} → {best.keep:,}{kind}", saved))
    if not groups:
        return None
    figure, axes = _figure(8.5, 1.4 * len(groups) + 1)
    for place, (case, _, saved) in enumerate(reversed(groups)):
        _prefill_points(axes, rows, case, saved, place)
    axes.set_yticks(range(len(groups)), [label for _, label, _ in reversed(groups)])
    how = "measured" if measured else "by the cost model"
    axes.set(xscale="log", xlabel="ms")
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.grid(True, axis="x", **drawing.GRID)
    axes.set_axisbelow(True)
    what = f"What selection costs beside the prefill time that it saves ({how}), on a {DEVICES[device]}"
    axes.set_title(what, loc="left", fontsize=11)
    left, right = axes.get_xlim()
    axes.set_xlim(left, right * 8)  # room for the words
    return figure


def _prefill_points(axes: Axes, rows: Newest, case: str, saved: float, place: int) -> None:
    best = ours(rows, case)
    names = [best.competitor] if best is not None else []
    names += [name for name in PREFILL_RIVALS if (case, name) in rows]
    axes.plot(saved, place + 0.36, marker="D", color="#555555")
    axes.text(saved * 1.25, place + 0.36, f"prefill saved: {saved / 1e3:,.3g} s", va="center", fontsize=8)
    for number, name in enumerate(names):
        y, value = place + 0.21 - 0.15 * number, rows[case, name].p50_ms
        axes.plot(value, y, marker="o", color=COLOURS[COMPETITORS[name].family])
        words = f"{COMPETITORS[name].label}: {ms(value)} ms, {percent(value / saved)}"
        axes.text(value * 1.25, y, words, va="center", fontsize=8)
