"""The Markdown tables of the documents, from what is kept."""

import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from bench import robustness
from bench.cases import CASES, CORE, SETS
from bench.competitors import BASELINE, COMPETITORS, OURS, RANKING
from bench.photographs.make import Fidelity
from bench.speed import busy, goals, guess, shared, waits
from bench.speed.language_models import EFFICIENCY, MODELS, PROMPT, SHOWN
from bench.speed.rows import Row, newest

from . import expected, host, repeats, serving
from .kept import Kept, Newest, fastest_mode, newest_calls, ours
from .markdown import NONE, made, ms, percent, short, table

PROJECTED = (
    "All methods get the projected features. In their published form SCOPE, and MMTok for its visual–visual matrix, "
    "use the encoder's features before the projector: on LLaVA of width 1024 instead of 4096, a quarter of that "
    "product's flops."
)
MODELS_SHOWN = (
    "photograph-576/64",
    "photograph-2880/320",
    "film-10000/1000",
    "llava-1.5/64",
    "qwen3-vl-8b/256",
    "qwen2.5-vl-7b/324",
    "llava-next/320",
    "qwen2.5-vl-7b-large/500",
)
HARD_SHOWN = tuple(case.name for case in SETS["hard"])
OTHERS_SHOWN = tuple(
    real + name for real in ("real-", "") for name in ("text-16", "text-64", "text-256", "llava-1.5/64x8", "packed-8")
)
HEADLINE_RIVALS = ("plain", "plain-symmetric", "plain-compiled", "cdpruner", "mmtok", "divprune")
PREFILL_RIVALS = ("plain", "cdpruner", "mmtok", "divprune")
PICTURES = {  # name -> what a reader who does not see it is told
    "tokens": "Selection time against the number of visual tokens, all competitors",
    "keep": "Selection time against the number of kept tokens, all competitors",
    "batch": "Selection time against the batch, all competitors",
    "floor": "Share of the floor: how near each method comes to what the machine can do at best",
    "prefill": "Time of the selection beside the prefill time that it saves, for each language model",
}


def blocks(kept: Kept, drawn: Iterable[Path]) -> dict[str, str]:
    """Name of a block -> its Markdown; `drawn`: the pictures that there are."""
    filled = {f"picture-{device}-{name}": NONE for device in ("cpu", "cuda") for name in PICTURES}
    filled |= {path.stem.replace("bench", "picture", 1): _picture(path) for path in drawn}
    for device in ("cpu", "cuda"):
        rows = fastest_mode(kept.rows.get(device, ()))
        filled |= {
            f"run-{device}": run(kept.rows.get(device, [])),
            f"models-{device}": latency(rows, MODELS_SHOWN),
            f"others-{device}": latency(rows, OTHERS_SHOWN),
            f"hard-{device}": latency(rows, HARD_SHOWN),
            f"ahead-{device}": ahead(rows),
            f"core-{device}": core(rows),
            f"prefill-{device}": selection_in_prefill(rows),
            f"host-{device}": host.block(kept.host_times, device),
        }
    filled["robustness"] = robust(kept.verdicts)
    filled["instructions"] = counted(kept)
    filled["prefill-measured"] = measured_prefill(kept)
    filled["headline"] = headline(fastest_mode(kept.rows.get("cpu", ())))
    filled["headline-cuda"] = headline(fastest_mode(kept.rows.get("cuda", ())))
    filled["shared"] = shared_table(kept.latencies)
    filled["guess"] = guess_table(kept.guesses)
    filled["busy"] = busy_table(kept.waits)
    filled["row-waits"] = row_waits_table(kept.row_waits)
    filled["repeats"] = repeats.block(kept.repeats)
    filled["serving"] = serving.block(kept.served)
    filled["photographs"] = fidelity(kept.fidelities)
    filled["goals"] = goal_table(kept.figures)
    filled["expected"] = expected.block(kept.loops, kept.kernels)
    filled |= {f"kernels-{name}": kernel_table(kept.kernels, name) for name in ("cuda", "triton")}
    return filled


def _picture(path: Path) -> str:
    return f"![{PICTURES[path.stem.split('-')[-1]]}](images/{path.name})"


def run(rows: list[Row]) -> str:
    """Where the numbers are from."""
    if not rows:
        return NONE
    kept = newest(rows).values()
    row = rows[-1]
    commands = ", ".join(f"`{command}`" for command in sorted({r.command for r in kept}))
    commits = ", ".join(sorted({r.commit for r in kept}))
    brief = any("--quick" in r.command or re.search(r"--budget [01](\.|\s)", r.command) for r in kept)
    note = " **A short run, to show the form of the tables: not the figures to quote.**" if brief else ""
    return (
        f"{row.machine}, {row.threads} CPU threads, torch {row.torch}, {row.versions}; {row.dtype}; commit {commits}, "
        f"{row.date[:10]}, by {commands}.{note} Measured in the same run: copy {row.copy_gb_per_s:.0f} GB/s (read + "
        f"written), matrix product {row.matmul_gflop_per_s:,.0f} GFLOP/s."
    )


def shape(case: str) -> str:
    """A column's header."""
    c = CASES[case]
    if c.sizes:
        return f"{case}: {len(c.sizes)} images of {min(c.sizes)} to {max(c.sizes)} tokens, kept 1 of 9"
    batch = "" if c.batch == 1 else f", batch {c.batch}"
    text = "" if c.text == 32 else f", {c.text} text"
    return f"{case.split('/')[0]}: {c.tokens:,} → {c.keep:,}{batch}{text}"


def latency(rows: Newest, cases: Iterable[str]) -> str:
    """A line for each competitor, a column for each case: median, and how it compares with ours."""
    shown = [case for case in cases if ours(rows, case) is not None]
    if not shown:
        return NONE
    lines = []
    for name, competitor in COMPETITORS.items():
        if any((case, name) in rows for case in shown):
            lines.append([_bold(competitor.label, competitor.family), *(_cell(rows, case, name) for case in shown)])
    return table(["median, ms (× ours)", *map(shape, shown)], lines) + "\n\n" + PROJECTED


def _bold(text: str, family: str) -> str:
    return f"**{text}**" if family == OURS else text


def _cell(rows: Newest, case: str, name: str) -> str:
    row, best = rows.get((case, name)), ours(rows, case)
    if row is None or best is None:
        return "–"
    return f"**{ms(row.p50_ms)}**" if row == best else f"{ms(row.p50_ms)} ({_times(row.p50_ms / best.p50_ms)}×)"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 99.5 else f"{ratio:.2g}"


def ahead(rows: Newest) -> str:
    """Who is faster than we are, and where."""
    faster: dict[str, list[str]] = {}
    cases = [case for case in dict.fromkeys(case for case, _ in rows) if ours(rows, case) is not None]
    for case in cases:
        best = ours(rows, case)
        for name, competitor in COMPETITORS.items():
            row = rows.get((case, name))
            if best is not None and row is not None and competitor.family != OURS and row.p50_ms < best.p50_ms:
                faster.setdefault(name, []).append(case)
    if not cases:
        return NONE
    if not faster:
        return f"None, in any of the {len(cases)} cases."
    every = [f"{COMPETITORS[n].label} ({_where(found, cases)})" for n, found in faster.items()]
    return "Faster than mi_pruner: " + "; ".join(every) + "."


def _where(found: list[str], cases: list[str]) -> str:
    if len(found) == len(cases):
        return f"in all {len(cases)} cases"
    return f"{len(found)} of {len(cases)} cases" + (f": {', '.join(found)}" if len(found) <= 4 else "")


def core(rows: Newest) -> str:
    """Spread, share of the floor and memory."""
    lines = []
    for case in CORE:
        for name, competitor in COMPETITORS.items():
            row = rows.get((case, name))
            if row is not None and competitor.family != RANKING:
                memory = "" if row.peak_extra_mb is None else f"{row.peak_extra_mb:,.0f}"
                launches = "" if row.launches is None else f"{row.launches}"
                spread = f"{ms(row.p20_ms)} – {ms(row.p50_ms)} – {ms(row.p80_ms)} ({row.samples})"
                share = f"{row.share_of_floor:.0%} ({row.floor})"
                lines.append([shape(case), _bold(competitor.label, competitor.family), spread, share, memory, launches])
    head = ("case", "competitor", "p20 – p50 – p80, ms (samples)", "share of the floor", "extra MB", "launches")
    return table(head, lines) if lines else NONE


def selection_in_prefill(rows: Newest) -> str:
    """The selection beside the prefill time that it saves, by the cost model."""
    lines = []
    for case, of_model in SHOWN.items():
        best, model = ours(rows, case), MODELS[of_model]
        if best is None:
            continue
        dense = model.seconds(best.tokens + PROMPT, best.matmul_gflop_per_s)
        pruned = model.seconds(best.keep + PROMPT, best.matmul_gflop_per_s)
        saved = dense - pruned
        others = [f"{_share(rows.get((case, name)), saved)}" for name in PREFILL_RIVALS]
        seconds = (f"{dense:,.3g}", f"{pruned:,.3g}")
        features = "photographs" if case != of_model else "synthetic"
        lines.append([model.name, features, f"{best.tokens:,} → {best.keep:,}", *seconds, _share(best, saved), *others])
    if not lines:
        return NONE
    names = [COMPETITORS[name].label for name in PREFILL_RIVALS]
    head = (
        "model",
        "features",
        "tokens",
        "prefill of all, s",
        "of the kept, s",
        "selection, share of what is saved",
        *names,
    )
    return table(head, lines) + f"\n\nEFFICIENCY = {EFFICIENCY}, {PROMPT} tokens of text around the image."


def _share(row: Row | None, saved: float) -> str:
    return "–" if row is None else percent(row.p50_ms / 1e3 / saved)


def measured_prefill(kept: Kept) -> str:
    """What bench/speed/prefill.py measured."""
    newest_of = {record.model: record for record in kept.prefills}
    lines = [
        [p.model, f"{p.tokens:,} → {p.keep:,}", ms(p.dense_ms), ms(p.pruned_ms), ms(p.selection_ms)]
        for p in newest_of.values()
    ]
    if not lines:
        return NONE
    head = ("model", "tokens", "all, ms", "kept, ms", "selection, ms")
    text = f"{PROMPT} tokens of text around the image; the selection is one eager call. {made(kept.prefills[-1])}"
    return f"{table(head, lines)}\n\n{text}"


def robust(verdicts: list[robustness.Verdict]) -> str:
    """The robustness table."""
    newest_of = {verdict.competitor: verdict for verdict in verdicts if verdict.device == verdicts[-1].device}
    lines = []
    for v in newest_of.values():
        counts = (
            _right(v.identical, robustness.KEEP),
            _right(v.forty, robustness.KEEP),
            _right(v.halves, robustness.KEEP_OF_HALVES),
        )
        competitor = COMPETITORS[v.competitor]
        lines.append([_bold(competitor.label, competitor.family), *counts, v.batch, v.padding, v.nan_free])
    head = (
        "competitor",
        f"all tokens equal: {robustness.KEEP} kept",
        f"{robustness.DISTINCT} distinct rows: {robustness.KEEP} kept",
        f"every other token equal: {robustness.KEEP_OF_HALVES} kept",
        "same alone and in a batch",
        "same with padding",
        "free of NaN",
    )
    return table(head, lines) if lines else NONE


def _right(count: int, expected: int) -> str:
    return f"{count}" if count == expected else f"**{count}**"


def counted(kept: Kept) -> str:
    """Instruction counts."""
    newest_of = {count.workload: count for count in kept.counts}
    if not newest_of:
        return NONE
    last = kept.counts[-1]
    lines = [[count.workload, f"`{count.arguments}`", f"{count.instructions:,}"] for count in newest_of.values()]
    made = f"{last.compiler}, {last.valgrind}, {last.isa}, commit {last.commit}, by `{last.command}`."
    return table(("workload", "tokens, keep, width, text, ...", "instructions"), lines) + f"\n\n{made}"


def goal_table(figures: list[goals.Figure]) -> str:
    """The performance goals on a GPU, and what was measured of each on the last machine, last; bold: met."""
    if not figures:
        return NONE
    figures = [figure for figure in figures if figure.machine == figures[-1].machine]
    copies = {figure.date: figure.value for figure in figures if figure.competitor == "torch"}
    competitors = ("cuda", "triton", "plain")
    shown = {(f.competitor, f.quantity, f.batch, f.tokens, f.keep): f for f in figures if f.competitor in competitors}
    lines = []
    for quantity, batch, tokens, keep in dict.fromkeys(key[1:] for key in shown):
        found = [shown.get((name, quantity, batch, tokens, keep)) for name in competitors]
        first = next(f for f in found if f is not None)
        goal = first.goal.replace("<=", "≤").replace(">=", "≥")
        cells = ("–" if f is None else f"**{short(f.value)}**" if f.met else short(f.value) for f in found)
        size = f"{batch} × {tokens:,} → {keep:,}"
        lines.append([quantity, size, f"{goal} {first.unit}" if goal else first.unit, *cells])
    head = ("", "B × N → K", "goal", "mi_pruner (cuda)", "mi_pruner (triton)", "plain PyTorch")
    copied = " and ".join(f"{copies[date]:,.0f}" for date in sorted({f.date for f in shown.values()}))
    return f"{table(head, lines)}\n\n{made(*shown.values())} A copy in the same run: {copied} GB/s, read + written."


def kernel_table(times: list[goals.KernelTime], competitor: str) -> str:
    """Where the time of a backend's calls goes."""
    calls = newest_calls(times, competitor)
    if not calls:
        return NONE
    lines = []
    for (call, batch, tokens, keep), kernels in calls.items():
        size = f"{batch} × {tokens:,}" if call == "mi_scores" else f"{batch} × {tokens:,} → {keep:,}"
        lines.append([call, size, ", ".join(map(_kernel, kernels))])
    return f"{table(('call', 'B × N → K', 'kernels, us'), lines)}\n\n{made(*chain(*calls.values()))}"


def _kernel(time: goals.KernelTime) -> str:
    launches = "" if time.launches == 1 else f" ({time.launches:g} launches)"
    return f"{time.kernel.removesuffix('_kernel')} {short(time.us)}{launches}"


def shared_table(latencies: list[shared.Latency]) -> str:
    """What a call took alone and beside others on the GPU, in the last run; dashes: left out."""
    if not latencies:
        return NONE
    last = [latency for latency in latencies if latency.date == latencies[-1].date]
    cells = {(x.call, x.surrounding): f"{short(x.p50_us)} ({short(x.p90_us)})" for x in last}
    lines = [
        [call, *(cells.get((call, surrounding), "–") for surrounding in shared.SURROUNDINGS)]
        for call in dict.fromkeys(x.call for x in last)
    ]
    sizes = f"{last[-1].tokens} → {last[-1].keep} tokens of width {last[-1].width:,}, {last[-1].text} of text"
    backends = ", ".join(dict.fromkeys(x.backend for x in last))
    text = f"An image: {sizes}, bfloat16; backend `{backends}`. {made(last[-1])}"
    return f"{table(('us: p50 (p90)', *shared.SURROUNDINGS), lines)}\n\n{text}"


def guess_table(guesses: list[guess.Guess]) -> str:
    """Rows that are computed for a pick, in the last run."""
    if not guesses:
        return NONE
    last = [g for g in guesses if g.date == guesses[-1].date]
    ways = list(dict.fromkeys((g.guess, g.block) for g in last))
    cells = {(g.case, (g.guess, g.block)): f"{g.rows_a_pick:.2f} ({g.products:.3g})" for g in last}
    lines = [[case, *(cells[case, way] for way in ways)] for case in dict.fromkeys(g.case for g in last)]
    head = ("rows a pick (in so many products)", *(f"{way}, blocks of {block}" for way, block in ways))
    return f"{table(head, lines)}\n\n{made(last[-1])}"


def row_waits_table(found: list[waits.RowWait]) -> str:
    """What a selection on rows waits for them, in the last run."""
    last = [w for w in found if w.date == found[-1].date]
    if not last:
        return NONE
    lines = [
        [w.case, w.way, f"{w.rows_a_pick:.2f} ({w.products})", f"{w.waits}", short(w.waited_us), short(w.us)]
        for w in last
    ]
    head = ("simulated", "products are made", "rows a pick (in so many products)", "picks that wait", "us waited", "us")
    return f"{table(head, lines)}\n\n{made(last[-1])}"


def busy_table(found: list[busy.Wait]) -> str:
    """What a call took on a CPU, alone and beside busy processes, in the last run of each policy."""
    newest_of = {(w.policy, w.used, w.competitor, w.neighbours): w for w in found if w.machine == found[-1].machine}
    if not newest_of:
        return NONE
    lines = []
    for policy, used, name in dict.fromkeys(key[:3] for key in newest_of):
        found = [newest_of.get((policy, used, name, n)) for n in busy.NEIGHBOURS]
        cells = ["–" if w is None else f"{ms(w.p50_ms)} ({ms(w.p90_ms)})" for w in found]
        lines.append([COMPETITORS[name].label, f"{used}", policy, *cells])
    head = ("ms: p50 (p90)", "threads", "`OMP_WAIT_POLICY`", *(_beside(n) for n in busy.NEIGHBOURS))
    shown = newest_of.values()
    return f"{table(head, lines)}\n\n{shape(found[-1].case)}, {found[-1].threads} cores. {made(*shown)}"


def _beside(neighbours: int) -> str:
    return "alone" if neighbours == 0 else f"beside {neighbours}"


def fidelity(fidelities: list[Fidelity]) -> str:
    """What the kept form of the features of photographs changes."""
    if not fidelities:
        return NONE
    last = [f for f in fidelities if f.date == fidelities[-1].date]
    lines = [
        [f.source, f"{f.tokens:,} → {f.keep:,}", f"{f.samples}", percent(f.error), percent(f.same_picks)] for f in last
    ]
    head = ("source", "tokens → kept", "samples", "error of the features", "picks that are the same")
    return f"{table(head, lines)}\n\n{last[-1].file_mb:.1f} MB; {last[-1].packages}. {made(last[-1])}"


def headline(rows: Newest) -> str:
    """README's table: ours against the same algorithm and the nearest rivals."""
    shown = [case for case in CORE if ours(rows, case) is not None]
    if not shown:
        return NONE
    rivals = [name for name in HEADLINE_RIVALS if any((case, name) in rows for case in shown)]
    lines = []
    for case in shown:
        best, base = ours(rows, case), rows.get((case, BASELINE))
        assert best is not None
        memory = "–"
        if base is not None and base.peak_extra_mb is not None and best.peak_extra_mb is not None:
            memory = f"{best.peak_extra_mb:,.0f} / {base.peak_extra_mb:,.0f} MB"
        cells = [_cell(rows, case, name) for name in rivals]
        features = {"photograph": "photographs"}.get(CASES[case].features, CASES[case].features)
        lines.append([features, f"{best.tokens:,} → {best.keep:,}", f"**{ms(best.p50_ms)}**", *cells, memory])
    head = (
        "features",
        "tokens → kept; ms",
        "mi_pruner",
        *(COMPETITORS[name].label for name in rivals),
        "memory: ours / plain",
    )
    return table(head, lines) + "\n\n" + PROJECTED + "\n\n" + run([row for row in rows.values() if row.case in shown])
