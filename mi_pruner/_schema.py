"""The operators: one schema and one fake (meta) implementation each.

The same schema strings define the public operators (`torch.ops.mi_pruner.*`) and the private twins that a compiled
backend implements (`torch.ops.mi_pruner_cpu.*`), so a schema stands once in the tree. A twin that its backend lacks
(`_dispatch.Backend.lacks`) is a schema without an implementation.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from . import _checks

_SCORE_OPTIONS = "Tensor? visual_prior=None, Tensor? text_prior=None, float? bandwidth=None, str marginal='joint'"
_REDUNDANCY_OPTIONS = "float visual_bandwidth=0.63, str redundancy='mean', float redundancy_weight=1.0"
_PACKED_STOP = "float? min_gain=None, float? ratio=None"  # a packed sample's budget is its share of cu_keep
_DENSE_STOP = f"Tensor? budget=None, {_PACKED_STOP}"
_PICKS = "(Tensor indices, Tensor gains)"
_TOKENS = "(Tensor tokens, Tensor indices, Tensor gains)"

SCHEMAS = {
    "mi_scores": f"(Tensor visual, Tensor text, *, {_SCORE_OPTIONS}) -> Tensor",
    "greedy_select": (
        "(Tensor scores, Tensor visual, SymInt keep, *, Tensor? visual_prior=None, "
        f"{_REDUNDANCY_OPTIONS}, {_DENSE_STOP}) -> {_PICKS}"
    ),
    "prune": (
        f"(Tensor visual, Tensor text, SymInt keep, *, {_SCORE_OPTIONS}, {_REDUNDANCY_OPTIONS}, {_DENSE_STOP})"
        f" -> {_TOKENS}"
    ),
    "mi_scores_varlen": (
        "(Tensor visual, Tensor text, Tensor cu_seqlens_visual, Tensor cu_seqlens_text, SymInt max_seqlen_visual, "
        f"SymInt max_seqlen_text, *, {_SCORE_OPTIONS}) -> Tensor"
    ),
    "greedy_select_varlen": (
        "(Tensor scores, Tensor visual, Tensor cu_seqlens_visual, Tensor cu_keep, SymInt max_seqlen_visual, "
        "SymInt max_keep, SymInt total_keep, *, Tensor? visual_prior=None, "
        f"{_REDUNDANCY_OPTIONS}, {_PACKED_STOP}) -> {_PICKS}"
    ),
    "prune_varlen": (
        "(Tensor visual, Tensor text, Tensor cu_seqlens_visual, Tensor cu_seqlens_text, Tensor cu_keep, "
        "SymInt max_seqlen_visual, SymInt max_seqlen_text, SymInt max_keep, SymInt total_keep, *, "
        f"{_SCORE_OPTIONS}, {_REDUNDANCY_OPTIONS}, {_PACKED_STOP}) -> {_TOKENS}"
    ),
    "histogram_mi_scores": (
        "(Tensor visual, Tensor text, *, Tensor? visual_prior=None, Tensor? text_prior=None, int bins=16) -> Tensor"
    ),
}


def with_bytes(schema: str) -> str:
    """The schema with a list of bytes, without a default, in place of each string: as the library calls Python."""
    return re.sub(r"str (\w+)='\w+'", r"int[] \1", schema)


def define(namespace: str, form: Callable[[str], str] = str) -> torch.library.Library:
    """Defines every operator in `namespace`, with the schemas in another form if need be; returns the library for their
    implementations.

    A package that was imported before, and deleted from `sys.modules` since, has defined them: what it handed out still
    refers to these definitions, so that they stay, and its implementations make room for the new ones.

    Raises:
        RuntimeError: if it was another version of the package, with other schemas.
    """
    schemas = {name: form(schema) for name, schema in SCHEMAS.items()}
    home = vars(getattr(torch.ops, namespace))  # outlives the package, and keeps the libraries alive
    if "_definitions" not in home:
        home["_definitions"], home["_schemas"] = torch.library.Library(namespace, "DEF"), schemas
        for name, schema in schemas.items():
            home["_definitions"].define(name + schema)
    elif home["_schemas"] != schemas:
        raise RuntimeError("mi_pruner: this process has imported another version of it: restart Python")
    else:
        home["_implementations"]._destroy()
    home["_implementations"] = torch.library.Library(namespace, "IMPL")
    return home["_implementations"]


def _scores_like(visual: Tensor) -> Tensor:
    return visual.new_empty(visual.shape[:-1], dtype=_checks.accumulation_dtype(visual.dtype))


def _picks_like(visual: Tensor, *shape: int) -> tuple[Tensor, Tensor]:
    gains = visual.new_empty(shape, dtype=_checks.accumulation_dtype(visual.dtype))
    return visual.new_empty(shape, dtype=torch.int64), gains


def _tokens_like(visual: Tensor, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    return visual.new_empty((*shape, visual.shape[-1])), *_picks_like(visual, *shape)


# Empty outputs of a call, from all of its arguments by name.
_OUTPUTS: dict[str, Callable] = {
    "mi_scores": lambda call: _scores_like(call.visual),
    "greedy_select": lambda call: _picks_like(call.visual, call.visual.shape[0], call.keep),
    "prune": lambda call: _tokens_like(call.visual, call.visual.shape[0], call.keep),
    "mi_scores_varlen": lambda call: _scores_like(call.visual),
    "greedy_select_varlen": lambda call: _picks_like(call.visual, call.total_keep),
    "prune_varlen": lambda call: _tokens_like(call.visual, call.total_keep),
    "histogram_mi_scores": lambda call: _scores_like(call.visual),
}


class Signature:
    """An operator's arguments: the names of those that it takes by position, and the defaults of the others."""

    def __init__(self, operator: str) -> None:
        arguments = torch._C.parse_schema(operator + SCHEMAS[operator]).arguments
        self.positional = [argument.name for argument in arguments if not argument.kwarg_only]
        self.defaults = {argument.name: argument.default_value for argument in arguments if argument.kwarg_only}
        self._check = getattr(_checks, f"check_{operator}")

    def bind(self, *arguments: object, **options: object) -> _checks.Arguments:
        """All arguments of a call by their names, checked: the dispatcher leaves out those at their default."""
        call = _checks.Arguments()
        vars(call).update(self.defaults)  # in place: attributes of a namespace made from keywords are slower to read
        vars(call).update(zip(self.positional, arguments, strict=True))
        vars(call).update(options)
        self._check(call)
        return call


def fake(operator: str) -> Callable:
    """The operator on tensors without data: the checks, and empty outputs."""
    bind, outputs = Signature(operator).bind, _OUTPUTS[operator]
    return lambda *arguments, **options: outputs(bind(*arguments, **options))
