"""Trains the demo's vision-language model, in two stages and from a fixed seed.

Stage 1 shapes the visual tokens: what does each patch show (dense labels) and, when aligned, which words speak of it.
Stage 2 teaches to answer questions and keeps the losses of stage 1 at a lower weight.

    python -m bench.quality.train --out mi_pruner/demo/checkpoint.safetensors --seed 0

About 20 minutes on one CPU core that has bfloat16 units. An interrupted run continues from its state file.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from math import isqrt
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from bench.quality.batches import Batch, dense_accuracy, make_batch
from bench.record import ROOT
from mi_pruner.demo.checkpoint import load_model, save_model
from mi_pruner.demo.model import WIDTH, DigitVLM
from mi_pruner.demo.scenes import GRID
from mi_pruner.demo.vocabulary import COLOURS, DIGITS, WORD_ID, WORDS

_ALIGN_SCALE, _ALIGN_BIAS = 10.0, -3.0  # fixed: a word is said of a patch from a cosine of 0.3
_POSITIVE_WEIGHT = 4.0  # three of some forty words are true of a patch


@dataclass(frozen=True)
class Plan:
    """Everything that decides the outcome of a training run."""

    seed: int
    aligned: bool
    dense_steps: int
    question_steps: int
    scenes: int  # per step
    questions: int  # per scene, stage 2
    grid: int = GRID  # patches a side
    start: str | None = None  # the checkpoint whose weights it begins with; None: random ones
    dense_rate: float = 2e-3
    question_rate: float = 1e-3
    side_weight: float = 0.3  # of the losses of stage 1 in stage 2

    @property
    def steps(self) -> int:
        """Of both stages."""
        return self.dense_steps + self.question_steps

    def rate(self, step: int) -> float:
        """Learning rate: in each stage a short warm-up, then a cosine down to 2 % of the peak."""
        first = step < self.dense_steps
        peak = self.dense_rate if first else self.question_rate
        done, length = (step, self.dense_steps) if first else (step - self.dense_steps, self.question_steps)
        warm_up = min(1.0, (done + 1) / 100)
        return peak * warm_up * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done / length)))


class Trainee(nn.Module):
    """The model with the heads that only training needs."""

    def __init__(self, aligned: bool, grid: int) -> None:
        super().__init__()
        self.model = DigitVLM(grid)
        self.value_head = nn.Linear(WIDTH, len(DIGITS) + 1)  # the last class: no digit here
        self.colour_head = nn.Linear(WIDTH, len(COLOURS) + 1)
        self.aligned = aligned

    def patch_loss(self, visual: Tensor, batch: Batch) -> Tensor:
        """Stage 1. visual: (B, G * G, WIDTH) -> scalar: labels of the patches and, when aligned, their words."""
        inside = batch.owner >= 0
        value = _classes(self.value_head(visual), batch.value)
        colour = _classes(self.colour_head(visual), batch.colour)
        loss = _balanced(value + colour, inside)
        if self.aligned:
            cosine = F.normalize(visual.float(), dim=-1) @ F.normalize(self.model.words.weight, dim=-1).T
            logits = _ALIGN_SCALE * cosine + _ALIGN_BIAS
            weight = torch.tensor(_POSITIVE_WEIGHT, device=logits.device)
            pairs = F.binary_cross_entropy_with_logits(logits, _spoken(batch), reduction="none", pos_weight=weight)
            loss = loss + 3 * _balanced(pairs.mean(-1), inside)
        return loss

    def question_loss(self, visual: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Stage 2. visual: (B, G * G, WIDTH) -> cross entropy of the answers and share of right ones, both scalar."""
        positions = torch.arange(self.model.tokens, device=visual.device).expand(len(visual), -1)
        logits = self.model.answer_many(visual, positions, self.model.embed_text(batch.text), batch.text_mask).float()
        loss = F.cross_entropy(logits.flatten(0, 1), batch.answer.flatten(), label_smoothing=0.05)
        return loss, (logits.argmax(-1) == batch.answer).float().mean()


def _classes(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each patch, (B, G * G, C) and (B, G * G) -> (B, G * G); label -1 is the last class."""
    last = logits.shape[-1] - 1
    labels = torch.where(labels < 0, last, labels)
    return F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")


def _balanced(loss: Tensor, inside: Tensor) -> Tensor:
    """Mean over the patches of digits plus a third of the mean over the others; loss, inside: (B, G * G)."""
    return loss[inside].mean() + loss[~inside].mean() / 3


def _spoken(batch: Batch) -> Tensor:
    """(B, G * G, len(WORDS)) float32: 1 where a word speaks of a patch: its digit and colour, and `digits` of all."""
    device = batch.owner.device
    spoken = torch.zeros(*batch.owner.shape, len(WORDS) + 1, device=device)  # the last column takes the patches of none
    values = torch.tensor([*(WORD_ID[name] for name in DIGITS), len(WORDS)], device=device)
    colours = torch.tensor([*(WORD_ID[name] for name in COLOURS), len(WORDS)], device=device)
    spoken.scatter_(2, values[batch.value][..., None], 1)
    spoken.scatter_(2, colours[batch.colour][..., None], 1)
    spoken[..., WORD_ID["digits"]] = (batch.owner >= 0).float()
    return spoken[..., :-1]


def train(plan: Plan, state_file: Path, device: torch.device) -> DigitVLM:
    """Runs, or continues, a plan; writes the state file every 250 steps and removes it at the end."""
    torch.manual_seed(plan.seed)
    trainee = Trainee(plan.aligned, plan.grid).to(device)
    if plan.start is not None:
        _take_weights(trainee.model, Path(plan.start))
    optimizer = torch.optim.AdamW(trainee.parameters(), lr=plan.rate(0), betas=(0.9, 0.98), weight_decay=0.02)
    start = _resume(plan, state_file, trainee, optimizer)
    progress = tqdm(_batches(plan, start), initial=start, total=plan.steps, mininterval=5)
    for step, batch in progress:
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step)
        figures = _step(plan, step, batch.to(device), trainee, optimizer)
        if step % 50 == 0:
            progress.set_postfix_str(figures())
        if (step + 1) % 250 == 0:
            _save_state(plan, state_file, trainee, optimizer, step + 1)
        if (step + 1) % 500 == 0 and step >= plan.dense_steps:
            tqdm.write(f"step {step + 1}: dev {_described(dense_accuracy(trainee.model, 'dev', 200, device))}")
    state_file.unlink(missing_ok=True)
    return trainee.model


def _take_weights(model: DigitVLM, path: Path) -> None:
    """Those of a checkpoint for pictures of any size: the embeddings of its places are interpolated to the model's."""
    weights = load_model(ROOT / path)[0].state_dict()
    known = weights["encoder.position"]
    side, wanted = isqrt(len(known)), isqrt(model.tokens)
    plane = known.T.reshape(1, -1, side, side)
    resized = F.interpolate(plane, (wanted, wanted), mode="bicubic")
    weights["encoder.position"] = resized.reshape(-1, wanted * wanted).T
    model.load_state_dict(weights)


def _batches(plan: Plan, start: int) -> Iterator[tuple[int, Batch]]:
    """(step, its fresh scenes and questions), the next one made beside the current step."""

    def made(step: int) -> Batch:
        first = (plan.seed * plan.steps + step) * plan.scenes
        return make_batch(
            "train", range(first, first + plan.scenes), augment=True, questions=plan.questions, grid=plan.grid
        )

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(made, start)
        for step in range(start, plan.steps):
            batch = ahead.result()
            ahead = pool.submit(made, step + 1)
            yield step, batch


def _step(plan: Plan, step: int, batch: Batch, trainee: Trainee, optimizer: torch.optim.Optimizer) -> Callable[[], str]:
    """One step; returns a function that describes it, called only when it is shown."""
    right = None
    with torch.autocast(batch.pixels.device.type, torch.bfloat16):
        visual = trainee.model.encode_image(batch.pixels)
        patch_loss = trainee.patch_loss(visual, batch)
        loss = patch_loss
        if step >= plan.dense_steps:
            question_loss, right = trainee.question_loss(visual, batch)
            loss = question_loss + plan.side_weight * patch_loss
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
    optimizer.step()
    answers = "" if right is None else f" right {right:.2f}"
    return lambda: f"loss {loss.item():.3f} patches {patch_loss.item():.3f}{answers}"


def _resume(plan: Plan, state_file: Path, trainee: Trainee, optimizer: torch.optim.Optimizer) -> int:
    """Loads the state file, if there is one; returns the step to go on from."""
    if not state_file.exists():
        return 0
    state = torch.load(state_file, weights_only=True)
    if state["plan"] != asdict(plan):
        raise SystemExit(f"{state_file}: made by another plan {state['plan']}; remove it or pass another --state")
    trainee.load_state_dict(state["trainee"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def _save_state(plan: Plan, file: Path, trainee: Trainee, optimizer: torch.optim.Optimizer, step: int) -> None:
    partial = file.with_suffix(".partial")
    state = {"trainee": trainee.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "plan": asdict(plan)}
    torch.save(state, partial)
    partial.replace(file)  # never half a state file


def _described(accuracy: dict[str, float]) -> str:
    return " ".join(f"{kind} {value:.3f}" for kind, value in accuracy.items())


def _command(plan: Plan, out: Path) -> str:
    """What makes this checkpoint again; without what has no say in it (state file, device, threads)."""
    aligned = "--aligned" if plan.aligned else "--no-aligned"
    steps = f"--dense-steps {plan.dense_steps} --question-steps {plan.question_steps}"
    sizes = f"--scenes {plan.scenes} --questions {plan.questions}"
    if plan.grid != GRID:
        sizes += f" --grid {plan.grid}"
    if plan.start is not None:
        sizes += f" --start {plan.start}"
    return f"python -m bench.quality.train --out {out} --seed {plan.seed} {aligned} {steps} {sizes}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--state", type=Path, help="the state file (default: OUT with the suffix .state)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--aligned", action=argparse.BooleanOptionalAction, default=True, help="patch-to-word loss")
    parser.add_argument("--dense-steps", type=int, default=1500)
    parser.add_argument("--question-steps", type=int, default=3200)
    parser.add_argument("--scenes", type=int, default=32, help="per step")
    parser.add_argument("--questions", type=int, default=6, help="per scene")
    parser.add_argument("--grid", type=int, default=GRID, help="patches a side, a multiple of 3 (default: %(default)s)")
    parser.add_argument("--start", help="a checkpoint to begin with, of pictures of any size (default: random weights)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    return parser.parse_args()


def make(plan: Plan, out: Path, state_file: Path, device: torch.device) -> None:
    """Trains a model and writes its checkpoint, which carries how it was made and its accuracy."""
    out.parent.mkdir(parents=True, exist_ok=True)
    model = train(plan, state_file, device)
    accuracy = dense_accuracy(model, "dev", 1000, device)
    metadata = {
        "command": _command(plan, out),
        "seed": str(plan.seed),
        "aligned": str(plan.aligned),
        "dev_accuracy": _described(accuracy),
        "torch": torch.__version__,
    }
    save_model(model, out, metadata)
    print(f"{out}: {_described(accuracy)}")


def main() -> None:
    """The command line."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    plan = Plan(
        arguments.seed,
        arguments.aligned,
        arguments.dense_steps,
        arguments.question_steps,
        arguments.scenes,
        arguments.questions,
        arguments.grid,
        arguments.start,
    )
    make(plan, arguments.out, arguments.state or arguments.out.with_suffix(".state"), arguments.device)


if __name__ == "__main__":
    main()
