"""What is read back from bench/results for the documents, and which of its rows they show."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench import record, repeats, robustness
from bench.competitors import COMPETITORS, OURS
from bench.photographs import make
from bench.serving import served
from bench.speed import busy, goals, guess, host, instructions, machine_code, prefill, shared, waits
from bench.speed.rows import Row, newest

Newest = dict[tuple[str, str], Row]
Call = tuple[str, int, int, int]  # of a GPU, by `goals`: which, its B, N, K


@dataclass(frozen=True)
class Kept:
    """Everything in a folder of results; of latencies, those of the machine of each device that was measured last."""

    rows: dict[str, list[Row]]  # device -> rows
    verdicts: list[robustness.Verdict]
    counts: list[instructions.Count]
    loops: list[machine_code.Count]
    prefills: list[prefill.Prefill]
    figures: list[goals.Figure]
    kernels: list[goals.KernelTime]
    latencies: list[shared.Latency]
    fidelities: list[make.Fidelity]
    guesses: list[guess.Guess]
    waits: list[busy.Wait]
    row_waits: list[waits.RowWait]
    host_times: list[host.HostTime]
    repeats: list[repeats.Trial]
    served: list[served.Served]


def read(folder: Path) -> Kept:
    """All results of a folder; files with other columns are passed over."""
    rows: dict[str, list[Row]] = {}
    for path in sorted(folder.glob("*.csv")):
        found = record.read(path, Row) if record.holds(path, Row) else []
        if found:
            device = found[0].device
            if device not in rows or rows[device][-1].date < found[-1].date:
                rows[device] = found
    return Kept(
        rows,
        record.read_if_there(folder / robustness.FILE, robustness.Verdict),
        record.read_if_there(folder / instructions.FILE, instructions.Count),
        record.read_if_there(folder / machine_code.FILE, machine_code.Count),
        record.read_if_there(folder / prefill.FILE, prefill.Prefill),
        record.read_if_there(folder / goals.FILE, goals.Figure),
        record.read_if_there(folder / goals.KERNELS_FILE, goals.KernelTime),
        record.read_if_there(folder / shared.FILE, shared.Latency),
        record.read_if_there(folder / make.RECORDS, make.Fidelity),
        record.read_if_there(folder / guess.FILE, guess.Guess),
        record.read_if_there(folder / busy.FILE, busy.Wait),
        record.read_if_there(folder / waits.FILE, waits.RowWait),
        record.read_if_there(folder / host.FILE, host.HostTime),
        record.read_if_there(folder / repeats.FILE, repeats.Trial),
        record.read_if_there(folder / served.FILE, served.Served),
    )


def newest_calls(times: list[goals.KernelTime], competitor: str) -> dict[Call, list[goals.KernelTime]]:
    """The kernels of each call of a competitor, on the machine that was measured last: those of the newest run with it,
    as a run may be of some calls."""
    own = [time for time in times if time.competitor == competitor]
    calls: dict[Call, list[goals.KernelTime]] = {}
    for time in own:
        if time.machine != own[-1].machine:
            continue
        kernels = calls.setdefault((time.call, time.batch, time.tokens, time.keep), [])
        if kernels and kernels[-1].date != time.date:
            kernels.clear()
        kernels.append(time)
    return calls


def fastest_mode(rows: Iterable[Row]) -> Newest:
    """(case, competitor) -> the newest row, of the faster mode (eager or a CUDA graph)."""
    best: Newest = {}
    for (case, competitor, _), row in newest(rows).items():
        if (case, competitor) not in best or row.p50_ms < best[case, competitor].p50_ms:
            best[case, competitor] = row
    return best


def ours(rows: Newest, case: str) -> Row | None:
    """The fastest of our backends in a case."""
    found = [row for (name, who), row in rows.items() if name == case and COMPETITORS[who].family == OURS]
    return min(found, key=lambda row: row.p50_ms, default=None)
