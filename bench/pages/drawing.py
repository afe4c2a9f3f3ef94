"""What all pictures of the documents share: one look, colours, and the files. Needs matplotlib.

Colours are those of Okabe and Ito, which stay apart for the colour-blind; curves also differ by marker.
"""

from pathlib import Path
from typing import Any

FOLDER = "docs/images"  # of a checkout
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#777777"
GRID: dict[str, Any] = {"color": "#e5e5e5", "linewidth": 0.8}
_MARKERS = "osD^vP*Xh<>p"


def start() -> None:
    """One look for all pictures.

    Raises:
        ImportError: without matplotlib.
    """
    import matplotlib

    matplotlib.use("svg")
    style: dict[Any, Any] = {
        "svg.hashsalt": "mi_pruner",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    matplotlib.rcParams.update(style)  # the salt: the same figures give the same file


def marker(number: int) -> str:
    """That of a picture's curve of this number."""
    return _MARKERS[number % len(_MARKERS)]


def save(figures: dict[str, Any], folder: Path) -> list[Path]:
    """Writes <folder>/<name>.svg for each; the paths written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.svg")
        figure.savefig(paths[-1], metadata={"Date": None}, bbox_inches="tight")
    return paths
