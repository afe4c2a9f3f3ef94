"""Tensor parallelism of two on the CPU gives the tokens of one."""

from __future__ import annotations

import os

import pytest

from .engines import KEEP, cases, check, generate, reference, request, running

CORES = sorted(os.sched_getaffinity(0))[:2]


@pytest.mark.skipif(len(CORES) < 2, reason="needs a core for each of two ranks")
@pytest.mark.parametrize("family", ["llava_next", "qwen3_vl"])
def test_two_ranks(family, folders, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "|".join(map(str, CORES)))
    asked, truth = cases(family), reference(folders[family])
    with running(folders[family], tensor_parallel_size=2, distributed_executor_backend="mp") as llm:
        check(generate(llm, [request(case) for case in asked]), [truth(case, KEEP) for case in asked])
        by_question = [truth(case, text="question") for case in asked]
        check(generate(llm, [request(case, text="question") for case in asked]), by_question)
