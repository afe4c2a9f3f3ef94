"""Every error of the validation: one type and one message, through the Python API, `torch.ops` and the fake paths."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import mi_pruner

from .bad_arguments import CASES, DENSE_OPERATORS, SELECT, VALID, B, D, M, N, features

CALLS = ("python", "torch.ops", "fake", "meta")
MODULE_OPTIONS = ("bandwidth", "marginal", "visual_bandwidth", "redundancy", "redundancy_weight", "min_gain")


def call(how, operator, change):
    """Calls the operator with its valid arguments, some of them changed."""
    with FakeTensorMode() if how == "fake" else contextlib.nullcontext():
        device = "meta" if how == "meta" else "cpu"
        arguments = {**VALID[operator], **change}
        arguments = {name: value(device) if callable(value) else value for name, value in arguments.items()}
        return getattr(mi_pruner if how == "python" else torch.ops.mi_pruner, operator)(**arguments)


@pytest.mark.parametrize("how", CALLS)
@pytest.mark.parametrize("operator", VALID)
def test_the_valid_arguments_are_valid(operator, how):
    call(how, operator, {})


@pytest.mark.parametrize("how", CALLS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_wrong_argument_is_named_with_what_was_expected_and_what_came(case, how):
    for operator in case.operators:
        with pytest.raises((ValueError, TypeError)) as caught:
            call(how, operator, case.change)
        assert type(caught.value) is case.error, operator
        expected = case.message.format(on="meta" if how == "meta" else "cpu")
        assert str(caught.value).splitlines()[0] == expected, operator


@pytest.mark.parametrize("how", ["python", "torch.ops"])
@pytest.mark.parametrize("operator", VALID)
def test_every_tensor_must_be_on_the_device_of_visual(operator, how):
    prior = {"visual_prior": features(*((B, N) if operator in DENSE_OPERATORS else (B * N,)))}
    tensors = {name: value for name, value in (VALID[operator] | prior).items() if callable(value) and name != "visual"}
    for name, make in tensors.items():
        with pytest.raises(ValueError, match=rf"^{name}: expected the device of visual, cpu, got \(.*\) \w+ on meta"):
            call(how, operator, {name: lambda _, make=make: make("meta")})


# ---- the Python API and the module alone -----------------------------------------------------------------------------
KEEPS = (
    (0, ValueError, "keep: expected at least 1 token (a ratio is a float in (0, 1]), got 0"),
    (-3, ValueError, "keep: expected at least 1 token (a ratio is a float in (0, 1]), got -3"),
    (0.0, ValueError, "keep: expected a ratio in (0, 1] (a count of tokens is an int), got 0.0"),
    (1.5, ValueError, "keep: expected a ratio in (0, 1] (a count of tokens is an int), got 1.5"),
    (64.0, ValueError, "keep: expected a ratio in (0, 1] (a count of tokens is an int), got 64.0"),
    (math.nan, ValueError, "keep: expected a ratio in (0, 1] (a count of tokens is an int), got nan"),
    (True, TypeError, "keep: expected an int (tokens) or a float (ratio), got True"),
    ("0.5", TypeError, "keep: expected an int (tokens) or a float (ratio), got '0.5'"),
    (None, TypeError, "keep: expected an int (tokens) or a float (ratio), got None"),
)


@pytest.mark.parametrize(("keep", "error", "message"), KEEPS)
def test_keep_is_a_count_or_a_ratio(keep, error, message):
    visual, scores = torch.zeros(B, N, D), torch.zeros(B, N)
    for wrong in (
        lambda: mi_pruner.prune(visual, visual, keep),
        lambda: mi_pruner.greedy_select(scores, visual, keep),
        lambda: mi_pruner.MIPruner(keep),
        lambda: mi_pruner.MIPruner.paper(keep),
    ):
        with pytest.raises((ValueError, TypeError)) as caught:
            wrong()
        assert type(caught.value) is error
        assert str(caught.value) == message


def test_a_ratio_beside_keep_as_a_ratio_is_refused():
    visual, scores = torch.zeros(B, N, D), torch.zeros(B, N)
    message = "ratio: expected None beside keep = 0.5, a ratio itself (or pass keep as a count), got 0.25"
    for call in (mi_pruner.prune, mi_pruner.greedy_select):
        with pytest.raises(TypeError) as caught:
            call(visual if call is mi_pruner.prune else scores, visual, 0.5, ratio=0.25)
        assert str(caught.value) == message


@pytest.mark.parametrize("keep", [0, -1, 7])
@pytest.mark.parametrize("how", ["torch.ops", "fake", "meta"])
def test_keep_of_the_operator_is_a_count_up_to_n(keep, how):
    for operator in SELECT:
        with pytest.raises(ValueError, match=f"^keep: expected 1 <= keep <= N = 6, got {keep}"):
            call(how, operator, {"keep": keep})


@pytest.mark.parametrize("case", [c for c in CASES if next(iter(c.change)) in MODULE_OPTIONS], ids=lambda c: c.name)
def test_module_refuses_at_construction_what_its_call_would(case):
    with pytest.raises(case.error) as caught:
        mi_pruner.MIPruner(0.5, **case.change)
    assert str(caught.value) == case.message


def test_a_float_keep_names_the_same_wrong_tensors():
    with pytest.raises(ValueError, match=r"^visual: expected \(B, N, D\)"):
        mi_pruner.prune(torch.zeros(N, D), torch.zeros(M, D), 0.5)
    with pytest.raises(ValueError, match=r"^visual_prior: expected \(B, N\) = \(2, 6\)"):
        mi_pruner.prune(torch.zeros(B, N, D), torch.zeros(B, M, D), 0.5, visual_prior=torch.zeros(B, M))
    with pytest.raises(ValueError, match=r"^budget: expected \(B,\) = \(2,\)"):
        mi_pruner.prune(torch.zeros(B, N, D), torch.zeros(B, M, D), 0.5, budget=torch.zeros(3, dtype=torch.int32))


@pytest.mark.parametrize("keep", [2, 0.5])
@pytest.mark.parametrize("name", ["visual", "text", "visual_prior", "budget"])
def test_what_is_no_tensor_is_named(name, keep):
    arguments = {"visual": torch.zeros(B, N, D), "text": torch.zeros(B, M, D), name: np.zeros((B, N, D))}
    with pytest.raises((TypeError, RuntimeError), match=name):  # the dispatcher's own error
        mi_pruner.prune(keep=keep, **arguments)


@pytest.mark.parametrize("visual", [None, [[0.0]], np.zeros((N, D)), torch.zeros(()), torch.zeros(N, D)])
def test_without_a_shape_to_take_the_ratio_of_visual_is_named(visual):
    with pytest.raises((ValueError, TypeError), match=r"^visual: expected (a tensor|\(B, N, D\))"):
        mi_pruner.prune(visual, torch.zeros(B, M, D), 0.5)


def test_none_is_no_tensor():
    for operator, valid in VALID.items():
        for name in [name for name, value in valid.items() if callable(value)]:
            with pytest.raises(TypeError, match=rf"^{name}: expected a tensor, got builtins.NoneType"):
                call("torch.ops", operator, {name: None})


def test_a_sparse_tensor_is_refused():
    with pytest.raises(TypeError, match=r"^visual: expected a dense tensor"):
        mi_pruner.prune(torch.zeros(B, N, D).to_sparse(), torch.zeros(B, M, D), 2)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"bandwidth": "a"}, "bandwidth: expected a number or None, got 'a'"),
        ({"visual_bandwidth": None}, "visual_bandwidth: expected a number, got None"),
        ({"redundancy_weight": "1"}, "redundancy_weight: expected a number, got '1'"),
        ({"min_gain": [0.0]}, "min_gain: expected a number or None, got [0.0]"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_module_refuses_options_that_are_no_numbers(option, message):
    with pytest.raises(TypeError) as caught:
        mi_pruner.MIPruner(0.5, **option)
    assert str(caught.value) == message


def test_values_on_the_device_are_never_an_error(device):
    visual = torch.randn(B, N, D, device=device)
    nothing = torch.full((B, N), math.nan, device=device)
    budget = torch.tensor([-(2**62), 2**62], device=device)
    indices, _ = mi_pruner.greedy_select(nothing, visual, N, budget=budget)
    assert (indices[0] == -1).all()
    assert sorted(indices[1].tolist()) == list(range(N))
    assert (mi_pruner.prune(visual, visual, N, visual_prior=nothing, text_prior=nothing)[1] == -1).all()
