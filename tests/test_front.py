"""Calls that the compiled library takes past Python: which, that they mean the same, and how errors come back."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import math
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch

import mi_pruner
from mi_pruner import _checks, _dispatch, _native, _schema, reference

from . import inputs
from .bad_arguments import PACKED_OPERATORS, VALID, B, D, M, N, features, integers

CHOSEN = _dispatch.choose("cpu").name
pytestmark = pytest.mark.skipif(CHOSEN != "cpu", reason=f"CPU tensors go to the backend {CHOSEN!r} here")


@pytest.fixture(autouse=True, scope="module")
def open_to_the_library():
    """By a first call, for which Python chooses."""
    torch.ops.mi_pruner.mi_scores(torch.ones(1, 2, 3), torch.ones(1, 2, 3))


@pytest.fixture
def in_python(monkeypatch):
    """The operators for which Python was asked, in order."""
    asked, choose = [], _dispatch.choose

    def spy(device_type, index=None, operator="prune"):
        asked.append(operator)
        return choose(device_type, index, operator)

    monkeypatch.setattr(_dispatch, "choose", spy)
    return asked


def score(n=2):
    visual = torch.ones(1, n, 3)
    return torch.ops.mi_pruner.mi_scores(visual, visual)


def arguments_of(operator, change=()):
    values = {**VALID[operator], **dict(change)}
    return {name: value("cpu") if callable(value) else value for name, value in values.items()}


def call(operator, arguments):
    """What comes of it: tensors, or the error's type and first line."""
    try:
        outputs = getattr(torch.ops.mi_pruner, operator)(**arguments)
    except (ValueError, TypeError) as error:
        return type(error), str(error).splitlines()[0]
    return outputs if isinstance(outputs, tuple) else (outputs,)


def same(a, b):
    if isinstance(a[0], type):
        return a == b
    return not isinstance(b[0], type) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- what it takes ---------------------------------------------------------------------------------------------------
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PACKED_PRIORS = {"visual_prior": (B * N,), "text_prior": (B * M,)}
DENSE_PRIORS = {"visual_prior": (B, N), "text_prior": (B, M)}


def options_of(operator):
    """Of each option, values that are right."""
    priors = PACKED_PRIORS if operator in PACKED_OPERATORS else DENSE_PRIORS
    values = {
        **{
            name: [
                *(torch.rand(shape).to(dtype) for dtype in (*FLOATS, torch.bool)),
                torch.rand(*shape[:-1], 2 * shape[-1])[..., ::2],  # not contiguous
                torch.rand(shape, requires_grad=True),
            ]
            for name, shape in priors.items()
        },
        "bandwidth": [None, 0.5, _checks.MIN_BANDWIDTH, _checks.MAX_BANDWIDTH, 1],
        "marginal": list(_checks.MARGINALS),
        "visual_bandwidth": [0.3, _checks.MIN_BANDWIDTH, _checks.MAX_BANDWIDTH],
        "redundancy": list(_checks.REDUNDANCIES),
        "redundancy_weight": [0.0, 0.5, _checks.MAX_WEIGHT],
        "budget": [torch.tensor([1, 2]), torch.tensor([0, 2], dtype=torch.int32), torch.tensor([1, 9, 2, 9])[::2]],
        "min_gain": [None, -1.0, -math.inf, math.inf],
        "ratio": [None, 1.0, 0.2, 5e-324],
        "bins": [_checks.MIN_BINS, 7, _checks.MAX_BINS],
    }
    return {name: values[name] for name in _schema.Signature(operator).defaults}


def random_features(operator, dtype=torch.float32):
    """The valid arguments with numbers that are not all zero, and samples that are not all empty."""
    g = torch.Generator().manual_seed(1)
    arguments = arguments_of(operator)
    for name in arguments:
        if name in ("visual", "text", "scores"):
            arguments[name] = torch.randn(arguments[name].shape, generator=g).to(dtype)
        elif name.startswith("cu_"):
            each = {"cu_seqlens_visual": N, "cu_seqlens_text": M, "cu_keep": 2}[name]
            arguments[name] = torch.arange(0, (B + 1) * each, each, dtype=torch.int32)
    return arguments


@pytest.mark.parametrize("operator", VALID)
def test_right_arguments_go_past_python_and_give_the_same_bits(operator, in_python):
    cases = [random_features(operator, dtype) for dtype in FLOATS]
    base = cases[2]
    cases += [{**base, name: value} for name, values in options_of(operator).items() for value in values]
    cases += [{**base, name: x} for name, x in spread(base).items()]
    if operator not in PACKED_OPERATORS:
        nothing = {name: x[:0] for name, x in base.items() if isinstance(x, torch.Tensor)}
        cases += [{**base, **nothing}, {**base, **spread(nothing)}]
    for arguments in cases:
        direct = call(operator, arguments)
        assert in_python == []
        asked = _dispatch._ask("reference")  # by nobody: Python's choice stays the compiled backend
        assert same(call(operator, arguments), direct), arguments
        del asked
        assert in_python == [operator]
        in_python.clear()
        assert not any(x.requires_grad for x in direct)


def spread(arguments):
    """The tensors, not contiguous."""
    return {
        name: torch.stack((x, torch.zeros_like(x)), -1)[..., 0]
        for name, x in arguments.items()
        if isinstance(x, torch.Tensor)
    }


def test_a_call_allocates_its_outputs_and_calls_nothing_else_of_pytorch():
    for operator in VALID:
        arguments = random_features(operator)
        outputs = call(operator, arguments)
        called, allocated = inputs.traced(lambda operator=operator, arguments=arguments: call(operator, arguments))
        assert called == [f"mi_pruner::{operator}"]
        assert sorted(allocated) == sorted(x.nbytes for x in outputs)


# ---- what it leaves to Python ----------------------------------------------------------------------------------------
ODD_TENSORS = [
    *(features(*shape) for shape in ((), (1,), (B,), (N,), (B, N), (B, M), (B, N, D), (B, M, D), (B, 0, D), (0, N, D))),
    *(
        features(*shape)
        for shape in ((B * N,), (B * M,), (B * N, D), (B * M, D), (B, N, D, 1), (0,), (0, D), (B, N, 0))
    ),
    *(features(B, N, D, dtype=dtype) for dtype in (torch.float16, torch.float64, torch.complex64, torch.bool)),
    *(features(B, N, dtype=dtype) for dtype in (torch.float16, torch.float64, torch.int32, torch.bool)),
    *(features(B * N, D, dtype=dtype) for dtype in (torch.bfloat16, torch.float64, torch.int8)),
    *(integers(size, dtype=dtype) for size in (0, 1, B, B + 1) for dtype in (torch.int32, torch.int64, torch.uint8)),
    integers(1, B + 1),
    lambda _: torch.zeros(B, N, dtype=torch.float8_e4m3fn),
]
ODD_INTEGERS = [-(2**62), -1, 0, 1, 2, N, N + 1, 64, 65, 2**31, 2**62]
ODD_FLOATS = [math.nan, math.inf, -math.inf, -1.0, -0.0, 0.0, 1e-4, 1e-3, 0.5, 1.0, 1.1, 1e3, 1e4, 1e6, 2e6]
ODD_STRINGS = ["", "joint", "prior", "mean", "chain", "max", "none", "Mean", "mean\0", "none "]
ODD = {
    "Tensor": [*ODD_TENSORS, None],
    "Optional[Tensor]": [*ODD_TENSORS, None],
    "int": ODD_INTEGERS,
    "SymInt": ODD_INTEGERS,
    "float": ODD_FLOATS,
    "Optional[float]": [*ODD_FLOATS, None],
    "str": ODD_STRINGS,
}


@pytest.mark.parametrize("operator", VALID)
def test_odd_arguments_are_refused_or_taken_as_python_does(operator):
    """Every argument as each odd value of its type, alone and beside another odd one: no error that Python alone has is
    missing, and no other comes."""
    schema = getattr(torch.ops.mi_pruner, operator).default._schema
    large = {"total_keep", "max_keep"}  # outputs of that size would be made
    odd = {
        argument.name: [x for x in ODD[str(argument.type)] if argument.name not in large or x is None or x < 2**31]
        for argument in schema.arguments
    }
    changes = [((name, value),) for name, values in odd.items() for value in values]
    for a, b in itertools.combinations(odd, 2):
        changes += [((a, x), (b, y)) for x, y in zip(odd[a][::-1], itertools.cycle(odd[b]), strict=False)]
    wrong = 0
    for change in changes:
        arguments = arguments_of(operator, change)
        direct = call(operator, arguments)
        asked = _dispatch._ask("reference")
        assert same(call(operator, arguments), direct), change
        del asked
        wrong += isinstance(direct[0], type)
    assert wrong > len(changes) / 3


def test_another_backend_is_asked_as_long_as_a_context_wants_it(in_python, monkeypatch):
    served, compute = [], reference.mi_scores
    monkeypatch.setattr(reference, "mi_scores", lambda *a, **o: served.append("reference") or compute(*a, **o))
    with mi_pruner.backend("reference"):
        score()
        copied = contextvars.copy_context()
    copied.run(score)
    assert served == ["reference", "reference"]
    score()  # through Python, as long as there is the copy; to the same backend as ever
    assert len(in_python) == 3
    del copied
    score()
    assert len(in_python) == 3
    assert len(served) == 2


def test_the_context_of_another_thread_changes_nothing_but_the_way(in_python, monkeypatch):
    served = []
    monkeypatch.setattr(reference, "mi_scores", lambda *_, **__: served.append("reference"))
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with mi_pruner.backend("reference"):
            entered.set()
            leave.wait()

    other = threading.Thread(target=hold)
    other.start()
    entered.wait()
    score()
    leave.set()
    other.join()
    assert in_python == ["mi_scores"]
    assert served == []


@pytest.mark.parametrize("name", ["cpu", "auto"])
def test_the_context_of_the_backend_that_it_is_anyway_costs_nothing(name, in_python):
    with mi_pruner.backend(name):
        score()
    assert in_python == []


def test_a_backend_that_is_asked_for_by_name_is_opened_too():
    code = """
import torch, mi_pruner
from mi_pruner import _dispatch
visual, asked, choose = torch.ones(1, 2, 3), [], _dispatch.choose
_dispatch.choose = lambda *a: asked.append(a) or choose(*a)
with mi_pruner.backend("cpu"):
    for _ in range(3):
        mi_pruner.mi_scores(visual, visual)
print(len(asked))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    assert done.stderr == ""


def test_a_task_keeps_the_backend_of_the_context_that_it_was_made_in(in_python):
    async def late():
        await asyncio.sleep(0)
        return score()

    async def main():
        with mi_pruner.backend("reference"):
            task = asyncio.create_task(late())
        await task

    asyncio.run(main())
    gc.collect()
    assert in_python == ["mi_scores"]
    score()
    assert in_python == ["mi_scores"]


# ---- errors ----------------------------------------------------------------------------------------------------------
class OurError(Exception):
    def __init__(self, text, number):
        super().__init__(text)
        self.number = number


@pytest.mark.parametrize(
    "error", [OurError("from Python", 7), KeyboardInterrupt(), torch.OutOfMemoryError("none left")]
)
def test_an_error_of_a_python_backend_arrives_as_it_was_raised(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(reference, "prune", fail)
    with mi_pruner.backend("reference"), pytest.raises(type(error)) as caught:
        torch.ops.mi_pruner.prune(torch.ones(1, 2, 3), torch.ones(1, 2, 3), 1)
    assert caught.value is error
    assert [entry.name for entry in caught.traceback][-1] == "fail"


def test_an_error_is_let_go(monkeypatch):
    errors = []

    def fail(*_, **__):
        error = OurError("once", 1)
        errors.append(weakref.ref(error))
        raise error

    monkeypatch.setattr(reference, "mi_scores", fail)
    with mi_pruner.backend("reference"):
        for _ in range(3):
            with pytest.raises(OurError):
                score()
    gc.collect()
    assert [ref() for ref in errors] == [None] * 3


def test_an_error_of_a_call_within_another_is_its_own(monkeypatch):
    """As a signal's handler makes one, between an error in Python and its return to the library."""
    leave, caught, keeps = _native.raise_in_library, {}, iter((21, 22))

    def wrong(keep):
        caught[keep] = call("prune", arguments_of("prune", {"keep": keep}.items()))

    def leave_and_call(asking, error):
        leave(asking, error)
        for keep in keeps:
            wrong(keep)
        with mi_pruner.backend("reference"):
            score()

    monkeypatch.setattr(_native, "raise_in_library", leave_and_call)
    wrong(20)
    assert caught == {k: (ValueError, f"keep: expected 1 <= keep <= N = 6, got {k}") for k in (20, 21, 22)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_error_that_is_caught_in_cpp_is_not_that_of_a_later_call():
    scripted = torch.jit.script(scripted_scores)
    with pytest.raises(RuntimeError, match=r"ValueError: visual: expected \(B, N, D\)"):
        scripted(torch.ones(2, 3))
    with mi_pruner.backend("reference"):
        score()
        assert scripted(torch.ones(1, 2, 3)).shape == (1, 2)


def scripted_scores(visual: torch.Tensor):
    return torch.ops.mi_pruner.mi_scores(visual, visual)


def test_an_error_keeps_its_context_and_need_not_have_a_text(monkeypatch):
    class NoText(Exception):
        def __str__(self):
            raise ValueError("none")

    def fail(*_, **__):
        try:
            raise KeyError("inner")
        except KeyError:
            raise NoText  # noqa: B904  so that it has a context

    monkeypatch.setattr(reference, "mi_scores", fail)
    try:
        raise LookupError("of the caller")
    except LookupError:
        with mi_pruner.backend("reference"), pytest.raises(NoText) as caught:
            score()
    assert repr(caught.value.__context__) == "KeyError('inner')"


def wrong_in_python():
    with pytest.raises(ValueError, match=r"^visual: expected"):
        torch.ops.mi_pruner_python.histogram_mi_scores(torch.ones(2, 3), torch.ones(2, 3))


def test_without_a_call_of_the_library_an_error_is_raised_in_python(monkeypatch):
    wrong_in_python()
    compute = reference.mi_scores
    monkeypatch.setattr(reference, "mi_scores", lambda *a, **o: wrong_in_python() or compute(*a, **o))
    with mi_pruner.backend("reference"):  # within a call that is another's
        assert score().shape == (1, 2)


@pytest.mark.parametrize("when", ["before the library is told", "after"])
def test_what_a_signals_handler_raises_meanwhile_arrives(when, monkeypatch):
    leave, raised = _native.raise_in_library, []

    def interrupted(asking, error):
        if when == "after":
            leave(asking, error)
        if not raised:
            raised.append(KeyboardInterrupt())
            raise raised[0]
        leave(asking, error)

    monkeypatch.setattr(_native, "raise_in_library", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        torch.ops.mi_pruner.mi_scores(torch.ones(2, 3), torch.ones(2, 3))
    assert caught.value is raised[0]
    assert str(caught.value.__context__).startswith("visual: expected")


@pytest.mark.slow
@pytest.mark.parametrize("call", ["mi_pruner.mi_scores(x, x)", "wrong(x[0])"])
def test_a_call_at_the_recursion_limit_is_a_recursion_error(call):
    """At every distance from it, in a process of its own: C++ has no room to look at an error where Python has none."""
    code = f"""
import torch, mi_pruner
x = torch.randn(1, 8, 4)
mi_pruner.mi_scores(x, x)
def wrong(x):
    try:
        mi_pruner.mi_scores(x, x)
    except ValueError:
        pass
def frames(n, function):
    return frames(n - 1, function) if n else function()
def walk():
    {call}
    return frames(23, walk)
with mi_pruner.backend("reference"):
    for offset in range(24):
        try:
            frames(offset, walk)
        except RecursionError:
            print("deep")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "deep\n" * 24


@pytest.mark.slow
def test_a_compiled_function_may_choose_a_backend(monkeypatch):
    served, compute = [], reference.mi_scores
    monkeypatch.setattr(reference, "mi_scores", lambda *a, **o: served.append("reference") or compute(*a, **o))

    @torch.compile(backend="eager")
    def choosing(visual):
        with mi_pruner.backend("reference"):
            return mi_pruner.mi_scores(visual, visual)

    for expected in (1, 2):
        choosing(torch.ones(1, 2, 3))
        assert len(served) == expected
    with mi_pruner.backend("reference"):
        score()
    assert len(served) == 3
    score()
    assert len(served) == 3


def resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_calls_keep_no_memory():
    """Strings above all: torch forgets those that it unboxes."""
    right = random_features("mi_scores")
    wrong = {**right, "marginal": "x" * 100_000}

    def through_python():
        asked = _dispatch._ask("reference")
        call("mi_scores", {**right, "marginal": "prior"})
        del asked

    for once, count in (
        (lambda: call("mi_scores", right), 4000),
        (lambda: call("mi_scores", wrong), 400),
        (through_python, 2000),
    ):
        for _ in range(count // 4):
            once()
        before = resident()
        for _ in range(count):
            once()
        assert resident() - before < 2**23


def test_errors_of_several_threads_are_each_their_own():
    caught = {}

    def wrong(n):
        arguments = {"visual": torch.ones(1, n, 3), "text": torch.ones(1, 1, 3), "keep": n + 1}
        caught[n] = {call("prune", arguments) for _ in range(50)}

    threads = [threading.Thread(target=wrong, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert caught == {n: {(ValueError, f"keep: expected 1 <= keep <= N = {n}, got {n + 1}")} for n in range(1, 9)}


def test_the_library_knows_the_limits_that_the_checks_have():
    names = (*_native._Limits.NUMBERS, *_native._Limits.COUNTS)
    assert {name for name in vars(_checks) if name.startswith(("MIN_", "MAX_"))} == set(names)
