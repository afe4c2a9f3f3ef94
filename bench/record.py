"""The kept figures: CSV files of records that carry the machine, the commit and the command that made them."""

import argparse
import csv
import datetime
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

import mi_pruner

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Run:
    """What all rows of one run share."""

    date: str  # UTC
    commit: str  # abbreviated; "+changes" where tracked files but results differed; without git MI_PRUNER_COMMIT
    command: str
    machine: str  # CPU's or GPU's name
    device: str
    threads: int  # of the CPU
    torch: str


Record = TypeVar("Record")  # any dataclass of str, int, float and their optionals: a line of some CSV


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


RESULTS = ROOT / "bench" / "results"


def add_out(parser: argparse.ArgumentParser) -> None:
    """The option `--out`: another folder."""
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="default: bench/results")


def path_in(folder: Path, device: str) -> Path:
    """<folder>/<machine>.csv, CPUs with their count of threads."""
    name = machine(device) + (f" {torch.get_num_threads()} threads" if device == "cpu" else "")
    return folder / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".csv")


def load_per_core() -> float:
    """The load average of the last minute over the count of cores; 0 where the system has none."""
    return round(os.getloadavg()[0] / (os.cpu_count() or 1), 2) if hasattr(os, "getloadavg") else 0.0


def versions() -> str:
    """Of what decides speed, besides torch."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "none"
    return f"python {platform.python_version()}, mi_pruner {mi_pruner.__version__}, triton {triton}"


def columns(of: type) -> tuple[str, ...]:
    """The header of a file of such records."""
    return tuple(field.name for field in fields(of))


def append(path: Path, of: type, new: Iterable[Any]) -> None:
    """Adds records to the file, made with its header where there is none.

    Raises:
        ValueError: if the file has other columns.
    """
    if path.exists() and path.stat().st_size:
        _check_header(path, of)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerow(columns(of))
    with path.open("a", newline="") as file:
        csv.DictWriter(file, columns(of)).writerows(asdict(record) for record in new)


def holds(path: Path, of: type) -> bool:
    """Whether the file has the columns of such records."""
    return header(path) == columns(of)


def header(path: Path) -> tuple[str, ...]:
    """The first line."""
    with path.open(newline="") as file:
        return tuple(next(csv.reader(file), ()))


def read(path: Path, of: type[Record]) -> list[Record]:
    """All records of a file, typed.

    Raises:
        ValueError: if the file has other columns.
    """
    _check_header(path, of)
    with path.open(newline="") as file:
        return [_typed(record, of) for record in csv.DictReader(file)]


def read_if_there(path: Path, of: type[Record]) -> list[Record]:
    """All records of a file; none where there is none."""
    return read(path, of) if path.exists() else []


def _check_header(path: Path, of: type) -> None:
    if not holds(path, of):
        raise ValueError(f"{path}: expected the columns {', '.join(columns(of))}, got {', '.join(header(path))}")


def _typed(record: dict[str, str], of: type[Record]) -> Record:
    values: dict[str, Any] = dict(record)
    for field in fields(of):  # type: ignore[arg-type]
        text = record[field.name]
        if field.type is str:
            continue
        number = int if field.type in (int, int | None) else float
        values[field.name] = number(text) if text else None
    return of(**values)


def _commit() -> str:
    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        except OSError:  # no git
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if os.environ.get("MI_PRUNER_COMMIT"):  # before git: a copy of a checkout may have an older history
        return os.environ["MI_PRUNER_COMMIT"]
    commit = git("rev-parse", "--short", "HEAD")
    if commit is None:
        return "unknown"
    others = ("--", ".", f":(exclude){RESULTS.relative_to(ROOT)}")  # a run of several parts changes results itself
    return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no", *others) else "")


def rounded(value: float) -> float:
    """To the 4 digits that a measurement is good for."""
    return float(f"{value:.4g}")
