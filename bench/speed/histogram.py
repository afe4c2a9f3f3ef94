"""`histogram_mi_scores` against plain PyTorch, which counts by a matrix product of zeros and ones."""

import argparse
import sys
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

import mi_pruner
from bench import cases, record
from bench.measure import Call, timing
from bench.record import rounded
from mi_pruner._dispatch import BACKENDS

FILE = "histogram.csv"
BUDGET = 5.0  # seconds a case
BINS = 16
BASELINE = "plain"
CASES = ("llava-1.5/64", "qwen3-vl-2b/256", "llava-next/320")  # of `cases`; what they keep plays no part
BACKENDS_MEASURED = ("cpu", "triton")


@dataclass(frozen=True)
class Scored(record.Run):
    """Latency in ms of one competitor in one case."""

    versions: str
    load: float  # average per core when the run began
    case: str
    tokens: int
    width: int
    text: int
    bins: int
    dtype: str
    competitor: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    samples: int
    speedup: float  # over plain PyTorch


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench histogram`."""
    record.add_out(parser)


def main(options: argparse.Namespace) -> int:
    """Measures the cases; the exit status."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run, load = record.this_run(device), record.load_per_core()
    print(f"{run.machine}, {run.threads} threads, torch {run.torch}, commit {run.commit}, load {load} per core")
    print(f"{'':20}{'':12}{'p20':>10}{'p50':>10}{'p80 ms':>10}{'n':>6}{'speedup':>10}")
    for name in CASES:
        kept = measure(run, load, cases.CASES[name], BUDGET)
        record.append(options.out / FILE, Scored, kept)
        for row in kept:
            times = f"{row.p20_ms:10.2f}{row.p50_ms:10.2f}{row.p80_ms:10.2f}"
            print(f"{row.case:20}{row.competitor:12}{times}{row.samples:6}{row.speedup:9.2f}x")
        sys.stdout.flush()
    print(f"\nappended to {options.out / FILE}")
    return 0


def measure(run: record.Run, load: float, case: cases.Case, budget: float) -> list[Scored]:
    """One row for each backend that can run here, and one for plain PyTorch."""
    dtype = torch.bfloat16 if run.device == "cuda" else case.dtype
    given = cases.inputs(case, device=run.device)[0]
    visual, text = given.visual.to(dtype), given.text.to(dtype)
    calls: dict[str, Call] = {
        f"ours-{name}": partial(_ours, name, visual, text)
        for name in BACKENDS_MEASURED
        if BACKENDS[name].why_not(run.device) is None
    }
    calls[BASELINE] = partial(plain_scores, visual, text, BINS)
    timings = timing.measure(calls, run.device, budget)
    return [
        Scored(
            **asdict(run),
            versions=record.versions(),
            load=load,
            case=case.name,
            tokens=case.tokens,
            width=case.width,
            text=case.text,
            bins=BINS,
            dtype=str(dtype).removeprefix("torch."),
            competitor=name,
            p20_ms=rounded(t.p20),
            p50_ms=rounded(t.p50),
            p80_ms=rounded(t.p80),
            samples=t.samples,
            speedup=rounded(timings[BASELINE].p50 / t.p50),
        )
        for name, t in timings.items()
    ]


def _ours(name: str, visual: Tensor, text: Tensor) -> Tensor:
    with mi_pruner.backend(name):
        return mi_pruner.histogram_mi_scores(visual, text, bins=BINS)


VISUAL_BLOCK = 64  # visual tokens a product: 16 MB of zeros and ones at D = 4096


def plain_scores(visual: Tensor, text: Tensor, bins: int) -> Tensor:
    """(B, N) of features without absent tokens."""
    return torch.stack([_plain_sample(v, t, bins) for v, t in zip(visual, text, strict=True)])


def _plain_sample(visual: Tensor, text: Tensor, bins: int) -> Tensor:
    d = visual.shape[1]
    words = _one_hot(text, bins)
    of_word = _p_log_p(words.view(len(text), bins, d).sum(2), d).sum(1)
    scores = []
    for block in visual.split(VISUAL_BLOCK):
        counts = (_one_hot(block, bins) @ words.T).view(len(block), bins, len(text), bins)
        of_block = _p_log_p(counts[:, :, 0].sum(2), d).sum(1)
        scores.append((_p_log_p(counts, d).sum((1, 3)) - of_block[:, None] - of_word).mean(1))
    return torch.cat(scores)


def _one_hot(rows: Tensor, bins: int) -> Tensor:
    """(n · bins, d): 1 where a coordinate falls into the bin. In float32: a product in halves would round counts."""
    low, high = rows.float().aminmax(dim=1, keepdim=True)
    found = ((rows.float() - low) * (bins / (high - low))).to(torch.uint8).clamp_(max=bins - 1)
    every = torch.arange(bins, dtype=torch.uint8, device=rows.device)[:, None]
    return (found[:, None] == every).float().flatten(0, 1)


def _p_log_p(counts: Tensor, total: int) -> Tensor:
    p = counts.float() / total
    return torch.xlogy(p, p)
