"""`python -m bench shared` with stand-ins for GPU, MPS and neighbours: what runs, what is left out, what is shown."""

import dataclasses
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from bench import __main__ as command
from bench import cases, record
from bench.pages import kept, tables
from bench.speed import shared

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
FIGURES = {"call": "an image", "p50_us": 80.25, "p90_us": 1234.5, "samples": 100}
FOUND = {"same": True, "backend": "cuda", "multiprocessors": 132, "calls": [FIGURES]}


@pytest.fixture
def found(monkeypatch):
    """What is found in each surrounding, or raised; to be changed by a test."""
    answers = {name: {**FOUND, "calls": [dict(FIGURES)]} for name in shared.SURROUNDINGS}

    def asked(name, where, seconds):
        assert 0 < seconds <= shared.PROCESS_LIMIT
        if isinstance(answers[name], Exception):
            raise answers[name]
        return answers[name]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(record, "machine", lambda device: "a GPU")
    monkeypatch.setattr(shared, "_asked", asked)
    return answers


def does(monkeypatch, code):
    """Processes of its own run this code."""
    monkeypatch.setattr(shared, "_python", lambda part: [sys.executable, "-c", code])


@needs_no_gpu
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    assert command.main(["shared", "--out", str(tmp_path)]) == 2
    assert "shared: expected a GPU, found none" in capsys.readouterr().err


def test_what_is_not_to_be_had_is_left_out(found, tmp_path, capsys):
    alone, _, mps, half = shared.SURROUNDINGS
    found[mps] = FileNotFoundError(2, "No such file", shared.CONTROL)
    found[half] = subprocess.TimeoutExpired("python", 40)
    assert command.main(["shared", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert f"{mps}: left out: [Errno 2] No such file: '{shared.CONTROL}'" in said.err
    assert f"{half}: left out: Command 'python' timed out after 40 seconds" in said.err
    latencies = kept.read(tmp_path).latencies
    assert latencies[0].surrounding == alone
    shown = tables.shared_table([dataclasses.replace(latencies[0], date="before", call="old"), *latencies])
    assert shown.startswith(f"| us: p50 (p90) | {' | '.join(shared.SURROUNDINGS)} |\n")
    assert "| an image | 80.2 (1,234) | 80.2 (1,234) | – | – |\n" in shown
    assert "576 → 64 tokens of width 4,096, 32 of text, bfloat16; backend `cuda`. a GPU, torch " in shown
    assert "old" not in shown
    assert tables.shared_table([]) == tables.NONE


def test_the_status_tells_of_wrong_results_and_of_none(found, tmp_path, capsys):
    found["alone"]["same"] = False
    assert command.main(["shared", "--out", str(tmp_path)]) == 1
    assert "alone: left out: the packed call gives other results" in capsys.readouterr().err
    assert "alone" not in {latency.surrounding for latency in kept.read(tmp_path).latencies}
    found.update(dict.fromkeys(found, RuntimeError("no")))
    assert command.main(["shared", "--out", str(tmp_path)]) == 1


def test_a_process_is_asked_within_its_time(monkeypatch):
    does(monkeypatch, "print('noise'); print('{\"same\": true}')")
    assert shared._asked("alone", shared.Surrounding(), 60) == {"same": True}
    does(monkeypatch, "import sys; sys.exit('noise\\nRuntimeError: CUDA error')")
    with pytest.raises(RuntimeError, match="exit status 1: RuntimeError: CUDA error"):
        shared._asked("alone", shared.Surrounding(), 60)
    does(monkeypatch, "print('noise')")
    with pytest.raises(ValueError, match="Expecting value"):
        shared._asked("alone", shared.Surrounding(), 60)
    does(monkeypatch, "import time; time.sleep(60)")
    with pytest.raises(subprocess.TimeoutExpired):
        shared._asked("alone", shared.Surrounding(), 0.5)


def test_a_neighbour_is_waited_for_and_ends_with_its_caller(monkeypatch):
    does(monkeypatch, "import sys; print('noise\\nrunning', flush=True); sys.stdin.read()")
    with shared.neighbour() as process:
        shared.wait_for(process)
        assert process.poll() is None
    assert process.poll() == 0
    does(monkeypatch, "import sys; sys.exit('RuntimeError: no GPU')")
    with pytest.raises(RuntimeError, match="did not start: RuntimeError: no GPU"), shared.neighbour() as process:
        shared.wait_for(process)
    monkeypatch.setattr(shared, "NEIGHBOUR_LIMIT", 0.1)
    monkeypatch.setattr(shared, "STEP_LIMIT", 0.1)
    does(monkeypatch, "import time; time.sleep(60)")
    with pytest.raises(RuntimeError, match="did not start"), shared.neighbour() as process:
        shared.wait_for(process)
    assert process.wait(10) == -9


@pytest.mark.slow
@needs_no_gpu
@pytest.mark.parametrize("part", ["alone", shared.NEIGHBOUR])
def test_a_process_gets_as_far_as_cuda(part):
    done = subprocess.run(shared._python(part), cwd=record.ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search("CUDA|NVIDIA", shared._last_line(done.stderr))


def test_mps_is_started_for_its_clients_and_stopped(monkeypatch, tmp_path, capsys):
    program, log = tmp_path / shared.CONTROL, tmp_path / "log"
    program.write_text(f'#!/bin/sh\necho "$CUDA_MPS_PIPE_DIRECTORY $* $(cat)" >>{log}\nsleep 60 &\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    does(monkeypatch, f"import json, os; print(json.dumps(os.environ['{shared.SHARE}']))")
    assert shared._asked("half", shared.Surrounding(mps=True, share=50), 60) == "50"
    (pipe, option), (again, *stop) = (line.split() for line in log.read_text().splitlines())
    assert (option, stop, again) == ("-d", ["quit", "-t", "2"], pipe)
    program.write_text("#!/bin/sh\necho no driver; exit 3\n")
    with pytest.raises(RuntimeError, match="exit status 3: no driver"), shared.daemon():
        pass
    program.write_text('#!/bin/sh\n[ "$1" = -d ] || exit 3\n')
    with shared.daemon():
        pass
    assert "MPS did not stop: " in capsys.readouterr().err


@pytest.fixture
def on_the_cpu(monkeypatch):
    """The measured process with the CPU's kernels, on small images, without graphs and compiler."""
    case = dataclasses.replace(shared.CASE, tokens=30, keep=5, width=32, batch=3)
    monkeypatch.setattr(shared, "CASE", case)
    monkeypatch.setattr(shared, "SAMPLES", 3)
    monkeypatch.setattr(shared.goals, "features", lambda case: cases.inputs(case)[0][:2])
    monkeypatch.setattr(shared.cuda, "captured", lambda call: call)
    monkeypatch.setattr(torch, "compile", lambda function, fullgraph: function)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(multi_processor_count=132))


def test_every_call_is_measured_and_compared(on_the_cpu, monkeypatch):
    does(monkeypatch, "import sys; print('running', flush=True); sys.stdin.read()")
    measured = shared.measure(shared.Surrounding(busy=True))
    assert measured["same"] is True
    assert (len(measured["calls"]), measured["calls"][0]["samples"]) == (7, 3)
    assert all(0 < figures["p50_us"] <= figures["p90_us"] for figures in measured["calls"])
    monkeypatch.setattr(shared, "_control", lambda places, command: "")
    with pytest.raises(RuntimeError, match="MPS: expected a server, found none"):
        shared.measure(shared.Surrounding(mps=True))
    packed = shared._packed
    monkeypatch.setattr(shared, "_packed", lambda visual, text: packed(visual.flip(0), text))
    assert shared.measure(shared.Surrounding())["same"] is False
