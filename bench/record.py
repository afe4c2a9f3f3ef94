"""The kept figures: one CSV row per case and competitor, with the machine, the commit and the command that made it."""

import csv
import datetime
import platform
import re
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from .shapes import Case
from .timing import Timing

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Run:
    """What all rows of one run share."""

    date: str  # UTC
    commit: str  # abbreviated; "+changes" where tracked files differed, "unknown" outside a checkout
    command: str
    machine: str  # CPU's or GPU's name
    device: str
    threads: int  # of the CPU
    torch: str


@dataclass(frozen=True)
class Row:
    """One line of the CSV; the fields are its columns. bench/README.md explains them."""

    date: str
    commit: str
    machine: str
    device: str
    threads: int
    torch: str
    case: str
    batch: int
    tokens: int
    keep: int
    width: int
    text: int
    dtype: str
    competitor: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    samples: int
    baseline: str
    speedup: float | None  # None: the baseline was not measured in this run
    gflop_per_s: float
    gb_per_s: float
    peak_extra_mb: float | None
    command: str


COLUMNS = tuple(field.name for field in fields(Row))


def this_run(device: str, module: str = "bench") -> Run:
    """What to note of the run of `python -m module` that is going on."""
    return Run(
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        commit=_commit(),
        command=shlex.join(["python", "-m", module, *sys.argv[1:]]),
        machine=machine(device),
        device=device,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )


def machine(device: str) -> str:
    """The GPU's name, or the CPU's."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return names[0].strip() if names else platform.processor() or platform.machine()


def default_path(device: str) -> Path:
    """bench/results/<machine>.csv, CPUs with their count of threads."""
    name = machine(device) + (f" {torch.get_num_threads()} threads" if device == "cpu" else "")
    return ROOT / "bench" / "results" / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".csv")


def rows(run: Run, case: Case, timings: dict[str, Timing], peaks: dict[str, float | None], baseline: str) -> list[Row]:
    """One row per competitor of a case."""
    reference = timings.get(baseline)
    return [
        Row(
            **asdict(run),
            case=case.name,
            batch=case.batch,
            tokens=case.tokens,
            keep=case.keep,
            width=case.width,
            text=case.text,
            dtype=str(case.dtype).removeprefix("torch."),
            competitor=name,
            p20_ms=_round(timing.p20),
            p50_ms=_round(timing.p50),
            p80_ms=_round(timing.p80),
            samples=timing.samples,
            baseline=baseline,
            speedup=None if reference is None else _round(reference.p50 / timing.p50),
            gflop_per_s=_round(case.flops / timing.p50 / 1e6),
            gb_per_s=_round(case.bytes / timing.p50 / 1e6),
            peak_extra_mb=peaks.get(name),
        )
        for name, timing in timings.items()
    ]


def append(path: Path, new: list[Row]) -> None:
    """Adds rows to the file, made with its header where there is none.

    Raises:
        ValueError: if the file has other columns.
    """
    if path.exists() and path.stat().st_size:
        _check_header(path)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerow(COLUMNS)
    with path.open("a", newline="") as file:
        csv.DictWriter(file, COLUMNS).writerows(asdict(row) for row in new)


def read(path: Path) -> list[Row]:
    """All rows of a file, typed."""
    _check_header(path)
    with path.open(newline="") as file:
        return [_typed(record) for record in csv.DictReader(file)]


def _check_header(path: Path) -> None:
    with path.open(newline="") as file:
        header = tuple(next(csv.reader(file), ()))
    if header != COLUMNS:
        raise ValueError(f"{path}: expected the columns {', '.join(COLUMNS)}, got {', '.join(header)}")


def _typed(record: dict[str, str]) -> Row:
    values: dict[str, Any] = dict(record)
    for field in fields(Row):
        text = record[field.name]
        if field.type is int:
            values[field.name] = int(text)
        elif field.type is not str:
            values[field.name] = float(text) if text else None
    return Row(**values)


def _commit() -> str:
    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "--short", "HEAD")
    if commit is None:
        return "unknown"
    return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")


def _round(value: float) -> float:
    return float(f"{value:.4g}")
