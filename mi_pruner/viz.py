"""Pictures of a selection: the kept patches over the image and the scores as a heat map.

A picture is (H, W, 3) uint8, cut into a grid of (rows, cols) patches that are numbered row by row, as visual tokens
are. Needs matplotlib (`pip install 'mi_pruner[demo]'`); no global state of it is touched.
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
_DIM = 0.3  # brightness left to a patch that was dropped
_PANEL, _GAP, _MARGIN = 2.9, 0.12, 0.2  # inches
_HEADER, _FOOTER = 0.82, 0.3  # inches above and below the panels of a row, for titles and notes
_DPI = 130


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


def draw_scores(axes: Axes, scores: np.ndarray, grid: Grid) -> None:
    """Heat map of the (rows * cols,) scores: dark is low, bright is high."""
    axes.imshow(scores.reshape(grid), cmap="inferno", interpolation="nearest")
    _bare(axes)


def draw_kept(axes: Axes, picture: np.ndarray, kept: Sequence[int], grid: Grid) -> None:
    """The picture with the kept patches outlined and the others dimmed."""
    height, width, _ = picture.shape
    axes.imshow(dim_dropped(picture, kept, grid), interpolation="nearest")
    step = np.array([width / grid[1], height / grid[0]])
    lines = [np.array(edge) * step - 0.5 for edge in _outline(kept_mask(kept, grid))]  # pixel centres are integers
    axes.add_collection(LineCollection(lines, colors=_OUTLINE, linewidths=1.8, capstyle="projecting", clip_on=False))
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
