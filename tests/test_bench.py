"""The benchmarks: the plain rivals give the package's answer, and the runner measures and keeps every figure."""

import sys
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import mi_pruner
from bench import __main__ as runner
from bench import competitors, record, shapes, timing
from bench.baselines import plain

MODES = [
    {},
    {"marginal": "prior", "redundancy": "chain"},
    {"redundancy": "chain", "redundancy_weight": 2.0},
    {"redundancy": "max", "redundancy_weight": 0.5},
    {"redundancy": "none"},
    {"redundancy_weight": 0.0},
    {"bandwidth": 0.3, "visual_bandwidth": 0.4},
]


def reference(visual, text, keep, **options):
    with mi_pruner.backend("reference"):
        return mi_pruner.prune(visual, text, keep, **options)


def features(tokens=75, keep=17, width=48, text=5, batch=2, dtype=torch.float64):
    """Random rows: in float64 no two gains are near enough to change places by rounding."""
    return (*shapes.features(shapes.Case("test", tokens, keep, width, text, batch, dtype), seed=1), keep)


def assert_same(ours, theirs, tolerance=1e-9):
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("prune", [plain.prune, plain.prune_symmetric], ids=["full", "symmetric"])
@pytest.mark.parametrize("options", MODES, ids=str)
def test_plain_gives_the_reference_answer(prune, options):
    inputs = features()
    assert_same(prune(*inputs, **options), reference(*inputs, **options))


@pytest.mark.parametrize("options", MODES, ids=str)
def test_plain_with_priors_and_more_slots_than_tokens(options):
    visual, text, _ = features()
    visual_prior = torch.rand(2, 75, dtype=torch.float64)
    visual_prior[0, 10:] = 0
    visual_prior[1, 3] = torch.nan
    text_prior = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]], dtype=torch.bool)
    options = {"visual_prior": visual_prior, "text_prior": text_prior, **options}
    assert_same(plain.prune(visual, text, 17, **options), reference(visual, text, 17, **options))


def test_triangle_of_many_bands():
    visual, text, keep = features(tokens=2 * plain.CPU_TRIANGLE_BAND + 31)
    assert_same(plain.prune_symmetric(visual, text, keep), reference(visual, text, keep))


@pytest.mark.parametrize("redundancy", ["mean", "max"])
def test_compiled_twin(redundancy):
    visual, text, keep = features(tokens=41, batch=1)
    assert keep % plain.STEPS, "the last compiled call must run past keep"
    assert_same(
        plain.prune_compiled(visual, text, keep, redundancy=redundancy),
        reference(visual, text, keep, redundancy=redundancy),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_plain_accumulates_in_float32(dtype):
    visual, text, keep = features(dtype=dtype)
    gains = plain.prune(visual, text, keep)[2]
    exact = reference(visual.double(), text.double(), keep)[2]
    assert gains.dtype == torch.float32
    torch.testing.assert_close(gains.sort()[0].double(), exact.sort()[0], rtol=1e-3, atol=1e-5)


def test_plain_depends_on_no_value():
    """Under fake tensors any look at a value raises: no sync, so a CUDA graph can capture the call."""
    with FakeTensorMode():
        tokens, indices, gains = plain.prune(torch.empty(2, 300, 8), torch.empty(2, 3, 8), 7)
    assert tokens.shape == (2, 7, 8)
    assert indices.shape == gains.shape == (2, 7)


@pytest.mark.parametrize("case", shapes.CASES.values(), ids=lambda case: case.name)
def test_shapes_are_possible(case):
    assert case.name == f"{case.name.split('/')[0]}/{case.keep}"
    assert 1 <= case.keep <= case.tokens
    assert case.flops > 0
    assert case.bytes > 0


def test_core_cases_exist():
    assert set(shapes.QUICK) < set(shapes.CORE) <= set(shapes.CASES)


def test_features_are_seeded_and_clustered():
    case = shapes.Case("test", 200, 10, 512, batch=2)
    visual, text = shapes.features(case)
    assert visual.shape == (2, 200, 512)
    assert text.shape == (2, 32, 512)
    assert torch.equal(visual, shapes.features(case)[0])
    assert not torch.equal(visual, shapes.features(case, seed=1)[0])
    unit = torch.nn.functional.normalize(visual[0], dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(0)
    assert cosines.amax(1).median() > 0.75
    assert 0.2 < cosines.median() < 0.5


def test_percentiles_interpolate():
    assert timing.percentiles([4.0, 0.0, 1.0, 3.0, 2.0]) == timing.Timing(0.8, 2.0, 3.2, 5)
    assert timing.percentiles([7.0]) == timing.Timing(7.0, 7.0, 7.0, 1)


def test_measure_takes_turns():
    turns: list[str] = []
    shares: list[float] = []
    calls: dict[str, timing.Call] = {name: partial(turns.append, name) for name in "ab"}
    timings = timing.measure(calls, budget=1e-9, on_round=shares.append)
    warm = 2 * timing.WARM_UP
    assert turns[:warm] == ["a"] * timing.WARM_UP + ["b"] * timing.WARM_UP
    assert turns[warm : warm + 4] == ["a", "b", "b", "a"]
    assert shares[-1] == 1
    assert shares == sorted(shares)
    for figures in timings.values():
        assert figures.samples == timing.MIN_ROUNDS
        assert 0 <= figures.p20 <= figures.p50 <= figures.p80


def test_peak_memory_of_a_known_allocation():
    megabytes = timing.peak_extra_mb(lambda: torch.ones(32_000_000))
    assert 125 <= megabytes <= 150
    assert timing.peak_extra_mb(lambda: None) < 20, "the peak starts anew"


def test_peak_memory_in_a_process_of_its_own():
    """The (N, N) array of plain PyTorch is seen, the inputs are not."""
    case = shapes.Case("test", 2000, 4, 1000)
    assert 16 <= competitors.peak_extra_mb(case, "plain") <= 16 + 8


def test_a_run_keeps_every_column(tmp_path, monkeypatch, capsys):
    path = tmp_path / "new" / "results.csv"
    monkeypatch.setattr(runner, "QUICK_BUDGET", 1e-9)
    monkeypatch.setattr(competitors, "peak_extra_mb", lambda case, name, device: 12.34)
    monkeypatch.setitem(shapes.CASES, "small/8", shapes.Case("small/8", 64, 8, 96))
    arguments = ["--quick", "--cases", "small/8", "--competitors", "ours-reference", "plain", "--out", str(path)]
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    assert runner.main() == 0
    ours, baseline = record.read(path)
    assert (ours.competitor, baseline.competitor) == ("ours-reference", "plain")
    assert (ours.tokens, ours.keep, ours.width, ours.dtype, ours.device) == (64, 8, 96, "float32", runner_device())
    assert baseline.speedup == 1
    assert ours.speedup == pytest.approx(baseline.p50_ms / ours.p50_ms, rel=1e-2)
    assert ours.peak_extra_mb == 12.3
    assert ours.command.startswith("python -m bench --quick")
    assert all(getattr(ours, column) not in ("", None) for column in record.COLUMNS)
    assert "small/8: keep 8 of (1, 64, 96)" in capsys.readouterr().out


def runner_device():
    return "cuda" if torch.cuda.is_available() else "cpu"


def test_appending_and_foreign_columns(tmp_path):
    path = tmp_path / "results.csv"
    case = shapes.CASES["llava-1.5/64"]
    rows = record.rows(record.this_run("cpu"), case, {"x": timing.Timing(1.0, 2.0, 3.0, 9)}, {}, "plain")
    record.append(path, rows)
    record.append(path, rows)
    assert record.read(path) == rows * 2
    assert rows[0].speedup is None
    assert rows[0].peak_extra_mb is None
    assert rows[0].gflop_per_s == pytest.approx(case.flops / 2e6, rel=1e-3)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"expected the columns .* got a, b"):
        record.append(path, rows)


def test_a_file_that_cannot_take_the_rows_is_refused_first(tmp_path, monkeypatch, capsys):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n")
    monkeypatch.setattr(sys, "argv", ["bench", "--out", str(path)])
    assert runner.main() == 2
    assert "expected the columns" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "nothing/1"], "--cases: expected any of"),
        (["--competitors", "nobody"], "--competitors: expected any of"),
    ],
)
def test_unknown_names(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    assert runner.main() == 2
    assert message in capsys.readouterr().err
