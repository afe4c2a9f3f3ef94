"""The benchmarks: the runner measures and keeps every figure, and pictures and tables come from what was kept."""

import dataclasses
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch

import mi_pruner
from bench import __main__ as command
from bench import cases, competitors, everything, record
from bench.competitors import COMPETITORS
from bench.measure import Call, floor, memory, timing
from bench.pages import documents, expected, plot, tables
from bench.pages.kept import Kept, read
from bench.pages.pictures import _spread
from bench.speed import goals, histogram, machine_code, prefill, run
from bench.speed.language_models import MODELS, LanguageModel
from bench.speed.rows import Entry, Row, newest, rows

SMALL = cases.Case("small/8", 64, 8, 96)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RATES = floor.Rates(copy_gb_per_s=10.0, matmul_gflop_per_s=100.0)


def test_the_registered_cases_are_possible():
    for name, case in cases.CASES.items():
        assert case.name == name
        assert sum(tokens for tokens, _ in case.samples) == case.tokens * (1 if case.sizes else case.batch)
        assert sum(keep for _, keep in case.samples) == case.keep * (1 if case.sizes else case.batch)
        assert all(1 <= keep <= tokens for tokens, keep in case.samples)
    named = {*cases.QUICK, *cases.CORE, *cases.TOO_LONG_FOR_A_CPU, *MODELS}
    assert named <= set(cases.CASES)
    assert set(cases.CORE) <= set(cases.usual("cpu")[0])
    assert cases.usual("cuda") == (list(cases.CASES), [])
    assert set(cases.usual("cpu")[1]) == cases.TOO_LONG_FOR_A_CPU


def test_features_are_seeded_and_clustered():
    case = cases.Case("test", 200, 10, 512, batch=2)
    given = cases.inputs(case)[0]
    assert [tuple(x.shape) for x in given] == [(2, 200, 512), (2, 32, 512), (2, 200)]
    assert torch.equal(given.visual, cases.inputs(case)[0].visual)
    assert not torch.equal(given.visual, cases.inputs(case, seed=1)[0].visual)
    unit = torch.nn.functional.normalize(given.visual[0], dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(0)
    assert cosines.amax(1).median() > 0.75
    assert 0.2 < cosines.median() < 0.5


def test_packed_features_are_one_sample_each():
    case = cases.Case("test", 27, 3, 16, batch=2, sizes=(9, 18))
    assert [tuple(x.visual.shape) for x in cases.inputs(case)] == [(1, 9, 16), (1, 18, 16)]
    assert case.samples == [(9, 1), (18, 2)]


@pytest.mark.parametrize("name", [n for n in COMPETITORS if competitors.why_not(n, "cpu") is None])
def test_every_competitor_prunes_dense_and_packed(name):
    competitor = COMPETITORS[name]
    if competitor.compiles:
        pytest.skip("compiled in tests/test_bench_plain.py")
    case = cases.Case("test", 32, 8, 16, batch=2)
    given = cases.inputs(case)[0]
    tokens, indices = competitor.prune(given, case.keep)
    assert tokens.shape == (2, indices.shape[1], 16)
    assert torch.equal(tokens, given.visual.gather(1, indices[:, :, None].expand(-1, -1, 16)))
    assert (indices.diff() > 0).all(), "in the original order"
    packed = cases.Case("test", 48, 12, 16, batch=2, sizes=(16, 32))
    competitors.calls(packed, [name])[name]()


def test_our_packed_call_gives_what_one_call_each_gives():
    case = cases.Case("test", 48, 12, 16, batch=2, sizes=(16, 32))
    _, indices, _ = competitors.calls(case, ["ours-cpu"])["ours-cpu"]()
    samples = zip(cases.inputs(case), case.samples, strict=True)
    alone = [COMPETITORS["ours-cpu"].prune(given, keep)[1][0] for given, (_, keep) in samples]
    assert torch.equal(indices, torch.cat(alone))


def test_who_sits_a_case_out():
    large = cases.Case("large", 5000, 500, 64)
    assert "1024" in competitors.too_long("ours-reference", large, True, "cpu")
    assert "passes" in competitors.too_long("mmtok", large, True, "cpu")
    assert competitors.too_long("mmtok", large, True, "cuda") is None
    assert "compiles" in competitors.too_long("plain-compiled", large, False, "cpu")
    assert competitors.too_long("plain-compiled", large, True, "cpu") is None


def test_floor():
    case = cases.Case("test", 100, 10, 1000, text=20)
    assert floor.flops(case, floor.Work(text=True, rows="keep")) == 2 * 100 * 1000 * 30
    assert floor.flops(case, floor.Work(text=False, rows="all")) == 2 * 100 * 1000 * 50
    assert floor.bytes_moved(case, floor.Work(text=True, rows="keep")) == 4 * 1000 * 130
    assert floor.bytes_moved(case, floor.Work(text=False, rows="none", features=False)) == 4 * 1000 * 20
    assert floor.floor_ms(case, floor.Work(True, "keep"), RATES) == (pytest.approx(0.06), "matmul")
    assert floor.floor_ms(case, floor.Work(True, "none"), RATES) == (pytest.approx(0.052), "copy")


def test_rates_are_measured(monkeypatch):
    monkeypatch.setitem(floor.COPY_BYTES, "cpu", 1 << 20)
    monkeypatch.setitem(floor.MATMUL_SIZE, "cpu", 64)
    rates = floor.measure("cpu", torch.float32)
    assert rates.copy_gb_per_s > 0
    assert rates.matmul_gflop_per_s > 0


def test_percentiles_interpolate():
    assert timing.percentiles([4.0, 0.0, 1.0, 3.0, 2.0]) == timing.Timing(0.8, 2.0, 3.2, 5)
    assert timing.percentiles([7.0]) == timing.Timing(7.0, 7.0, 7.0, 1)


def test_measure_takes_turns():
    turns: list[str] = []
    shares: list[float] = []
    calls: dict[str, Call] = {name: partial(turns.append, name) for name in "abc"}
    timings = timing.measure(calls, budget=1e-9, on_turn=shares.append)
    warm = 3 * timing.WARM_UP
    measured = turns[warm:]
    assert all(measured[i] != measured[i + 1] for i in range(len(measured) - 1))
    assert {name: measured.count(name) for name in "abc"} == dict.fromkeys("abc", timing.MIN_SAMPLES)
    assert shares[-1] == 1
    assert shares == sorted(shares)
    for figures in timings.values():
        assert figures.samples == timing.MIN_SAMPLES
        assert 0 <= figures.p20 <= figures.p50 <= figures.p80


def test_slow_calls_are_spread_over_the_run(monkeypatch):
    """By a clock that the calls move: 30 s a call against 1 s, 150 s each."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    turns: list[str] = []

    def call(name, seconds):
        turns.append(name)
        now[0] += seconds

    timing.measure({"slow": partial(call, "slow", 30), "fast": partial(call, "fast", 0.9)}, budget=300)
    places = [i for i, name in enumerate(turns[4:]) if name == "slow"]
    assert len(places) == 5
    gaps = torch.tensor(places).diff()
    assert gaps.min() > 20, "evenly"
    assert turns.count("fast") > 150


def test_samples_of_slow_calls_are_few(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def call():
        now[0] += 2 * timing.SLOW

    assert timing.measure({"slow": call}, budget=1e-9)["slow"].samples == timing.SLOW_SAMPLES


@pytest.mark.slow
def test_peak_memory_of_a_known_allocation():
    megabytes = memory.peak_extra_mb(lambda: torch.ones(32_000_000))
    assert 125 <= megabytes <= 150
    assert memory.peak_extra_mb(lambda: None) < 20, "the peak starts anew"


@pytest.mark.slow
def test_peak_memory_in_a_process_of_its_own():
    """The (N, N) array of plain PyTorch is seen, the inputs are not."""
    case = cases.Case("test", 2000, 4, 1000)
    assert 16 <= competitors.peak_extra_mb(case, "plain", "cpu") <= 16 + 8


@pytest.mark.slow
def test_a_process_that_dies_is_an_error():
    with pytest.raises(RuntimeError, match=r"_exit.*without a result"):
        memory.in_a_process(_exit, 3)


def _exit(status):
    raise SystemExit(status)


@pytest.fixture
def tiny_run(monkeypatch, tmp_path):
    """Runs the command on small cases; returns its folder of results."""
    monkeypatch.setattr(run, "_rates", lambda device, dtype: RATES)
    monkeypatch.setattr(competitors, "peak_extra_mb", lambda case, name, device: 12.34)
    size = {"tokens": 36, "keep": 4, "width": 32, "text": 4}
    small = {name: dataclasses.replace(case, **size) for name, case in cases.CASES.items() if not case.sizes}
    for number, case in enumerate(cases.SETS["sweep-tokens"]):
        small[case.name] = dataclasses.replace(small[case.name], tokens=18 * (number + 1))
    small["packed-8"] = cases.Case("packed-8", 54, 6, 32, batch=2, sizes=(18, 36))
    for name, case in small.items():
        monkeypatch.setitem(cases.CASES, name, case)

    def measure(*arguments):
        arguments = ("--budget", "1e-9", "--out", str(tmp_path), *arguments)
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        return command.main()

    measure.folder = tmp_path
    return measure


def test_a_run_keeps_every_column(tiny_run, capsys):
    names = ["plain", "mmtok", "ours-reference"]
    assert tiny_run("--cases", "llava-1.5/64", "packed-8", "--competitors", *names) == 0
    path = record.path_in(tiny_run.folder, DEVICE)
    kept = [row for row in record.read(path, Row) if row.mode == "eager"]
    assert [row.competitor for row in kept] == names * 2
    base, _, ours = kept[:3]
    assert (ours.tokens, ours.keep, ours.width, ours.device, ours.samples) == (36, 4, 32, DEVICE, timing.MIN_SAMPLES)
    assert base.speedup == 1
    assert ours.speedup == pytest.approx(base.p50_ms / ours.p50_ms, rel=1e-2)
    assert ours.peak_extra_mb == 12.34
    assert kept[-1].peak_extra_mb is None, "not one of the main cases"
    assert ours.command.startswith("python -m bench --budget 1e-9")
    empty = {"launches"} if DEVICE == "cpu" else set()
    assert {c for c in record.columns(Row) if getattr(ours, c) in ("", None)} == empty
    printed = capsys.readouterr().out
    assert "llava-1.5/64: keep 4 of (1, 36, 32)" in printed
    assert "2 samples of [18, 36]" in printed


def test_a_run_without_names_says_who_is_left_out(tiny_run, monkeypatch, capsys):
    monkeypatch.setattr(cases, "CORE", ())
    assert tiny_run("--cases", "keep-64") == 0
    printed = capsys.readouterr().out
    assert "plain-compiled" in printed
    assert "left out: compiles for each shape" in printed
    if DEVICE == "cpu":
        assert "left out: ours-triton: " in printed


def test_who_fails_is_left_out_and_the_run_goes_on(tiny_run, monkeypatch, capsys):
    def fails(given, keep):
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setitem(COMPETITORS, "mmr", dataclasses.replace(COMPETITORS["mmr"], prune=fails))
    assert tiny_run("--cases", "keep-64", "--competitors", "mmr", "cosine") == 0
    assert "left out: OutOfMemoryError: no memory left" in capsys.readouterr().out
    kept = record.read(record.path_in(tiny_run.folder, DEVICE), Row)
    assert {row.competitor for row in kept} == {"cosine"}
    assert tiny_run("--cases", "keep-64", "--competitors", "mmr") == 0


def test_who_fails_later_is_left_out_too():
    turns = iter([None] * (timing.WARM_UP + 1))

    def call():
        if next(turns, "end") == "end":
            raise RuntimeError("later")

    failed: list[str] = []
    timings = timing.measure(
        {"bad": call, "good": lambda: None}, budget=1e-9, on_failure=lambda key, error: failed.append(key)
    )
    assert (list(timings), failed) == (["good"], ["bad"])


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU measures every case")
def test_cases_that_are_left_out_are_named(tiny_run, capsys):
    assert tiny_run("--sets", "video") == 2
    printed = capsys.readouterr()
    assert "left out: the case video-16k/1638: too long for the usual run on a CPU" in printed.out
    assert "no case is left" in printed.err


def test_a_busy_machine_is_warned_of_and_noted(tiny_run, monkeypatch, capsys):
    monkeypatch.setattr(record, "load_per_core", lambda: 0.9)
    assert tiny_run("--cases", "keep-64", "--competitors", "cosine") == 0
    assert "warning: a load of 0.9 per core" in capsys.readouterr().err
    assert record.read(record.path_in(tiny_run.folder, DEVICE), Row)[0].load == 0.9


def test_all_writes_no_document_for_another_folder(tmp_path, monkeypatch, capsys):
    done: list[str] = []
    parts = (everything.run, everything.histogram, everything.robustness, everything.guess)
    for part, status in (*((part, 0) for part in parts), (everything.instructions, 2)):
        monkeypatch.setattr(
            part, "main", lambda options, part=part, status=status: done.append(part.__name__) or status
        )
    monkeypatch.setattr(everything.plot, "main", lambda options: done.append("plot") or 0)
    assert command.main(["all", "--out", str(tmp_path)]) == 2
    assert "plot" not in done
    assert "not plotted" in capsys.readouterr().err
    assert command.main(["all"]) == 2
    assert done[-1] == "plot", "though a part failed"


def test_histograms_are_measured_beside_plain_pytorch_that_gives_the_same(tmp_path, monkeypatch, capsys):
    given = cases.inputs(SMALL, device=DEVICE)[0]
    plain = histogram.plain_scores(given.visual, given.text, histogram.BINS)
    torch.testing.assert_close(plain, mi_pruner.histogram_mi_scores(given.visual, given.text), rtol=0, atol=1e-5)
    monkeypatch.setattr(histogram, "CASES", (SMALL.name,))
    monkeypatch.setattr(histogram, "BUDGET", 0.01)
    monkeypatch.setitem(cases.CASES, SMALL.name, SMALL)
    assert command.main(["histogram", "--out", str(tmp_path)]) == 0
    kept = record.read(tmp_path / histogram.FILE, histogram.Scored)
    assert [row.competitor for row in kept] == ["ours-cpu" if DEVICE == "cpu" else "ours-triton", "plain"]
    assert kept[-1].speedup == 1
    assert SMALL.name in capsys.readouterr().out


def test_without_git_the_commit_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert record.this_run("cpu").commit == "unknown"
    monkeypatch.setenv("MI_PRUNER_COMMIT", "0123abc")
    assert record.this_run("cpu").commit == "0123abc"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_results_of_a_run_are_no_changes_of_its_commit(monkeypatch, tmp_path):
    monkeypatch.delenv("MI_PRUNER_COMMIT", raising=False)
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    code, result = tmp_path / "code", tmp_path / "results" / "some.csv"
    code.write_text("")
    result.write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "m"]):
        subprocess.run([*git, *arguments], check=True)
    commit = record.this_run("cpu").commit
    result.write_text("more")
    assert record.this_run("cpu").commit == commit
    code.write_text("more")
    assert record.this_run("cpu").commit == f"{commit}+changes"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "nothing/1"], "--cases: expected any of"),
        (["--sets", "nothing"], "--sets: expected any of"),
        (["--competitors", "nobody"], "--competitors: expected any of"),
        (["--budget", "0"], "--budget: expected seconds > 0, got 0"),
    ],
)
def test_wrong_options(tmp_path, capsys, arguments, message):
    assert command.main(["--out", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_cannot_take_the_rows_is_refused_first(tmp_path, capsys):
    record.path_in(tmp_path, DEVICE).write_text("a,b\n")
    assert command.main(["--out", str(tmp_path)]) == 2
    assert "expected the columns" in capsys.readouterr().err


def kept_row(competitor="ours-cpu", case=SMALL, p20=1.0, p50=2.0, p80=3.0, **more):
    timings = {Entry(competitor): timing.Timing(p20, p50, p80, 9)}
    return dataclasses.replace(rows(record.this_run("cpu"), case, RATES, timings, {}, {})[0], **more)


def test_records_survive_the_file(tmp_path):
    path = tmp_path / "new" / "results.csv"
    row = kept_row()
    record.append(path, Row, [row])
    record.append(path, Row, [row])
    assert record.read(path, Row) == [row, row]
    assert row.speedup is None
    assert [r.p50_ms for r in newest([row, dataclasses.replace(row, p50_ms=5.0)]).values()] == [5.0]
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"expected the columns .* got a, b"):
        record.append(path, Row, [row])


@pytest.mark.parametrize(("p20", "p50", "p80", "status"), [(1, 2, 3, 0), (3, 3.3, 4, 0), (9, 10, 11, 1)])
def test_compare_flags_what_is_worse_beyond_the_spread(tmp_path, capsys, p20, p50, p80, status):
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    base = kept_row("plain", p20=8.0, p50=10.0, p80=12.0)
    record.append(old, Row, [base, kept_row()])
    record.append(new, Row, [base, kept_row(p20=p20, p50=p50, p80=p80)])
    assert command.main(["compare", str(old), str(new)]) == status
    printed = capsys.readouterr().out
    assert ("WORSE" in printed) == bool(status)
    assert "small/8" in printed


def test_compare_ignores_a_machine_that_became_slower(tmp_path):
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    record.append(old, Row, [kept_row("plain"), kept_row()])
    record.append(new, Row, [kept_row("plain", p20=100, p50=200, p80=300), kept_row(p20=100, p50=200, p80=300)])
    assert command.main(["compare", str(old), str(new)]) == 0


def test_compare_names_what_is_missing_and_passes_over_unknown_names(tmp_path, capsys):
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    gone = kept_row("ours-reference")
    renamed = kept_row(competitor="cosine")
    renamed = dataclasses.replace(renamed, competitor="ours-renamed")
    record.append(old, Row, [kept_row("plain"), kept_row(), gone])
    record.append(new, Row, [kept_row("plain"), kept_row(), renamed])
    assert command.main(["compare", str(old), str(new)]) == 0
    assert "MISSING small/8, ours-reference, eager" in capsys.readouterr().out


def test_compare_needs_something_in_common(tmp_path, capsys):
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    record.append(old, Row, [kept_row("plain"), kept_row()])
    record.append(new, Row, [kept_row("plain"), kept_row(machine="another")])
    assert command.main(["compare", str(old), str(new)]) == 2
    assert command.main(["compare", str(old), str(tmp_path / "none.csv")]) == 2
    assert "none.csv" in capsys.readouterr().err


@pytest.mark.slow
def test_pictures_and_tables_from_a_run(tiny_run, tmp_path, capsys):
    sets = ["--sets", "sweep-tokens", "sweep-keep", "sweep-batch"]
    assert tiny_run(*sets, "--competitors", "ours-cpu", "plain", "cdpruner") == 0
    assert tiny_run("--quick", "--cases", *cases.CORE, "--competitors", "ours-cpu", "plain", "cosine") == 0
    (tmp_path / "docs").mkdir()
    names = [f"{block}-cpu" for block in ("run", "models", "others", "ahead", "core", "prefill")]
    names += ["run-cuda", "robustness", "instructions", "prefill-measured"]
    document = "\n".join(f"## {n}\n<!-- bench:{n} -->\nold\n<!-- /bench:{n} -->" for n in names)
    (tmp_path / "docs" / "benchmarks.md").write_text(document)
    for page in plot.PAGES[1:]:
        (tmp_path / "docs" / f"{page}.md").write_text("")
    (tmp_path / "README.md").write_text("before\n<!-- bench:headline -->\n<!-- /bench:headline -->\nafter\n")
    arguments = ["plot", "--results", str(tiny_run.folder), "--root", str(tmp_path)]
    assert command.main(arguments) == 0
    filled = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert "old" not in filled
    assert "**mi_pruner (cpu)**" in filled
    assert "A short run" in filled, "--quick was given"
    assert "EFFICIENCY" in filled
    assert filled.count("*Not measured yet.*") == 5, "others, the GPU, robustness, instructions, the real stack"
    readme = (tmp_path / "README.md").read_text()
    assert "| 36 → 4 | **" in readme
    assert readme.startswith("before\n")
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "docs" / "images").glob("*.svg")}
    assert set(pictures) == {f"bench-cpu-{name}.svg" for name in ("tokens", "keep", "batch", "floor", "prefill")}
    assert command.main(arguments) == 0
    assert (tmp_path / "docs" / "benchmarks.md").read_text() == filled
    for name, drawn in pictures.items():
        assert (tmp_path / "docs" / "images" / name).read_bytes() == drawn, "the same figures, the same file"


def test_the_blocks_of_the_documents_are_those_that_are_filled():
    blocks = dict.fromkeys(tables.blocks(Kept({}, *[[]] * (len(dataclasses.fields(Kept)) - 1)), []), "")
    for name in plot.DOCUMENTS:
        text = (record.ROOT / name).read_text(encoding="utf-8")
        assert documents.fill(text, blocks, "bench") != text
    with pytest.raises(ValueError, match="block nothing: expected one of picture-cpu-tokens"):
        documents.fill("<!-- bench:nothing --><!-- /bench:nothing -->", blocks, "bench")


def test_what_kernels_take_at_least():
    """100 instructions and 198 cycles a turn, at 1,980 cycles a us."""
    loops = [
        machine_code.Count("2026-01-01", "abc", "13.0", "sm_90a", name, 100, 198, "command")
        for name in machine_code.LOOPS
    ]
    shared = ("2026-01-02T00:00", "abd", "command", "GPU", "cuda", 1, "2.11")
    times = [
        goals.KernelTime(*shared, "cuda", "greedy_select", 1, 576, 64, "greedy_warp_kernel", 1.0, us)
        for us in (90.0, 64.65)
    ]
    text = expected.block(loops, times)
    steps = "greedy_warp, 1 × 576 → 64 | greedy step, one warp, N ≤ 640: 100, 198 | 64 × 1 | **6.4** | 3.23 |"
    assert f"| {steps}  | 0.00882 |  | 64.7 | 10 % |" in text
    gram = "| gram, 1 × 576 → 64 | stage, wgmma, a cluster: 100, 198 | 8 × 2 | 0.8 | 0.808 | **2.07** | 1.41 |"
    assert f"{gram}  | – | – |" in text
    scores = (
        "| similarity, 1 × 32,768 | stage, mma.sync: 100, 198 | 64 × 4 | 6.4 | 12.9 | 16.5 | 20.1 | **81.4** | – | – |"
    )
    assert scores in text
    assert "Measured: GPU, torch 2.11, commit abd, 2026-01-02, by `command`." in text
    assert expected.block([], times) == "*Not measured yet.*"
    with pytest.raises(ValueError, match="expected greedy step, one warp, N ≤ 640: python -m bench machine-code"):
        expected.block(loops[1:], times)


def test_a_run_of_some_lines_takes_the_place_of_these_alone():
    def figure(date, commit, competitor, quantity, value, goal="", machine="H"):
        run = (date, commit, "command", machine, "cuda", 1, "2.11", "versions")
        return goals.Figure(*run, competitor, quantity, 1, 576, 64, 4096, 32, value, "us", goal)

    figures = [
        figure("2026-01-01", "old", "cuda", "another machine's", 9.0, machine="G"),
        figure("2026-01-02", "abc", "torch", "copy", 4000.0),
        figure("2026-01-02", "abc", "cuda", "prune", 41.0, "<= 40"),
        figure("2026-01-02", "abc", "triton", "prune", 90.0, "<= 40"),
        figure("2026-01-02", "abc", "cuda", "step", 0.2),
        figure("2026-01-03", "abd", "torch", "copy", 4100.0),
        figure("2026-01-03", "abd", "cuda", "prune", 39.0, "<= 40"),
    ]
    lines = tables.goal_table(figures).splitlines()
    assert lines[2:4] == [
        "| prune | 1 × 576 → 64 | ≤ 40 us | **39** | 90 | – |",
        "| step | 1 × 576 → 64 | us | 0.2 | – | – |",
    ]
    assert "commit abc and abd, 2026-01-02 and 2026-01-03, by `command`" in lines[-1]
    assert "A copy in the same run: 4,000 and 4,100 GB/s" in lines[-1]


def test_a_call_shows_the_kernels_of_its_newest_run_alone():
    def kernel(date, call, name, us):
        run = (date, "abc", "command", "H", "cuda", 1, "2.11")
        return goals.KernelTime(*run, "cuda", call, 1, 576, 64, name, 1.0, us)

    times = [
        kernel("2026-01-02", "prune", "similarity_kernel", 9.0),
        kernel("2026-01-02", "greedy_select", "greedy_kernel", 5.0),
        kernel("2026-01-03", "prune", "gram_kernel", 4.0),
    ]
    assert tables.kernel_table(times, "cuda").splitlines()[2:4] == [
        "| prune | 1 × 576 → 64 | gram 4 |",
        "| greedy_select | 1 × 576 → 64 | greedy 5 |",
    ]


def test_the_documents_show_the_kept_counts():
    kept = read(record.RESULTS)
    text = (record.ROOT / "docs/kernels-cuda.md").read_text(encoding="utf-8")
    assert expected.block(kept.loops, kept.kernels) in text, "python -m bench plot"


def test_labels_are_spread():
    assert _spread([0.0, 5.0, 9.0], 1.0, 0.0, 10.0) == [0.0, 5.0, 9.0]
    assert _spread([5.0, 5.0, 5.0], 1.0, 0.0, 10.0) == [5.0, 6.0, 7.0]
    assert _spread([9.0, 9.5, 10.0], 1.0, 0.0, 10.0) == [8.0, 9.0, 10.0]


def test_cost_model_counts_the_known_sizes():
    """Vicuna-7B has 6.5 G weights in its layers; a prefill of 640 tokens is about 9 TFLOP."""
    model = MODELS["llava-1.5/64"]
    assert model.layers * model.layer_weights == pytest.approx(6.48e9, rel=0.01)
    assert model.flops(640) == pytest.approx(8.5e12, rel=0.05)
    assert model.seconds(640, 1000.0) == pytest.approx(model.flops(640) / 0.8e12)


def test_the_decoder_stack_runs_and_weighs_what_the_model_says():
    model = LanguageModel("tiny", layers=2, width=32, heads=4, kv_heads=2, head_dim=8, ffn=64, vocabulary=50)
    stack = prefill.Decoder(model, "cpu", torch.float32)
    assert sum(w.numel() for layer in stack.layers for w in layer.values()) == 2 * model.layer_weights
    assert stack(stack.embeddings(7)).shape == (1, 50)
    figures = prefill.measure(model, SMALL, "cpu", torch.float32, budget=1e-9)
    assert all(figures[name] > 0 for name in ("dense_ms", "pruned_ms", "selection_ms"))


@pytest.mark.skipif(DEVICE == "cuda", reason="there is a GPU")
def test_prefill_needs_a_gpu(tmp_path, capsys):
    assert command.main(["prefill", "--out", str(tmp_path)]) == 2
    assert "expected a GPU, found none" in capsys.readouterr().err
