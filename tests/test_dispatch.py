"""The choice of a backend: automatic, by context, per thread; and what `show_backends` says."""

from __future__ import annotations

import dataclasses
import threading
import types

import pytest
import torch

import mi_pruner
from mi_pruner import _dispatch, reference


@pytest.fixture
def calls(monkeypatch):
    """Names of the backends that served `mi_scores`, in order; "cpu" stands available, as a copy of the reference."""
    served = []

    def spy(name):
        def mi_scores(*arguments, **options):
            served.append(name)
            return reference.mi_scores(*arguments, **options)

        return types.SimpleNamespace(mi_scores=mi_scores)

    for name in ("cpu", "reference"):
        entry = dataclasses.replace(_dispatch.BACKENDS[name], missing=None, operators=spy(name))
        monkeypatch.setitem(_dispatch.BACKENDS, name, entry)
    gpu = dataclasses.replace(_dispatch.BACKENDS["triton"], missing="no such device")
    monkeypatch.setitem(_dispatch.BACKENDS, "triton", gpu)
    asked = _dispatch._ask("reference")  # by nobody here; as long as it lives, the library takes no call past Python
    yield served
    del asked


def score():
    visual = torch.ones(1, 2, 3)
    mi_pruner.mi_scores(visual, visual)


def test_the_first_available_backend_of_the_device_is_chosen(calls):
    score()
    assert calls == ["cpu"]


def test_the_reference_serves_where_nothing_else_is_available(calls, monkeypatch):
    entry = dataclasses.replace(_dispatch.BACKENDS["cpu"], missing="not built")
    monkeypatch.setitem(_dispatch.BACKENDS, "cpu", entry)
    score()
    assert calls == ["reference"]


def test_a_context_chooses_nests_and_restores(calls):
    with mi_pruner.backend("reference"):
        score()
        with mi_pruner.backend("cpu"):
            score()
            with mi_pruner.backend("auto"):
                score()
        score()
    score()
    assert calls == ["reference", "cpu", "cpu", "reference", "cpu"]


def test_a_context_is_restored_after_an_error(calls):
    with pytest.raises(ValueError, match="visual"), mi_pruner.backend("reference"):
        mi_pruner.mi_scores(torch.ones(2), torch.ones(2))
    score()
    assert calls == ["cpu"]


def test_a_context_holds_for_direct_calls_of_the_operators(calls):
    visual = torch.ones(1, 2, 3)
    with mi_pruner.backend("reference"):
        torch.ops.mi_pruner.mi_scores(visual, visual)
        torch.ops.mi_pruner.mi_scores.default(visual, visual)
    assert calls == ["reference", "reference"]


def test_a_context_holds_for_its_own_thread_only(calls):
    with mi_pruner.backend("reference"):
        other = threading.Thread(target=score)
        other.start()
        other.join()
        score()
    assert calls == ["cpu", "reference"]


@pytest.mark.parametrize("name", ["gpu", "", "Reference", "auto "])
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(name):
    with (
        pytest.raises(ValueError, match=r"name: expected .auto. or one of .*reference") as caught,
        mi_pruner.backend(name),
    ):
        pass
    assert repr(name) in str(caught.value)


def test_an_unavailable_backend_is_an_error_that_says_why(calls):
    with (
        pytest.raises(RuntimeError, match="backend 'triton' is not available: no such device"),
        mi_pruner.backend("triton"),
    ):
        pass
    score()
    assert calls == ["cpu"]


def test_a_backend_that_does_not_run_on_the_tensors_is_an_error_that_says_so(calls, monkeypatch):
    entry = dataclasses.replace(_dispatch.BACKENDS["triton"], missing=None, device="cuda", probe=lambda index: None)
    monkeypatch.setitem(_dispatch.BACKENDS, "triton", entry)
    message = "backend 'triton' can't take cpu tensors: runs on cuda tensors only"
    with mi_pruner.backend("triton"), pytest.raises(RuntimeError, match=message):
        score()
    assert calls == []


@pytest.fixture
def unusable_cuda(monkeypatch):
    """CUDA kernels that are built but can't run, beside Triton ones that can; gives the questions to the driver."""
    questions = []

    def probe(index):
        questions.append("usable?")
        return "the driver is too old"

    for name, probed in (("cuda", probe), ("triton", lambda index: None)):
        entry = dataclasses.replace(_dispatch.BACKENDS[name], device="cuda", missing=None, probe=probed)
        monkeypatch.setitem(_dispatch.BACKENDS, name, entry)
    monkeypatch.setattr(_dispatch, "_fallback_is_known", [])
    return questions


def test_kernels_that_the_driver_cannot_run_are_replaced_with_one_warning(unusable_cuda, recwarn):
    with pytest.warns(RuntimeWarning, match=r"CUDA kernels can't run here \(the driver is too old\); 'triton' runs"):
        assert _dispatch.choose("cuda").name == "triton"
    recwarn.clear()
    assert _dispatch.choose("cuda").name == "triton"
    assert not recwarn


def test_the_driver_is_not_asked_for_the_sake_of_other_tensors(unusable_cuda, recwarn):
    assert _dispatch.choose("cpu").name != "triton"
    assert unusable_cuda == []
    assert not recwarn


def test_kernels_that_the_driver_cannot_run_are_explained(unusable_cuda, capsys):
    with pytest.raises(RuntimeError, match="'cuda' is not available: the driver is too old"), mi_pruner.backend("cuda"):
        pass
    mi_pruner.show_backends()
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.split()[0] == "cuda")
    assert line.endswith("not available: the driver is too old")


def test_kernels_that_are_not_built_need_no_warning(unusable_cuda, monkeypatch, recwarn):
    monkeypatch.setitem(
        _dispatch.BACKENDS, "cuda", dataclasses.replace(_dispatch.BACKENDS["cuda"], missing="not built")
    )
    assert _dispatch.choose("cuda").name == "triton"
    assert not recwarn


def test_usable_cuda_kernels_come_first(unusable_cuda, monkeypatch):
    usable = dataclasses.replace(_dispatch.BACKENDS["cuda"], probe=lambda index: None)
    monkeypatch.setitem(_dispatch.BACKENDS, "cuda", usable)
    assert _dispatch.choose("cuda").name == "cuda"


def test_a_gpu_that_is_too_old_leaves_the_others_theirs(unusable_cuda, monkeypatch):
    one = dataclasses.replace(_dispatch.BACKENDS["cuda"], probe=lambda index: "too old" if index == 1 else None)
    monkeypatch.setitem(_dispatch.BACKENDS, "cuda", one)
    assert _dispatch.choose("cuda", 0).name == "cuda"
    with pytest.warns(RuntimeWarning, match=r"can't run here \(too old\)"):
        assert _dispatch.choose("cuda", 1).name == "triton"


def test_an_operator_that_the_cuda_kernels_lack_goes_to_the_next_backend_without_a_warning(
    unusable_cuda, monkeypatch, recwarn
):
    assert _dispatch.choose("cuda", 0, "histogram_mi_scores").name == "triton"
    monkeypatch.setitem(
        _dispatch.BACKENDS, "triton", dataclasses.replace(_dispatch.BACKENDS["triton"], missing="not installed")
    )
    assert _dispatch.choose("cuda", 0, "histogram_mi_scores").name == "reference"
    assert not recwarn
    usable = dataclasses.replace(_dispatch.BACKENDS["cuda"], probe=lambda index: None)
    monkeypatch.setitem(_dispatch.BACKENDS, "cuda", usable)
    assert _dispatch.choose("cuda", 0, "mi_scores").name == "cuda"
    message = "backend 'cuda' has no histogram_mi_scores: 'auto' chooses one that has"
    with mi_pruner.backend("cuda"), pytest.raises(RuntimeError, match=message):
        _dispatch.choose("cuda", 0, "histogram_mi_scores")


def test_show_backends_names_what_a_backend_lacks(capsys):
    mi_pruner.show_backends()
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines if "no histogram_mi_scores" in line] == ["cuda"]


def test_show_backends_has_a_line_for_each_with_its_state(calls, capsys):
    assert mi_pruner.show_backends() is None
    heading, *lines = capsys.readouterr().out.splitlines()
    assert torch.__version__ in heading
    assert [line.split()[0] for line in lines] == list(_dispatch.BACKENDS)
    state = {line.split()[0]: line for line in lines}
    assert state["reference"].endswith(" available")
    assert state["triton"].endswith("not available: no such device")


def test_triton_without_a_driver_is_not_available(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(_dispatch, "_TRITON_DEVICE", "cuda")
    monkeypatch.setitem(
        _dispatch.BACKENDS, "triton", dataclasses.replace(_dispatch.BACKENDS["triton"], missing=None, device="cuda")
    )
    mi_pruner.show_backends()
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.split()[0] == "triton")
    assert line.endswith("not available: no GPU, or no NVIDIA driver")


def test_show_backends_tells_the_truth_here(capsys):
    mi_pruner.show_backends()
    for line in capsys.readouterr().out.splitlines()[1:]:
        name = line.split()[0]
        missing = _dispatch.BACKENDS[name].unavailable()
        assert line.endswith("available" if missing is None else missing)
        assert ("not available" in line) == (missing is not None)
