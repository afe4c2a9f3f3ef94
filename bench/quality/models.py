"""The models of the study, and the way to them: trained once, kept in build/quality.

From random weights, training with the alignment loss may stall: of three seeds one learned to look up what it is asked
(it ships with the package), the others stayed at 62 and 83 %. So the other aligned models, and the large one, begin
with the weights of one that can.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from bench.quality.train import Plan, make
from bench.record import ROOT
from mi_pruner.demo.checkpoint import SHIPPED

FOLDER = ROOT / "build" / "quality"


@dataclass(frozen=True)
class Trained:
    """A model: its name, the group that it is a seed of, and its plan (None: it ships with the package)."""

    name: str
    group: str
    plan: Plan | None = None

    @property
    def path(self) -> Path:
        """Its checkpoint."""
        return SHIPPED if self.plan is None else FOLDER / f"{self.name}.safetensors"


ALIGNED, UNALIGNED, LARGE = "aligned", "unaligned", "large"  # the groups
GROUPS = {
    ALIGNED: "aligned, 81 tokens",
    UNALIGNED: "not aligned, 81 tokens",
    LARGE: "aligned, 324 tokens",
}
SCALES = {ALIGNED: 1, UNALIGNED: 1, LARGE: 4}  # tokens of the group's pictures for one of 81


def _from_scratch(seed: int) -> Trained:
    plan = Plan(seed, aligned=False, dense_steps=1500, question_steps=3200, scenes=32, questions=6)
    return Trained(f"unaligned-{seed}", UNALIGNED, plan)


def _aligned(seed: int, start: int) -> Trained:
    begin = f"build/quality/unaligned-{start}.safetensors"
    return Trained(f"aligned-{seed}", ALIGNED, Plan(seed, True, 500, 1200, scenes=32, questions=6, start=begin))


MODELS = (  # each after the one that it begins with; the one that takes longest is early
    Trained("aligned-0", ALIGNED),
    Trained("large-0", LARGE, Plan(0, True, 500, 1200, 16, 6, grid=18, start="mi_pruner/demo/checkpoint.safetensors")),
    *(_from_scratch(seed) for seed in (0, 1, 2)),
    _aligned(1, start=1),
    _aligned(2, start=0),
)


def ensure(models: tuple[Trained, ...], device: torch.device) -> None:
    """Trains those that are not there, each after the one that it begins with: 8 to 20 minutes of a CPU core each."""
    for model in models:
        if model.plan is not None and not model.path.exists():
            ensure(tuple(other for other in MODELS if other.path == ROOT / (model.plan.start or "")), device)
            print(f"training {model.name}: resumes where it was interrupted")
            make(model.plan, model.path, model.path.with_suffix(".state"), device)
