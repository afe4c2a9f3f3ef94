"""mi_pruner: keep the visual tokens that say most about the text, before they reach the language model."""

from ._dispatch import backend, register, show_backends

register()

from .functional import (  # noqa: E402  the operators exist from here on
    greedy_select,
    greedy_select_varlen,
    histogram_mi_scores,
    mi_scores,
    mi_scores_varlen,
    prune,
    prune_varlen,
)
from .pruner import MIPruner  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "MIPruner",
    "backend",
    "greedy_select",
    "greedy_select_varlen",
    "histogram_mi_scores",
    "mi_scores",
    "mi_scores_varlen",
    "prune",
    "prune_varlen",
    "show_backends",
]
