"""`MIPruner`: the configured selection as a module without parameters."""

from __future__ import annotations

from torch import Tensor, nn

from . import _checks
from .functional import prune


class MIPruner(nn.Module):
    """Keeps the visual tokens that say most about the text; configured once, called on every batch.

    Args:
        keep: tokens to keep: an int is a count, a float in (0, 1] a ratio of each sample's valid tokens.
        bandwidth, marginal, visual_bandwidth, redundancy, redundancy_weight, min_gain: as in `mi_pruner.prune`.

    Raises:
        ValueError, TypeError: for an option out of range, naming it.

    Example:
        >>> pruner = MIPruner(keep=0.25)
        >>> tokens, indices, gains = pruner(visual, text)  # (B, N, D), (B, M, D) -> (B, K, D), (B, K), (B, K)
    """

    def __init__(
        self,
        keep: int | float = 0.25,
        *,
        bandwidth: float | None = None,
        marginal: str = "joint",
        visual_bandwidth: float = 0.63,
        redundancy: str = "mean",
        redundancy_weight: float = 1.0,
        min_gain: float | None = None,
    ) -> None:
        super().__init__()
        _checks.check_keep(keep)
        _checks.check_score_options(bandwidth, marginal)
        _checks.check_select_options(visual_bandwidth, redundancy, redundancy_weight, min_gain)
        self.keep = keep
        self.bandwidth = bandwidth
        self.marginal = marginal
        self.visual_bandwidth = visual_bandwidth
        self.redundancy = redundancy
        self.redundancy_weight = redundancy_weight
        self.min_gain = min_gain

    @classmethod
    def paper(cls, keep: int | float = 0.25) -> MIPruner:
        """The literal reading of MI-Pruner (arXiv 2604.03072): uniform-prior marginal, chain-rule redundancy."""
        return cls(keep, marginal="prior", redundancy="chain")

    def forward(
        self,
        visual: Tensor,
        text: Tensor,
        visual_prior: Tensor | None = None,
        text_prior: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """visual (B, N, D), text (B, M, D) -> tokens (B, K, D), indices (B, K), gains (B, K): see `mi_pruner.prune`."""
        return prune(
            visual,
            text,
            self.keep,
            visual_prior=visual_prior,
            text_prior=text_prior,
            bandwidth=self.bandwidth,
            marginal=self.marginal,
            visual_bandwidth=self.visual_bandwidth,
            redundancy=self.redundancy,
            redundancy_weight=self.redundancy_weight,
            min_gain=self.min_gain,
        )

    def extra_repr(self) -> str:
        return (
            f"keep={self.keep}, bandwidth={self.bandwidth}, marginal={self.marginal!r}, "
            f"visual_bandwidth={self.visual_bandwidth}, redundancy={self.redundancy!r}, "
            f"redundancy_weight={self.redundancy_weight}, min_gain={self.min_gain}"
        )
