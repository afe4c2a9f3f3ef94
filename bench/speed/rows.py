"""What is kept of a measured case: one row per competitor and mode."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from bench import record
from bench.cases import Case
from bench.competitors import BASELINE, COMPETITORS
from bench.measure.floor import Rates, bytes_moved, floor_ms, flops
from bench.measure.timing import Timing
from bench.record import rounded


class Entry(NamedTuple):
    """Who was measured, and how: "eager", or "graph" for a replayed CUDA graph."""

    competitor: str
    mode: str = "eager"


@dataclass(frozen=True)
class Row(record.Run):
    """One line of the CSV; the fields are its columns. docs/benchmarks.md explains them."""

    versions: str
    load: float  # average per core when the run began
    case: str
    batch: int
    tokens: int
    keep: int
    width: int
    text: int
    dtype: str
    competitor: str
    mode: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    samples: int
    speedup: float | None  # None: the baseline was not measured in this run
    gflop: float
    mb: float
    floor_ms: float
    floor: str
    share_of_floor: float
    copy_gb_per_s: float
    matmul_gflop_per_s: float
    peak_extra_mb: float | None
    launches: int | None


def full_name(of: Entry | Row) -> str:
    """`ours-cuda`, or `ours-cuda (graph)`."""
    return of.competitor + ("" if of.mode == "eager" else f" ({of.mode})")


def rows(
    run: record.Run,
    case: Case,
    rates: Rates,
    timings: dict[Entry, Timing],
    peaks: dict[str, float],
    launches: dict[str, int],
    load: float = 0.0,
) -> list[Row]:
    """One row per entry of a case. A speedup is over the baseline in the same mode."""
    return [
        Row(
            **asdict(run),
            versions=record.versions(),
            load=load,
            case=case.name,
            batch=case.batch,
            tokens=case.tokens,
            keep=case.keep,
            width=case.width,
            text=case.text,
            dtype=str(case.dtype).removeprefix("torch."),
            competitor=entry.competitor,
            mode=entry.mode,
            p20_ms=rounded(timing.p20),
            p50_ms=rounded(timing.p50),
            p80_ms=rounded(timing.p80),
            samples=timing.samples,
            speedup=_speedup(timings.get(Entry(BASELINE, entry.mode)), timing),
            **_floor(case, entry.competitor, rates, timing),
            copy_gb_per_s=rounded(rates.copy_gb_per_s),
            matmul_gflop_per_s=rounded(rates.matmul_gflop_per_s),
            peak_extra_mb=peaks.get(entry.competitor),
            launches=launches.get(entry.competitor),
        )
        for entry, timing in timings.items()
    ]


def _speedup(baseline: Timing | None, timing: Timing) -> float | None:
    return None if baseline is None else rounded(baseline.p50 / timing.p50)


def _floor(case: Case, competitor: str, rates: Rates, timing: Timing) -> dict[str, Any]:
    work = COMPETITORS[competitor].work
    least, which = floor_ms(case, work, rates)
    return {
        "gflop": rounded(flops(case, work) / 1e9),
        "mb": rounded(bytes_moved(case, work) / 1e6),
        "floor_ms": rounded(least),
        "floor": which,
        "share_of_floor": rounded(least / timing.p50),
    }


def newest(kept: Iterable[Row]) -> dict[tuple[str, str, str], Row]:
    """(case, competitor, mode) -> the last row that was measured."""
    return {(row.case, row.competitor, row.mode): row for row in kept}
