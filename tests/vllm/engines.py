"""An engine of vLLM in this process, what to ask it, and transformers with `prune_inputs` as the truth."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from vllm_checkpoints import LLAVA, MARKS

from mi_pruner import MIPruner
from mi_pruner.integrations.transformers import prune_inputs

QUESTIONS = ("what is the woman wearing?", "where is the rocket?", "describe the picture of a cup")
LONG = "a cup of coffee on the table " * 4
NEW_TOKENS = 8
KEEP = 0.25


@dataclass
class Case:
    """A prompt with images. `before` and `after` stand around the words that an image is scored against."""

    before: str
    said: str
    after: str = " assistant: "
    images: list[Image.Image] = field(default_factory=list)

    @property
    def prompt(self) -> str:
        return f"{self.before}{self.said}{self.after}"


def picture(seed: int, width: int, height: int) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 255, (height // 14, width // 14, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


def mark(family: str) -> str:
    return MARKS[family in LLAVA]["IMAGE"]


def cases(family: str) -> list[Case]:
    """None to three images of several shapes, with text between them and without, behind little text and much."""
    sizes = [(84, 84)] * 3 if family == "llava" else [(112, 84), (84, 168), (140, 112)]
    pictures = [picture(seed, *size) for seed, size in enumerate(sizes)]
    image = mark(family)

    def asked(numbers: list[int], question: int, before: str = "", between: str = "and ") -> Case:
        said = between.join([image] * len(numbers)) + QUESTIONS[question]
        return Case(f"<s>{before}user: ", said, images=[pictures[n] for n in numbers])

    return [
        asked([0], 0),
        asked([1, 2], 1, between=""),
        asked([0, 1, 2], 2),
        asked([0], 1),
        asked([2, 1, 0], 0, LONG),
        asked([], 0),
        asked([1], 2, LONG),
    ]


@dataclass
class Answer:
    """Prompt ids, generated ids, and log-probabilities of the whole vocabulary at each step."""

    prompt: list[int]
    tokens: list[int]
    scores: list[torch.Tensor]


class Reference:
    """transformers, with `prune_inputs`."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        import transformers

        self.processor = transformers.AutoProcessor.from_pretrained(folder)
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()

    @torch.no_grad()
    def __call__(self, case: Case, keep: float = KEEP, text: str = "image", tokens: int = NEW_TOKENS) -> Answer:
        inputs = self.processor(text=[case.prompt], images=case.images or None, return_tensors="pt")
        if case.images and keep < 1:
            how: dict[str, Any] = {"text": "image"} if text == "image" else {"text_mask": self._said(case, inputs)}
            inputs = prune_inputs(self.model, inputs, MIPruner(keep=keep), **how)
        made = self.model.generate(
            **inputs,
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
        )
        ids = inputs["input_ids"][0].tolist()
        return Answer(ids, made.sequences[0, len(ids) :].tolist(), [step[0].log_softmax(-1) for step in made.scores])

    def _said(self, case: Case, inputs: Any) -> torch.Tensor:
        """(1, L) bool: the words, which are known here, not looked for."""
        words = self.processor.tokenizer
        before, said = (words(part, add_special_tokens=False)["input_ids"] for part in (case.before, case.said))
        ids = inputs["input_ids"]
        grown = ids.shape[1] - len(words(case.prompt, add_special_tokens=False)["input_ids"])
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        mask[0, len(before) : len(before) + len(said) + grown] = True
        special = [index for index, token in words.added_tokens_decoder.items() if token.special]
        return mask & ~torch.isin(ids, torch.tensor(special))


@contextlib.contextmanager
def running(folder: Path, option: Any = None, **options: Any) -> Iterator[Any]:
    """A proxy of an engine. The last reference to one has to go before the next is built, whose process groups its end
    would take away.
    """
    from vllm import LLM
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    given = {
        "model": str(folder),
        "dtype": "float32",
        "enforce_eager": True,
        "seed": 0,
        "max_model_len": 512,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 512,
        "block_size": 32,
        "gpu_memory_utilization": 0.1,
        "kv_cache_memory_bytes": 1 << 26,
        "max_logprobs": 20,
        "limit_mm_per_prompt": {"image": 3} if is_llava(folder) else {"image": 3, "video": 1},
        "hf_overrides": {"mi_pruner": {"keep": KEEP} if option is None else option} if option != {} else {},
    }
    held = [LLM(**{**given, **options})]
    try:
        yield weakref.proxy(held[0])
    finally:
        held.clear()
        gc.collect()
        cleanup_dist_env_and_memory()


def runner_of(llm: Any) -> Any:
    return llm.llm_engine.model_executor.driver_worker.worker.model_runner


def model_of(llm: Any) -> Any:
    return runner_of(llm).model


@contextlib.contextmanager
def changed_features(llm: Any, change: Callable[[list[torch.Tensor]], list[torch.Tensor]]) -> Iterator[None]:
    """What vLLM's own model class makes of images goes through `change` first."""
    parent = type(model_of(llm)).__mro__[2]
    encode = parent.embed_multimodal
    parent.embed_multimodal = lambda self, **kwargs: change(encode(self, **kwargs))
    try:
        yield
    finally:
        parent.embed_multimodal = encode


def is_llava(folder: Path) -> bool:
    return folder.name in LLAVA


def request(case: Case, **option: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"prompt": case.prompt}
    if case.images:
        made["multi_modal_data"] = {"image": list(case.images)}
    if option:
        made["mm_processor_kwargs"] = {"mi_pruner": option}
    return made


def generate(llm: Any, requests: list[dict[str, Any]], tokens: int = NEW_TOKENS) -> list[Any]:
    from vllm import SamplingParams

    how = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, logprobs=5)
    return llm.generate(requests, how, use_tqdm=False)


def check(outputs: list[Any], wanted: list[Answer]) -> None:
    """The same prompt, the same tokens, and the same largest log-probabilities."""
    for output, want in zip(outputs, wanted, strict=True):
        assert list(output.prompt_token_ids) == want.prompt
        assert list(output.outputs[0].token_ids) == want.tokens
        for told, score in zip(output.outputs[0].logprobs, want.scores, strict=True):
            assert max(abs(each.logprob - float(score[token])) for token, each in told.items()) < 2e-3


def cached_tokens(llm: Any, case: Case, **option: Any) -> int:
    return generate(llm, [request(case, **option)])[0].num_cached_tokens


def metrics(llm: Any) -> dict[str, float]:
    return {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}


@cache
def reference(folder: Path) -> Reference:
    return Reference(folder)
