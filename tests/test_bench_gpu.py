"""What the benchmarks do on a GPU: with stand-ins for events, graphs and features where there is none."""

import subprocess
from types import SimpleNamespace

import pytest
import torch

import mi_pruner
from bench import __main__ as command
from bench import cases, competitors, record, smoke
from bench.measure import cuda, timing
from bench.speed import goals

SMALL = cases.Case("small/8", 64, 8, 96)
HAS_GPU = torch.cuda.is_available()
needs_no_gpu = pytest.mark.skipif(HAS_GPU, reason="there is a GPU")


class FakeEvent:
    """Reads a clock that the flush and the call move."""

    now = 0.0

    def record(self):
        self.at = FakeEvent.now

    def synchronize(self):
        self.synchronised = True

    def elapsed_time(self, end):
        assert end.synchronised
        return end.at - self.at


def advance(by):
    FakeEvent.now += by


def test_event_clock_times_the_call_without_the_flush():
    clock = cuda.event_clock(FakeEvent, flush=lambda: advance(100.0))
    assert clock(lambda: advance(2.5)) == 2.5


@pytest.mark.parametrize(("ms", "calls"), [(0.001, 100), (0.1, 20), (50.0, 1)])
def test_warm_calls_come_in_batches_of_about_two_milliseconds(ms, calls):
    made = []

    def call():
        made.append(1)
        advance(ms)

    assert cuda.warm_us(call, FakeEvent) == pytest.approx(1e3 * ms)
    assert len(made) == 1 + 3 + cuda.WARM_BATCHES * calls


def device_event(name, start, stop, on_device=True):
    kinds = torch.autograd.DeviceType
    span = SimpleNamespace(start=start, elapsed_us=lambda: stop - start)
    return SimpleNamespace(name=name, device_type=kinds.CUDA if on_device else kinds.CPU, time_range=span)


def test_device_events_are_kept_in_order():
    events = [device_event("b", 5, 6), device_event("host", 0, 9, on_device=False), device_event("a", 1, 4)]
    assert [event.name for event in cuda.on_device(events)] == ["a", "b"]


def test_times_of_a_kernel_are_summed(monkeypatch):
    events = [device_event("void mi_pruner::cuda::greedy_kernel(int)", 10 * k, 10 * k + 4) for k in range(5)]
    events += [device_event("fill", 10 * k + 5, 10 * k + 6) for k in range(10)]
    monkeypatch.setattr(cuda, "_device_events", lambda call, times: events)
    assert cuda.kernel_times(lambda: None) == {"greedy_kernel": (1.0, 4.0), "fill": (2.0, 2.0)}


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        ("void mi_pruner::cuda::similarity_kernel<__nv_bfloat16, Tile<128> >(Tokens, int)", "similarity_kernel"),
        ("mi_pruner::cuda::greedy_kernel(Layout)", "greedy_kernel"),
        ("void at::native::(anonymous namespace)::fill_kernel<float>(int)", "fill_kernel"),
        ("gather_kernel", "gather_kernel"),
        ("Memset (Device)", "Memset"),
    ],
)
def test_kernels_go_by_their_functions_names(signature, name):
    assert cuda.kernel_name(signature) == name


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")
def test_on_a_gpu():
    call = competitors.calls(SMALL, ["plain"], "cuda")["plain"]
    assert cuda.launches(call) > 10
    assert sum(launches for launches, _ in cuda.kernel_times(call).values()) == pytest.approx(cuda.launches(call))
    timings = timing.measure({"eager": call, "graph": cuda.captured(call)}, "cuda", budget=0.1)
    assert all(figures.samples >= timing.MIN_SAMPLES for figures in timings.values())
    assert cuda.peak_extra_mb(call) > 0


@pytest.fixture
def on_the_cpu(monkeypatch):
    """`goals` with the CPU's kernels in the place of a GPU's, on small cases, by a clock that stands still."""
    small = {case: goals._case(case.batch, 20 + number, 5) for number, case in enumerate(goals.STEPS)}
    monkeypatch.setattr(goals, "STEPS", {small[case]: goal for case, goal in goals.STEPS.items()})
    monkeypatch.setattr(goals, "SCORES", goals.SCORES[:1])
    monkeypatch.setattr(goals, "_check", lambda names: None)
    monkeypatch.setattr(record, "machine", lambda device: "a GPU")
    monkeypatch.setattr(goals.floor, "measure", lambda device, dtype: goals.floor.Rates(1000.0, 1.0))
    monkeypatch.setattr(goals, "features", lambda case: cases.inputs(cases.Case("", 64, 5, 32), device="cpu")[0][:2])
    monkeypatch.setattr(goals, "PRUNE", goals._case(1, 64, 5))
    monkeypatch.setattr(goals, "TILED", goals._case(1, 65, 5))
    for name, stand_in in {
        "captured": lambda call: call,
        "event_clock": lambda: lambda call: 0.05,
        "warm_us": lambda call: (call(), 40.0)[1],
        "host_us": lambda call: 61.0,
        "kernel_times": lambda call: {"greedy_kernel": (1.0, 5.0)},
    }.items():
        monkeypatch.setattr(cuda, name, stand_in)


@needs_no_gpu
def test_every_goal_becomes_a_line(on_the_cpu, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(goals.plain, "prune_compiled", goals.plain.prune)
    assert command.main(["goals", "--backends", "cpu", "--compiled", "--out", str(tmp_path)]) == 0
    figures = record.read(tmp_path / goals.FILE, goals.Figure)
    found = {(figure.competitor, figure.quantity): figure for figure in figures if figure.tokens != 65}
    assert found["cpu", "prune, graph"].met is True
    assert found["cpu", "prune, host, count"].met is False
    assert found["cpu", "prune, graph, cold"].met is None
    assert found["plain", "prune, eager, of ours"].met is False
    assert found["plain", "prune, graph, of ours"].goal == ""
    assert found["cpu", "prune, graph, photographs"].met is None
    assert found["plain", "prune, graph, of ours, photographs"].value == 1
    assert sum(bool(figure.goal) for figure in figures) == 3 + 4 + 1 + 2
    assert [f.quantity for f in figures if f.tokens == 65] == ["prune, graph", "prune, graph, photographs"]
    steps = [(f.quantity, f.batch, f.tokens) for f in figures if "a step" in f.quantity]
    assert steps[5:] == [(f"{quantity}, photographs", *sizes) for quantity, *sizes in steps[:5]]
    kernels = record.read(tmp_path / goals.KERNELS_FILE, goals.KernelTime)
    assert {kernel.call for kernel in kernels} == {"prune", "greedy_select", "greedy_select, photographs", "mi_scores"}
    printed = capsys.readouterr().out
    assert "missed" in printed
    assert "of it: greedy_kernel 5.0" in printed


def test_goals_take_photographs_as_the_cases_do(monkeypatch):
    case, inputs = cases.of_photographs(goals._case(2, 300, 5)), cases.inputs
    monkeypatch.setattr(cases, "inputs", lambda case, device: inputs(case))
    visual, text = goals.features(case)
    assert (tuple(visual.shape), tuple(text.shape)) == ((2, 300, 4096), (2, 32, 4096))
    assert torch.equal(visual, inputs(case)[0].visual)
    assert visual.dtype == torch.bfloat16


def test_a_step_is_what_each_pick_adds_to_the_selection(monkeypatch):
    def times(call):
        return {"similarity_kernel": (1.0, 99.0 * call()), "greedy_kernel": (1.0, 3 + 2.0 * call())}

    monkeypatch.setattr(cuda, "kernel_times", times)
    assert goals._step(lambda keep: keep, 11) == 2.0


@needs_no_gpu
def test_a_backend_that_fails_does_not_keep_others_from_being_measured(on_the_cpu, tmp_path, capsys, monkeypatch):
    measure = goals.measure

    def fails(name, *arguments):
        if name == "cpu":
            raise RuntimeError("an illegal memory access\nand more")
        measure(name, *arguments)

    monkeypatch.setattr(goals, "measure", fails)
    assert command.main(["goals", "--backends", "cpu", "reference", "--out", str(tmp_path)]) == 1
    assert "cpu: RuntimeError: an illegal memory access\n" in capsys.readouterr().err
    assert {f.competitor for f in record.read(tmp_path / goals.FILE, goals.Figure)} == {"torch", "reference", "plain"}


@needs_no_gpu
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    assert command.main(["goals", "--out", str(tmp_path)]) == 2
    assert "goals: expected a GPU, found none" in capsys.readouterr().err
    assert command.main(["smoke", "triton"]) == 2
    assert "smoke: backend 'triton': " in capsys.readouterr().err


@pytest.fixture
def _graphs_that_run_at_once(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: mi_pruner.backend("auto"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


@pytest.mark.usefixtures("_graphs_that_run_at_once")
@needs_no_gpu
def test_smoke_compares_with_the_reference(monkeypatch, capsys):
    assert smoke._check("cpu", (2, 30, 4, 16, 5), "cpu") == 0
    assert "distinct=True, from a graph same=True: True" in capsys.readouterr().out
    monkeypatch.setattr(smoke, "ALLOWED", 0.0)
    assert smoke._check("cpu", (2, 30, 4, 16, 5), "cpu") == 1


def test_the_script_names_its_stages(tmp_path):
    script = record.ROOT / "bench" / "gpu_check.sh"
    told = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert "bench/gpu_check.sh OUT first" in told.stderr + told.stdout
    told = subprocess.run(["bash", script, tmp_path, "nothing"], capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert "stage: expected first, second, " in told.stderr
