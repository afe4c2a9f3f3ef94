"""What is left of the accuracy when tokens are pruned, and whose patches are kept: on held-out scenes.

    python -m bench.quality.evaluate --out bench/results/quality-demo.csv

The scenes of the test split share neither a digit image nor a photograph region with those of training. "random" keeps
random tokens: the floor that a pruner has to clear.
"""

import argparse
import csv
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from bench.quality.batches import Batch, make_batch
from bench.record import this_run
from mi_pruner import prune
from mi_pruner.demo.checkpoint import SHIPPED, load_model
from mi_pruner.demo.model import TOKENS, DigitVLM
from mi_pruner.demo.questions import KINDS
from mi_pruner.demo.sources import SPLITS, Split

# (visual (B, N, D), text (B, M, D), text mask (B, M), keep) -> indices (B, K) int64, ascending
Selector = Callable[[Tensor, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Figures:
    """Of one selector at one keep: accuracies and rates in 0 .. 1, over `questions` questions.

    The rates are shares of patches kept, over questions that name a digit: those of that digit, of the other digits,
    of the background.
    """

    selector: str
    keep: int
    questions: int
    accuracy: float
    digit: float
    colour: float
    where: float
    left: float
    count: float
    asked_kept: float
    others_kept: float
    background_kept: float


def by_information(visual: Tensor, text: Tensor, text_mask: Tensor, keep: int) -> Tensor:
    """mi_pruner with its defaults."""
    return prune(visual, text, keep, text_prior=text_mask)[1]


def by_chance(visual: Tensor, text: Tensor, text_mask: Tensor, keep: int) -> Tensor:
    """`keep` random tokens, the same in every run."""
    generator = torch.Generator().manual_seed(keep)
    order = torch.rand(visual.shape[:2], generator=generator).argsort(dim=1)
    return order[:, :keep].sort(dim=1).values.to(visual.device)


def everything(visual: Tensor, text: Tensor, text_mask: Tensor, keep: int) -> Tensor:
    """All tokens."""
    return torch.arange(visual.shape[1], device=visual.device).expand(len(visual), -1)


SELECTORS: dict[str, Selector] = {"dense": everything, "mi_pruner": by_information, "random": by_chance}


@torch.inference_mode()
def evaluate(model: DigitVLM, split: Split, scenes: int, keeps: list[int]) -> list[Figures]:
    """Every selector at every keep, one question of each kind for each scene."""
    jobs = [("dense", TOKENS)] + [(name, keep) for keep in keeps for name in SELECTORS if name != "dense"]
    collected: dict[tuple[str, int], list[_Outcome]] = {job: [] for job in jobs}
    for start in tqdm(range(0, scenes, 100), unit="00 scenes"):
        batch = make_batch(split, range(start, min(start + 100, scenes)))
        visual = model.encode_image(batch.pixels).repeat_interleave(batch.text.shape[1], dim=0)
        text, mask = model.embed_text(batch.text).flatten(0, 1), batch.text_mask.flatten(0, 1)
        for name, keep in jobs:
            indices = SELECTORS[name](visual, text, mask, keep)
            tokens = visual.gather(1, indices[..., None].expand(-1, -1, visual.shape[-1]))
            answer = model.answer(tokens, indices, text, mask).argmax(-1)
            collected[name, keep].append(_outcome(batch, answer, indices))
    return [_figures(name, keep, collected[name, keep]) for name, keep in jobs]


@dataclass(frozen=True)
class _Outcome:
    """Per question: is the answer right (bool), its kind (int64), and the share kept (float32, NaN where there is
    none) of the patches of the asked digit, the other digits, the background. All (questions,)."""

    right: Tensor
    kind: Tensor
    asked: Tensor
    others: Tensor
    background: Tensor


def _outcome(batch: Batch, answer: Tensor, indices: Tensor) -> _Outcome:
    per_scene = batch.text.shape[1]
    owner, asked = batch.owner.repeat_interleave(per_scene, dim=0), batch.asked.flatten()
    kept = torch.zeros(owner.shape, dtype=torch.bool).scatter_(1, indices, True)
    names_one = (asked >= 0)[:, None]
    mine, none = (owner == asked[:, None]) & names_one, (owner < 0) & names_one
    return _Outcome(
        right=answer == batch.answer.flatten(),
        kind=batch.kind.flatten(),
        asked=_share(kept, mine),
        others=_share(kept, names_one & ~mine & ~none),
        background=_share(kept, none),
    )


def _share(kept: Tensor, patches: Tensor) -> Tensor:
    """Share of some patches that were kept, (Q, 81) bool both -> (Q,) float32, NaN where there are none."""
    return (kept & patches).sum(1) / patches.sum(1)


def _figures(selector: str, keep: int, outcomes: list[_Outcome]) -> Figures:
    whole = [torch.cat(parts).float() for parts in zip(*map(astuple, outcomes), strict=True)]
    right, kind = whole[:2]
    by_kind = {name: right[kind == number].mean().item() for number, name in enumerate(KINDS)}
    asked, others, background = (share.nanmean().item() for share in whole[2:])
    return Figures(
        selector=selector,
        keep=keep,
        questions=len(right),
        accuracy=right.mean().item(),
        asked_kept=asked,
        others_kept=others,
        background_kept=background,
        **by_kind,
    )


def _print_table(rows: list[Figures]) -> None:
    names = [field.name for field in fields(Figures)]
    print(" ".join(f"{name:>{_width(name)}}" for name in names))
    for row in rows:
        cells = (f"{value:.3f}" if isinstance(value, float) else str(value) for value in astuple(row))
        print(" ".join(f"{cell:>{_width(name)}}" for cell, name in zip(cells, names, strict=True)))


def _width(name: str) -> int:
    return max(9, len(name))


def _write(rows: list[Figures], path: Path, model: dict[str, str]) -> None:
    """The figures with what made them: date, commit, machine, versions, command, and how the model came to be."""
    origin = {**asdict(this_run("cpu", "bench.quality.evaluate")), "model": model["command"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*(field.name for field in fields(Figures)), *origin])
        writer.writeheader()
        for row in rows:
            figures = {name: f"{v:.4f}" if isinstance(v, float) else v for name, v in asdict(row).items()}
            writer.writerow({**figures, **origin})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--scenes", type=int, default=600)
    parser.add_argument("--keep", type=int, nargs="+", default=[40, 20, 10, 6], help="visual tokens, of 81")
    parser.add_argument("--out", type=Path, help="the CSV to write")
    arguments = parser.parse_args()
    model, metadata = load_model(arguments.checkpoint)
    rows = evaluate(model, arguments.split, arguments.scenes, arguments.keep)
    _print_table(rows)
    if arguments.out is not None:
        _write(rows, arguments.out, metadata)


if __name__ == "__main__":
    main()
