"""Instruction counts: the same twice, and a clear error where a tool is missing."""

import dataclasses
import shutil

import pytest

from bench import __main__ as command
from bench import record
from bench.speed import instructions
from bench.speed.instructions import Count

TINY = "48 6 32 4 float32 joint mean"


@pytest.mark.slow
def test_counts_are_reproducible(monkeypatch, tmp_path):
    if shutil.which("valgrind") is None:
        pytest.skip("needs valgrind")
    monkeypatch.setattr(instructions, "WORKLOADS", {"once": TINY, "again": TINY})
    monkeypatch.setattr(instructions, "BUILD", tmp_path / "build")
    monkeypatch.setenv("CMAKE_BUILD_TYPE", "Debug")  # compiled sooner
    assert command.main(["instructions", "--out", str(tmp_path)]) == 0
    once, again = record.read(tmp_path / instructions.FILE, Count)
    assert once.instructions == again.instructions > 10_000
    assert once.compiler


def test_without_valgrind(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    assert command.main(["instructions", "--out", str(tmp_path)]) == 2
    assert "expected valgrind on PATH, found none" in capsys.readouterr().err


@pytest.mark.parametrize(("now", "status"), [(1000, 0), (1009, 0), (1011, 1), (500, 0)])
def test_compare_flags_a_rise(tmp_path, capsys, now, status):
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    count = Count("", "", "", "g++ 12", "valgrind", "avx2", "workload", TINY, 1000, "")
    record.append(old, Count, [count])
    record.append(new, Count, [dataclasses.replace(count, instructions=now)])
    assert command.main(["compare", str(old), str(new)]) == status
    assert "workload" in capsys.readouterr().out
