"""Pictures of a selection: the kept patches over the image, the scores as a heat map, the order of selection.

A picture is (H, W, 3) uint8, cut into a grid of (rows, cols) patches that are numbered row by row, as visual tokens
are. A model that sees an image in parts (tiles, frames) gives a `View` of each part. Needs matplotlib
(`pip install 'mi_pruner[demo]'`); no global state of it is touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

Grid = tuple[int, int]

_INK, _QUIET, _PAPER = "#1b1f24", "#5f6b7a", "#ffffff"
_OUTLINE = "#ffd33d"
_NO_TOKEN = "#8a929c"
_DIM = 0.3  # brightness left to a patch that was dropped
_PANEL, _GAP, _MARGIN = 2.9, 0.12, 0.2  # inches
_HEADER, _FOOTER = 0.82, 0.3  # inches above and below the panels of a row, for titles and notes
_DPI = 130
_WIDTH = 2 * _MARGIN + 4 * _PANEL + 3 * _GAP  # inches, of four panels
_SHOWN = 8  # frames of a video: more in a row are too small to see, in several rows too many to compare
_NARROW, _LABELS = 1.9, 0.7  # inches: a panel of 8 frames, and what stands at the left of a row of them
_LEGEND = (
    "scores: mutual information with the question; grey: the patch repeats an earlier frame   ·   "
    "order of selection: bright first, dark last"
)
_BRIGHTEST = 99.5  # percentile of the scores shown brightest: a single large one would leave the rest black


@dataclass(frozen=True)
class Selection:
    """One row of a figure: what was asked, what came out, and which patches were kept.

    picture: (H, W, 3) uint8; scores: (rows * cols,) float; kept: indices of the patches kept.
    """

    title: str
    subtitle: str
    picture: np.ndarray
    scores: np.ndarray
    kept: Sequence[int]
    grid: Grid


@dataclass(frozen=True)
class View:
    """What a model saw of an image, or of one part of it, and which token stands for each patch.

    name: of the part ("the whole image", "tiles", "frame 3"); picture: (H, W, 3) uint8; tokens: (rows, cols) int, the
    number of the patch's token among all of the image's tokens, −1 where the patch has none.
    """

    name: str
    picture: np.ndarray
    tokens: np.ndarray

    @property
    def grid(self) -> Grid:
        rows, cols = self.tokens.shape
        return rows, cols


def kept_mask(kept: Sequence[int], grid: Grid) -> np.ndarray:
    """(rows, cols) bool, True where a patch was kept; negative indices, the unused slots of `prune`, are skipped."""
    mask = np.zeros(grid[0] * grid[1], bool)
    mask[[index for index in kept if index >= 0]] = True
    return mask.reshape(grid)


def dim_dropped(picture: np.ndarray, kept: Sequence[int], grid: Grid) -> np.ndarray:
    """The (H, W, 3) uint8 picture with the patches that were not kept dark and grey."""
    height, width, _ = picture.shape
    rows = np.arange(height) * grid[0] // height
    cols = np.arange(width) * grid[1] // width
    bright = kept_mask(kept, grid)[rows[:, None], cols[None, :], None]
    grey = picture.mean(axis=2, keepdims=True)
    dimmed = _DIM * (0.7 * grey + 0.3 * picture)
    return np.where(bright, picture, dimmed).astype(np.uint8)


def draw_picture(axes: Axes, picture: np.ndarray) -> None:
    """The picture as it is, in sharp pixels."""
    axes.imshow(picture, interpolation="nearest")
    _bare(axes)


def draw_scores(
    axes: Axes, scores: np.ndarray, grid: Grid, limits: tuple[float, float] | None = None, aspect: float = 1.0
) -> None:
    """Heat map of the (rows * cols,) scores: dark is low, bright is high, grey where a score is NaN.

    limits: the scores shown darkest and brightest (default: the lowest and the highest); aspect: height of a patch
    over its width.
    """
    low, high = limits or (None, None)
    axes.set_facecolor(_NO_TOKEN)
    axes.imshow(scores.reshape(grid), cmap="inferno", interpolation="nearest", vmin=low, vmax=high, aspect=aspect)
    _bare(axes)


def draw_kept(axes: Axes, picture: np.ndarray, kept: Sequence[int], grid: Grid) -> None:
    """The picture with the kept patches outlined and the others dimmed."""
    height, width, _ = picture.shape
    axes.imshow(dim_dropped(picture, kept, grid), interpolation="nearest")
    step = np.array([width / grid[1], height / grid[0]])
    lines = [np.array(edge) * step - 0.5 for edge in _outline(kept_mask(kept, grid))]  # pixel centres are integers
    axes.add_collection(LineCollection(lines, colors=_OUTLINE, linewidths=1.8, capstyle="projecting", clip_on=False))
    _bare(axes)


def draw_order(axes: Axes, picture: np.ndarray, ranks: np.ndarray) -> None:
    """The picture in dark grey with each kept patch coloured by when it was selected: bright first, dark last.

    ranks: (rows, cols) float, 0 for the first selected to 1 for the last, NaN where a patch was not selected.
    """
    height, width, _ = picture.shape
    axes.imshow(dim_dropped(picture, [], (1, 1)), interpolation="nearest")
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(
        ranks, cmap="plasma_r", interpolation="nearest", vmin=0, vmax=1, extent=extent, aspect="auto", alpha=0.9
    )
    axes.set_aspect("equal")
    _bare(axes)


def _outline(mask: np.ndarray) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Edges ((x, y), (x, y)), in patches, between what a (rows, cols) bool mask holds and what it does not."""
    padded = np.pad(mask, 1)
    across = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])  # (y, x): the horizontal edge above patch (y, x)
    down = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])  # (y, x): the vertical edge left of patch (y, x)
    return [((x, y), (x + 1, y)) for y, x in across.tolist()] + [((x, y), (x, y + 1)) for y, x in down.tolist()]


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def selections_figure(selections: Sequence[Selection]) -> Figure:
    """A row for each selection: picture, score map, kept patches."""
    if not selections:
        raise ValueError("selections: expected at least one, got none")
    width = 2 * _MARGIN + 3 * _PANEL + 2 * _GAP
    height = len(selections) * (_HEADER + _PANEL + _FOOTER) + _MARGIN
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor=_PAPER)
    FigureCanvasAgg(figure)
    for number, selection in enumerate(selections):
        _draw_row(figure, selection, height - number * (_HEADER + _PANEL + _FOOTER))
    return figure


def _draw_row(figure: Figure, selection: Selection, top: float) -> None:
    """top: of the row, in inches from the figure's bottom."""
    width, height = figure.get_size_inches()
    figure.text(_MARGIN / width, (top - 0.18) / height, selection.title, size=14, weight="bold", color=_INK, va="top")
    figure.text(_MARGIN / width, (top - 0.48) / height, selection.subtitle, size=11, color=_INK, va="top")
    panels = []
    for column in range(3):
        left, bottom = _MARGIN + column * (_PANEL + _GAP), top - _HEADER - _PANEL
        panels.append(figure.add_axes((left / width, bottom / height, _PANEL / width, _PANEL / height)))
    draw_picture(panels[0], selection.picture)
    draw_scores(panels[1], selection.scores, selection.grid)
    draw_kept(panels[2], selection.picture, selection.kept, selection.grid)
    total = selection.grid[0] * selection.grid[1]
    kept = int(kept_mask(selection.kept, selection.grid).sum())
    notes = (f"the picture: {total} tokens", "mutual information with the question", f"kept: {kept} of {total} tokens")
    for panel, note in zip(panels, notes, strict=True):
        panel.set_xlabel(note, size=9.5, color=_QUIET, labelpad=5)


def save_selections(selections: Sequence[Selection], path: Path) -> None:
    """Writes `selections_figure` as a PNG.

    Raises:
        OSError: if the file cannot be written.
    """
    selections_figure(selections).savefig(path, format="png")


def views_figure(
    views: Sequence[View], scores: np.ndarray, kept: Sequence[int], order: Sequence[int], title: str, subtitle: str
) -> Figure:
    """A row for each view of an image: picture, score map, kept patches, order of selection.

    Args:
        views: of one image, which share its tokens.
        scores: (N,) float, of all tokens of the image, in nats.
        kept, order: numbers of the tokens kept, and of those selected in order of selection.

    Raises:
        ValueError: without views.
    """
    if not views:
        raise ValueError("views: expected at least one, got none")
    heights = [_PANEL * _aspect(view) for view in views]
    width, height = _WIDTH, _HEADER + sum(heights) + len(views) * (_FOOTER + _GAP) + _MARGIN
    figure = _titled(width, height, title, subtitle)
    shown = np.concatenate([view.tokens[view.tokens >= 0] for view in views])
    limits, ranks = _limits(scores[shown]), _ranks(order, len(scores))
    top = height - _HEADER
    for view, panel_height in zip(views, heights, strict=True):
        places = [
            (
                (_MARGIN + column * (_PANEL + _GAP)) / width,
                (top - panel_height) / height,
                _PANEL / width,
                panel_height / height,
            )
            for column in range(4)
        ]
        panels = [figure.add_axes(place) for place in places]
        of_view = _draw_view(panels, view, scores, set(kept), ranks, limits)
        _annotate(
            panels,
            f"{view.name}: {int((view.tokens >= 0).sum())} tokens",
            "mutual information with the question",
            f"kept: {of_view} tokens",
            "order of selection: bright first, dark last",
        )
        top -= panel_height + _FOOTER + _GAP
    return figure


def frames_figure(
    frames: Sequence[View],
    scores: np.ndarray,
    repeats: np.ndarray,
    kept: Sequence[int],
    order: Sequence[int],
    title: str,
    subtitle: str,
) -> Figure:
    """A column for each frame of a video, of at most 8 evenly spaced: picture, score map, kept patches, order.

    Args:
        frames: views of one video, one for each frame, all of one shape.
        scores, kept, order: as in `views_figure`, of all tokens of the video.
        repeats: (N,) bool, the tokens that repeat what was last new at their place: their scores are left out, of the
            map and of its scale.

    Raises:
        ValueError: without frames.
    """
    if not frames:
        raise ValueError("frames: expected at least one, got none")
    numbers = np.linspace(0, len(frames) - 1, min(len(frames), _SHOWN)).round().astype(int).tolist()
    some = "" if len(numbers) == len(frames) else f"; {len(numbers)} of {len(frames)} frames shown"
    panel = min(max((_WIDTH - 2 * _MARGIN - _LABELS) / len(numbers) - _GAP, _NARROW), _PANEL)
    panel_height = panel * _aspect(frames[0])
    width = max(_WIDTH, 2 * _MARGIN + _LABELS + len(numbers) * (panel + _GAP))
    height = _HEADER + 4 * (panel_height + _FOOTER) + 2 * _MARGIN
    figure = _titled(width, height, title, subtitle + some)
    bottoms = [height - _HEADER - row * (panel_height + _FOOTER) - panel_height for row in range(4)]
    for label, bottom in zip(("picture", "scores", "kept", "order"), bottoms, strict=True):
        figure.text(_MARGIN / width, (bottom + panel_height / 2) / height, label, size=11, color=_INK, va="center")
    figure.text(_MARGIN / width, _MARGIN / height, _LEGEND, size=9.5, color=_QUIET)
    new_scores = np.where(repeats, np.nan, scores)
    limits, ranks = _limits(new_scores), _ranks(order, len(scores))
    for column, number in enumerate(numbers):
        left = _MARGIN + _LABELS + column * (panel + _GAP)
        panels = [
            figure.add_axes((left / width, bottom / height, panel / width, panel_height / height)) for bottom in bottoms
        ]
        of_frame = _draw_view(panels, frames[number], new_scores, set(kept), ranks, limits)
        tokens = frames[number].tokens
        new = int((~repeats[tokens]).sum())
        _annotate(panels, frames[number].name, f"new: {new} of {tokens.size}", f"kept: {of_frame}", "")
    return figure


def _aspect(view: View) -> float:
    """Height of a panel over its width."""
    return min(max(view.picture.shape[0] / view.picture.shape[1], 0.3), 1.6)


def _titled(width: float, height: float, title: str, subtitle: str) -> Figure:
    """width, height: in inches."""
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor=_PAPER)
    FigureCanvasAgg(figure)
    figure.text(_MARGIN / width, 1 - 0.18 / height, title, size=14, weight="bold", color=_INK, va="top")
    figure.text(_MARGIN / width, 1 - 0.48 / height, subtitle, size=11, color=_INK, va="top")
    return figure


def _limits(scores: np.ndarray) -> tuple[float, float]:
    """The scores shown darkest and brightest, NaN left out."""
    return float(np.nanmin(scores)), float(np.nanpercentile(scores, _BRIGHTEST))


def _ranks(order: Sequence[int], tokens: int) -> np.ndarray:
    """(N,) float, 0 for the first selected to 1 for the last, NaN for tokens not selected."""
    ranks = np.full(tokens, np.nan)
    ranks[list(order)] = np.linspace(0, 1, len(order))
    return ranks


def _annotate(panels: Sequence[Axes], *notes: str) -> None:
    for panel, note in zip(panels, notes, strict=True):
        panel.set_xlabel(note, size=9.5, color=_QUIET, labelpad=5)


def _draw_view(
    panels: Sequence[Axes],
    view: View,
    scores: np.ndarray,
    kept: set[int],
    ranks: np.ndarray,
    limits: tuple[float, float],
) -> int:
    """Fills four panels; returns how many patches are kept."""
    tokens = view.tokens.ravel()
    has_token = tokens >= 0
    height, width, _ = view.picture.shape
    aspect = (height / view.grid[0]) / (width / view.grid[1])
    cells = [cell for cell, token in enumerate(tokens.tolist()) if token in kept]
    draw_picture(panels[0], view.picture)
    draw_scores(panels[1], np.where(has_token, scores[tokens], np.nan), view.grid, limits, aspect)
    draw_kept(panels[2], view.picture, cells, view.grid)
    draw_order(panels[3], view.picture, np.where(has_token, ranks[tokens], np.nan).reshape(view.grid))
    return len(cells)
