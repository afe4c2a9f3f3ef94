"""On a GPU: the prefill of a random-weight decoder stack of each model's size, all tokens against the kept ones.

Weights don't change the time of dense products, so random ones do. The stack is that of Llama and Qwen: RMS norm,
grouped-query attention with a causal mask (`scaled_dot_product_attention`), SwiGLU; rotary embedding, cache and
sampling are left out.
"""

import argparse
import sys
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional

import mi_pruner
from bench import cases, record
from bench.measure import Call, timing

from .language_models import MODELS, PROMPT, LanguageModel

FILE = "prefill.csv"
BUDGET = 5.0  # seconds a model


@dataclass(frozen=True)
class Prefill(record.Run):
    """Medians in ms of one model: prefill of all tokens, of the kept ones, and the selection (default backend)."""

    model: str
    case: str
    tokens: int
    keep: int
    prompt: int
    dtype: str
    dense_ms: float
    pruned_ms: float
    selection_ms: float


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench prefill`."""
    record.add_out(parser)


def main(options: argparse.Namespace) -> int:
    """Measures every model; the exit status."""
    if not torch.cuda.is_available():
        instead = "plot uses the cost model of bench/speed/language_models.py"
        print(f"prefill: expected a GPU, found none ({instead})", file=sys.stderr)
        return 2
    run = record.this_run("cuda")
    print(f"{'':16}{'tokens':>14}{'dense ms':>12}{'pruned ms':>12}{'selection ms':>14}")
    for name, model in MODELS.items():
        case = cases.CASES[name]
        figures = measure(model, case, "cuda", torch.bfloat16, BUDGET)
        kept = Prefill(**asdict(run), model=model.name, case=name, tokens=case.tokens, keep=case.keep, **figures)
        record.append(options.out / FILE, Prefill, [kept])
        counts = f"{case.tokens} to {case.keep}"
        print(f"{model.name:16}{counts:>14}{kept.dense_ms:12.2f}{kept.pruned_ms:12.2f}{kept.selection_ms:14.3f}")
    return 0


def measure(model: LanguageModel, case: cases.Case, device: str, dtype: torch.dtype, budget: float) -> dict:
    """The fields of a `Prefill` from `prompt` on."""
    stack = Decoder(model, device, dtype)
    given = cases.inputs(case, device=device)[0]
    visual, text = given.visual.to(dtype), given.text.to(dtype)
    calls: dict[str, Call] = {
        "dense": lambda: stack(stack.embeddings(case.tokens + PROMPT)),
        "pruned": lambda: stack(stack.embeddings(case.keep + PROMPT)),
        "selection": lambda: mi_pruner.prune(visual, text, case.keep),
    }
    with torch.no_grad():
        timings = timing.measure(calls, device, budget)
    medians = {f"{name}_ms": record.rounded(figures.p50) for name, figures in timings.items()}
    return {"prompt": PROMPT, "dtype": str(dtype).removeprefix("torch."), **medians}


class Decoder:
    """A decoder stack with random weights."""

    def __init__(self, model: LanguageModel, device: str, dtype: torch.dtype) -> None:
        self.model = model
        inner, outer = model.heads * model.head_dim, (model.heads + 2 * model.kv_heads) * model.head_dim
        sizes = {"qkv": (outer, model.width), "out": (model.width, inner)}
        sizes |= {"gate_up": (2 * model.ffn, model.width), "down": (model.width, model.ffn)}

        def weight(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, device=device, dtype=dtype).mul_(columns**-0.5)

        self.layers = [{name: weight(*size) for name, size in sizes.items()} for _ in range(model.layers)]
        self.head = weight(model.vocabulary, model.width)

    def embeddings(self, length: int) -> Tensor:
        """(1, length, width), of no meaning."""
        return torch.ones(1, length, self.model.width, device=self.head.device, dtype=self.head.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """(1, L, width) -> logits of the last token (1, vocabulary)."""
        for layer in self.layers:
            x = x + self._attention(self._norm(x), layer)
            gate, up = functional.linear(self._norm(x), layer["gate_up"]).chunk(2, dim=-1)
            x = x + functional.linear(functional.silu(gate) * up, layer["down"])
        return functional.linear(self._norm(x[:, -1]), self.head)

    def _norm(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (self.model.width,))

    def _attention(self, x: Tensor, layer: dict[str, Tensor]) -> Tensor:
        m = self.model
        split = [m.heads * m.head_dim, m.kv_heads * m.head_dim, m.kv_heads * m.head_dim]
        q, k, v = (
            part.unflatten(2, (-1, m.head_dim)).transpose(1, 2)
            for part in functional.linear(x, layer["qkv"]).split(split, dim=-1)
        )
        grouped = m.heads != m.kv_heads
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return functional.linear(mixed.transpose(1, 2).flatten(2), layer["out"])
