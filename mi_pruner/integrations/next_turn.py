"""The next turn of a conversation whose image was pruned in the first: kept tokens and cache are used again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .model_inputs import PrunedInputs, cache_name, check_next_ids
from .supported_model import unwrapped


def next_turn(
    model: Any, pruned: PrunedInputs, generated: Any, input_ids: Tensor, attention_mask: Tensor | None = None
) -> PrunedInputs:
    """Inputs for the next `model.generate(...)`: all tokens so far, their positions, and the cache that holds them.

    For `generate()` alone, and without beams: it leaves out what the cache holds. A plain call of the model would read
    that twice; a decoding loop of one's own goes on with `PrunedInputs.following`.

    Args:
        model: the model that answered, as `prune_inputs` takes it.
        pruned: the inputs of the turn before, from `prune_inputs` or from here.
        generated: what `model.generate(**pruned, return_dict_in_generate=True)` returned, one answer for each sample
            (no beam search: its cache holds all beams).
        input_ids: (B, T) int64, the tokens that follow the answers: the next question and what opens its answer.
        attention_mask: (B, T), where the questions are of different lengths (left-padded).

    Raises:
        ValueError: if `generated` has no sequences and cache, is of beam search or of another number of samples, or its
            cache has been used since; if `input_ids` are not for as many. TypeError: if they are no tensor, or `pruned`
            is of another type.
    """
    if not isinstance(pruned, PrunedInputs):
        raise TypeError(
            f"pruned: expected the PrunedInputs of prune_inputs or of the turn before, got {type(pruned).__name__}"
        )
    cache = cache_name(generated)
    if cache is None or getattr(generated, "sequences", None) is None:
        raise ValueError(
            "generated: expected sequences and a cache, got none: call generate(..., return_dict_in_generate=True)"
        )
    samples = len(pruned["input_ids"])
    if hasattr(generated, "beam_indices") or len(generated.sequences) != samples:
        raise ValueError(
            f"generated: expected one answer for each of the {samples} samples, got "
            f"{len(generated.sequences)} of a {type(generated).__name__}: generate without num_beams and "
            "num_return_sequences"
        )
    held, length = getattr(generated, cache).get_seq_length(), generated.sequences.shape[1]
    if held >= length:
        raise ValueError(
            f"generated: expected the cache of these {length} tokens, without the last, got one that has gone on since "
            f"({held} tokens): copy.deepcopy() it before two turns go on from it"
        )
    check_next_ids(input_ids, samples)
    answers = generated.sequences[:, pruned["input_ids"].shape[1] :]
    asked = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    attended = torch.cat([_before_end(unwrapped(model), answers), asked.to(answers)], dim=1)
    positions = pruned["position_ids"]
    following = positions[..., -1:] + attended.cumsum(1)
    values: dict[str, Any] = {
        "input_ids": torch.cat([generated.sequences, input_ids.to(answers)], dim=1),
        "attention_mask": torch.cat([pruned["attention_mask"], attended], dim=1),
        "position_ids": torch.cat([positions, following], dim=-1),
        "use_cache": True,
        cache: getattr(generated, cache),
    }
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in pruned:
            values[name] = torch.nn.functional.pad(pruned[name], (0, attended.shape[1]))
    return PrunedInputs(values, pruned.images)


def _before_end(model: Any, answers: Tensor) -> Tensor:
    """(B, S) int64, 1 up to the first end-of-sequence token of each answer, 0 on the padding after it."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        return torch.ones_like(answers)
    ended = torch.isin(answers, torch.as_tensor(ends, device=answers.device)).long()
    return (ended.cumsum(1) - ended == 0).long()
