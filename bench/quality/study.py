"""Does it keep the answer? All methods, all models: accuracy against kept tokens, with confidence, into CSV files.

    python -m bench.quality.study dev      the variants of our own method, on the dev scenes: what chooses the defaults
    python -m bench.quality.study test     all methods on the test scenes, touched once, at the end
    python -m bench.quality.study quick    all methods on a few dev scenes and the model that ships, under 5 minutes

Models that are not there are trained first (build/quality, hours; interrupted runs resume).
"""

import argparse
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bench import record
from bench.quality import models, statistics
from bench.quality.asked import Asked, questions
from bench.quality.in_decoder import Answered
from bench.quality.methods import BOUND, DEFAULT, DENSE, METHODS, OURS, SCORES, VARIANTS
from mi_pruner.demo.checkpoint import load_model
from mi_pruner.demo.model import TOKENS, DigitVLM
from mi_pruner.demo.questions import KINDS
from mi_pruner.demo.sources import Split

KEEPS = (40, 20, 10, 6)  # of 81 visual tokens; the same shares of larger pictures


@dataclass(frozen=True)
class Accuracy(record.Run):
    """Of one method at one budget, over the seeds of a group; accuracies and shares in 0 .. 1.

    asked_kept, others_kept, background_kept: shares of patches kept, over questions that name a digit: that digit's,
    the other digits', the background's. ahead, ahead_low, ahead_high: accuracy minus that of mi_pruner at the same
    budget, with its band (see `statistics`) for all rows of the group and split together; of those with seeds = 1 over
    scenes alone. least, most: accuracies of the seeds.
    """

    split: str
    group: str
    method: str
    family: str
    vary: str  # what varies, and its value; empty for the methods of the main comparison
    value: str
    keep: int  # visual tokens, of 81; 4 times as many of 324
    tokens_per_layer: float  # mean over the decoder's layers, of as many
    seeds: int
    questions: int
    accuracy: float
    least: float
    most: float
    ahead: float
    ahead_low: float
    ahead_high: float
    digit: float
    colour: float
    where: float
    left: float
    count: float
    asked_kept: float
    others_kept: float
    background_kept: float


@dataclass(frozen=True)
class Specificity(record.Run):
    """How often a patch of the digit asked about scores above one of another digit: mean over questions and seeds."""

    split: str
    group: str
    scores: str
    label: str
    seeds: int
    questions: int
    auc: float


Job = tuple[str, int]  # a method and how many tokens it keeps, of 81
Run = Callable[[Asked, int], Answered]


@dataclass(frozen=True)
class Part:
    """A part of the study: split, its scenes, who takes part at which budgets; about: family, what varies, value."""

    split: Split
    scenes: range
    runs: dict[str, Run]
    about: dict[str, tuple[str, str, str]]
    keeps: tuple[int, ...]


@dataclass
class _Seen:
    """What one method did in one model, at one budget: right and shares (scenes, kinds), tokens per layer."""

    right: np.ndarray
    asked: np.ndarray
    others: np.ndarray
    background: np.ndarray
    tokens_per_layer: float = 0.0

    @classmethod
    def empty(cls, scenes: int) -> "_Seen":
        """Nothing seen yet."""
        return cls(*(np.full((scenes, len(KINDS)), np.nan) for _ in range(4)))


@dataclass
class _Told:
    """All jobs in one model: kind of each question (scenes, places), what each job did, AUCs of each score."""

    kind: np.ndarray
    seen: dict[Job, _Seen]
    auc: dict[str, list[np.ndarray]]


@torch.inference_mode()
def answer_all(
    model: DigitVLM, split: Split, scenes: range, runs: dict[str, Run], keeps: Sequence[int], label: str, line: int
) -> _Told:
    """Every run at every budget over these scenes of a split, one question of each kind for each.

    label, line: of the progress bar.
    """
    jobs: list[Job] = [("dense", TOKENS), *((name, keep) for keep in keeps for name in runs)]
    count = len(scenes)
    told = _Told(np.zeros((count, len(KINDS)), int), {job: _Seen.empty(count) for job in jobs}, {})
    taken = np.zeros(count, int)  # places filled: a scene's questions come in the order of their length
    with tqdm(total=count * len(KINDS), unit="question", desc=label, position=line, mininterval=2) as progress:
        for asked in questions(model, split, scenes):
            scene = asked.scene.numpy() - scenes.start
            place = _places(scene, taken)
            told.kind[scene, place] = asked.kind.numpy()
            for name, keep in jobs:
                run = DENSE.run if name == "dense" else runs[name]
                _note(told.seen[name, keep], asked, run(asked, keep * model.tokens // TOKENS), scene, place)
            _note_specificity(told, asked)
            progress.update(len(scene))
    return told


def _places(scene: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """The next free place of each question's scene; a scene may come several times."""
    place = np.empty(len(scene), int)
    for i, number in enumerate(scene):
        place[i] = taken[number]
        taken[number] += 1
    return place


def _note(seen: _Seen, asked: Asked, done: Answered, scene: np.ndarray, place: np.ndarray) -> None:
    kept = torch.zeros_like(asked.named).scatter_(1, done.kept, True)
    names = asked.named.any(dim=1, keepdim=True)
    others, background = names & (asked.owner >= 0) & ~asked.named, names & (asked.owner < 0)
    seen.right[scene, place] = (done.answer == asked.answer).numpy()
    seen.asked[scene, place] = _share(kept, asked.named)
    seen.others[scene, place] = _share(kept, others)
    seen.background[scene, place] = _share(kept, background)
    seen.tokens_per_layer = done.tokens_per_layer


def _share(kept: torch.Tensor, patches: torch.Tensor) -> np.ndarray:
    """Share of some patches that were kept, (Q, N) bool both -> (Q,), NaN where there are none."""
    return ((kept & patches).sum(1) / patches.sum(1)).numpy()


def _note_specificity(told: _Told, asked: Asked) -> None:
    others = (asked.owner >= 0) & ~asked.named
    for name, (_, scores) in SCORES.items():
        of_each = statistics.auc(scores(asked).numpy(), asked.named.numpy(), others.numpy())
        told.auc.setdefault(name, []).append(of_each)


def accuracies(part: Part, group: str, told: Sequence[_Told], run: dict[str, Any]) -> list[Accuracy]:
    """The rows of a group from all of its models; run: what to note of it."""
    jobs = list(told[0].seen)
    right = np.stack([[one.seen[job].right for one in told] for job in jobs])  # (jobs, seeds, scenes, kinds)
    ours = {keep: jobs.index((DEFAULT, keep)) for name, keep in jobs if name == DEFAULT}
    baseline = [ours.get(keep, number) for number, (_, keep) in enumerate(jobs)]  # dense: itself
    ahead = statistics.differences(right, right[baseline])
    kind = np.stack([one.kind for one in told])
    rows = []
    for number, (name, keep) in enumerate(jobs):
        family, vary, value = part.about.get(name, (BOUND, "", ""))
        seen = [one.seen[name, keep] for one in told]
        of_seeds = right[number].mean(axis=(1, 2))
        by_kind = {k: right[number][kind == i].mean() for i, k in enumerate(KINDS)}
        kept = {
            f"{who}_kept": np.nanmean([getattr(one, who) for one in seen]) for who in ("asked", "others", "background")
        }
        shares = {
            "accuracy": of_seeds.mean(),
            "least": of_seeds.min(),
            "most": of_seeds.max(),
            **dict(zip(("ahead", "ahead_low", "ahead_high"), ahead[number], strict=True)),
            **by_kind,
            **kept,
        }
        rows.append(
            Accuracy(
                split=part.split,
                group=group,
                method=name,
                family=family,
                vary=vary,
                value=value,
                keep=keep,
                tokens_per_layer=round(seen[0].tokens_per_layer, 2),
                seeds=len(told),
                questions=right[number].size,
                **{share: round(float(figure), 4) for share, figure in shares.items()},
                **run,
            )
        )
    return rows


def specificities(split: Split, group: str, told: Sequence[_Told], run: dict[str, Any]) -> list[Specificity]:
    """The rows of a group from all of its models; run: what to note of it."""
    rows = []
    for name, (label, _) in SCORES.items():
        every = np.concatenate([part for one in told for part in one.auc[name]])
        known = every[~np.isnan(every)]
        rows.append(
            Specificity(
                **run,
                split=split,
                group=group,
                scores=name,
                label=label,
                seeds=len(told),
                questions=len(known),
                auc=round(float(known.mean()), 4),
            )
        )
    return rows


_MAIN: dict[str, Run] = {name: method.run for name, method in METHODS.items()}
_ABOUT_MAIN = {name: (method.family, "", "") for name, method in METHODS.items()}
_VARIED: dict[str, Run] = {DEFAULT: METHODS[DEFAULT].run, **{name: run for name, (_, _, run) in VARIANTS.items()}}
_ABOUT_VARIED = {DEFAULT: (OURS, "", ""), **{name: (OURS, vary, value) for name, (vary, value, _) in VARIANTS.items()}}
PARTS = {
    "dev": Part("dev", range(400), _VARIED, _ABOUT_VARIED, (20, 10)),
    # Scenes that no one looked at before: the first ones were, with the shipped model.
    "test": Part("test", range(10_000, 10_300), _MAIN, _ABOUT_MAIN, KEEPS),
    "quick": Part("dev", range(50), _MAIN, _ABOUT_MAIN, KEEPS),
}


def study(
    name: str, which: Sequence[models.Trained], scenes: int | None = None, processes: int = 1
) -> tuple[list[Accuracy], list[Specificity]]:
    """A part of the study in these models; scenes: fewer than the part's own; processes: models at a time."""
    part = PARTS[name]
    run = asdict(record.this_run("cpu", "bench.quality.study"))  # of the code that runs, not of what it became since
    jobs = [(name, model, part.scenes[:scenes], line) for line, model in enumerate(which)]
    if processes == 1:
        told = list(map(_in_model, jobs))
    else:
        # The batches are too small for more than one thread each.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context, torch.set_num_threads, (1,)) as pool:
            told = list(pool.map(_in_model, jobs))
    accuracy, specificity = [], []
    for group in models.GROUPS:
        of_group = [one for one, model in zip(told, which, strict=True) if model.group == group]
        if of_group:
            accuracy += accuracies(part, group, of_group, run)
            specificity += specificities(part.split, group, of_group, run)
    return accuracy, specificity


def _in_model(job: tuple[str, models.Trained, range, int]) -> _Told:
    name, trained, scenes, line = job
    part = PARTS[name]
    return answer_all(load_model(trained.path)[0], part.split, scenes, part.runs, part.keeps, trained.name, line)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--scenes", type=int, help="default: 400 dev scenes, 300 test scenes, of quick 50")
    parser.add_argument(
        "--out", type=Path, help="folder of the CSV files (default: bench/results, of quick build/quality)"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=[model.name for model in models.MODELS],
        help="default: all, of quick the one that ships",
    )
    parser.add_argument("--processes", type=int, default=2, help="models at a time (default: %(default)s)")
    options = parser.parse_args(arguments)
    part, out = options.part, options.out or (models.FOLDER if options.part == "quick" else record.RESULTS)
    which = models.MODELS[:1] if part == "quick" else models.MODELS
    if options.models:
        which = tuple(model for model in models.MODELS if model.name in options.models)
    models.ensure(which, torch.device("cpu"))
    rows = study(part, which, options.scenes, options.processes if len(which) > 1 else 1)
    out.mkdir(parents=True, exist_ok=True)
    for name, of, found in (("accuracy", Accuracy, rows[0]), ("specificity", Specificity, rows[1])):
        path = out / f"quality-{part}-{name}.csv"
        path.unlink(missing_ok=True)
        record.append(path, of, found)
        print(f"wrote {path}")
    _print_table(rows[0])


def _print_table(rows: Sequence[Accuracy]) -> None:
    """A line for each group and method: accuracy in %, with what is ahead of mi_pruner (+) or behind (-) for sure."""
    keeps = list(dict.fromkeys(row.keep for row in rows if row.method != "dense"))
    print(f"{'accuracy, %; kept of 81:':44}" + "".join(f"{keep:9}" for keep in keeps))
    found = {(row.group, row.method, row.keep): row for row in rows}
    for group, method in dict.fromkeys((row.group, row.method) for row in rows):
        some = [found.get((group, method, keep)) or found[group, method, TOKENS] for keep in keeps]
        cells = (
            f"{100 * row.accuracy:8.1f}{'+' if row.ahead_low > 0 else '-' if row.ahead_high < 0 else ' '}"
            for row in some
        )
        print(f"{group + ' ' + method:44}" + "".join(cells))


if __name__ == "__main__":
    main()
