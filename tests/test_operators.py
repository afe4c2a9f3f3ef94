"""The operators as PyTorch sees them: schema, fake, autograd, compile, export, empty batches."""

from __future__ import annotations

import contextlib
import inspect
import io
import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import mi_pruner
from mi_pruner import MIPruner

from . import inputs

OPERATORS = (
    "mi_scores",
    "greedy_select",
    "prune",
    "mi_scores_varlen",
    "greedy_select_varlen",
    "prune_varlen",
    "histogram_mi_scores",
)


def arguments_of(operator, dtype=torch.float32, device="cpu", sizes=(2, 9, 4, 6), requires_grad=False):
    """Positional and keyword arguments with every optional tensor given."""
    b, n, m, d = sizes
    s = inputs.batch([inputs.make_sample("separated", n, m, d, dtype, i, "float", "bool") for i in range(b)]).to(device)
    scores = torch.randn(b, n, device=device)
    options = s.priors()
    budget = torch.full((b,), 3, dtype=torch.int32, device=device)
    if operator.endswith("_varlen"):
        s = inputs.Sample(*(x.flatten(0, 1) for x in (s.visual, s.text, *s.priors().values())))
        scores, options = scores.flatten(), s.priors()
    for x in (s.visual, s.text, scores):
        x.requires_grad_(requires_grad)
    cu_visual, cu_text, cu_keep = (inputs.cu_seqlens([size] * b, device) for size in (n, m, 3))
    prior, ratio = {"visual_prior": options["visual_prior"]}, {"ratio": 0.3}
    return {
        "mi_scores": ((s.visual, s.text), options),
        "greedy_select": ((scores, s.visual, 3), {**prior, "budget": budget, **ratio}),
        "prune": ((s.visual, s.text, 3), {**options, "budget": budget, **ratio}),
        "mi_scores_varlen": ((s.visual, s.text, cu_visual, cu_text, n, m), options),
        "greedy_select_varlen": ((scores, s.visual, cu_visual, cu_keep, n, 3, 3 * b), prior | ratio),
        "prune_varlen": ((s.visual, s.text, cu_visual, cu_text, cu_keep, n, m, 3, 3 * b), options | ratio),
        "histogram_mi_scores": ((s.visual, s.text), options),
    }[operator]


def outputs_of(operator, arguments, options):
    outputs = getattr(torch.ops.mi_pruner, operator)(*arguments, **options)
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


# ---- schema, fake ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.slow
def test_opcheck(operator, device):
    for requires_grad in (False, True):
        arguments, options = arguments_of(operator, device=device, requires_grad=requires_grad)
        torch.library.opcheck(getattr(torch.ops.mi_pruner, operator).default, arguments, options)


def abstract_outputs(mode, operator, dtype):
    arguments, options = arguments_of(operator, dtype)
    fake_mode = FakeTensorMode()

    def convert(x):
        if not isinstance(x, torch.Tensor):
            return x
        return fake_mode.from_tensor(x) if mode == "fake" else x.to("meta")

    arguments, options = [convert(x) for x in arguments], {name: convert(x) for name, x in options.items()}
    with fake_mode if mode == "fake" else contextlib.nullcontext():
        return outputs_of(operator, arguments, options)


@pytest.mark.parametrize("mode", ["fake", "meta"])
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_abstract_outputs_have_the_shapes_dtypes_and_strides_of_real_ones(operator, dtype, mode, device):
    real = outputs_of(operator, *arguments_of(operator, dtype, device))
    for x, r in zip(abstract_outputs(mode, operator, dtype), real, strict=True):
        assert (x.shape, x.dtype, x.stride()) == (r.shape, r.dtype, r.stride())
        assert x.device.type == ("cpu" if mode == "fake" else "meta")


def test_every_operator_is_registered_once_with_the_arguments_of_the_python_function():
    for operator in OPERATORS:
        schema = getattr(torch.ops.mi_pruner, operator).default._schema
        assert getattr(torch.ops.mi_pruner, operator).overloads() == ["default"]
        python = inspect.signature(getattr(mi_pruner, operator)).parameters.values()
        assert [a.name for a in schema.arguments] == [p.name for p in python]
        assert [a.kwarg_only for a in schema.arguments] == [p.kind == p.KEYWORD_ONLY for p in python]
        for a, p in zip(schema.arguments, python, strict=True):
            assert a.has_default_value() == (p.default is not p.empty)
            assert not a.has_default_value() or a.default_value == p.default


@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_float64_features_are_for_the_cpu_only(dtype):
    with FakeTensorMode():
        visual = torch.empty(2, 6, 4, dtype=dtype, device="cuda")
        if dtype != torch.float64:
            assert mi_pruner.mi_scores(visual, visual).device.type == "cuda"
            return
        with pytest.raises(
            TypeError, match=r"^visual: expected float16, bfloat16 or float32 \(float64 on the CPU only\)"
        ):
            mi_pruner.mi_scores(visual, visual)


# ---- autograd --------------------------------------------------------------------------------------------------------
GRAD_MODES = {
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "default": contextlib.nullcontext,
}


@pytest.mark.parametrize("mode", GRAD_MODES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_outputs_never_require_grad(operator, mode, device):
    arguments, options = arguments_of(operator, device=device, requires_grad=True)
    with GRAD_MODES[mode]():
        outputs = outputs_of(operator, arguments, options)
        grown_inside = getattr(mi_pruner, operator)(*(x * 1 if torch.is_tensor(x) else x for x in arguments), **options)
        python = getattr(mi_pruner, operator)(*arguments, **options)
    for result in (outputs, python, grown_inside):
        for x in result if isinstance(result, tuple | list) else [result]:
            assert not x.requires_grad
            assert x.grad_fn is None
    assert arguments[0].grad is None


def test_gradient_flows_through_a_gather_of_the_chosen_tokens(device):
    arguments, options = arguments_of("prune", device=device, requires_grad=True)
    _, indices, _ = mi_pruner.prune(*arguments, **options)
    visual = arguments[0]
    visual[torch.arange(2, device=device)[:, None], indices.clamp(min=0)].sum().backward()
    assert visual.grad.isfinite().all()


# ---- compile, export -------------------------------------------------------------------------------------------------
def module_inputs(b, n, m, device="cpu"):
    s = inputs.batch([inputs.make_sample("clustered", n, m, 24, seed=i, visual_prior="float") for i in range(b)])
    return [x.to(device) for x in (s.visual, s.text, s.visual_prior)]


@pytest.mark.slow
def test_compile_is_one_graph_that_serves_every_size():
    torch.compiler.reset()
    pruner = MIPruner(keep=0.3)
    compiled = torch.compile(pruner, fullgraph=True, dynamic=True)
    compiled(*module_inputs(2, 31, 5))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for sizes in ((2, 31, 5), (3, 48, 7), (5, 17, 2), (2, 100, 40)):
            batch = module_inputs(*sizes)
            for a, b in zip(compiled(*batch), pruner(*batch), strict=True):
                assert inputs.same_bits(a, b)


NAMED = [torch.export.Dim(name, min=7, max=4096) for name in ("batch", "visual", "text")]
AUTO = [torch.export.Dim.AUTO] * 3


@pytest.mark.parametrize(
    ("keep", "dims", "strict"),
    [(7, NAMED, False), (7, AUTO, False), (0.3, NAMED, False), (0.3, AUTO, False), (0.3, NAMED, True)],
)
def test_export_serves_every_size(keep, dims, strict):
    b, n, m = dims
    shapes = {"visual": {0: b, 1: n}, "text": {0: b, 1: m}, "visual_prior": {0: b, 1: n}, "text_prior": None}
    pruner = MIPruner(keep)
    # Where K may be 1, PyTorch specialises on it: from 7 tokens on, a ratio of 0.3 keeps 2.
    program = torch.export.export(pruner, (*module_inputs(7, 31, 8), None), dynamic_shapes=shapes, strict=strict)
    saved = io.BytesIO()
    torch.export.save(program, saved)
    program = torch.export.load(io.BytesIO(saved.getvalue()))
    for sizes in ((7, 31, 8), (9, 50, 12)):
        batch = module_inputs(*sizes)
        for x, y in zip(program.module()(*batch, None), pruner(*batch), strict=True):
            assert inputs.same_bits(x, y)


# ---- empty batch -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_an_empty_batch_gives_empty_outputs(dtype, device):
    visual, text = torch.zeros(0, 6, 4, dtype=dtype, device=device), torch.zeros(0, 3, 4, dtype=dtype, device=device)
    scores = mi_pruner.mi_scores(visual, text)
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    for empty in (scores, mi_pruner.histogram_mi_scores(visual, text)):
        assert (empty.shape, empty.dtype) == ((0, 6), accumulated)
    for keep, count in ((2, 2), (0.5, 3)):
        indices, gains = mi_pruner.greedy_select(scores, visual, keep)
        tokens, *_ = mi_pruner.prune(visual, text, keep)
        assert (indices.shape, indices.dtype) == ((0, count), torch.int64)
        assert (gains.shape, gains.dtype) == ((0, count), accumulated)
        assert (tokens.shape, tokens.dtype) == ((0, count, 4), dtype)


# ---- the module ------------------------------------------------------------------------------------------------------
def test_module_is_prune_with_its_options(device):
    visual, text, prior = module_inputs(2, 20, 4, device)
    options = {"marginal": "prior", "redundancy": "max", "redundancy_weight": 0.5, "visual_bandwidth": 0.4}
    pruner = MIPruner(5, bandwidth=0.3, min_gain=-1.0, **options)
    expected = mi_pruner.prune(visual, text, 5, visual_prior=prior, bandwidth=0.3, min_gain=-1.0, **options)
    for a, b in zip(pruner(visual, text, prior), expected, strict=True):
        assert inputs.same_bits(a, b)
    assert list(pruner.parameters()) == []
    assert list(pruner.state_dict()) == []


def test_module_shows_its_configuration():
    assert repr(MIPruner(0.25)) == (
        "MIPruner(keep=0.25, bandwidth=None, marginal='joint', visual_bandwidth=0.63, redundancy='mean', "
        "redundancy_weight=1.0, min_gain=None)"
    )


def test_paper_preset_is_the_literal_reading():
    paper = MIPruner.paper(64)
    assert (paper.keep, paper.marginal, paper.redundancy) == (64, "prior", "chain")
    assert (paper.redundancy_weight, paper.bandwidth, paper.visual_bandwidth) == (1.0, None, 0.63)
    assert math.isclose(MIPruner.paper().keep, 0.25)
